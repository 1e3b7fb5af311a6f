"""How fast a device is at a bare product of matrices."""

from __future__ import annotations

import torch
from torch.nn import functional

from cogedit.models.cost import TransformerSizes
from cogedit.models.speed_probe import Call, measure_rate


def measure_product(
    sizes: TransformerSizes, *, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Time a bare product with a matrix of the model's width; operations per second.

    Nothing that a transformer does is faster.
    """
    d = sizes.width
    # As a linear layer keeps it: a CPU without instructions for bf16 takes minutes for the other.
    matrix = torch.randn(4 * d, d, device=device, dtype=dtype)

    def product(tokens: int) -> tuple[Call, float]:
        x = torch.randn(tokens, d, device=device, dtype=dtype)
        return lambda: functional.linear(x, matrix), 2.0 * tokens * d * 4 * d

    return measure_rate(product, num_tokens, device)
