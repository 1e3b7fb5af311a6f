"""Denoising under a new prompt while attention looks at the source's trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogedit.diffusion.ddim import require_finite
from cogedit.diffusion.multistep import estimates, kept_estimate, solver_step
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import OnState, StepState, on_device, steps_after, tell
from cogedit.diffusion.trajectory import Trajectory
from cogedit.types import OnStep, Solver, StepInfo, Window


@dataclass(frozen=True)
class Prediction:
    """What a model says at one level.

    Attributes:
        edit: v of the edit, guided, [B, F, C, H, W] float32.
        reference: v of the source's own sample, likewise; None where no reference was given, or
            none was asked for.
    """

    edit: Tensor
    reference: Tensor | None = None


EditModel = Callable[[Tensor, int, Tensor | None], Prediction]
"""v(x_t, t, reference x*_t or None): samples [B, F, C, H, W] float32."""


def denoise(
    model: EditModel,
    noise: Tensor,
    schedule: Schedule,
    *,
    reference: Trajectory | None = None,
    reference_steps: Window = (0.0, 1.0),
    drift_correction: float = 0.0,
    mask: Tensor | None = None,
    solver: Solver = "ddim",
    restarts: frozenset[int] = frozenset(),
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Sample down to clean latents, beside a reference trajectory.

    Drift correction (Direct Inversion, arXiv 2310.01506): the trajectory says where the source
    goes from level t to s, the model run on the source's row says where it would go; the difference
    is the inversion's error at this step, and what is known of it is added to the edit.

    A mask keeps the source outside of it: after each step to level s,

        x <- m x + (1 - m) x*_s

    Args:
        model: v(x_t, t, x*_t), where x*_t is the reference's sample at the same level.
        noise: x at the noisiest level of `schedule`, [B, F, C, H, W] float32.
        schedule: Levels to visit.
        reference: The source's trajectory; None is plain sampling.
        reference_steps: Window of the steps whose model call sees the reference.
        drift_correction: Share of the drift that is added back, 0 to 1.
        mask: 1 where the edit may change the source, 0 where not, [F, 1, H, W] or as `noise`.
        solver: How a step uses the model's calls.
        restarts: Levels at which the model changes (`Schedule.changes`).
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: Steps of an earlier run of the same edit, from the first on, or the last alone where
            not every step is returned; it goes on there.
        on_state: Given what a later run goes on from, after every step.
        on_step: Told after every step.

    Returns:
        The sample after each step, N tensors like `noise`; the last is clean.

    Raises:
        ArtifactMismatch: The reference did not visit a level that needs it.
        NumericalError: NaN or Inf appeared.
    """
    done = on_device(done, noise.device)
    samples = [state.tensors["sample"] for state in done]
    x = samples[-1] if samples else noise
    before, before_ref = (kept_estimate(done, n, schedule) for n in ("before", "before_reference"))
    seen = schedule.window(*reference_steps) if reference is not None else frozenset()
    for index, (t, s) in steps_after(done, schedule.denoising_steps()):
        x_ref = reference.at(t).to(x.device) if reference is not None and t in seen else None
        predicted = model(x, t, x_ref)
        if t in restarts:
            before = before_ref = None
        x, before = solver_step(
            predicted.edit, x, before, solver=solver, schedule=schedule, t_from=t, t_to=s
        )
        if reference is not None and (drift_correction or mask is not None):
            x_ref_next = reference.at(s).to(x.device)
            if drift_correction and x_ref is not None and predicted.reference is not None:
                led_to, before_ref = solver_step(
                    predicted.reference,
                    x_ref,
                    before_ref,
                    solver=solver,
                    schedule=schedule,
                    t_from=t,
                    t_to=s,
                )
                x = x + drift_correction * (x_ref_next - led_to)
            if mask is not None:
                x = mask * x + (1 - mask) * x_ref_next
        require_finite(x, name="the edited sample", step=index + 1, timestep=t)
        samples = [*samples, x] if keep_steps else [x]
        kept = {"sample": x} | estimates({"before": before, "before_reference": before_ref})
        tell(StepState(StepInfo(index, len(schedule.timesteps), s), kept), on_state, on_step)
    return samples


def start_sample(
    reference: Trajectory, schedule: Schedule, *, seeds: Sequence[int], start_noise: float
) -> Tensor:
    """Return x at the noisiest level of a schedule, between the source's own noise and a fresh one.

        x = sqrt(abar) z0 + sqrt(1 - abar) (sqrt(1 - rho) eps* + sqrt(rho) n)

    where eps* is the noise that the inversion found at this level. rho = 0 is the stored sample;
    at zero terminal SNR rho = 1 is plain noise.

    Args:
        reference: The source's trajectory, one clip per seed.
        schedule: Its first level is where the edit starts.
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
        seed: Seed of a generator of its own; the global one is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator)
