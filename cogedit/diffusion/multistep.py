"""A step down by each solver. Two are of second order at one model call each.

"midpoint" is the rule of `cogedit.diffusion.midpoint`. "dpm++2m" is DPM-Solver++ 2M (arXiv
2211.01095) in v-form:

With D = theta_t - theta_s (`Schedule.rotation`) the exact solution over a step t -> s is

    x_s = (sigma_s / sigma_t) x_t + sigma_s int_t^s x0^(u) d(alpha_u / sigma_u)

and DDIM takes x0^ as constant. The multistep solver takes it as linear, through the last two model
calls, which replaces x0^ by x0^ + w (x0^ - x0^_before): a DDIM step with the velocity

    v~ = v - w (x0^ - x0^_before) / sigma_t

The paper's x0^ is linear in log(alpha / sigma). That variable is infinite at both ends of these
schedules. At zero terminal SNR this is harmless (w = 0: nothing can be said from there, and the
second step is of first order like the first), but the steps to the clean sample do not shrink in
it, however many there are, and only first order is left over timesteps spaced evenly. So
x0^ is linear in log(alpha) here: the same towards noise, where sigma is 1, and smooth in sigma^2
towards the clean sample, as x0^ itself is. The integral then has a closed form,

    w = (alpha_s (l_s - l_t) - sigma_s D) / (B (l_t - l_before)),   l = log(alpha)
    B = alpha_s - alpha_t sigma_s / sigma_t

and the error falls fourfold when the steps are doubled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogedit.diffusion.ddim import ddim_step, pred_original_sample
from cogedit.diffusion.midpoint import cross, turn
from cogedit.diffusion.schedule import CLEAN, Schedule
from cogedit.diffusion.state import StepState
from cogedit.types import Solver


@dataclass(frozen=True)
class Memory:
    """What a step leaves to the next.

    Attributes:
        timestep: Level of its model call.
        value: What the call said of the clean sample, x0^; the sample at the edge ahead with
            "midpoint". [B, F, C, H, W] float32.
    """

    timestep: int
    value: Tensor


def solver_step(
    model_output: Tensor,
    sample: Tensor,
    before: Memory | None,
    *,
    solver: Solver,
    schedule: Schedule,
    t_from: int,
    t_to: int,
) -> tuple[Tensor, Memory | None]:
    """Move a sample to the next timestep of a schedule.

    Args:
        model_output: v, [B, F, C, H, W] float32.
        sample: x_from, same shape.
        before: What the step before returned; None makes this a DDIM step. Give None also where
            the model itself has changed (`Schedule.changes`).
        solver: "ddim" uses nothing of the step before.
        schedule: Table of noise levels.
        t_from: Timestep of `sample`.
        t_to: Timestep to arrive at, below `t_from`; -1 is the clean sample.

    Returns:
        x_to, like `sample`, and what the next step is to be given as `before`.
    """
    if solver == "midpoint":
        return _midpoint_step(model_output, sample, before, schedule, t_from=t_from, t_to=t_to)
    estimate = None
    if solver == "dpm++2m":
        x0 = pred_original_sample(model_output, sample, schedule=schedule, timestep=t_from)
        estimate = Memory(t_from, x0)
        ahead = extrapolate(estimate, before, schedule=schedule, t_to=t_to)
        sigma = math.sqrt(1 - schedule.alpha_cumprod(t_from))
        model_output = model_output - (ahead - x0) / sigma
    moved = ddim_step(model_output, sample, schedule=schedule, t_from=t_from, t_to=t_to)
    return moved, estimate


def _midpoint_step(
    v: Tensor, sample: Tensor, before: Memory | None, schedule: Schedule, *, t_from: int, t_to: int
) -> tuple[Tensor, Memory]:
    """Cross to the edge ahead, and go on by the same velocity to the level where it is asked next.

    Without a step before, the level itself is the edge behind.
    """
    level, below = schedule.angle(t_from), schedule.angle(t_to)
    edge, behind = sample, level
    if before is not None:
        edge, behind = before.value, (schedule.angle(before.timestep) + level) / 2
    ahead = below if t_to == CLEAN else (level + below) / 2
    edge = cross(edge, v, behind=behind, level=level, ahead=ahead)
    return turn(edge, v, below - ahead), Memory(t_from, edge)


def extrapolate(
    estimate: Memory, before: Memory | None, *, schedule: Schedule, t_to: int
) -> Tensor:
    """Return the clean sample assumed over a step to `t_to`: x0^ + w (x0^ - x0^_before)."""
    if before is None:
        return estimate.value
    weight = extrapolation_weight(schedule, before.timestep, estimate.timestep, t_to)
    return estimate.value + weight * (estimate.value - before.value)


def extrapolation_weight(schedule: Schedule, t_before: int, t_from: int, t_to: int) -> float:
    """Return w of the module's docstring for a step from `t_from` to `t_to`.

    `t_before` is the timestep of the model call before. w is 0 after a timestep of zero SNR, where
    log(alpha) = -inf, and where the step goes nowhere.
    """
    a_before, a_from, a_to = (schedule.alpha_cumprod(t) for t in (t_before, t_from, t_to))
    if a_before == 0 or a_to == a_from:
        return 0.0
    passed, step = (0.5 * math.log(a / b) for a, b in ((a_from, a_before), (a_to, a_from)))
    sigma_from, sigma_to = math.sqrt(1 - a_from), math.sqrt(1 - a_to)
    angle = schedule.angle(t_from) - schedule.angle(t_to)
    share = math.sqrt(a_to) - math.sqrt(a_from) * sigma_to / sigma_from
    return (math.sqrt(a_to) * step - sigma_to * angle) / (share * passed)


def kept(before: Memory | None) -> dict[str, Tensor]:
    """Return what a step leaves to the next as the tensors of a `StepState`."""
    return {} if before is None else {"before": before.value}


def read_kept(
    done: Sequence[StepState], schedule: Schedule, *, device: torch.device
) -> Memory | None:
    """Return what the last of some finished steps left; None where it left nothing."""
    if not done or "before" not in done[-1].tensors:
        return None
    timestep = schedule.timesteps[done[-1].info.index]
    return Memory(timestep, done[-1].tensors["before"].to(device))
