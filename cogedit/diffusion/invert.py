"""DDIM inversion: from clean latents up to noise, along the path that sampling comes down.

A sampling step is x_s = cos D x_t - sin D v(x_t, t). Its inverse must solve

    x_t = (x_s + sin D v(x_t, t)) / cos D

for x_t, which stands on both sides. Two forms are here:

"upstream" asks the model about timestep t with the sample of s and converts the answer with the
noise level of s, as `DDIMInverseScheduler` does. For v-prediction that is two errors, not one.

"consistent" predicts v from the steps before by linear extrapolation in the angle, which costs
nothing, and corrects it with K model calls of the fixed-point equation above. With K = 1 it costs
what upstream costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogedit.diffusion.ddim import Model, ddim_step, require_finite
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import StepState, steps_after
from cogedit.errors import UsageError
from cogedit.progress import StepInfo

MAX_ITERATIONS = 10
TOLERANCE = 1e-3
"""Relative size of a correction below which another one is not worth a model call."""


@dataclass(frozen=True)
class Velocity:
    """A velocity and the angle (radians) of the timestep at which the model gave it."""

    angle: float
    value: Tensor


def invert_consistent(
    model: Model,
    latents: Tensor,
    schedule: Schedule,
    *,
    iterations: int | None = 1,
    done: Sequence[StepState] = (),
) -> Iterator[StepState]:
    """Invert by the sampling step's own equation: predicted, then corrected `iterations` times.

    With `iterations` None a step is corrected until the last correction is smaller than
    `TOLERANCE`, at most `MAX_ITERATIONS` times: the first timesteps, where the model changes
    fastest, take most of the calls.

    Args:
        model: v(x_t, t).
        latents: z0, [B, F, C, H, W] float32.
        schedule: Timesteps to visit, at least 2.
        iterations: Model calls per step, at least 1; None spends them by the residual. The first
            step has nothing to predict from and takes one extra call.
        done: Steps of an earlier run of the same inversion, or the last two; it continues there.

    Yields:
        Each step, with x and v in its tensors "sample" and "velocity", from the lowest timestep to
        the noise; `residual` of its `info` is the relative size of the last correction.

    Raises:
        UsageError: `iterations` is below 1, or the schedule has a single timestep, where the
            equation has no unique solution (cos D = 0).
        NumericalError: NaN or Inf appeared.
    """
    if iterations is not None and iterations < 1:
        raise UsageError(f"inversion_iterations is {iterations}; it must be at least 1")
    if len(schedule.timesteps) < 2:
        raise UsageError("Inverting needs at least 2 inference steps; found 1")
    x = _last_sample(done, latents)
    velocities = [
        Velocity(schedule.angle(state.info.timestep), state.tensors["velocity"].to(latents.device))
        for state in done[-2:]
    ]
    for index, (s, t) in steps_after(done, schedule.inversion_steps()):
        cos, sin = schedule.rotation(t, s)
        v = predict_velocity(velocities, schedule.angle(t)) if velocities else model(x, t)
        y = (x + sin * v) / cos
        num_calls, residual = int(not velocities), math.inf
        for _ in range(MAX_ITERATIONS if iterations is None else iterations):
            v = model(y, t)
            y, y_before = (x + sin * v) / cos, y
            num_calls, residual = num_calls + 1, _relative_distance(y, y_before)
            if iterations is None and residual < TOLERANCE:
                break
        x = y
        velocities = [*velocities[-1:], Velocity(schedule.angle(t), v)]
        require_finite(x, name="the inverted sample", step=index + 1, timestep=t)
        total = len(schedule.timesteps)
        info = StepInfo(index, total, t, residual=residual, num_calls=num_calls)
        yield StepState(info, {"sample": x, "velocity": v})


def invert_upstream(
    model: Model, latents: Tensor, schedule: Schedule, *, done: Sequence[StepState] = ()
) -> Iterator[StepState]:
    """Invert as `diffusers.DDIMInverseScheduler` does: x_t = step(v(x_s, t), x_s, s -> t).

    Kept for parity with the upstream script; see the module's docstring for its error. Arguments
    and steps are those of `invert_consistent`, without "velocity" and `residual`.
    """
    x = _last_sample(done, latents)
    for index, (s, t) in steps_after(done, schedule.inversion_steps()):
        x = ddim_step(model(x, t), x, schedule=schedule, t_from=s, t_to=t)
        require_finite(x, name="the inverted sample", step=index + 1, timestep=t)
        yield StepState(StepInfo(index, len(schedule.timesteps), t), {"sample": x})


def _last_sample(done: Sequence[StepState], latents: Tensor) -> Tensor:
    return done[-1].tensors["sample"].to(latents.device) if done else latents


def predict_velocity(velocities: list[Velocity], angle: float) -> Tensor:
    """Extrapolate v to a new angle: linearly from the last two velocities, or the last as it is."""
    last = velocities[-1]
    if len(velocities) == 1:
        return last.value
    before = velocities[-2]
    slope = (angle - last.angle) / (last.angle - before.angle)
    return last.value + slope * (last.value - before.value)


def _relative_distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a).clamp_min(1e-12))
