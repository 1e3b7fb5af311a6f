"""Frames of a video file as arrays, by decord or by ffmpeg, one at a time.

Both decode the file from its first frame on: seeking is where decoders differ. They return the same
bytes wherever the probe chooses decord. Both run as processes of their own with a bound on the time
for one frame: a file that makes a decoder hang or crash ends as an error message.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cogedit.errors import UsageError, VideoError
from cogedit.media.clip import ResizePlan
from cogedit.media.ffmpeg import FfmpegPipe, first_error, input_args
from cogedit.media.pipe import ProcessPipe
from cogedit.media.probe import probe_facts
from cogedit.types import Reader, SourceVideo

Frames = NDArray[np.uint8]

DECORD_PROGRAM = Path(__file__).with_name("decord_child.py")
DECORD_TIMEOUT = 60.0  # seconds for one frame

# HDR to BT.709: reference white, 203 nits in BT.2408, is 1.0; what SDR can show keeps its value and
# what is brighter is compressed.
_TONE_MAP = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,"
    "tonemap=mobius:desat=0,zscale=transfer=bt709:matrix=bt709:range=tv,format=yuv444p"
)


def read_clip(
    path: Path, source: SourceVideo, *, indices: Sequence[int], resize: ResizePlan
) -> Frames:
    """Read the frames of a clip at the clip's size, with one frame of the source's size in memory.

    Args:
        path: The video file.
        source: What `probe_video` returned for it; its `reader` is used.
        indices: Numbers of the frames to take, ascending.
        resize: How a frame becomes a frame of the clip.

    Returns:
        uint8 RGB, [F, height, width, 3].

    Raises:
        VideoError: The file does not deliver the frames that the probe counted.
    """
    clip = np.empty((len(indices), resize.height, resize.width, 3), dtype=np.uint8)
    with closing(iterate_frames(path, source, indices=indices)) as frames:
        for number, frame in enumerate(frames):
            clip[number] = resize_frame(frame, resize)
    return clip


def iterate_frames(
    path: Path, source: SourceVideo, *, indices: Sequence[int]
) -> Generator[Frames, None, None]:
    """Read frames of a video one at a time, at its own size: uint8 RGB [height, width, 3] each.

    Arguments and errors are those of `read_clip`.
    """
    stream = _Stream(path, source.reader, source.width, source.height, source.num_frames, "bicubic")
    return _read_frames(stream, indices)


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
    facts = probe_facts(path)
    stretched = _Stream(path, facts.reader, width, height, facts.num_frames, "bilinear")
    with closing(_read_frames(stretched, indices)) as frames:
        return np.stack(list(frames))


@dataclass(frozen=True)
class _Stream:
    """A video to read, the size at which its reader delivers frames, and how ffmpeg scales.

    decord knows no scaling but bilinear. That matters to `read_frames_upstream` alone: otherwise
    decord is asked for the video's own size, and ffmpeg scales only to make pixels square.
    """

    path: Path
    reader: Reader
    width: int
    height: int
    num_frames: int
    scaling: Literal["bicubic", "bilinear"]


def _read_frames(stream: _Stream, indices: Sequence[int]) -> Generator[Frames, None, None]:
    """The frames `indices` of the video, each [height, width, 3]."""
    if indices[-1] >= stream.num_frames:
        raise VideoError(
            f"{stream.path} has {stream.num_frames} frames, expected frame {indices[-1]} in it"
        )
    read = _read_by_decord if stream.reader == "decord" else _read_by_ffmpeg
    return read(stream, indices)


def _read_by_decord(stream: _Stream, indices: Sequence[int]) -> Generator[Frames, None, None]:
    request = {
        "path": str(stream.path.absolute()),
        "width": stream.width,
        "height": stream.height,
        "num_frames": stream.num_frames,
        "indices": list(indices),
    }
    # -P keeps the folder of the program, which has modules of ours, out of its imports.
    command = [sys.executable, "-P", str(DECORD_PROGRAM)]
    with ProcessPipe(command, stall_timeout=DECORD_TIMEOUT) as decord:
        with suppress(BrokenPipeError):  # its status says why it ended
            decord.write(memoryview(json.dumps(request).encode()))
        decord.close_stdin()
        for index in indices:
            frame = np.empty((stream.height, stream.width, 3), dtype=np.uint8)
            if decord.read_into(frame.data.cast("B")) != frame.nbytes:
                status, messages = decord.wait()
                reason = f"decord ended with status {status}"
                if decord.timed_out:
                    reason = f"decord gave no frame for {DECORD_TIMEOUT:.0f} seconds"
                raise _decord_error(messages, index, stream=stream, reason=reason)
            yield frame


def _decord_error(messages: str, index: int, *, stream: _Stream, reason: str) -> VideoError:
    """Which frame failed and why: from the last line of the messages, or else as given."""
    if "import decord" in messages:  # the line of the traceback
        return VideoError("decord is installed but cannot be loaded", hint="pip uninstall decord")
    try:
        failure = json.loads(messages.strip().splitlines()[-1])
        return _wrong_frame(int(failure["index"]), stream, str(failure["reason"]))
    except (ValueError, LookupError, TypeError):
        return _wrong_frame(index, stream, reason)


def _read_by_ffmpeg(stream: _Stream, indices: Sequence[int]) -> Generator[Frames, None, None]:
    scale = f"scale={stream.width}:{stream.height}:flags={stream.scaling}"
    tone_map = f"{_TONE_MAP}," if stream.reader == "ffmpeg-tonemap" else ""
    # The scale filter changes nothing but the pixel format where the size is right already; it
    # makes pixels square, and keeps a stream that changes its size from shifting the bytes.
    filters = f"select={_select_expression(indices)},{tone_map}{scale},format=rgb24"
    args = [
        # Not several frames at once: ffmpeg 9 then reads other pixels of Theora from run to run.
        *("-thread_type", "slice"),
        *input_args(stream.path),
        *("-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough"),
        *("-frames:v", str(len(indices)), "-f", "rawvideo", "-"),
    ]
    frame_bytes = stream.width * stream.height * 3
    with FfmpegPipe(args) as ffmpeg:
        for number in range(len(indices)):
            frame = np.empty((stream.height, stream.width, 3), dtype=np.uint8)
            if ffmpeg.read_into(frame.data.cast("B")) != frame_bytes:
                result = ffmpeg.finish()
                if "No such filter" in result.stderr:
                    raise VideoError(
                        f"{stream.path} is HDR, and this ffmpeg has no zscale to tone map it with",
                        hint="unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships",
                    )
                reason = "no answer in time" if ffmpeg.timed_out else first_error(result.stderr)
                raise _wrong_frame(indices[number], stream, reason)
            yield frame
        result = ffmpeg.finish()
        if result.returncode != 0:
            raise _wrong_frame(indices[-1], stream, first_error(result.stderr))


def _select_expression(indices: Sequence[int]) -> str:
    """The filter expression for "this frame is wanted"; commas escaped for the filter syntax."""
    first, last = indices[0], indices[-1]
    step = indices[1] - first if len(indices) > 1 else 1
    if tuple(indices) == tuple(range(first, last + 1, step)):
        return rf"between(n\,{first}\,{last})*not(mod(n-{first}\,{step}))"
    return "+".join(rf"eq(n\,{index})" for index in indices)


def _wrong_frame(index: int, stream: _Stream, reason: str) -> VideoError:
    return VideoError(
        f"{stream.path} ends or breaks at frame {index}, expected {stream.num_frames} frames "
        f"({reason})",
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
