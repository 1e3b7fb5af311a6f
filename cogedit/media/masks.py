"""Masks that a user gives: a box, a picture or a video, white where the edit may change the source.

A mask is in the source's own frames: frame k of a mask video belongs to frame k of the source, and
goes through the same choice of frames and the same scaling. Nothing here loads torch before a file
is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.errors import StorageError, UsageError, VideoError
from cogedit.media.clip import ResizePlan
from cogedit.media.ffmpeg import MAX_FRAME_PIXELS, first_error, run_ffmpeg
from cogedit.media.files import check_file, file_digest, read_start
from cogedit.media.probe import identify, probe_facts
from cogedit.media.reader import Frames, read_clip, resize_frame
from cogedit.media.restore import kept_window
from cogedit.types import MaskSource, SourceVideo

Mask = NDArray[np.uint8]

_BOX = re.compile(r"(\d+),(\d+),(\d+),(\d+)(?:@(\d+):(\d+|END))?")
_LIKE_A_BOX = re.compile(r"[-+\d.,\s@:]*,[-+\d.,\s@:ENDend]*")
_BOX_FORM = "x0,y0,x1,y1 or x0,y0,x1,y1@FIRST:LAST in whole numbers"

# By their first bytes, so that a name decides nothing. GIF counts as a video.
_PICTURE_HEADS = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|BM|RIFF....WEBP|II\*\0|MM\0\*|P[1-6]\s", re.DOTALL
)
_PICTURE_DEMUXERS = "png_pipe,jpeg_pipe,bmp_pipe,webp_pipe,tiff_pipe,ppm_pipe,pgm_pipe,pbm_pipe"
_MAX_PICTURE_BYTES = 256 * 2**20
_PICTURE_TIMEOUT = 60.0
_WHITE = 128


@dataclass(frozen=True)
class GivenMask:
    """A mask as it was given.

    Attributes:
        source: What is recorded of it.
        path: The file; None for a box.
        box: x0, y0, x1, y1 in pixels of the source as it is displayed, x1 and y1 the first beyond;
            empty for a file.
        frames: First frame of the source that the box is in, and the first beyond; None is the end.
    """

    source: MaskSource
    path: Path | None = None
    box: tuple[int, ...] = ()
    frames: tuple[int, int | None] = (0, None)


def open_mask(given: str | Path) -> GivenMask:
    """Tell a box from a file, and identify it.

    Args:
        given: The path of a picture or a video, or "x0,y0,x1,y1", with "@FIRST:LAST" for the frames
            FIRST to LAST - 1 alone (LAST may be END). A file of such a name is "./1,2,3,4".

    Raises:
        UsageError: It is like a box but none.
        VideoError: There is no such file, or it is no picture and no video.
        StorageError: The file may not be read.
    """
    if isinstance(given, str) and _LIKE_A_BOX.fullmatch(given):
        return _parse_box(given)
    path = Path(given)
    if not path.exists():
        raise VideoError(
            f"there is no mask {path}",
            hint=f"name a picture or a video, or give a box: {_BOX_FORM}",
        )
    check_file(path)
    is_picture = _PICTURE_HEADS.match(read_start(path, 16)) is not None
    kind = MaskSource("picture" if is_picture else "video", path.name, file_digest(path))
    return GivenMask(kind, path)


def check_mask(mask: GivenMask, video: SourceVideo, *, indices: Sequence[int]) -> None:
    """Refuse a mask that does not fit its source, before anything is computed.

    Args:
        mask: The mask.
        video: The source.
        indices: Frames of the source that make the clip.

    Raises:
        UsageError: A box outside the source's picture or frames, or in none of the clip's.
        VideoError: A file that cannot be read, of another shape, or with too few frames.
    """
    if mask.path is None:
        _check_box(mask, video, indices)
    elif mask.source.kind == "picture":
        height, width, _ = _read_picture(mask.path).shape
        _check_shape(mask.path, width, height=height, video=video)
    else:
        facts = probe_facts(mask.path)
        _check_shape(mask.path, facts.width, height=facts.height, video=video)
        if facts.num_frames <= indices[-1]:
            raise VideoError(
                f"the mask {mask.path} has {facts.num_frames} frames, expected {video.num_frames} "
                f"as in {video.name}, and {indices[-1] + 1} at least: frame k of a mask belongs to "
                "frame k of the source",
                hint="make the mask of the whole source, or give a picture for all frames",
            )


def read_mask(
    mask: GivenMask, video: SourceVideo, *, indices: Sequence[int], resize: ResizePlan
) -> Mask:
    """Read a mask as the frames of the clip that it belongs to.

    Gray counts as white from 128 on, after scaling.

    Args:
        mask: The mask.
        video: The source.
        indices: Frames of the source that make the clip.
        resize: How a frame of the source becomes a frame of the clip.

    Returns:
        [F, H, W] uint8, 1 where the edit may change the source. Bars that `pad` adds are 0.

    Raises:
        UsageError: As `check_mask`, or nothing in the clip is white.
        VideoError: As `check_mask`.
    """
    check_mask(mask, video, indices=indices)
    if mask.path is None:
        white = _draw_box(mask, indices, resize)
    else:
        white = _threshold(_read_file(mask, mask.path, indices, resize=resize))
    if not white.any() and mask.path is None:
        left, top, right, bottom = kept_window(resize)
        raise UsageError(
            f"the box {mask.source.name} lies where the crop leaves the picture out: kept is "
            f"{left},{top},{right},{bottom}",
            hint="--resize-mode pad keeps all of it",
        )
    if not white.any():
        raise UsageError(
            f"the mask {mask.source.name} leaves nothing to change: no pixel of the clip's "
            f"{len(indices)} frames is white in it",
            hint="white is where the edit may change the source",
        )
    return white


def _parse_box(text: str) -> GivenMask:
    match = _BOX.fullmatch(text)
    if match is None:
        raise UsageError(f"the mask {text!r} is no box: expected {_BOX_FORM}, or a file")
    x0, y0, x1, y1 = (int(number) for number in match.groups()[:4])
    first, last = match.group(5), match.group(6)
    if x0 >= x1 or y0 >= y1:
        raise UsageError(f"the box {text} is empty: expected x0 < x1 and y0 < y1")
    frames = (int(first or 0), None if last in (None, "END") else int(last))
    if frames[1] is not None and frames[0] >= frames[1]:
        raise UsageError(f"the box {text} is in no frame: expected FIRST < LAST")
    # One text per box, so that equal boxes are one edit.
    end = "END" if frames[1] is None else frames[1]
    name = f"{x0},{y0},{x1},{y1}" + (f"@{frames[0]}:{end}" if frames != (0, None) else "")
    return GivenMask(MaskSource("box", name), box=(x0, y0, x1, y1), frames=frames)


def _check_box(mask: GivenMask, video: SourceVideo, indices: Sequence[int]) -> None:
    _, _, x1, y1 = mask.box
    if x1 > video.width or y1 > video.height:
        raise UsageError(
            f"the box {mask.source.name} reaches outside the picture: {video.name} is "
            f"{video.width}x{video.height}",
            hint="a box is in pixels of the source video, not of the clip",
        )
    first, last = mask.frames
    if first >= video.num_frames or (last or 0) > video.num_frames:
        raise UsageError(
            f"the box {mask.source.name} reaches beyond the end: {video.name} has "
            f"{video.num_frames} frames, 0 to {video.num_frames - 1}"
        )
    if not any(_in_range(index, mask.frames) for index in indices):
        raise UsageError(
            f"the box {mask.source.name} is in none of the clip's frames: they are frames "
            f"{indices[0]} to {indices[-1]} of {video.name}"
        )


def _in_range(index: int, frames: tuple[int, int | None]) -> bool:
    return frames[0] <= index and (frames[1] is None or index < frames[1])


def _check_shape(path: Path, width: int, *, height: int, video: SourceVideo) -> None:
    # Whole pixels cannot keep a ratio exactly: one pixel off in either direction is right.
    if abs(width * video.height - height * video.width) > max(video.width, video.height):
        raise VideoError(
            f"the mask {path} is {width}x{height}, expected the shape of {video.name}, which is "
            f"{video.width}x{video.height}",
            hint="a mask has the source's size, or another of the same ratio",
        )


def _draw_box(mask: GivenMask, indices: Sequence[int], resize: ResizePlan) -> Mask:
    """Draw a box in pixels of the clip; a pixel that it touches belongs to it."""
    x0, y0, x1, y1 = mask.box
    box = resize.box
    sign = 1 if box.mode == "pad" else -1
    columns = _scaled_range(
        x0, x1, box.scaled_width, size=resize.source_width, shift=sign * box.left
    )
    rows = _scaled_range(y0, y1, box.scaled_height, size=resize.source_height, shift=sign * box.top)
    drawn = np.zeros((len(indices), resize.height, resize.width), dtype=np.uint8)
    drawn[[_in_range(index, mask.frames) for index in indices], rows, columns] = 1
    return drawn


def _scaled_range(low: int, high: int, scaled: int, *, size: int, shift: int) -> slice:
    """Pixels of the clip that a range of the source's touches: `size` became `scaled`."""
    first, end = low * scaled // size, -(-high * scaled // size)
    return slice(max(0, first + shift), max(0, end + shift))


