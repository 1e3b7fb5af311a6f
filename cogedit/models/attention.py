"""Attention injection: edit rows also attend to the keys and values of a reference row.

In every layer of the window, an edit row with queries q attends to its own keys and values and to
those of its reference row at the same timestep:

    softmax([q k^T, q k_ref^T + ln w]) [v; v_ref]

over text and image tokens alike, each row's rotary embedding applied with its own positions. w = 1
concatenates the two, as the CogVideo repository's `inference/ddim_inversion.py` does; w = 0 leaves
the reference out; w > 1 attends to the reference more than to the row itself. Reference rows attend
to themselves.

The reference's text tokens speak for the source, against the edit's prompt. Leaving them out
("image") does more than silence them: the image then has two shares of the attention and the text
one, and even the source's own prompt no longer gives the source back. "own-text" puts the edit's
text in their place,

    softmax([q k_text^T, q k_image^T, q k_text^T + ln w, q k_ref,image^T + ln w])

so that text and image keep their balance at every w: where edit and reference are the same, what
comes out is the reference's own attention.

The mean of the image tokens' values says what the whole clip looks like; each token's difference
from it says what is where. Recentering by a share c moves the reference's mean towards the row's
own, per head and channel,

    v_ref,image + c (mean(v_image) - mean(v_ref,image))

so that a source that is dark does not darken an edit that is to be light, however much of it is
attended to. At c = 1 no values of its image say what the whole looks like, and guidance, unopposed,
may drive the whole to any light or colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from cogedit.errors import UsageError
from cogedit.models.kernels import attention, attention_with_lse
from cogedit.types import (
    AttentionBackend,
    InjectionMode,
    InjectionTokens,
    ReconstructSettings,
)

Rotary = tuple[Tensor, Tensor]
"""(cos, sin), each [S, head_dim], of the image tokens."""


class Heads(NamedTuple):
    """Queries, keys and values of some rows, each [rows, heads, tokens, head_dim], text first."""

    q: Tensor
    k: Tensor
    v: Tensor


class AttentionModule(Protocol):
    """The part of `diffusers.models.attention_processor.Attention` that is used here."""

    heads: int
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList
    norm_q: nn.Module | None
    norm_k: nn.Module | None
    processor: object


@dataclass(frozen=True)
class Injection:
    """How edit rows attend to their reference rows; the `RowPlan` says which row to which.

    Attributes:
        strength: w, at least 0; at most 1 with the modes that replace the map.
        mode: "concatenate" as above; "queries-keys" replaces the edit's attention map by the
            reference's, weighted by w, and keeps the edit's values; "image-queries-keys" replaces
            only what the image tokens give to each other.
        tokens: What a row attends to beside its own tokens ("concatenate"): the reference's text
            and image ("all"), its image, or its image and the row's own text again ("own-text").
        layers: First layer with injection and the one after the last; None is the end.
        recentering: c, 0 to 1 ("concatenate").
    """

    strength: float = 1.0
    mode: InjectionMode = "concatenate"
    tokens: InjectionTokens = "all"
    layers: tuple[int, int | None] = (0, None)
    recentering: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no layer knows: it would be taken for another, or for none.

        Raises:
            UsageError: An unknown mode or kind of tokens, or a strength or share out of range.
        """
        for name, value, known in (
            ("mode", self.mode, get_args(InjectionMode)),
            ("tokens", self.tokens, get_args(InjectionTokens)),
        ):
            if value not in known:
                raise UsageError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        most = 1.0 if self.mode == "queries-keys" else math.inf
        if not 0 <= self.strength <= most or math.isinf(self.strength):
            at_most = " and at most 1 with queries-keys" if most == 1 else ""
            raise UsageError(f"strength is {self.strength}, expected at least 0{at_most}")
        if not 0 <= self.recentering <= 1:
            raise UsageError(f"recentering is {self.recentering}, expected 0 to 1")

    @classmethod
    def of(cls, settings: ReconstructSettings, strength: float) -> Injection:
        """Return the injection that an edit's settings describe, at one of its strengths."""
        return cls(
            strength,
            settings.injection_mode,
            settings.injection_tokens,
            settings.injection_layers,
            settings.injection_recentering,
        )

    def window(self, num_layers: int) -> range:
        """Return the layers with injection; UsageError if there are none in a model of so many."""
        first, end = self.layers[0], num_layers if self.layers[1] is None else self.layers[1]
        if not 0 <= first < end <= num_layers:
            raise UsageError(
                f"injection_layers is {first}:{end}; this model has layers 0:{num_layers}",
                hint=f"choose a window within 0:{num_layers}",
            )
        return range(first, end)


