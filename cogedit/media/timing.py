"""The exact frame rate that timestamps imply.

ffmpeg prints the rate with two decimals (29.97) and containers round timestamps to their own clock
(1 ms in Matroska, 10 ms in GIF). The exact fraction is the one that explains every timestamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise


def explains(rate: Fraction, timestamps: Sequence[int], time_base: Fraction) -> bool:
    """Whether frames at a constant `rate` have these timestamps, each within one tick."""
    if rate <= 0:
        return False
    # The difference of (t - t0) * time_base and k / rate, cleared of denominators: integers, since
    # Fractions would take seconds on a long video.
    per_tick = time_base.numerator * rate.numerator
    per_frame = time_base.denominator * rate.denominator
    start = timestamps[0]
    return all(
        abs((timestamp - start) * per_tick - index * per_frame) <= per_tick
        for index, timestamp in enumerate(timestamps)
    )


def find_frame_rate(
    timestamps: Sequence[int], time_base: Fraction, *, printed: Sequence[Fraction]
) -> tuple[Fraction, bool]:
    """The frame rate that the timestamps imply.

    Args:
        timestamps: Ascending, in ticks; at least one.
        time_base: Seconds per tick.
        printed: Rates that ffmpeg printed, with two decimals, best first.

    Returns:
        Frames per second and False, or, where no constant rate explains the timestamps, the
        average rate and True.
    """
    snapped = [snap_rate(rate) for rate in printed if rate > 0]
    ticks = timestamps[-1] - timestamps[0]
    if len(timestamps) < 2 or ticks <= 0:
        return (snapped[0] if snapped else Fraction(25)), False
    average = (len(timestamps) - 1) / (ticks * time_base)
    steps = {after - before for before, after in pairwise(timestamps)}
    if len(steps) == 1:
        step = steps.pop()
        # On a fine clock (30000/1001 as 1001 ticks of 1/30000) an even step is the exact answer.
        # On a coarse one it is rounded: 33 ms is 30000/1001 just as well.
        if step == 1 or step >= 100:
            return average, False
        snapped.append(average)
    for rate in (*snapped, snap_rate(average), *printed):
        if explains(rate, timestamps, time_base):
            return rate, False
    return average.limit_denominator(1001), True


def snap_rate(rate: Fraction) -> Fraction:
    """The whole or x * 1000 / 1001 rate that `rate` is with two decimals, or `rate` itself."""
    tolerance = Fraction(1, 200)
    broadcast = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    for exact in (Fraction(round(rate)), broadcast):
        if abs(rate - exact) <= tolerance:
            return exact if exact > 0 else rate
    return rate
