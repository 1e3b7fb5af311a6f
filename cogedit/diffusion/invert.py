"""DDIM inversion: from clean latents up to noise, along the path that sampling comes down.

A sampling step is x_s = cos D x_t - sin D v(x_t, t). Its inverse must solve

    x_t = (x_s + sin D v(x_t, t)) / cos D

for x_t, which stands on both sides. Two forms are here:

"upstream" asks the model about timestep t with the sample of s and converts the answer with the
noise level of s, as `DDIMInverseScheduler` does. For v-prediction that is two errors, not one.

"consistent" predicts v from the steps before by linear extrapolation in the angle, which costs
nothing, and corrects it with K model calls of the equation above. With K = 1 it costs what upstream
costs.

One correction is enough where v turns slowly. Towards noise a model may decide within one step
whether a clip is light or dark; then x0^ leaps with x_t, and each correction throws the sample to
the other side of the solution, farther than it was. A secant through tries of both sides lands
between them (Anderson acceleration with one earlier try, which arXiv 2309.04907 uses for inversion,
and of several tries the last across, as in regula falsi). Since x_t is affine in v, it is v that is
mixed.
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

MAX_FURTHER = 4
"""Most corrections of a step after its first, where their number is not given."""
NOISY = math.pi / 4
"""Angle (radians) of a noise level above which an error of the inversion grows on the way down."""
TOLERANCE = 0.5
"""How far v may be from what was expected, in lengths of x_t, for a correction to be the last."""


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

    With `iterations` None a step is corrected once, and above the angle `NOISY` up to `MAX_FURTHER`
    times more, while v is farther than `TOLERANCE` from what was expected. After a step that needed
    more than one, the next has at least two: where v leaps, the first may be small and yet be
    wrong. Each clip of a batch has its own corrections.

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
    # A run that goes on has one clip, or a given number of iterations.
    was_steep = bool(done) and done[-1].info.num_calls > 1 + (done[-1].info.index == 0)
    is_steep = torch.full((len(x),), was_steep, device=x.device)
    for index, (s, t) in steps_after(done, schedule.inversion_steps()):
        v = predict_velocity(velocities, schedule.angle(t)) if velocities else model(x, t)
        is_noisy = schedule.angle(t) > NOISY
        equation = _Equation(model, t, x, *schedule.rotation(t, s), is_noisy)
        solved = equation.solve(v, iterations, is_steep)
        x, v, is_steep = solved.sample, solved.velocity, solved.is_steep
        num_calls = solved.num_calls + (not velocities)
        velocities = [*velocities[-1:], Velocity(schedule.angle(t), v)]
        require_finite(x, name="the inverted sample", step=index + 1, timestep=t)
        total = len(schedule.timesteps)
        info = StepInfo(index, total, t, residual=solved.residual, num_calls=num_calls)
        yield StepState(info, {"sample": x, "velocity": v})


@dataclass(frozen=True)
class _Solved:
    """A solution of a step's equation.

    Attributes:
        sample: x_t, [B, F, C, H, W].
        velocity: v, same shape.
        residual: Relative size of the last correction, the largest of the clips.
        num_calls: Model calls that it took.
        is_steep: Which clips took more than one, [B].
    """

    sample: Tensor
    velocity: Tensor
    residual: float
    num_calls: int
    is_steep: Tensor


@dataclass(frozen=True)
class _Equation:
    """The equation of one step: x_t that a sampling step takes to x_s.

    Attributes:
        model: v(x_t, t).
        t: Timestep to arrive at.
        x: x_s, [B, F, C, H, W] float32.
        cos: Of the angle of the step.
        sin: Likewise.
        is_noisy: Whether the step ends above `NOISY`.
    """

    model: Model
    t: int
    x: Tensor
    cos: float
    sin: float
    is_noisy: bool

    def solve(self, v: Tensor, iterations: int | None, was_steep: Tensor) -> _Solved:
        """Correct a guess of v(x_t, t); `was_steep` is what the step before took, [B]."""
        sample, tries = self._arrive(v), list[_Try]()
        is_open, is_steep = torch.ones_like(was_steep), was_steep
        residual = torch.full(was_steep.shape, math.inf, device=v.device)
        while bool(is_open.any()):
            found = self.model(sample, self.t)
            arrived = self._arrive(found)
            tries.append(_Try(found, arrived - sample))
            size = _norm(tries[-1].correction) / _norm(arrived).clamp_min(1e-12)
            residual = torch.where(is_open, size, residual)
            v = torch.where(is_open[:, None, None, None, None], _between(tries), v)
            sample = self._arrive(v)
            is_open = is_open & self._goes_on(len(tries), iterations, residual, was_steep)
            is_steep = is_open if len(tries) == 1 else is_steep
        return _Solved(sample, v, float(residual.max()), len(tries), is_steep)

    def _arrive(self, v: Tensor) -> Tensor:
        """Return x_t by a velocity."""
        return (self.x + self.sin * v) / self.cos

    def _goes_on(
        self, num_tries: int, iterations: int | None, residual: Tensor, was_steep: Tensor
    ) -> Tensor:
        """Whether each clip is corrected again, [B]."""
        if iterations is not None:
            return torch.full_like(was_steep, num_tries < iterations)
        # A correction of x_t is one of v by tan D.
        is_wrong = residual > TOLERANCE * abs(self.sin / self.cos)
        if num_tries == 1:
            is_wrong = is_wrong | was_steep
        return is_wrong & (self.is_noisy and num_tries <= MAX_FURTHER)


@dataclass(frozen=True)
class _Try:
    """What the model said of one x_t, and how far that would move it, each [B, F, C, H, W]."""

    velocity: Tensor
    correction: Tensor


def _between(tries: Sequence[_Try]) -> Tensor:
    """Return v where the secant through two tries needs no correction; of one try, its own v.

    The two are the last and, of those that are corrected the other way, the latest; where there is
    none, the one before. Each clip has its own two.
    """
    last, *others = reversed(tries)
    if not others:
        return last.velocity
    across = torch.stack([_dot(one.correction, last.correction) < 0 for one in others])
    # The first of equal values is the latest try; of clips without any across, the one before.
    clips = torch.arange(across.shape[1], device=across.device)
    chosen = across.int().argmax(dim=0), clips
    velocity = torch.stack([one.velocity for one in others])[chosen]
    change = last.correction - torch.stack([one.correction for one in others])[chosen]
    share = _dot(last.correction, change) / _dot(change, change).clamp_min(1e-12)
    share = share.clamp(-1, 1)  # beyond the tries, no farther than they lie apart
    return last.velocity - share[:, None, None, None, None] * (last.velocity - velocity)


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


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each clip, [B]."""
    return (a * b).sum(dim=(1, 2, 3, 4))


def _norm(a: Tensor) -> Tensor:
    """Return the length of each clip, [B]."""
    length: Tensor = torch.linalg.vector_norm(a, dim=(1, 2, 3, 4))
    return length
