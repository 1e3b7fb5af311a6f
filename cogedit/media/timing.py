"""Packets of a video stream and the exact frame rate that their timestamps say.

ffmpeg prints the rate with two decimals (29.97) and containers round timestamps to their own clock
(1 ms in Matroska, 10 ms in GIF). The exact fraction is the one that explains every timestamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

_NO_TIMESTAMP = -(2**63)
_FLAG_DISCARD = 0x4


@dataclass(frozen=True)
class PacketTable:
    """The packets of one video stream, as ffmpeg's framecrc muxer lists them.

    Attributes:
        codec: ffmpeg's name of the codec.
        width: Coded width in pixels, before rotation.
        height: Coded height in pixels, before rotation.
        sample_aspect_ratio: Width of a pixel over its height; 1 where it is not given.
        time_base: Seconds per tick.
        timestamps: Presentation times of the shown packets in ticks, ascending.
        num_discarded: Packets that an edit list takes out of the presentation.
    """

    codec: str
    width: int
    height: int
    sample_aspect_ratio: Fraction
    time_base: Fraction
    timestamps: tuple[int, ...]
    num_discarded: int


def parse_framecrc(text: str) -> PacketTable:
    """Read the output of `ffmpeg -c copy -f framecrc`.

    Raises:
        ValueError: A header line is missing, or a line is not framecrc's.
    """
    header: dict[str, str] = {}
    presentation: list[int] = []
    decoding: list[int] = []
    num_discarded = 0
    for line in text.splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            header[name.removesuffix(" 0")] = value.strip()
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 6:
            continue
        flags = next((int(field[2:], 16) for field in fields[6:] if field.startswith("F=")), 0)
        if flags & _FLAG_DISCARD:
            num_discarded += 1
            continue
        decoding.append(int(fields[1]))
        presentation.append(int(fields[2]))
    missing = {"tb", "codec_id", "dimensions"} - header.keys()
    if missing:
        raise ValueError(f"framecrc named no {', '.join(sorted(missing))}")
    # AVI has no presentation times; its decoding times are as evenly spaced.
    timestamps = decoding if _NO_TIMESTAMP in presentation else presentation
    width, height = header["dimensions"].split("x")
    aspect_width, aspect_height = (int(part) for part in header.get("sar", "0/1").split("/"))
    known_aspect = aspect_width > 0 and aspect_height > 0
    return PacketTable(
        codec=header["codec_id"],
        width=int(width),
        height=int(height),
        sample_aspect_ratio=Fraction(aspect_width, aspect_height) if known_aspect else Fraction(1),
        time_base=Fraction(header["tb"]),
        timestamps=tuple(sorted(timestamps)),
        num_discarded=num_discarded,
    )


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
    """The frame rate that the timestamps say.

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
    whole = Fraction(round(rate))
    if abs(rate - whole) <= tolerance:
        return whole if whole > 0 else rate
    broadcast = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    return broadcast if broadcast > 0 and abs(rate - broadcast) <= tolerance else rate
