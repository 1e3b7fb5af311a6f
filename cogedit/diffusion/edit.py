"""Denoising under a new prompt while attention looks at the source's trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cogedit.diffusion.ddim import ddim_step, require_finite
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.types import OnStep, StepInfo

EditModel = Callable[[Tensor, int, Tensor | None], Tensor]
"""v(x_t, t, reference x*_t or None): samples [B, F, C, H, W] float32, same shape out."""


def denoise(
    model: EditModel,
    noise: Tensor,
    schedule: Schedule,
    *,
    reference: Trajectory | None = None,
    reference_steps: tuple[float, float] = (0.0, 1.0),
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Sample from noise down to clean latents by DDIM, beside a reference trajectory.

    Args:
        model: v(x_t, t, x*_t), where x*_t is the reference's sample at the same level.
        noise: x at the noisiest level of `schedule`, [B, F, C, H, W] float32.
        schedule: Levels to visit.
        reference: The source's trajectory; None is plain sampling.
        reference_steps: First and last fraction of the steps that see the reference; step i of N
            does if first <= i / N < last.
        on_step: Told after every step.

    Returns:
        The sample after each step, N tensors like `noise`; the last is clean.

    Raises:
        ArtifactMismatch: The reference did not visit a level that needs it.
        NumericalError: NaN or Inf appeared.
    """
    x = noise
    samples: list[Tensor] = []
    total = len(schedule.timesteps)
    for index, (t, s) in enumerate(schedule.denoising_steps()):
        sees_reference = reference_steps[0] <= index / total < reference_steps[1]
        x_ref = reference.at(t) if reference is not None and sees_reference else None
        x = ddim_step(model(x, t, x_ref), x, schedule=schedule, t_from=t, t_to=s)
        require_finite(x, name="the edited sample", step=index + 1, timestep=t)
        samples.append(x)
        if on_step is not None:
            on_step(StepInfo(index=index, total=total, timestep=s))
    return samples


def draw_noise(shape: Sequence[int], *, seed: int) -> Tensor:
    """Draw start noise, float32 on the CPU, so that a seed gives the same edit on every device.

    Args:
        shape: [B, F, C, H, W].
        seed: Seed of a generator of its own; the global one is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator)
