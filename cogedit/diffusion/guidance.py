"""Classifier-free guidance (arXiv 2207.12598, equation 6), as diffusers scales it."""

from __future__ import annotations

from torch import Tensor


def guide(unconditional: Tensor, conditional: Tensor, *, guidance_scale: float) -> Tensor:
    """Return v_uncond + s (v_cond - v_uncond), both [B, F, C, H, W]; s = 1 is no guidance."""
    return unconditional + guidance_scale * (conditional - unconditional)
