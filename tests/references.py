"""Injection within CogVideoX's own forward, by a processor that writes the softmax out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from cogedit.models.attention import Injection
from cogedit.models.forward import CallOptions
from cogedit.models.rows import Row, RowPlan


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention of one row, [heads, tokens, head_dim], with a bias of the logits."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return logits.softmax(-1) @ v


def attend_beside(
    own: Sequence[Tensor], reference: Sequence[Tensor], injection: Injection, length: int
) -> Tensor:
    """What one row attends to beside a reference, from queries, keys and values of both."""
    (q, k, v), (q_ref, k_ref, v_ref), w = own, reference, injection.strength
    if w == 0:
        return attend(q, k, v)
    if injection.mode == "queries-keys":
        return (1 - w) * attend(q, k, v) + w * attend(q_ref, k_ref, v)
    if injection.mode == "image-queries-keys":
        # The logits of the edit, but for those between image tokens: these are the reference's.
        logits, image = q @ k.transpose(-1, -2), slice(length, None)
        plain = (logits / math.sqrt(q.shape[-1])).softmax(-1)
        logits[:, image, image] = q_ref[:, image] @ k_ref[:, image].transpose(-1, -2)
        guided = (logits / math.sqrt(q.shape[-1])).softmax(-1)
        guided[:, :length] = plain[:, :length]
        return ((1 - w) * plain + w * guided) @ v
    own_mean, its_mean = (x[:, length:].mean(1, keepdim=True) for x in (v, v_ref))
    recentered = v_ref[:, length:] + injection.recentering * (own_mean - its_mean)
    v_ref = torch.cat([v_ref[:, :length], recentered], dim=1)
    if injection.tokens != "all":
        k_ref, v_ref = k_ref[:, length:], v_ref[:, length:]
    if injection.tokens == "own-text":
        k_ref, v_ref = (
            torch.cat([x[:, :length], x_ref], dim=1) for x, x_ref in ((k, k_ref), (v, v_ref))
        )
    bias = torch.zeros(k.shape[1] + k_ref.shape[1], dtype=q.dtype)
    bias[k.shape[1] :] = math.log(w)
    return attend(q, torch.cat([k, k_ref], dim=1), torch.cat([v, v_ref], dim=1), bias)


class WrittenOut:
    """Attention processor of a block; edit row i attends to row `reference_of[i]` beside itself."""

    def __init__(self, reference_of: Sequence[int], injection: Injection) -> None:
        self.reference_of = reference_of
        self.injection = injection

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)

        def heads(linear, norm=None, *, rotary=None):
            x = linear(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            x = x if norm is None else norm(x)
            if rotary is None:
                return x
            return torch.cat([x[:, :, :length], apply_rotary_emb(x[:, :, length:], rotary)], dim=2)

        rows = list(
            zip(
                heads(attn.to_q, attn.norm_q, rotary=image_rotary_emb),
                heads(attn.to_k, attn.norm_k, rotary=image_rotary_emb),
                heads(attn.to_v),
                strict=True,
            )
        )
        attended = [attend(*row) for row in rows]
        for i, target in enumerate(self.reference_of):
            attended[i] = attend_beside(rows[i], rows[target], self.injection, length)
        out = attn.to_out[0](torch.stack(attended).transpose(1, 2).flatten(2))
        return out[:, length:], out[:, :length]


@contextmanager
def written_out(
    transformer: CogVideoXTransformer3DModel, reference_of: Sequence[int], injection: Injection
) -> Iterator[None]:
    """Have the stock forward of a transformer inject, in the layers of the window."""
    blocks = list(transformer.transformer_blocks)
    originals = [block.attn1.processor for block in blocks]
    try:
        for number in injection.window(len(blocks)):
            blocks[number].attn1.processor = WrittenOut(reference_of, injection)
        yield
    finally:
        for block, processor in zip(blocks, originals, strict=True):
            block.attn1.processor = processor


def references_of(
    reference_of: Sequence[int], num_rows: int, injection: Injection, *, velocity: bool = False
) -> CallOptions:
    """What a call hands to the layers, for rows whose samples and prompts do not matter."""
    row, num_edits = Row(0, 0), len(reference_of)
    plan = RowPlan(
        edits=(row,) * num_edits,
        references=(row,) * (num_rows - num_edits),
        reference_of=tuple(reference_of),
        conditional=(),
        unconditional=(),
        reference=(),
        reference_velocity=velocity,
    )
    return {"plan": plan, "injection": injection}
