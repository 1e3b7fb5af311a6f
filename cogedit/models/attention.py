"""Attention injection: edit rows also attend to the keys and values of a reference row.

In every layer of the window, an edit row with queries q attends to its own keys and values and to
those of its reference row at the same noise level:

    softmax([q k^T, q k_ref^T + ln w]) [v; v_ref]

over text and image tokens alike, each row's rotary embedding applied with its own positions. w = 1
concatenates the two, as the CogVideo repository's `inference/ddim_inversion.py` does; w = 0 leaves
the reference out. Reference rows attend to themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cogedit.errors import UsageError
from cogedit.types import InjectionMode, InjectionTokens


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
    """What the processors of one transformer do at the next call; the caller sets it.

    Attributes:
        reference_of: For each edit row of the batch, the row it looks at. Edit rows come first in
            the batch; empty means that no row looks at another.
        strength: w in [0, 1].
        mode: "concatenate" as above; "queries-keys" replaces the edit's attention map by the
            reference's, weighted by w, and keeps the edit's values.
        tokens: Whether the reference's text tokens are seen too, or its image tokens only
            ("concatenate").
    """

    reference_of: tuple[int, ...] = ()
    strength: float = 1.0
    mode: InjectionMode = "concatenate"
    tokens: InjectionTokens = "all"

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
        q, k, v = _project(attn, tokens, text_length, image_rotary_emb)
        attended = self._attend(q, k, v, text_length).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended))
        return projected[:, text_length:], projected[:, :text_length]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, text_length: int) -> Tensor:
        """Attend with [rows, heads, tokens, head_dim] tensors, text tokens first."""
        references = self.injection.references(q.shape[0])
        num_edits = len(references)
        if num_edits == 0 or self.injection.strength == 0:
            return functional.scaled_dot_product_attention(q, k, v)
        index = torch.tensor(references, device=q.device)
        own = k[:num_edits], v[:num_edits]
        if self.injection.mode == "queries-keys":
            edits = attend_where_reference_does(
                q[:num_edits],
                own,
                (q.index_select(0, index), k.index_select(0, index)),
                strength=self.injection.strength,
            )
        else:
            first = text_length if self.injection.tokens == "image" else 0
            edits = attend_with_reference(
                q[:num_edits],
                own,
                (k[:, :, first:].index_select(0, index), v[:, :, first:].index_select(0, index)),
                strength=self.injection.strength,
            )
        rest = functional.scaled_dot_product_attention(q[num_edits:], k[num_edits:], v[num_edits:])
        return torch.cat([edits, rest])


def attend_with_reference(
    q: Tensor, own: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], *, strength: float
) -> Tensor:
    """Attend to one's own keys and values and to a reference's, the latter weighted by w.

    Between 0 and 1 the two attentions are computed apart and merged by their log-sum-exps, which
    equals a softmax over both with ln w added to the reference's logits and needs no mask tensor:

        o = (e^L o_own + w e^L_ref o_ref) / (e^L + w e^L_ref)

    Args:
        q: Queries, [rows, heads, tokens, head_dim].
        own: Keys and values of the same rows, each like `q`.
        reference: Keys and values of the reference rows, each like `q`.
        strength: w in (0, 1].

    Returns:
        Attention output, like `q`.
    """
    if strength == 1:
        k, v = (torch.cat(pair, dim=2) for pair in zip(own, reference, strict=True))
        return functional.scaled_dot_product_attention(q, k, v)
    out, lse = attention_with_lse(q, *own)
    out_ref, lse_ref = attention_with_lse(q, *reference)
    share = torch.sigmoid(lse_ref + math.log(strength) - lse).unsqueeze(-1)
    return torch.lerp(out.float(), out_ref.float(), share).to(q.dtype)


def attend_where_reference_does(
    q: Tensor, own: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], *, strength: float
) -> Tensor:
    """Attend to one's own values with the attention map of a reference.

    MasaCtrl (arXiv 2304.08465) turned round: layout from the source, content from the edit.

        o = (1 - w) softmax(q k^T) v + w softmax(q_ref k_ref^T) v

    Args:
        q: Queries, [rows, heads, tokens, head_dim].
        own: Keys and values of the same rows, each like `q`.
        reference: Queries and keys of the reference rows, each like `q`.
        strength: w in (0, 1].

    Returns:
        Attention output, like `q`.
    """
    guided = functional.scaled_dot_product_attention(*reference, own[1])
    if strength == 1:
        return guided
    return torch.lerp(functional.scaled_dot_product_attention(q, *own), guided, strength)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention and the log-sum-exp of its logits.

    torch keeps the log-sum-exp in its fused kernels for the backward pass but has no public
    function that returns it; the by-hand form serves where there is no such kernel.

    Args:
        q: [rows, heads, tokens, head_dim].
        k: Likewise, any number of tokens.
        v: Like `k`.

    Returns:
        Output like `q`, and the log-sum-exp [rows, heads, tokens] in float32.
    """
    ops = torch.ops.aten
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.device.type == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out, lse
    if q.device.type == "cuda" and half and torch.cuda.get_device_capability(q.device) >= (8, 0):
        out, lse, *_ = ops._scaled_dot_product_flash_attention(q, k, v)
        return out, lse
    if q.device.type == "cuda":
        out, lse, *_ = ops._scaled_dot_product_efficient_attention(q, k, v, None, True)
        return out, lse[:, :, : q.shape[2]]  # this kernel pads the rows of its log-sum-exp
    return _attention_by_hand(q, k, v)


def _attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, *, block: int = 1024
) -> tuple[Tensor, Tensor]:
    """Attend in blocks of queries, so that no more than `block` rows of logits are in memory."""
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for queries in torch.split(q, block, dim=2):
        logits = (queries @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
        lse = torch.logsumexp(logits, dim=-1)
        outs.append((torch.exp(logits - lse.unsqueeze(-1)) @ v.float()).to(q.dtype))
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _project(
    attn: AttentionModule,
    tokens: Tensor,
    text_length: int,
    image_rotary_emb: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make queries, keys and values [rows, heads, tokens, head_dim] of tokens [rows, tokens, D]."""

    def split(x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], attn.heads, -1).transpose(1, 2)

    q, k, v = split(attn.to_q(tokens)), split(attn.to_k(tokens)), split(attn.to_v(tokens))
    if attn.norm_q is not None:
        q = attn.norm_q(q)
    if attn.norm_k is not None:
        k = attn.norm_k(k)
    if image_rotary_emb is not None:
        q = _rotate_image_tokens(q, text_length, image_rotary_emb)
        k = _rotate_image_tokens(k, text_length, image_rotary_emb)
    return q, k, v


def _rotate_image_tokens(x: Tensor, text_length: int, emb: tuple[Tensor, Tensor]) -> Tensor:
    from diffusers.models.embeddings import apply_rotary_emb

    image = cast(Tensor, apply_rotary_emb(x[:, :, text_length:], emb))
    return torch.cat([x[:, :, :text_length], image], dim=2)


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
    first, end = layers[0], len(blocks) if layers[1] is None else layers[1]
    if not 0 <= first < end <= len(blocks):
        raise UsageError(
            f"injection_layers is {first}:{end}; this model has layers 0:{len(blocks)}",
            hint=f"choose a window within 0:{len(blocks)}",
        )
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