def _read_file(
    mask: GivenMask, path: Path, indices: Sequence[int], *, resize: ResizePlan
) -> Frames:
    """Read a mask's file as frames of the clip, or as one frame for all of them."""
    if mask.source.kind == "picture":
        picture = _read_picture(path)
        scaled = resize_frame(picture, _of_size(resize, picture.shape[1], height=picture.shape[0]))
        return np.broadcast_to(scaled, (len(indices), *scaled.shape))
    video = identify(path, probe_facts(path))
    own = _of_size(resize, video.width, height=video.height)
    return read_clip(path, video, indices=indices, resize=own)


def _of_size(resize: ResizePlan, width: int, *, height: int) -> ResizePlan:
    """The plan of the source for a mask of another size, which ends at the same place."""
    return replace(resize, source_width=width, source_height=height)


def _threshold(frames: Frames) -> Mask:
    white: Mask = (frames.mean(axis=-1, dtype=np.float32) >= _WHITE).astype(np.uint8)
    return white


def _read_picture(path: Path) -> Frames:
    """Read a picture, uint8 RGB [height, width, 3].

    Its bytes go through a pipe: ffmpeg's reader of picture files would take a name with a percent
    sign or a star for a pattern of several files.
    """
    try:
        if path.stat().st_size > _MAX_PICTURE_BYTES:
            raise VideoError(f"the mask {path} is larger than {_MAX_PICTURE_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    source = ["-protocol_whitelist", "pipe", "-format_whitelist", _PICTURE_DEMUXERS]
    # The whole file in one packet: not every format (TIFF) is put together again from pieces.
    source += ["-max_pixels", str(MAX_FRAME_PIXELS), "-frame_size", str(len(content))]
    source += ["-i", "pipe:0"]
    decode = ["-frames:v", "1", "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    try:
        result = run_ffmpeg([*source, *decode], timeout=_PICTURE_TIMEOUT, input=content)
    except TimeoutError as error:
        raise VideoError(f"the mask {path} could not be read in time") from error
    # "P6\nWIDTH HEIGHT\n255\n" and the pixels.
    match = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", result.stdout)
    if result.returncode != 0 or match is None:
        raise VideoError(
            f"the mask {path} is not a picture that can be read: ffmpeg says: "
            f"{first_error(result.stderr)}",
            hint="check that the file is complete, or convert it to PNG",
        )
    width, height = int(match.group(1)), int(match.group(2))
    pixels = np.frombuffer(result.stdout, np.uint8, offset=match.end())
    if pixels.size != width * height * 3:
        raise VideoError(f"the mask {path} is cut short", hint="copy it again")
    return pixels.reshape(height, width, 3)