def needs_lse(settings: ReconstructSettings) -> bool:
    """Whether an edit's attention kernel is to give the log-sum-exp of its logits as well."""
    if settings.injection_mode == "queries-keys" or settings.injection_strength == 0:
        return False
    return settings.injection_mode == "image-queries-keys" or settings.injection_strength != 1


def attend_rows(
    own: Heads,
    references: Heads,
    targets: Sequence[int],
    *,
    injection: Injection,
    text_length: int,
    backend: AttentionBackend = "native",
) -> Tensor:
    """Let row i attend to itself and to reference `targets[i]`; the output is shaped like `own.q`.

    The injection's strength is above 0. Queries or values of references that its mode has no use
    for may be any tensor.
    """
    strength = injection.strength
    k_ref = _gather(references.k, targets)
    if injection.mode == "queries-keys":
        q_ref = _gather(references.q, targets)
        return _attend_where_reference_does(own, q_ref, k_ref, strength=strength, backend=backend)
    if injection.mode == "image-queries-keys":
        q_image = _gather(references.q, targets)[:, :, text_length:]
        k_image = k_ref[:, :, text_length:]
        return _image_attends_where_reference_does(
            own, q_image, k_image, strength=strength, backend=backend
        )
    v_ref = _gather(references.v, targets)
    k_beside = _beside(own.k, k_ref, injection.tokens, text_length)
    v_beside = _beside(
        own.v, v_ref, injection.tokens, text_length, recentering=injection.recentering
    )
    if strength == 1:
        k, v = _join([own.k, *k_beside]), _join([own.v, *v_beside])
        return attention(own.q, k, v, backend=backend)
    k, v = _join(k_beside), _join(v_beside)
    return attend_with_reference(own, k, v, strength=strength, backend=backend)


def attend_with_reference(
    own: Heads,
    k_ref: Tensor,
    v_ref: Tensor,
    *,
    strength: float,
    backend: AttentionBackend = "native",
) -> Tensor:
    """Attend to one's own keys and values and to a reference's, the latter weighted by w.

    Adding ln w to the reference's logits multiplies each of their exponentials by w. With L the
    log-sum-exp of the logits (the log of a softmax's denominator), the softmax over both sets is
    therefore a mean of two attentions computed apart, which needs no mask tensor:

        o = (e^L o_own + w e^L_ref o_ref) / (e^L + w e^L_ref)

    and the reference's share, w e^L_ref / (e^L + w e^L_ref), is sigmoid(L_ref + ln w - L). The same
    merge joins the blocks of FlashAttention (arXiv 2205.14135, section 3.1). Keys and values of the
    references are [rows, heads, tokens, head_dim]; the output is shaped like `own.q`.
    """
    return _merge(
        attention_with_lse(*own, backend=backend),
        attention_with_lse(own.q, k_ref, v_ref, backend=backend),
        strength=strength,
    )


def _merge(
    own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, strength: float = 1.0
) -> Tensor:
    """Join two attentions, each with its log-sum-exp, to that over both sets of keys."""
    (out, lse), (out_other, lse_other) = own, other
    share = torch.sigmoid(lse_other + math.log(strength) - lse).unsqueeze(-1)
    return torch.lerp(out.float(), out_other.float(), share).to(out.dtype)


def _attend_where_reference_does(
    own: Heads, q_ref: Tensor, k_ref: Tensor, *, strength: float, backend: AttentionBackend
) -> Tensor:
    """Attend to one's own values with the attention map of a reference.

    MasaCtrl (arXiv 2304.08465) turned round: layout from the source, content from the edit.

        o = (1 - w) softmax(q k^T) v + w softmax(q_ref k_ref^T) v
    """
    guided = attention(q_ref, k_ref, own.v, backend=backend)
    if strength == 1:
        return guided
    return torch.lerp(attention(*own, backend=backend), guided, strength)


def _image_attends_where_reference_does(
    own: Heads, q_ref: Tensor, k_ref: Tensor, *, strength: float, backend: AttentionBackend
) -> Tensor:
    """Let image tokens attend to each other as those of a reference do, whose q and k are given.

    A word of the edit's prompt has nothing to do with the word in its place in the source's: only
    what image tokens attend to among themselves is taken from the reference. So, for image tokens,

        o = (1 - w) softmax(q k^T) v + w softmax([q k_text^T, q_ref k_ref^T]) v

    and text tokens attend as without a reference. That replacing more of the map holds the text to
    the source was found by Shin et al. (arXiv 2508.07519) with models whose text and image attend
    to each other in one map, as here.
    """
    length = own.q.shape[2] - q_ref.shape[2]
    q_text, q_image = own.q[:, :, :length], own.q[:, :, length:]
    k_text, v_text, v_image = own.k[:, :, :length], own.v[:, :, :length], own.v[:, :, length:]
    guided = _merge(
        attention_with_lse(q_image, k_text, v_text, backend=backend),
        attention_with_lse(q_ref, k_ref, v_image, backend=backend),
    )
    if strength == 1:
        return _join([attention(q_text, own.k, own.v, backend=backend), guided])
    out = attention(*own, backend=backend)
    out[:, :, length:].lerp_(guided, strength)  # it is ours alone
    return out


