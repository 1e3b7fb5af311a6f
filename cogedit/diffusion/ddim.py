"""The deterministic DDIM step (arXiv 2010.02502, equation 12, eta = 0) for v-prediction.

v-prediction (arXiv 2202.00512, appendix D), with abar_t = `alphas_cumprod[t]`:

    x_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps
    v   = sqrt(abar_t) eps - sqrt(1 - abar_t) z0
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cogedit.diffusion.schedule import Schedule
from cogedit.errors import NumericalError

Model = Callable[[Tensor, int], Tensor]
"""v(x_t, t): the velocity of a sample [B, F, C, H, W] float32 at a timestep, same shape."""


def ddim_step(
    model_output: Tensor, sample: Tensor, *, schedule: Schedule, t_from: int, t_to: int
) -> Tensor:
    """Move a sample from one noise level to another, in either direction.

        x_to = sqrt(abar_to) x0^ + sqrt(1 - abar_to) eps^

    with x0^ and eps^ from the model's v; in angles, x_to = cos D x_from - sin D v. No epsilon is
    formed, so the step holds at zero terminal SNR, where a conversion would divide by zero.

    Args:
        model_output: v, [B, F, C, H, W] float32.
        sample: x_from, same shape, float32.
        schedule: Table of noise levels.
        t_from: Timestep of `sample`; -1 is the clean sample.
        t_to: Timestep to arrive at; -1 is the clean sample.

    Returns:
        x_to, same shape and dtype as `sample`.
    """
    cos, sin = schedule.rotation(t_from, t_to)
    return cos * sample - sin * model_output


def pred_original_sample(
    model_output: Tensor, sample: Tensor, *, schedule: Schedule, timestep: int
) -> Tensor:
    """Return the clean sample that v implies: x0^ = sqrt(abar) x_t - sqrt(1 - abar) v."""
    alpha = schedule.alpha_cumprod(timestep)
    return math.sqrt(alpha) * sample - math.sqrt(1 - alpha) * model_output


def require_finite(sample: Tensor, *, name: str, step: int, timestep: int) -> None:
    """Stop where NaN or Inf first appears, instead of decoding it into a black video.

    Raises:
        NumericalError: `sample` has a value that is not finite.
    """
    finite = torch.isfinite(sample)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise NumericalError(
            f"{name} has {bad} NaN or Inf of {sample.numel()} values at step {step} "
            f"(timestep {timestep})",
            hint="fp16 overflows on CogVideoX-5B and 1.5: use --dtype bf16 or fp32",
        )
