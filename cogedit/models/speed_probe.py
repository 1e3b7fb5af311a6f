"""Speed of a device at what a transformer does: a block without its attention, and an attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cogedit.models import kernels
from cogedit.models.cost import Flops, TransformerSizes
from cogedit.models.device import wait_for
from cogedit.models.forward import Block, after_attention, before_attention
from cogedit.models.quiet import quiet_imports

SECONDS = 0.2
"""Duration of a measurement."""

_TYPICAL = 256
"""Tokens from which on a call runs about as fast for each as a large one."""

_MANY = 8192
"""Tokens from which on a GPU needs no less time for each; more would only take memory."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """Operations per second.

    Attributes:
        linear: In a block but for its attention. Products of matrices are the operations that
            count; norms, gates and activations between them only move memory, and take their time.
        attention: In an attention.
    """

    linear: float
    attention: float

    def seconds(self, flops: Flops) -> float:
        """Return how long some operations take at this speed."""
        return flops.linear / self.linear + flops.attention / self.attention


def measure_speed(
    sizes: TransformerSizes, *, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> Speed:
    """Time a block of the model's width and an attention, on at most `num_tokens`.

    The block turns its tokens by rotary positions, which CogVideoX-2B does not.
    """
    d, heads = sizes.width, sizes.num_attention_heads

    def attention(tokens: int) -> tuple[Call, float]:
        q = torch.randn(1, heads, tokens, d // heads, device=device, dtype=dtype)
        return lambda: kernels.attention(q, q, q), 4.0 * tokens**2 * d

    return Speed(
        linear=_measure_block(sizes, min(num_tokens, _MANY), device, dtype),
        attention=measure_rate(attention, num_tokens, device),
    )


@torch.no_grad()
def _measure_block(
    sizes: TransformerSizes, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Time both halves of a block, without the attention between them; operations per second."""
    d, heads = sizes.width, sizes.num_attention_heads
    block = _random_block(sizes, device, dtype)

    def both_halves(tokens: int) -> tuple[Call, float]:
        def draw(length: int, width: int = d) -> Tensor:
            return torch.randn(1, length, width, device=device, dtype=dtype)

        length = min(sizes.max_text_seq_length, tokens // 2)
        image, text, temb = draw(tokens - length), draw(length), draw(1, sizes.time_embed_dim)[0]
        rotary = torch.ones(2, tokens - length, d // heads, device=device)

        def run() -> object:
            own, gates = before_attention(block, image, text, temb, (rotary[0], rotary[1]))
            # Of the shape that an attention gives.
            return after_attention(block, image, text, temb, own.v, gates)

        return run, 2.0 * tokens * 12 * d * d

    return measure_rate(both_halves, num_tokens, device)


def _random_block(sizes: TransformerSizes, device: torch.device, dtype: torch.dtype) -> Block:
    """Return a block of the model's width; numbers as small as trained ones, each drawn once."""
    with quiet_imports():
        from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    d = sizes.width
    with torch.device("meta"):
        block = CogVideoXBlock(
            d,
            sizes.num_attention_heads,
            sizes.attention_head_dim,
            sizes.time_embed_dim,
            attention_bias=True,
        )
    block = block.to(dtype).to_empty(device=device).requires_grad_(False)
    largest = max(parameter.numel() for parameter in block.parameters())
    numbers = torch.randn(largest, device=device, dtype=dtype) / d**0.5
    for parameter in block.parameters():
        parameter.copy_(numbers[: parameter.numel()].view_as(parameter))
    return cast(Block, block)


def measure_rate(
    prepare: Callable[[int], tuple[Call, float]], num_tokens: int, device: torch.device
) -> float:
    """Return operations per second, with more and more tokens until a call takes long enough."""
    tokens = min(16, num_tokens)
    while True:
        call, flops = prepare(tokens)
        call()  # warms up
        seconds = _timed(call, device)
        # A pause of the machine must not end it where a product is too small to be typical.
        enough = SECONDS if tokens >= _TYPICAL else 5 * SECONDS
        if tokens == num_tokens or seconds >= enough:
            break
        tokens = min(2 * tokens, num_tokens)
    # A small model is timed again and again, until the clock is accurate.
    times = max(1, min(1000, round(SECONDS / max(seconds, 1e-6))))
    return flops * times / sum(_timed(call, device) for _ in range(times))


def _timed(call: Call, device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start
