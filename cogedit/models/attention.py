"""Attention injection: edit rows also attend to the keys and values of a reference row.

In every layer of the window, an edit row with queries q attends to its own keys and values and to
those of its reference row at the same noise level:

    softmax([q k^T, q k_ref^T + ln w]) [v; v_ref]

over text and image tokens alike, each row's rotary embedding applied with its own positions. w = 1
concatenates the two, as the CogVideo repository's `inference/ddim_inversion.py` does; w = 0 leaves
the reference out; w > 1 looks at the reference more than at the row itself. Reference rows attend
to themselves.

The reference's text speaks for the source, against the edit's prompt. Leaving it out ("image") does
more than silence it: the image then has two shares of the attention and the text one, and even the
source's own prompt no longer gives the source back. "own-text" puts the edit's text in its place,

    softmax([q k_text^T, q k_image^T, q k_text^T + ln w, q k_ref,image^T + ln w])

so that text and image keep their balance at every w: where edit and reference are the same, what
comes out is the reference's own attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from cogedit.errors import UsageError
from cogedit.models.kernels import attention, attention_with_lse
from cogedit.types import AttentionBackend, InjectionMode, InjectionTokens


class Heads(NamedTuple):
    """Queries, keys and values of some rows, each [rows, heads, tokens, head_dim], text first."""

    q: Tensor
    k: Tensor
    v: Tensor


class AttentionModule(Protocol):
    """The part of `diffusers.models.attention_processor.Attention` that a processor uses."""

    heads: int
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList
    norm_q: nn.Module | None
    norm_k: nn.Module | None
    processor: object


@dataclass
class Injection:
    """Which rows look at which, and how, at the next call of one transformer; the caller sets it.

    Attributes:
        reference_of: For each edit row of the batch, the row it looks at. Edit rows come first in
            the batch; empty means that no row looks at another.
        strength: w, at least 0; at most 1 with "queries-keys".
        mode: "concatenate" as above; "queries-keys" replaces the edit's attention map by the
            reference's, weighted by w, and keeps the edit's values.
        tokens: Which tokens are seen beside the row's own ("concatenate"): the reference's text and
            image ("all"), its image, or its image and the row's own text once more ("own-text").
        reference_velocity: Whether the caller wants to know what the reference rows predict.
    """

    reference_of: tuple[int, ...] = ()
    strength: float = 1.0
    mode: InjectionMode = "concatenate"
    tokens: InjectionTokens = "all"
    reference_velocity: bool = True

    def references(self, num_rows: int) -> tuple[int, ...]:
        """Return `reference_of` for a batch of `num_rows`."""
        if self.reference_of and max(self.reference_of) >= num_rows:
            raise ValueError(f"reference row {max(self.reference_of)} of a batch of {num_rows}")
        return self.reference_of


class SecondHalfInjection(Injection):
    """The upstream script's layout: row i of the first half looks at row i of the second."""

    def references(self, num_rows: int) -> tuple[int, ...]:
        """Return the rows of the second half."""
        if num_rows % 2:
            raise ValueError(f"a batch of {num_rows} rows has no second half")
        return tuple(range(num_rows // 2, num_rows))


class InjectingAttnProcessor:
    """Attention processor of one CogVideoX block that looks at reference rows.

    Without reference rows it computes what `CogVideoXAttnProcessor2_0` does.

    Args:
        injection: Shared by the processors of all blocks of the window.
    """

    def __init__(self, injection: Injection) -> None:
        self.injection = injection

    def __call__(
        self,
        attn: AttentionModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            attn: The block's attention module.
            hidden_states: Image tokens, [rows, S, D].
            encoder_hidden_states: Text tokens, [rows, L, D].
            attention_mask: Not supported; CogVideoX uses none.
            image_rotary_emb: (cos, sin), each [S, head_dim], for the image tokens.

        Returns:
            Image tokens [rows, S, D] and text tokens [rows, L, D].
        """
        if attention_mask is not None:
            raise ValueError("CogVideoX attends to all tokens; an attention mask is not supported")
        text_length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        rows = project(attn, tokens, text_length, image_rotary_emb)
        attended = self._attend(rows, text_length).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended))
        return projected[:, text_length:], projected[:, :text_length]

    def _attend(self, rows: Heads, text_length: int) -> Tensor:
        targets = self.injection.references(rows.q.shape[0])
        if not targets or self.injection.strength == 0:
            return attention(*rows)
        own, rest = (Heads(*(x[part] for x in rows)) for part in _halves(len(targets)))
        edits = attend_rows(own, rows, targets, injection=self.injection, text_length=text_length)
        return torch.cat([edits, attention(*rest)])


def _halves(count: int) -> tuple[slice, slice]:
    return slice(count), slice(count, None)


class KeyValues:
    """Keys and values that some rows look at, their references' last, in one memory.

    The memory is allocated once for all layers and steps, and what the rows of the next chunk see
    of the same references is left where it is.
    """

    def __init__(self) -> None:
        self._k = self._v = torch.empty(0)
        self._holds: tuple[Heads | None, tuple[int, ...]] = (None, ())

    def join(
        self,
        own: Heads,
        references: Heads,
        targets: Sequence[int],
        *,
        with_own: bool = True,
        first: int = 0,
        again: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Put keys and values together.

        Args:
            own: Of the rows.
            references: Of the references.
            targets: For each row, the reference that it sees.
            with_own: Whether the rows' own come first.
            first: First of the reference's tokens that is seen.
            again: How many of the rows' own first tokens are seen once more.

        Returns:
            Both, [rows, heads, own and seen tokens, head_dim]; good until the next call.
        """
        rows, heads, num_tokens, head_dim = own.k.shape
        count = num_tokens if with_own else 0
        theirs_from = count + again
        shape = rows, theirs_from + references.k.shape[2] - first, heads, head_dim
        if (self._k.shape, self._k.dtype, self._k.device) != (shape, own.k.dtype, own.k.device):
            self._k, self._v = (own.k.new_empty(shape) for _ in range(2))
            self._holds = None, ()
        both = self._k.transpose(1, 2), self._v.transpose(1, 2)
        for joined, mine in zip(both, (own.k, own.v), strict=True):
            joined[:, :, :count] = mine[:, :, :count]
            joined[:, :, count:theirs_from] = mine[:, :, :again]
        held, held_targets = self._holds
        if held is not references or held_targets != tuple(targets):
            for joined, theirs in zip(both, (references.k, references.v), strict=True):
                for row, target in enumerate(targets):
                    joined[row, :, theirs_from:] = theirs[target, :, first:]
            self._holds = references, tuple(targets)
        return both

    def forget(self) -> None:
        """Let go of the references' own tensors at the end of a layer."""
        self._holds = None, ()


def attend_rows(
    own: Heads,
    references: Heads,
    targets: Sequence[int],
    *,
    injection: Injection,
    text_length: int,
    backend: AttentionBackend = "native",
    memory: KeyValues | None = None,
) -> Tensor:
    """Let rows attend to themselves and each to a reference, as an injection says.

    Args:
        own: Of the rows.
        references: Of the references. Where the mode has no use for them, queries or values may
            be any tensor.
        targets: For each row, the reference that it looks at.
        injection: Mode, tokens, and a strength above 0.
        text_length: Number of text tokens.
        backend: Kernel of the attention; a strength other than 1 needs log-sum-exps, which come
            from a kernel of torch whatever this says.
        memory: Where keys and values are put together; None allocates.

    Returns:
        Attention output, like `own.q`.
    """
    strength = injection.strength
    if injection.mode == "queries-keys":
        theirs = gather(references.q, targets), gather(references.k, targets)
        return attend_where_reference_does(
            own.q, (own.k, own.v), theirs, strength=strength, backend=backend
        )
    first = 0 if injection.tokens == "all" else text_length
    again = text_length if injection.tokens == "own-text" else 0
    is_weighted = strength != 1
    k, v = (memory or KeyValues()).join(
        own, references, targets, with_own=not is_weighted, first=first, again=again
    )
    if is_weighted:
        return attend_with_reference(own.q, (own.k, own.v), (k, v), strength=strength)
    return attention(own.q, k, v, backend=backend)


def gather(rows: Tensor, targets: Sequence[int]) -> Tensor:
    """Return the rows with these numbers; without a copy where they are one and the same."""
    if len(set(targets)) == 1:
        return rows[targets[0] : targets[0] + 1].expand(len(targets), *rows.shape[1:])
    return rows[list(targets)]


def attend_with_reference(
    q: Tensor, own: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], *, strength: float
) -> Tensor:
    """Attend to one's own keys and values and to a reference's, the latter weighted by w.

    The two attentions are computed apart and merged by their log-sum-exps, which
    equals a softmax over both with ln w added to the reference's logits and needs no mask tensor:

        o = (e^L o_own + w e^L_ref o_ref) / (e^L + w e^L_ref)

    Args:
        q: Queries, [rows, heads, tokens, head_dim].
        own: Keys and values of the same rows, each like `q`.
        reference: Keys and values of the reference rows, each like `q`.
        strength: w above 0.

    Returns:
        Attention output, like `q`.
    """
    out, lse = attention_with_lse(q, *own)
    out_ref, lse_ref = attention_with_lse(q, *reference)
    share = torch.sigmoid(lse_ref + math.log(strength) - lse).unsqueeze(-1)
    return torch.lerp(out.float(), out_ref.float(), share).to(q.dtype)


def attend_where_reference_does(
    q: Tensor,
    own: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    *,
    strength: float,
    backend: AttentionBackend = "native",
) -> Tensor:
    """Attend to one's own values with the attention map of a reference.

    MasaCtrl (arXiv 2304.08465) turned round: layout from the source, content from the edit.

        o = (1 - w) softmax(q k^T) v + w softmax(q_ref k_ref^T) v

    Args:
        q: Queries, [rows, heads, tokens, head_dim].
        own: Keys and values of the same rows, each like `q`.
        reference: Queries and keys of the reference rows, each like `q`.
        strength: w in (0, 1].
        backend: Kernel of the attention.

    Returns:
        Attention output, like `q`.
    """
    guided = attention(*reference, own[1], backend=backend)
    if strength == 1:
        return guided
    return torch.lerp(attention(q, *own, backend=backend), guided, strength)


def project(
    attn: AttentionModule,
    tokens: Tensor,
    text_length: int,
    image_rotary_emb: tuple[Tensor, Tensor] | None,
) -> Heads:
    """Make queries, keys and values of tokens [rows, tokens, D], the text's first."""
    return Heads(
        _heads(attn, attn.to_q, tokens, attn.norm_q, text_length, image_rotary_emb),
        _heads(attn, attn.to_k, tokens, attn.norm_k, text_length, image_rotary_emb),
        _heads(attn, attn.to_v, tokens, None, text_length, None),
    )


def project_reference(
    attn: AttentionModule,
    tokens: Tensor,
    text_length: int,
    image_rotary_emb: tuple[Tensor, Tensor] | None,
    *,
    mode: InjectionMode,
) -> Heads:
    """Make the two that an injection needs of a reference; the third is one of them again."""
    k = _heads(attn, attn.to_k, tokens, attn.norm_k, text_length, image_rotary_emb)
    if mode == "queries-keys":
        q = _heads(attn, attn.to_q, tokens, attn.norm_q, text_length, image_rotary_emb)
        return Heads(q, k, k)
    return Heads(k, k, _heads(attn, attn.to_v, tokens, None, text_length, None))


def _heads(
    attn: AttentionModule,
    linear: nn.Module,
    tokens: Tensor,
    norm: nn.Module | None,
    text_length: int,
    image_rotary_emb: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Project tokens to [rows, heads, tokens, head_dim], a view of [rows, tokens, D]."""
    x: Tensor = linear(tokens)
    x = x.view(x.shape[0], x.shape[1], attn.heads, -1).transpose(1, 2)
    if norm is not None:
        x = norm(x)
    if image_rotary_emb is not None:
        from diffusers.models.embeddings import apply_rotary_emb

        image = x[:, :, text_length:]
        image.copy_(cast(Tensor, apply_rotary_emb(image, image_rotary_emb)))  # x is ours alone
    return x


@contextmanager
def inject(
    transformer: nn.Module,
    injection: Injection,
    *,
    layers: tuple[int, int | None] = (0, None),
) -> Iterator[Injection]:
    """Install injecting processors for the duration of a `with` body.

    The original processors come back in every case: also when the body raises or is interrupted.

    Args:
        transformer: A `CogVideoXTransformer3DModel`.
        injection: What the processors do; change it between calls.
        layers: First layer of the window and the one after its last; None is the end.

    Yields:
        `injection`.

    Raises:
        UsageError: Injection is already installed, the projections are fused (the fused processor
            would be lost), or the window holds no layer of this model.
    """
    blocks = list(cast(nn.ModuleList, transformer.transformer_blocks))
    first, end = check_layers(layers, len(blocks))
    attentions = [cast(AttentionModule, block.attn1) for block in blocks]
    originals = [attention.processor for attention in attentions]
    names = {type(processor).__name__ for processor in originals}
    if any(isinstance(processor, InjectingAttnProcessor) for processor in originals):
        raise UsageError("Injection is already installed on this transformer; it does not nest")
    if any("Fused" in name for name in names):
        raise UsageError(
            "Injection needs separate projections; this transformer's are fused",
            hint="call `transformer.unfuse_qkv_projections()` first",
        )
    try:
        for attention in attentions[first:end]:
            attention.processor = InjectingAttnProcessor(injection)
        yield injection
    finally:
        for attention, processor in zip(attentions, originals, strict=True):
            attention.processor = processor


def check_layers(layers: tuple[int, int | None], num_layers: int) -> tuple[int, int]:
    """Return the first layer of a window and the one after its last.

    Raises:
        UsageError: It holds no layer of the model, or more than the model has.
    """
    first, end = layers[0], num_layers if layers[1] is None else layers[1]
    if not 0 <= first < end <= num_layers:
        raise UsageError(
            f"injection_layers is {first}:{end}; this model has layers 0:{num_layers}",
            hint=f"choose a window within 0:{num_layers}",
        )
    return first, end
