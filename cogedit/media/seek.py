"""Where a video is read from: its beginning, or a keyframe near the first frame that is wanted.

A file is sought only where the frames after a seek are proven to be those of reading from the
start: its container says where each frame is, every packet is one frame, and from the keyframe on
nothing refers to what lies before it. That follows from the standards of the codecs below, for
H.264 at an IDR picture and for HEVC at any IRAP picture, which are looked for in the file. Frames
are then chosen by their timestamps, which a seek does not change, and never by counting from where
it landed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

from cogedit.media.facts import VideoFacts
from cogedit.media.ffmpeg import run_on_input
from cogedit.media.ffmpeg_output import parse_framecrc

CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "prores", "ffv1", "mjpeg"})
"""What the corpus of the tests shows to be the same after a seek."""

# Types of the units of a bitstream from which a decoder can begin, and show what follows exactly.
_ENTRY_UNITS = {"h264": "5", "hevc": "16-21"}


def seek_options(seconds: Fraction) -> list[str]:
    """Options of ffmpeg for its input that begin at the keyframe before a time.

    The time is counted from the beginning of the file, as those of `list_packets` are, and frames
    keep the timestamps that they have without a seek.
    """
    # A microsecond too late is still before the next frame; one too early is before the keyframe.
    micros = math.ceil(seconds * 1_000_000)
    time = f"{micros // 1_000_000}.{micros % 1_000_000:06}"
    return ["-ss", time, "-noaccurate_seek", "-copyts", "-start_at_zero"]


def find_seek(path: Path, facts: VideoFacts, number: int) -> Fraction | None:
    """The time to seek to for reading from a stored frame on; None reads from the start.

    Raises what `run_on_input` does.
    """
    timestamps = facts.timing.timestamps
    keys, wanted = facts.keyframes, timestamps[number]
    place = bisect_right(keys, wanted) - 1
    if place < 1 or (facts.deinterlace and facts.pictures.field_order):
        # The filter that deinterlaces looks at the frames before and after.
        return None
    seconds = keys[place] * facts.timing.time_base
    units = _ENTRY_UNITS.get(facts.codec)
    if units is not None and not _has_entry(path, facts, seconds, units, before=wanted):
        return None
    return seconds


def _has_entry(
    path: Path, facts: VideoFacts, seconds: Fraction, units: str, *, before: int
) -> bool:
    """Whether a decoder that begins at a time meets an entry that is shown before a timestamp."""
    entry = ["-map", facts.stream, "-c", "copy", "-bsf:v", f"filter_units=pass_types={units}"]
    result = run_on_input(
        path,
        [*entry, "-frames:v", "1", "-f", "framecrc", "-"],
        before=seek_options(seconds),
    )
    try:
        found = parse_framecrc(result.stdout.decode("utf-8", errors="replace")).timestamps
    except (ValueError, ZeroDivisionError):
        return False
    return len(found) == 1 and found[0] <= before
