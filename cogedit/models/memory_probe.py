"""Speed of a device at what a transformer does: a matrix product and an attention, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from cogedit.models.cost import Flops, TransformerSizes
from cogedit.models.device import wait_for

SECONDS = 0.2
"""Duration of a measurement."""

_TYPICAL = 256
"""Tokens from which on a product runs as fast as a large one."""


@dataclass(frozen=True)
class Speed:
    """Operations per second in a product with a matrix of the model's width and in an attention."""

    linear: float
    attention: float

    def seconds(self, flops: Flops) -> float:
        """Return how long some operations take at this speed."""
        return flops.linear / self.linear + flops.attention / self.attention


def measure_speed(
    sizes: TransformerSizes, *, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> Speed:
    """Time a matrix product and an attention at the model's width, on at most `num_tokens`."""
    d, heads = sizes.width, sizes.num_attention_heads
    # As a linear layer keeps it: a CPU without instructions for bf16 takes minutes for the other.
    matrix = torch.randn(4 * d, d, device=device, dtype=dtype)

    def product(tokens: int) -> tuple[Callable[[], object], float]:
        x = torch.randn(tokens, d, device=device, dtype=dtype)
        return lambda: functional.linear(x, matrix), 2.0 * tokens * d * 4 * d

    def attention(tokens: int) -> tuple[Callable[[], object], float]:
        q = torch.randn(1, heads, tokens, d // heads, device=device, dtype=dtype)
        return lambda: functional.scaled_dot_product_attention(q, q, q), 4.0 * tokens**2 * d

    return Speed(
        linear=_rate(product, num_tokens, device), attention=_rate(attention, num_tokens, device)
    )


def _rate(
    prepare: Callable[[int], tuple[Callable[[], object], float]],
    num_tokens: int,
    device: torch.device,
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


def _timed(call: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start
