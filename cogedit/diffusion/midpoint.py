"""The midpoint rule at one model call per step (FireFlow, arXiv 2412.07517), in the angle.

With x = z0 cos(phi) + eps sin(phi), a sample's path obeys dx/dphi = v(x, phi), which holds at zero
terminal SNR too. The model is called at levels theta_k; between two levels lies an edge, at
phi_k = (theta_k + theta_k+1) / 2. From edge to edge the sample is turned by the velocity found in
between,

    x(phi_k) = A x(phi_k-1) + (sin h2 + A sin h1) v_k,      A = cos h2 / cos h1
    h1 = theta_k - phi_k-1,  h2 = phi_k - theta_k

which is exact where z0 and eps do not change on the way. Where the model is asked for v_k, the
velocity of the call before serves as it is (turned by the angle in between, it was no better on
the embedded model):

    y_k = cos h1 x(phi_k-1) + sin h1 v_k-1,      v_k = v(y_k, theta_k)

An error of y_k counts only through v_k, so that the rule is of second order. Downwards, h1 and h2
are negative. The clean sample, and the noise that an inversion ends at, are edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from cogedit.diffusion.ddim import Model, require_finite
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import StepState, steps_after
from cogedit.progress import StepInfo


def turn(sample: Tensor, velocity: Tensor, angle: float) -> Tensor:
    """Turn a sample by an angle in radians, towards noise where it is positive."""
    return math.cos(angle) * sample + math.sin(angle) * velocity


def cross(sample: Tensor, velocity: Tensor, *, behind: float, level: float, ahead: float) -> Tensor:
    """Take a sample from one edge to the next by the velocity at the level in between.

    Args:
        sample: x at the edge behind, [B, F, C, H, W] float32.
        velocity: v at the level, same shape.
        behind: Angle of the edge behind, in radians.
        level: Of the level.
        ahead: Of the edge ahead.
    """
    before, after = level - behind, ahead - level
    ratio = math.cos(after) / math.cos(before)
    return ratio * sample + (math.sin(after) + ratio * math.sin(before)) * velocity


def invert_midpoint(
    model: Model, latents: Tensor, schedule: Schedule, *, done: Sequence[StepState] = ()
) -> Iterator[StepState]:
    """Invert by the midpoint rule, up to the noise, about which the model is not asked.

    Args:
        model: v(x_t, t).
        latents: z0, [B, F, C, H, W] float32.
        schedule: The noise's timestep, and below it the levels: `Schedule.midpoints`. One call
            each, and one for the clean sample, which nothing precedes.
        done: Steps of an earlier run of the same inversion, or the last; it continues there.

    Yields:
        Each step, with the sample of its timestep in "sample" (the last is the noise), and x at the
        edge above it and v in "edge" and "velocity".

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    *levels, noise = reversed(schedule.timesteps)
    angles = [schedule.angle(t) for t in levels]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(angles)), schedule.angle(noise)]
    if done:
        x, v = (done[-1].tensors[name].to(latents.device) for name in ("edge", "velocity"))
    else:
        x, v = latents, model(latents, 0)
    total = len(schedule.timesteps)
    for index, (_, t) in steps_after(done, schedule.inversion_steps()):
        y, num_calls = x, 0  # the noise, which is an edge
        if t != noise:
            y, num_calls = turn(x, v, angles[index] - edges[index]), 1 if index else 2
            v = model(y, t)
            x = cross(x, v, behind=edges[index], level=angles[index], ahead=edges[index + 1])
        require_finite(x, name="the inverted sample", step=index + 1, timestep=t)
        info = StepInfo(index, total, t, num_calls=num_calls)
        yield StepState(info, {"sample": y, "edge": x, "velocity": v})