def _gather(rows: Tensor, targets: Sequence[int]) -> Tensor:
    """Return the rows of these indices; a single one without a copy."""
    if len(targets) == 1:
        return rows[targets[0] : targets[0] + 1]
    return rows[list(targets)]


def _beside(
    own: Tensor,
    theirs: Tensor,
    tokens: InjectionTokens,
    text_length: int,
    *,
    recentering: float = 0.0,
) -> list[Tensor]:
    """Return the keys (or values) that rows attend to beside their own, in pieces.

    Recentering is the mean of adaptive instance normalization (arXiv 1703.06868, equation 8)
    without its variance, on values in place of features: attention is linear in the values, so the
    mean comes through in proportion to the weight of these tokens, and may be exchanged for
    another. In the diffusion transformers that were looked at, values lie close around such a mean
    (arXiv 2602.18022).
    """
    if tokens == "all" and recentering == 0:
        return [theirs]
    image = theirs[:, :, text_length:]
    if recentering > 0:
        shift = _mean_over_tokens(own[:, :, text_length:]) - _mean_over_tokens(image)
        image = image + (recentering * shift).to(image.dtype)
    if tokens == "image":
        return [image]
    return [(theirs if tokens == "all" else own)[:, :, :text_length], image]


def _mean_over_tokens(x: Tensor) -> Tensor:
    """Return the mean of [rows, heads, tokens, head_dim], [rows, heads, 1, head_dim] float32."""
    return x.mean(dim=2, keepdim=True, dtype=torch.float32)


def _join(pieces: Sequence[Tensor]) -> Tensor:
    """Concatenate the tokens of [rows, heads, tokens, head_dim].

    In memory the heads of a token stay together, as the projections left them and as kernels that
    take [rows, tokens, heads, head_dim] want them.
    """
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([piece.transpose(1, 2) for piece in pieces], dim=1).transpose(1, 2)


def project(
    attn: AttentionModule, tokens: Tensor, text_length: int, rotary: Rotary | None
) -> Heads:
    """Make queries, keys and values of tokens [rows, tokens, D], the text's first."""
    return Heads(
        _heads(attn, attn.to_q, tokens, attn.norm_q, text_length, rotary),
        _heads(attn, attn.to_k, tokens, attn.norm_k, text_length, rotary),
        _heads(attn, attn.to_v, tokens, None, text_length, None),
    )


def project_reference(
    attn: AttentionModule,
    tokens: Tensor,
    text_length: int,
    rotary: Rotary | None,
    *,
    mode: InjectionMode,
) -> Heads:
    """Make the two that an injection needs of a reference; the third is one of them again."""
    k = _heads(attn, attn.to_k, tokens, attn.norm_k, text_length, rotary)
    if mode != "concatenate":
        q = _heads(attn, attn.to_q, tokens, attn.norm_q, text_length, rotary)
        return Heads(q, k, k)
    return Heads(k, k, _heads(attn, attn.to_v, tokens, None, text_length, None))


def output(attn: AttentionModule, attended: Tensor) -> Tensor:
    """Project what attention gave, [rows, heads, tokens, head_dim], to tokens [rows, tokens, D]."""
    projected: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
    return projected


def _heads(
    attn: AttentionModule,
    linear: nn.Module,
    tokens: Tensor,
    norm: nn.Module | None,
    text_length: int,
    rotary: Rotary | None,
) -> Tensor:
    """Project tokens to [rows, heads, tokens, head_dim], a view of [rows, tokens, D]."""
    x: Tensor = linear(tokens)
    x = x.view(x.shape[0], x.shape[1], attn.heads, -1).transpose(1, 2)
    if norm is not None:
        x = norm(x)
    if rotary is not None:
        from diffusers.models.embeddings import apply_rotary_emb

        image = x[:, :, text_length:]
        image.copy_(cast(Tensor, apply_rotary_emb(image, rotary)))  # x is ours alone
    return x
