"""A whole video with an edited part of it in its place: the same frames at the same times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np

from cogedit.disk import Over
from cogedit.errors import StorageError, VideoError
from cogedit.media.encoding import Encoding, plan_encoding
from cogedit.media.facts import VideoFacts
from cogedit.media.samples import (
    SampleLayout,
    Samples,
    layout_for,
    raw_frame_header,
    raw_header,
    read_samples,
    to_samples,
)
from cogedit.media.sound import WholeAudio
from cogedit.media.stream import FrameStream
from cogedit.media.timing import Timing
from cogedit.media.writer import check_place, encode, metadata_args, read_back


def write_splice(
    edited: FrameStream,
    path: Path,
    *,
    source: Path,
    facts: VideoFacts,
    first: int,
    encoding: Encoding,
    crossfade: int = 0,
    comment: str | None = None,
    audio: WholeAudio | None = None,
    over: Over = "anything",
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Write a video again, with an edited part of it in its place.

    Every stored frame is shown once, at its own time. Outside the part it is coded from the
    source's own samples. Colour tags are the source's, and so is the size as displayed, with
    rotation undone.

    Args:
        edited: A frame for each stored one from `first` on, at the size of the source as displayed.
        path: The file to write.
        source: The video.
        facts: What the probe found out about it.
        first: Number of the first stored frame that is replaced, from 0.
        encoding: Codec and quality.
        crossfade: Over how many of the edited frames the picture changes, at each cut.
        comment: Text for the file's metadata.
        audio: The video's audio.
        over: What the new file may replace.
        on_frame: Called after each frame of the video.

    Raises:
        UsageError: The codec, suffix, size or comment cannot be written, or something lies at
            `path` that may not be replaced.
        VideoError: The source or `edited` ends early, or `edited` late.
        StorageError: The file cannot be written. Nothing is left behind.
    """
    plan_encoding(path, encoding.codec, lossless=encoding.lossless, crf=encoding.crf)
    layout = layout_for(facts, encoding)
    check_place(path)
    timing = facts.timing
    audio_input, audio_output = ([], []) if audio is None else audio.args()
    args = [
        *("-itsoffset", f"{float(timing.start):.6f}"),
        *("-f", "ivf", "-c:v", "rawvideo", "-i", "pipe:0"),
        *audio_input,
        *("-map", "0:v:0"),
        *audio_output,
        *encoding.sample_args(layout.tag_filter, timing.time_base, is_odd=layout.is_odd),
        *_last_duration(timing),
        *metadata_args(comment),
    ]
    num_frames = len(timing.timestamps)
    encode(
        _with_times(
            _replaced(source, facts, layout, edited, first=first, crossfade=crossfade),
            layout,
            timing,
            on_frame,
        ),
        path,
        args=args,
        num_pixels=num_frames * facts.width * facts.height,
        complete=lambda temporary: _verify(temporary, path, timing),
        over=over,
    )


def fade_weight(place: int, num_frames: int, crossfade: int, *, cuts: tuple[bool, bool]) -> float:
    """How much of the edit its frame `place` of `num_frames` shows, above 0 to 1.

    `cuts` says whether frames of the source precede, and follow: elsewhere there is nothing to
    change from.
    """
    steps = crossfade + 1
    after_start = (place + 1) / steps if cuts[0] else 1.0
    before_end = (num_frames - place) / steps if cuts[1] else 1.0
    return min(1.0, after_start, before_end)


def _replaced(
    source: Path,
    facts: VideoFacts,
    layout: SampleLayout,
    edited: FrameStream,
    *,
    first: int,
    crossfade: int,
) -> Iterator[Samples]:
    """The samples of every frame of the new video."""
    num_stored, num_edited = len(facts.timing.timestamps), edited.num_frames
    end = first + num_edited
    cuts = (first > 0, end < num_stored)
    with closing(read_samples(source, facts, layout)) as stored:
        made = to_samples(edited.frames, layout)
        for number, own in enumerate(stored):
            if not first <= number < end:
                yield own
                continue
            new = next(made, None)
            if new is None:
                raise VideoError(f"the edit ends at frame {number} of {source}, expected {end}")
            weight = fade_weight(number - first, num_edited, crossfade, cuts=cuts)
            yield new if weight == 1 else _mixed(own, new, weight)
        # What shows the edit reports on it after its last frame.
        if next(made, None) is not None:
            raise VideoError(
                f"the edit goes on after frame {end - 1} of {source}, expected its end"
            )


def _mixed(own: Samples, new: Samples, weight: float) -> Samples:
    under = own.astype(np.float32)
    mixed = np.rint(under + np.float32(weight) * (new - under))
    return cast(Samples, mixed.astype(own.dtype))


def _with_times(
    frames: Iterator[Samples], layout: SampleLayout, timing: Timing, on_frame: Callable[[], None]
) -> Iterator[bytes | memoryview]:
    """A stream of raw frames with their times, counted from the first one."""
    yield raw_header(layout, timing.time_base)
    for frame, timestamp in zip(frames, timing.timestamps, strict=True):
        yield raw_frame_header(frame, timestamp - timing.timestamps[0])
        yield np.ascontiguousarray(frame).data
        on_frame()


def _last_duration(timing: Timing) -> list[str]:
    """Options of ffmpeg that show the last frame for as long as in the source."""
    if not timing.last_duration:
        return []
    last = f"if(gte(PTS\\,{timing.timestamps[-1]})\\,{timing.last_duration}\\,DURATION)"
    # mp4 has no duration but that of the frame that is coded last: it has to be the one shown last.
    is_held = timing.last_duration * timing.time_base * timing.rate > Fraction(3, 2)
    in_order = ["-bf", "0"] if is_held else []
    return [*in_order, "-bsf:v", f"setts=pts=PTS:dts=DTS:duration={last}"]


def _verify(temporary: Path, path: Path, timing: Timing) -> None:
    """Refuse a file that has not the frames of the source at their times."""
    wanted = timing.timestamps
    packets = read_back(temporary, path, num_frames=len(wanted))
    written = packets.timestamps
    # Cleared of denominators: Fractions would take seconds on a long video.
    there, here = packets.time_base, timing.time_base
    of_written = there.numerator * here.denominator
    of_wanted = here.numerator * there.denominator
    for number, (found, expected) in enumerate(zip(written, wanted, strict=True)):
        late = (found - written[0]) * of_written - (expected - wanted[0]) * of_wanted
        if abs(late) > of_written:  # more than one tick of the file's own clock
            raise StorageError(f"cannot write {path}: frame {number} is not at its time")
