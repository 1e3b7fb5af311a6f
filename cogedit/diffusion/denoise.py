"""Denoising down the timesteps of a schedule, and the noisy sample that it starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cogedit.diffusion.ddim import Model, require_finite
from cogedit.diffusion.multistep import kept, read_kept, solver_step
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import StepState, steps_after
from cogedit.diffusion.trajectory import Trajectory
from cogedit.progress import StepInfo
from cogedit.types import Solver

Constraint = Callable[[Tensor, int], Tensor]
"""Applied to what a step to a timestep gave, [B, F, C, H, W]; returns what the next one gets."""


def denoise(
    model: Model,
    noise: Tensor,
    schedule: Schedule,
    *,
    solver: Solver = "ddim",
    restarts: frozenset[int] = frozenset(),
    constrain: Constraint | None = None,
    done: Sequence[StepState] = (),
) -> Iterator[StepState]:
    """Sample down to clean latents, one step at a time.

    Args:
        model: v(x_t, t).
        noise: x at the noisiest timestep of `schedule`, [B, F, C, H, W] float32.
        schedule: Timesteps to visit.
        solver: How a step uses the model's calls.
        restarts: Timesteps at which the model changes (`Schedule.changes`).
        constrain: Applied after each step, as `keep_outside` is.
        done: Steps of an earlier run of the same edit, or the last of them; it continues there.

    Yields:
        Each step, with x in its tensor "sample"; the last is clean.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    x = done[-1].tensors["sample"].to(noise.device) if done else noise
    before = read_kept(done, schedule, device=noise.device)
    for index, (t, s) in steps_after(done, schedule.denoising_steps()):
        v = model(x, t)
        if t in restarts:
            before = None
        x, before = solver_step(v, x, before, solver=solver, schedule=schedule, t_from=t, t_to=s)
        if constrain is not None:
            x = constrain(x, s)
        require_finite(x, name="the edited sample", step=index + 1, timestep=t)
        info = StepInfo(index, len(schedule.timesteps), s)
        yield StepState(info, {"sample": x} | kept(before))


def keep_outside(mask: Tensor, reference: Trajectory) -> Constraint:
    """Keep the source outside of a mask: after a step to s, x <- m x + (1 - m) x*_s.

    Args:
        mask: m, 1 where the edit may change the source and 0 where not, [F, 1, H, W] or
            [B, F, 1, H, W].
        reference: The source's trajectory x*.
    """
    return lambda x, s: mask * x + (1 - mask) * reference.at(s).to(x.device)


def start_sample(
    reference: Trajectory, schedule: Schedule, *, seeds: Sequence[int], start_noise: float
) -> Tensor:
    """Return x at the noisiest timestep of a schedule, between the source's noise and a fresh one.

        x = sqrt(abar) z0 + sqrt(1 - abar) (sqrt(1 - rho) eps* + sqrt(rho) n)

    where eps* is the noise that the inversion found there. rho = 0 is the stored sample; at zero
    terminal SNR rho = 1 is plain noise.

    Args:
        reference: The source's trajectory, one clip per seed.
        schedule: Its first timestep is where the edit starts.
        seeds: Seed of each clip's fresh noise n.
        start_noise: rho, 0 to 1.

    Returns:
        [B, F, C, H, W] float32, where the trajectory is.
    """
    t = schedule.timesteps[0]
    stored = reference.at(t)
    if start_noise == 0:
        return stored
    fresh = torch.cat([draw_noise((1, *stored.shape[1:]), seed=seed) for seed in seeds]).to(stored)
    signal = math.sqrt(schedule.alpha_cumprod(t)) * reference.latents
    found = stored - signal  # sqrt(1 - abar) eps*
    spread = math.sqrt(1 - schedule.alpha_cumprod(t))
    return signal + math.sqrt(1 - start_noise) * found + math.sqrt(start_noise) * spread * fresh


def draw_noise(shape: Sequence[int], *, seed: int) -> Tensor:
    """Draw start noise, float32 on the CPU, so that a seed gives the same edit on every device.

    Args:
        shape: [B, F, C, H, W].
        seed: Seed of a generator made for it; the global one stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator)
