"""When the frames of a video are shown: its exact rate, or an even grid over a rate that varies.

ffmpeg prints rates with two decimals (29.97), and some of them are averages. Containers round
timestamps to their own clock (1 ms in Matroska and FLV, 10 ms in GIF), and a remuxed file keeps
that rounding under a finer clock. Phones and browsers add jitter. So the timestamps decide: the
exact fraction is the one that explains them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

_WHOLE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 48, 50, 60, 72, 75, 90, 100)
_NOMINAL = (
    *map(Fraction, (*_WHOLE, 120, 144, 165, 200, 240)),
    *(Fraction(rate * 1000, 1001) for rate in (15, 24, 30, 48, 60, 120, 240)),
    Fraction(25, 2),
)
TIME_TOLERANCE = Fraction(1, 2000)
"""Seconds by which a time that is written with three decimals may be off."""

MAX_TERM = 1_000_000
"""The largest numerator or denominator of a rate that is written."""

_CLOCK = Fraction(1, 1000)  # seconds: the coarsest clock of a container of today, and of remuxes


@dataclass(frozen=True)
class Timing:
    """When the stored frames of a video are shown."""

    timestamps: tuple[int, ...]  # of the frames in ticks, ascending
    time_base: Fraction  # seconds per tick
    rate: Fraction  # nominal frames per second: the one that most frames follow
    is_constant: bool  # whether all follow it, within the clock and a little jitter
    inaccuracy: Fraction  # ticks by which timestamps may be late: those of the clock, or jitter
    last_duration: int = 0  # ticks for which the last frame is shown; 0 is one frame's

    @property
    def start(self) -> Fraction:
        """Time of the first frame in seconds."""
        return self.timestamps[0] * self.time_base

    def num_shown(self, rate: Fraction) -> int:
        """How many frames `shown` returns."""
        ticks = self.timestamps[-1] - self.timestamps[0]
        ticks += self.last_duration or round(1 / (self.rate * self.time_base))
        # The end may have been rounded up to a whole tick.
        return max(1, self._first_place(ticks, self._grid(rate, max(Fraction(1), self.inaccuracy))))

    def shown(self, rate: Fraction) -> tuple[int, ...]:
        """The number of the frame that is on the screen at each time k / rate, from the first on.

        It is the last one whose time has come, within the accuracy of the clock. A frame that is
        shown for longer is repeated; one that is never on the screen is left out.
        """
        grid, end = self._grid(rate, self.inaccuracy), self.num_shown(rate)
        numbers: list[int] = []
        for number, timestamp in enumerate(self.timestamps[1:]):
            place = min(end, self._first_place(timestamp - self.timestamps[0], grid))
            numbers += [number] * (place - len(numbers))
        return (*numbers, *[len(self.timestamps) - 1] * (end - len(numbers)))

    def on_screen(self, seconds: Fraction) -> int:
        """The number of the frame that is on the screen `seconds` after the first one appeared."""
        return max(0, bisect_right(self.timestamps, self._ticks(seconds) + self._tolerance) - 1)

    def first_from(self, seconds: Fraction) -> int:
        """The number of the first frame that appears `seconds` after the first one, or later."""
        return bisect_left(self.timestamps, self._ticks(seconds) - self._tolerance)

    def _ticks(self, seconds: Fraction) -> Fraction:
        return self.timestamps[0] + seconds / self.time_base

    @property
    def _tolerance(self) -> Fraction:
        """By how many ticks a time may be off: people and containers write milliseconds."""
        half_frame = 1 / (2 * self.rate * self.time_base)
        return min(half_frame, max(self.inaccuracy, TIME_TOLERANCE / self.time_base))

    def _grid(self, rate: Fraction, inaccuracy: Fraction) -> tuple[int, int, int]:
        """Places per tick, and by how many places a frame may be late, over one denominator."""
        per_tick = self.time_base * rate
        tolerance = min(Fraction(1, 2), inaccuracy * per_tick)
        denominator = math.lcm(per_tick.denominator, tolerance.denominator)
        return int(per_tick * denominator), int(tolerance * denominator), denominator

    @staticmethod
    def _first_place(ticks: int, grid: tuple[int, int, int]) -> int:
        """The first place of the grid that is not before a time after the first frame's."""
        per_tick, tolerance, denominator = grid
        return -((tolerance - ticks * per_tick) // denominator)


def even_timing(num_frames: int, rate: Fraction) -> Timing:
    """When frames are shown that carry no times, at a rate that is given."""
    return Timing(tuple(range(num_frames)), 1 / rate, rate, True, Fraction(0), 1)


def explains(rate: Fraction, timestamps: Sequence[int], time_base: Fraction) -> bool:
    """Whether frames at a constant `rate` have these timestamps, each within one tick."""
    if rate <= 0:
        return False
    period = 1 / (rate * time_base)
    return all(abs(late) <= period.denominator for late in _lateness(timestamps, period))


def find_timing(
    timestamps: Sequence[int],
    time_base: Fraction,
    *,
    printed: Sequence[Fraction] = (),
    last_duration: int = 0,
) -> Timing:
    """Find the rate that the timestamps imply.

    Args:
        timestamps: Ascending, in ticks; at least one.
        time_base: Seconds per tick.
        printed: Rates that ffmpeg printed, with two decimals: the average, and its guess. They
            decide only between rates that explain the timestamps equally well.
        last_duration: Ticks for which the last frame is shown; 0 where it is not known.
    """
    kept = tuple(timestamps)
    exact = _exact_rate(kept, time_base, printed)
    if exact is not None:
        written = _in_short(exact)
        period = 1 / (written * time_base)
        # Frames may drift from it, the last one up to its end.
        inaccuracy = _largest_error(kept, period) + abs(period - 1 / (exact * time_base))
        return Timing(kept, time_base, written, True, inaccuracy, last_duration)
    steps = [after - before for before, after in pairwise(kept)]
    rate = _steady_rate(kept, steps, time_base, printed)
    is_constant, followers = rate is not None, steps
    if rate is None:
        followers = _typical_steps(steps, time_base)
        rate = _nominal_rate(followers, time_base, printed, clock=_clock_of(steps, time_base))
    # Of a step; both of its ends may be off.
    period = 1 / (rate * time_base)
    jitter = max(abs(min(followers) - period), abs(max(followers) - period))
    return Timing(kept, time_base, rate, is_constant, 2 * jitter, last_duration)


def _exact_rate(
    timestamps: tuple[int, ...], time_base: Fraction, printed: Sequence[Fraction]
) -> Fraction | None:
    """The constant rate that has these timestamps, each within one tick."""
    snapped = [snap_rate(rate) for rate in printed if rate > 0]
    ticks = timestamps[-1] - timestamps[0]
    if len(timestamps) < 2 or ticks <= 0:
        return snapped[0] if snapped else Fraction(25)
    average = (len(timestamps) - 1) / (ticks * time_base)
    steps = {after - before for before, after in pairwise(timestamps)}
    if len(steps) == 1:
        step = steps.pop()
        # On a fine clock (30000/1001 as 1001 ticks of 1/30000) an even step is the exact answer.
        # On a coarse one it is rounded: 33 ms is 30000/1001 just as well.
        if step == 1 or step >= 100:
            return average
        snapped.append(average)
    for rate in (*snapped, snap_rate(average), *printed):
        if explains(rate, timestamps, time_base):
            return rate
    return None


def _in_short(rate: Fraction) -> Fraction:
    """A rate that can be written, for one on a clock so fine that it cannot.

    30000/1001 in steps of 100 ns, as DirectShow counts, is 10000000/333667.
    """
    if max(rate.numerator, rate.denominator) <= MAX_TERM:
        return rate
    exact = snap_rate(rate)
    if exact != rate and abs(1 / exact - 1 / rate) * rate.numerator < 1:
        return exact  # its period, rounded to that clock
    most = math.floor(MAX_TERM / max(rate, Fraction(1)))
    return rate.limit_denominator(max(1, most)) or rate


def _steady_rate(
    timestamps: tuple[int, ...],
    steps: Sequence[int],
    time_base: Fraction,
    printed: Sequence[Fraction],
) -> Fraction | None:
    """The rate at which each frame comes about a period after the one before, and none is far off.

    A frame that is missing, held or shown twice makes a step that is not of about a period.
    """
    rate = _nominal_rate(steps, time_base, printed, clock=_clock_of(steps, time_base))
    period = 1 / (rate * time_base)
    if 10 * min(steps) <= 7 * period or 10 * max(steps) >= 13 * period:
        return None
    late = [*_lateness(timestamps, period)]
    return rate if max(late) - min(late) <= 2 * period.numerator else None


def _typical_steps(steps: Sequence[int], time_base: Fraction) -> list[int]:
    """The shortest steps in ticks that many frames have, give or take a tenth or the clock."""
    width = max(1, math.ceil(_CLOCK / time_base))
    ordered = sorted(step for step in steps if step > 0)
    ends, end = [], 0
    for step in ordered:
        while end < len(ordered) and ordered[end] <= step + max(step // 10, width):
            end += 1
        ends.append(end)
    counts = [end - first for first, end in enumerate(ends)]
    # Longer ones may be more by a few: every other frame of a video that loses some. Shorter ones
    # keep all of its frames.
    first = next(first for first, count in enumerate(counts) if 2 * count >= max(counts))
    best = max(range(first, ends[first]), key=lambda number: counts[number])
    return ordered[best : ends[best]]


def _clock_of(steps: Sequence[int], time_base: Fraction) -> int:
    """The clock that wrote the timestamps, in ticks: 1 ms shows even under a finer one."""
    common = math.gcd(*steps)
    return common if common * time_base <= _CLOCK else 1


def _nominal_rate(
    steps: Sequence[int], time_base: Fraction, printed: Sequence[Fraction], *, clock: int
) -> Fraction:
    """The rate of steps that differ by jitter alone: a usual one where one fits."""
    mean = Fraction(sum(steps), len(steps))
    low, high = min(steps) - clock, max(steps) + clock
    fitting = [rate for rate in _NOMINAL if low <= 1 / (rate * time_base) <= high]
    for rate in map(snap_rate, reversed(printed)):
        if rate in fitting:
            return rate
    if fitting:
        return min(fitting, key=lambda rate: abs(1 / (rate * time_base) - mean))
    return (1 / (mean * time_base)).limit_denominator(1001)


def _largest_error(timestamps: tuple[int, ...], period: Fraction) -> Fraction:
    """By how many ticks a frame is early or late at the most, the first one being in time."""
    return Fraction(max(map(abs, _lateness(timestamps, period))), period.denominator)


def _lateness(timestamps: Sequence[int], period: Fraction) -> Iterator[int]:
    """How late each frame is, times the denominator of the period in ticks: integers are fast."""
    for index, timestamp in enumerate(timestamps):
        yield (timestamp - timestamps[0]) * period.denominator - index * period.numerator


def snap_rate(rate: Fraction) -> Fraction:
    """The whole or x * 1000 / 1001 rate that `rate` is with two decimals, or `rate` itself."""
    tolerance = Fraction(1, 200)
    broadcast = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    for exact in (Fraction(round(rate)), broadcast):
        if abs(rate - exact) <= tolerance:
            return exact if exact > 0 else rate
    return rate
