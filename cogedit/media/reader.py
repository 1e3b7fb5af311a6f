"""Frames of a video file as arrays, by decord or by ffmpeg, one at a time.

Both decode the file from its first frame on: seeking is where decoders differ. Where ffmpeg is
proven to give the same frames after a seek (`cogedit.media.seek`), it reads from there. They return
the same bytes wherever the probe chooses decord. Both run as processes of their own with a bound on
the time for one frame: where decord hangs, crashes or counts otherwise, ffmpeg reads on, and a file
that ffmpeg cannot read ends as an error message.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageColor import getrgb

from cogedit.errors import UsageError, VideoError
from cogedit.media.animation import iterate_animation
from cogedit.media.clip import ResizePlan
from cogedit.media.facts import VideoFacts
from cogedit.media.ffmpeg import FfmpegPipe, first_error, input_args
from cogedit.media.filters import filter_chain, input_options, passed_by_filters
from cogedit.media.images import are_images, find_images, read_image
from cogedit.media.packets import list_frames
from cogedit.media.pipe import ProcessPipe
from cogedit.media.probe import probe_stored
from cogedit.media.seek import find_seek, seek_options
from cogedit.wording import count_of

Frames = NDArray[np.uint8]

DECORD_PROGRAM = Path(__file__).with_name("decord_child.py")
DECORD_TIMEOUT = 60.0  # seconds for one frame, beside those for frames before it
FFMPEG_TIMEOUT = 120.0  # likewise

_SLOWEST_PIXELS_PER_SECOND = 10_000_000  # five frames of 1920x1080, on a machine that is busy


class DecordFailed(VideoError):
    """decord does not read a file as ffmpeg does, though its packets promise it."""


def read_clip(
    path: Path,
    facts: VideoFacts,
    *,
    indices: Sequence[int],
    resize: ResizePlan,
    fall_back: bool = True,
) -> Generator[Frames, None, None]:
    """Read the frames of a clip one at a time, at the clip's size.

    Args:
        path: The video file.
        facts: What `probe_facts` returned for it.
        indices: Numbers of the frames to take, ascending.
        resize: How a frame becomes a frame of the clip.
        fall_back: Whether ffmpeg reads on where decord fails.

    Yields:
        uint8 RGB, [height, width, 3].

    Raises:
        DecordFailed: decord failed, and `fall_back` is off.
        VideoError: The file does not deliver the frames that the probe counted.
    """
    stream = _Stream(path, facts, facts.width, facts.height, fall_back=fall_back)
    with closing(_read_frames(stream, indices)) as frames:
        for frame in frames:
            yield resize_frame(frame, resize)


def iterate_frames(
    path: Path,
    facts: VideoFacts,
    *,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
) -> Generator[Frames, None, None]:
    """Read frames of a video one at a time: uint8 RGB [height, width, 3] each.

    They have the video's own size, or are scaled to another `size`, width and height, as fast as
    the reader can. Arguments and errors are those of `read_clip`.
    """
    if size is not None:
        return _read_frames(_Stream(path, facts, *size, "bilinear"), indices)
    return _read_frames(_Stream(path, facts, facts.width, facts.height), indices)


def resize_frame(frame: Frames, resize: ResizePlan) -> Frames:
    """Scale a frame with antialiased bicubic interpolation, then crop or pad it.

    Args:
        frame: uint8 RGB, [source_height, source_width, 3].
        resize: The plan for frames of this size.

    Returns:
        uint8 RGB, [height, width, 3]. A frame that keeps its size keeps its bytes.

    Raises:
        VideoError: The frame is not of the planned size.
    """
    if frame.shape != (resize.source_height, resize.source_width, 3):
        raise VideoError(
            f"the video changes its size: a frame is {frame.shape[1]}x{frame.shape[0]}, expected "
            f"{resize.source_width}x{resize.source_height}",
            hint="re-encode it at one size first",
        )
    box = resize.box
    scaled = scale_frame(frame, box.scaled_width, height=box.scaled_height)
    left, top = box.left, box.top
    if box.mode == "pad":
        padded = np.zeros((resize.height, resize.width, 3), dtype=np.uint8)
        padded[top : top + box.scaled_height, left : left + box.scaled_width] = scaled
        return padded
    return scaled[top : top + resize.height, left : left + resize.width]


def read_frames_upstream(path: Path, *, width: int, height: int, indices: Sequence[int]) -> Frames:
    """Read frames as the upstream script's `get_video_frames` does: stretched by the decoder.

    decord scales while it decodes (bilinear), which gives other results than `read_clip`. Where
    decord is not exact or not installed, ffmpeg scales with the same algorithm and returns the same
    bytes. `indices` are ascending.

    Returns:
        uint8 RGB, [len(indices), height, width, 3].

    Raises:
        UsageError: `indices` is empty or not ascending, or the size is not positive.
        VideoError: The file is not a video, or has fewer frames.
    """
    if not indices or indices[0] < 0 or any(b <= a for a, b in pairwise(indices)):
        raise UsageError("indices must be ascending frame numbers, at least one")
    if width < 1 or height < 1:
        raise UsageError(f"the size {width}x{height} must be positive")
    facts = probe_stored(path)
    if not facts.pictures.is_hdr:
        # The script knows no color but the one that the frames name.
        facts = replace(facts, pictures=replace(facts.pictures, filled_tags=""))
    stretched = _Stream(path, facts, width, height, "bilinear")
    with closing(_read_frames(stretched, indices)) as frames:
        return np.stack(list(frames))


@dataclass(frozen=True)
class _Stream:
    """A video to read, the size at which its reader delivers frames, and how ffmpeg scales.

    decord knows no scaling but bilinear. That matters to `read_frames_upstream` alone: otherwise
    decord is asked for the video's own size, and ffmpeg scales only to make pixels square.
    """

    path: Path
    facts: VideoFacts
    width: int
    height: int
    scaling: Literal["bicubic", "bilinear"] = "bicubic"
    fall_back: bool = True


def _read_frames(stream: _Stream, indices: Sequence[int]) -> Generator[Frames, None, None]:
    """The frames `indices` of the video, each [height, width, 3]."""
    facts = stream.facts
    count, last = facts.num_frames, indices[-1]
    if last >= count:
        raise VideoError(
            f"{stream.path} has {count_of(count, 'frame')}, expected frame {last} in it"
        )
    shown = range(count) if facts.grid is None else facts.timing.shown(facts.grid)
    # In ascending order, as `indices` are; a clip's last frame may be repeated.
    counts = Counter(shown[index] for index in indices)
    with closing(_read_stored(stream, list(counts))) as frames:
        for frame, repeats in zip(frames, counts.values(), strict=True):
            for _ in range(repeats):
                yield frame


def _read_stored(stream: _Stream, numbers: Sequence[int]) -> Generator[Frames, None, None]:
    """The frames with these numbers in the file."""
    if stream.facts.reader == "pillow":
        yield from _read_by_pillow(stream, numbers)
        return
    seconds = find_seek(stream.path, stream.facts, numbers[0])
    if seconds is not None:
        num_read = 0
        try:
            with closing(_read_by_ffmpeg(stream, numbers, seek=seconds)) as frames:
                for frame in frames:
                    yield frame
                    num_read += 1
            return
        except VideoError:  # it landed elsewhere: what was read is right by its timestamps
            numbers = numbers[num_read:]
            if not numbers:  # an error after the last one, which is of no frame of these
                return
    if stream.facts.reader != "decord":
        yield from _read_by_ffmpeg(stream, numbers)
        return
    num_read = 0
    try:
        with closing(_read_by_decord(stream, numbers)) as frames:
            for frame in frames:
                yield frame
                num_read += 1
    except DecordFailed:
        if not stream.fall_back:
            raise
        # The frames so far are those of ffmpeg: decoders differ at the end, or in being able to.
        yield from _read_by_ffmpeg(stream, numbers[num_read:])


def _read_by_decord(stream: _Stream, indices: Sequence[int]) -> Generator[Frames, None, None]:
    request = {
        "path": str(stream.path.absolute()),
        "width": stream.width,
        "height": stream.height,
        "num_frames": stream.facts.num_frames,
        "indices": list(indices),
    }
    # -P keeps the folder of the program, which has modules of ours, out of its imports.
    command = [sys.executable, "-P", str(DECORD_PROGRAM)]
    timeout = DECORD_TIMEOUT + _longest_skip(stream, indices)
    with ProcessPipe(command, stall_timeout=timeout) as decord:
        with suppress(BrokenPipeError):  # its status says why it ended
            decord.write(memoryview(json.dumps(request).encode()))
        decord.close_stdin()
        for index in indices:
            frame = np.empty((stream.height, stream.width, 3), dtype=np.uint8)
            if decord.read_into(frame.data.cast("B")) != frame.nbytes:
                status, messages = decord.wait()
                reason = f"decord ended with status {status}"
                if decord.timed_out:
                    reason = f"decord gave no frame for {timeout:.0f} seconds"
                raise DecordFailed(f"{stream.path}: {_reported(messages) or reason}")
            if index == stream.facts.num_frames - 1:
                _check_end(stream, decord)
            yield frame


def _check_end(stream: _Stream, decord: ProcessPipe) -> None:
    """Refuse a last frame that decord made up: past the end it repeats the one before."""
    _, messages = decord.wait()
    reported, facts = _reported(messages), stream.facts
    if reported and len(list_frames(stream.path, facts.stream).timestamps) != facts.num_frames:
        raise DecordFailed(f"{stream.path}: {reported}")


def _reported(messages: str) -> str | None:
    """What the program said on the last line of its messages."""
    try:
        return str(json.loads(messages.strip().splitlines()[-1])["reason"])
    except (ValueError, LookupError, TypeError):
        return None


def _read_by_ffmpeg(
    stream: _Stream, indices: Sequence[int], *, seek: Fraction | None = None
) -> Generator[Frames, None, None]:
    """Read frames from the start, or from the keyframe at a time in seconds."""
    width, height = stream.width, stream.height
    facts = stream.facts
    timestamps, begin, first_pts = facts.timing.timestamps, 0, None
    if seek is not None:
        first_pts = timestamps[indices[0]]
        begin = bisect_left(timestamps, seek / facts.timing.time_base)
    passed, wanted = passed_by_filters(indices, first_pts), frozenset(indices)
    filters = filter_chain(facts, passed, width=width, height=height, scaling=stream.scaling)
    args = [
        *input_options(facts),
        *([] if seek is None else seek_options(seek)),
        *input_args(stream.path),
        *("-map", facts.stream, "-vf", filters, "-fps_mode", "passthrough"),
        *("-frames:v", str(len(passed.indices)), "-f", "rawvideo", "-"),
    ]
    frame_bytes = width * height * 3
    timeout = FFMPEG_TIMEOUT + _longest_skip(stream, passed.indices, begin)
    with FfmpegPipe(args, stall_timeout=timeout) as ffmpeg:
        for number in passed.indices:
            frame = np.empty((height, width, 3), dtype=np.uint8)
            if ffmpeg.read_into(frame.data.cast("B")) != frame_bytes:
                result = ffmpeg.finish()
                if "No such filter" in result.stderr:
                    raise VideoError(
                        f"{stream.path} is HDR, and this ffmpeg has no zscale to tone map it with",
                        hint="unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships",
                    )
                reason = "no answer in time" if ffmpeg.timed_out else first_error(result.stderr)
                raise _wrong_frame(number, stream, reason)
            if number in wanted:
                yield frame
        result = ffmpeg.finish()
        if result.returncode != 0:
            raise _wrong_frame(indices[-1], stream, first_error(result.stderr))


def _longest_skip(stream: _Stream, indices: Sequence[int], begin: int = 0) -> float:
    """Seconds for the frames that are decoded and dropped within one read, from `begin` on."""
    gaps = [after - before - 1 for before, after in pairwise([begin - 1, *indices])]
    pictures = stream.facts.pictures
    pixels = max(gaps, default=0) * pictures.width * pictures.height
    return pixels / _SLOWEST_PIXELS_PER_SECOND


def _read_by_pillow(stream: _Stream, indices: Sequence[int]) -> Generator[Frames, None, None]:
    background = getrgb(stream.facts.background)[:3]
    if are_images(stream.path):
        files = find_images(stream.path).files
        there = [files[index] for index in indices if index < len(files)]
        frames: Iterator[Frames] = (read_image(file, background) for file in there)
    else:
        frames = iterate_animation(stream.path, indices, background)
    size, num_read = (stream.width, stream.height), 0
    for frame in frames:
        num_read += 1
        if frame.shape[1::-1] == size:
            yield frame
        else:
            yield np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
    if num_read < len(indices):
        raise _wrong_frame(indices[num_read], stream, "it has fewer frames")


def _wrong_frame(index: int, stream: _Stream, reason: str) -> VideoError:
    return VideoError(
        f"{stream.path} ends or breaks at frame {index}, expected "
        f"{count_of(stream.facts.num_frames, 'frame')} ({reason})",
        hint="check that the file is complete, or re-encode it",
    )


def scale_frame(frame: Frames, width: int, *, height: int) -> Frames:
    """Scale a frame [H, W, 3] uint8 with antialiased bicubic interpolation."""
    if frame.shape[:2] == (height, width):
        return frame
    import torch
    from torch.nn import functional

    # A decoder's array may be read-only, which torch does not take.
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].to(torch.float32)
    scaled = functional.interpolate(
        pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    # Bicubic overshoots at edges: without the clamp 256 becomes 0; without rounding all darkens.
    rounded = scaled[0].clamp(0, 255).round().to(torch.uint8)
    result: Frames = rounded.permute(1, 2, 0).numpy()
    return result
