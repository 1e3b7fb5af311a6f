"""The noise levels of one run, read off the forward scheduler's own table.

Both directions use this one object. Building the inverse from `DDIMInverseScheduler` instead drops
`snr_shift_scale` silently and puts the levels of CogVideoX-2B off by up to 0.26 in
`alphas_cumprod`. No torch in here: a dry run counts steps without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from cogedit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

CLEAN = -1
"""The timestep of the clean sample, where `alphas_cumprod` is 1."""


def check_low_levels(low_levels: int, num_inference_steps: int) -> None:
    """Raise `UsageError` where so many of an inversion's timesteps cannot be the low ones."""
    if low_levels >= num_inference_steps:
        raise UsageError(
            f"--low-levels is {low_levels}, expected fewer than the inversion's steps, "
            f"{num_inference_steps}"
        )


@dataclass(frozen=True)
class Schedule:
    """A table of noise levels and the ones among them that a run visits.

    Attributes:
        alphas_cumprod: The scheduler's table, one float64 value per training timestep, falling.
        timesteps: The visited levels in denoising order, falling; the clean sample (-1) comes
            after the last.
    """

    alphas_cumprod: tuple[float, ...]
    timesteps: tuple[int, ...]

    @classmethod
    def trailing(cls, alphas_cumprod: Tensor, num_inference_steps: int) -> Schedule:
        """Space the levels evenly, ending at the noisiest (arXiv 2305.08891, table 2, "trailing").

        Level i lies at round(T - i T / N) - 1. diffusers counts with `numpy.arange` and a
        fractional step, which yields N + 1 levels for some N (61, 103, ...); counting i does not.
        The step is rounded as `arange` rounds it, so that all other N give diffusers' levels.

        Args:
            alphas_cumprod: Table of the forward scheduler, [T], any float dtype.
            num_inference_steps: How many levels to visit, 1 to T.

        Raises:
            UsageError: `num_inference_steps` lies outside 1 to T.
        """
        total = alphas_cumprod.numel()
        if not 1 <= num_inference_steps <= total:
            raise UsageError(
                f"num_inference_steps is {num_inference_steps}; it must lie between 1 and {total}"
            )
        step = (total - total / num_inference_steps) - total
        timesteps = tuple(round(total + i * step) - 1 for i in range(num_inference_steps))
        return cls(tuple(alphas_cumprod.double().tolist()), timesteps)

    @classmethod
    def of_steps(cls, count: int) -> Schedule:
        """Number some steps: for windows, which are shares of the steps, wherever these lie."""
        return cls((), tuple(range(count)))

    def with_low_levels(self, count: int) -> Schedule:
        """Add levels between the clean sample and the lowest, where a step turns farthest.

        The first trailing level lies three to four times as far from the clean sample, in angle,
        as levels lie apart. The added ones halve that angle again and again: theta / 2, theta / 4,
        ..., each at the nearest timestep.

        Raises:
            UsageError: There are not so many timesteps below the lowest level.
        """
        low, own = list[int](), self._angles()
        for number in range(1, count + 1):
            angle = self.angle(self.timesteps[-1]) / 2**number
            below = min((self.timesteps[-1], *low))
            if below == 0:
                raise UsageError(
                    f"low_levels is {count}; below timestep {self.timesteps[-1]} there is room for "
                    f"{number - 1}"
                )
            low.append(min(_nearest(own, angle), below - 1))
        return Schedule(self.alphas_cumprod, (*self.timesteps, *low))

    def midpoints(self) -> Schedule:
        """Return the noisiest level, and the levels halfway between these ones, in angle.

        The lowest lies halfway between the lowest of these and the clean sample.

        Raises:
            UsageError: These levels lie so close that two of the others would be one.
        """
        angles = [0.0, *(self.angle(t) for t in reversed(self.timesteps))]
        own = self._angles()
        middles = [_nearest(own, (low + high) / 2) for low, high in pairwise(angles)]
        if len({*middles, self.timesteps[0]}) <= len(middles):
            raise UsageError(
                f"a midpoint inversion has no place for {len(middles)} levels",
                hint=f"at most {len(self.alphas_cumprod) // 2} --num-inference-steps",
            )
        return Schedule(self.alphas_cumprod, (self.timesteps[0], *reversed(middles)))

    def _angles(self) -> list[float]:
        """Return the angle of every timestep."""
        return [self.angle(timestep) for timestep in range(len(self.alphas_cumprod))]

    def alpha_cumprod(self, timestep: int) -> float:
        """Return abar at a timestep; 1 for the clean sample (-1)."""
        return 1.0 if timestep == CLEAN else self.alphas_cumprod[timestep]

    def rotation(self, t_from: int, t_to: int) -> tuple[float, float]:
        """Return (cos D, sin D), where D is the angle between two noise levels.

        With abar = cos^2(theta), a sample is z0 cos(theta) + eps sin(theta) and a DDIM step turns
        it by D = theta_from - theta_to: positive towards the clean sample. Written in abar so that
        zero terminal SNR (abar = 0) needs no special case.
        """
        a, b = self.alpha_cumprod(t_from), self.alpha_cumprod(t_to)
        cos = math.sqrt(a * b) + math.sqrt((1 - a) * (1 - b))
        sin = math.sqrt(b * (1 - a)) - math.sqrt((1 - b) * a)
        return cos, sin

    def angle(self, timestep: int) -> float:
        """Return theta in radians: 0 for the clean sample, pi/2 at zero terminal SNR."""
        alpha = self.alpha_cumprod(timestep)
        return math.atan2(math.sqrt(1 - alpha), math.sqrt(alpha))

    def subset(self, num_inference_steps: int | None, *, start_step: int = 0) -> Schedule:
        """Visit some of the timesteps only, so that an edit may be coarser than its inversion.

        Arguments and errors are those of `visited`.
        """
        chosen = visited(len(self.timesteps), num_inference_steps, start_step=start_step)
        return Schedule(self.alphas_cumprod, tuple(self.timesteps[i] for i in chosen))

    def window(self, first: float, last: float) -> frozenset[int]:
        """Return the timesteps of the steps i of N with first <= i / N < last."""
        total = len(self.timesteps)
        return frozenset(t for i, t in enumerate(self.timesteps) if first <= i / total < last)

    def changes(self, *windows: frozenset[int]) -> frozenset[int]:
        """Return the timesteps of the steps at which any of these windows begins or ends."""
        return frozenset(
            t
            for before, t in zip(self.timesteps[:-1], self.timesteps[1:], strict=True)
            if any((before in window) != (t in window) for window in windows)
        )

    def denoising_steps(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs (t_from, t_to) from the noisiest level down to the clean sample."""
        return tuple(zip(self.timesteps, (*self.timesteps[1:], CLEAN), strict=True))

    def inversion_steps(self) -> tuple[tuple[int, int], ...]:
        """Return the pairs (t_from, t_to) from the clean sample up to the noisiest level."""
        return tuple((low, high) for high, low in reversed(self.denoising_steps()))


def visited(total: int, num_inference_steps: int | None, *, start_step: int = 0) -> tuple[int, ...]:
    """Return which of an inversion's timesteps, counted from the noisiest, an edit visits.

    Args:
        total: How many timesteps the inversion visited.
        num_inference_steps: How many of them to keep, evenly spaced from the noisiest; None keeps
            all.
        start_step: How many of the noisiest of these to leave out.

    Raises:
        UsageError: More timesteps than there are, or none is left.
    """
    kept = total if num_inference_steps is None else num_inference_steps
    if not 1 <= kept <= total:
        raise UsageError(
            f"the edit asks for {kept} steps; the inversion visits {total}",
            hint=f"choose at most {total}, or invert with more --num-inference-steps",
        )
    if not 0 <= start_step < kept:
        raise UsageError(f"start_step is {start_step}; the edit's steps are 0 to {kept - 1}")
    return tuple(i * total // kept for i in range(start_step, kept))


def _nearest(angles: Sequence[float], angle: float) -> int:
    """Return the timestep whose angle is nearest, of the angles of all."""
    distances = [abs(own - angle) for own in angles]
    return distances.index(min(distances))
