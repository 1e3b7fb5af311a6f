"""Masks that a user gives: a box, an image or a video, white where the edit may change the source.

A mask is in the source's own frames: frame k of a mask video belongs to frame k of the source, and
goes through the same choice of frames and the same scaling. Nothing here loads torch before a file
is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np

from cogedit.disk import FileState
from cogedit.errors import UsageError, VideoError
from cogedit.media.animation import is_animation
from cogedit.media.clip import ResizePlan
from cogedit.media.facts import VideoFacts
from cogedit.media.files import check_file, file_state, read_start
from cogedit.media.images import (
    are_images,
    digest_of,
    folder_of,
    is_transparent,
    open_image,
    read_image,
)
from cogedit.media.packed_mask import Mask, PackedMask
from cogedit.media.probe import probe_facts, probe_stored
from cogedit.media.reader import Frames, read_clip, resize_frame
from cogedit.media.restore import kept_window
from cogedit.sources import MaskKind, MaskSource, SourceVideo
from cogedit.wording import count_of, show_rate

_N = r"(\d{1,9})"
_BOX = re.compile(rf"{_N},{_N},{_N},{_N}(?:@{_N}:(\d{{1,9}}|END))?")
_LIKE_A_BOX = re.compile(r"[-+\d.,\s@:]*,[-+\d.,\s@:ENDend]*")
_BOX_FORM = "x0,y0,x1,y1 or x0,y0,x1,y1@FIRST:LAST in whole numbers"

# Recognised by the first bytes, not by the name. GIF counts as a video.
_IMAGE_HEADS = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|BM|RIFF....WEBP|II\*\0|MM\0\*|P[1-6]\s", re.DOTALL
)
_WHITE = 128


@dataclass(frozen=True)
class GivenMask:
    """A mask as it was given."""

    source: MaskSource  # what is recorded of it
    path: Path | None = None  # None for a box
    box: tuple[int, ...] = ()  # x0, y0, x1, y1 in displayed pixels, x1 and y1 exclusive
    first: int = 0  # first frame of the source that the box is in
    end: int | None = None  # first frame that it is no longer in; None is the end of the video

    def covers(self, index: int) -> bool:
        """Whether the box is in frame `index` of the source."""
        return self.first <= index and (self.end is None or index < self.end)


def open_mask(given: str | Path) -> GivenMask:
    """Distinguish a box from a file, and identify it.

    Args:
        given: The path of an image or a video, or "x0,y0,x1,y1", with "@FIRST:LAST" for the frames
            FIRST to LAST - 1 only (LAST may be END). Write "./1,2,3,4" for a file of such a name.

    Raises:
        UsageError: It looks like a box, but is malformed.
        VideoError: There is no such file, or it cannot be read as an image or a video.
        StorageError: The file may not be read.
    """
    if isinstance(given, str) and _LIKE_A_BOX.fullmatch(given):
        return _parse_box(given)
    path = Path(given)
    if are_images(path):
        has_alpha = probe_facts(path).pictures.has_alpha
        name = folder_of(path).name
        return GivenMask(MaskSource("video", name, digest_of(path), has_alpha), path)
    check_file(path, "mask", hint=f"name an image or a video, or give a box: {_BOX_FORM}")
    is_image = _IMAGE_HEADS.match(read_start(path, 16)) is not None and not is_animation(path)
    if is_image:
        has_alpha = _read_image(path, file_state(path))[1]
    else:
        has_alpha = probe_facts(path).pictures.has_alpha
    kind: MaskKind = "picture" if is_image else "video"
    return GivenMask(MaskSource(kind, path.name, digest_of(path), has_alpha), path)


def _parse_box(text: str) -> GivenMask:
    match = _BOX.fullmatch(text)
    if match is None:
        raise UsageError(f"the mask {text!r} is no box: expected {_BOX_FORM}, or a file")
    x0, y0, x1, y1 = map(int, match.groups()[:4])
    if x0 >= x1 or y0 >= y1:
        raise UsageError(f"the box {text} is empty: expected x0 < x1 and y0 < y1")
    first, end = int(match[5] or 0), None if match[6] in (None, "END") else int(match[6])
    if end is not None and first >= end:
        raise UsageError(f"the box {text} is in no frame: expected FIRST < LAST")
    # One spelling per box, so that equal boxes make the same edit.
    frames = "" if (first, end) == (0, None) else f"@{first}:{'END' if end is None else end}"
    name = f"{x0},{y0},{x1},{y1}{frames}"
    return GivenMask(MaskSource("box", name), box=(x0, y0, x1, y1), first=first, end=end)


def check_mask(mask: GivenMask, video: SourceVideo, *, indices: Sequence[int]) -> None:
    """Refuse a mask that does not fit its source, before anything is computed.

    Raises:
        UsageError: A box outside the source's image or frames, or in none of the clip's `indices`.
        VideoError: A file that cannot be read, of another shape, or a video of another length or
            rate than the source.
    """
    if mask.path is None:
        _check_box(mask, video, indices)
    elif mask.source.kind == "picture":
        height, width, _ = _read_image(mask.path, file_state(mask.path))[0].shape
        _check_shape(mask.path, width, height=height, video=video)
    else:
        facts = _probe_video(mask.path, video)
        _check_shape(mask.path, facts.width, height=facts.height, video=video)
        _check_time(mask.path, facts, video)


def _check_time(path: Path, facts: VideoFacts, video: SourceVideo) -> None:
    """Frame k of a mask belongs to frame k of the source: it has as many, at the same rate."""
    hint = "make the mask of the whole source, frame by frame, or give an image for all frames"
    if facts.num_frames != video.num_frames:
        raise VideoError(
            f"the mask {path} has {count_of(facts.num_frames, 'frame')}, expected "
            f"{video.num_frames} as in {video.name}",
            hint=hint,
        )
    # 29.97 is as good as 30000/1001, and 30 is not.
    if abs(facts.fps / video.fps - 1) > Fraction(1, 2000):
        raise VideoError(
            f"the mask {path} plays at {show_rate(facts.fps)}, expected {show_rate(video.fps)} "
            f"as in {video.name}",
            hint=hint,
        )


def _check_box(mask: GivenMask, video: SourceVideo, indices: Sequence[int]) -> None:
    name = mask.source.name
    if mask.box[2] > video.width or mask.box[3] > video.height:
        raise UsageError(
            f"the box {name} reaches outside the image: {video.name} is "
            f"{video.width}x{video.height}",
            hint="a box is in pixels of the source video, not of the clip",
        )
    if mask.first >= video.num_frames or (mask.end or 0) > video.num_frames:
        raise UsageError(
            f"the box {name} reaches beyond the end: {video.name} has "
            f"{count_of(video.num_frames, 'frame')}, 0 to {video.num_frames - 1}"
        )
    if not any(map(mask.covers, indices)):
        raise UsageError(
            f"the box {name} is in none of the clip's frames: they are frames {indices[0]} to "
            f"{indices[-1]} of {video.name}"
        )


def _check_shape(path: Path, width: int, *, height: int, video: SourceVideo) -> None:
    # Whole pixels cannot keep a ratio exactly: one pixel off in either direction is right.
    if abs(width * video.height - height * video.width) > max(video.width, video.height):
        raise VideoError(
            f"the mask {path} is {width}x{height}, expected the shape of {video.name}, which is "
            f"{video.width}x{video.height}",
            hint="a mask has the source's size, or another of the same ratio",
        )


def read_mask(
    mask: GivenMask, video: SourceVideo, *, indices: Sequence[int], resize: ResizePlan
) -> PackedMask:
    """Read a mask as the frames of the clip that it belongs to.

    Gray counts as white from 128 on, after scaling. `indices` and `resize` are those that made the
    clip of the source.

    Returns:
        White where the edit may change the source. Bars that `pad` adds are not.

    Raises:
        UsageError: As `check_mask`, or nothing in the clip is white.
        VideoError: As `check_mask`.
    """
    check_mask(mask, video, indices=indices)
    if mask.path is None:
        white = PackedMask(_draw_box(mask, indices, resize))
    else:
        levels = _read_file(mask.path, mask.source.kind, video, indices=indices, resize=resize)
        gray = (frame.mean(axis=-1, dtype=np.float32) for frame in levels)
        white = PackedMask(frame >= _WHITE for frame in gray)
    if white.num_white:
        return white
    if mask.path is None:
        raise UsageError(
            f"box {mask.source.name} lies outside the crop, which keeps "
            + ",".join(map(str, kept_window(resize))),
            hint="--resize-mode pad keeps all of it",
        )
    raise UsageError(
        f"the mask {mask.source.name} is black all over the clip: no pixel of it is white",
        hint="white is where the edit may change the source, or with --mask-keep what it keeps",
    )


def outside_of(mask: PackedMask, resize: ResizePlan) -> PackedMask:
    """What a mask leaves out of the clip that `resize` made; bars of `pad` are no part of it.

    Raises:
        UsageError: It leaves nothing out.
    """
    box, picture = resize.box, np.ones(mask.shape[1:], dtype=np.bool_)
    if box.mode == "pad":
        picture[:] = False
        picture[box.top :, box.left :][: box.scaled_height, : box.scaled_width] = True
    outside = PackedMask(picture & (frame == 0) for frame in mask)
    if not outside.num_white:
        raise UsageError(
            "nothing is left to change outside of the mask: it is white all over the clip",
            hint="leave --mask-keep out",
        )
    return outside


def _draw_box(mask: GivenMask, indices: Sequence[int], resize: ResizePlan) -> Iterator[Mask]:
    """Draw a box in pixels of the clip; a pixel that it touches belongs to it."""

    def scaled(low: int, high: int, size: int, *, to: int, offset: int) -> slice:
        shift = offset if box.mode == "pad" else -offset
        return slice(max(0, low * to // size + shift), max(0, -(-high * to // size) + shift))

    x0, y0, x1, y1 = mask.box
    box = resize.box
    columns = scaled(x0, x1, resize.source_width, to=box.scaled_width, offset=box.left)
    rows = scaled(y0, y1, resize.source_height, to=box.scaled_height, offset=box.top)
    for index in indices:
        drawn: Mask = np.zeros((resize.height, resize.width), dtype=np.uint8)
        drawn[rows, columns] = mask.covers(index)
        yield drawn


def _probe_video(path: Path, source: SourceVideo) -> VideoFacts:
    """Probe a mask video, to be read on the grid on which its source was."""
    if source.is_resampled:
        return probe_facts(path, frame_rate=source.fps, fps=source.fps, thorough=True)
    return probe_stored(path, fps=source.fps, thorough=True)


def _read_file(
    path: Path, kind: str, video: SourceVideo, *, indices: Sequence[int], resize: ResizePlan
) -> Iterable[Frames]:
    """Read a mask's file as frames of the clip, [H, W, 3] each; an image is for all of them.

    The mask may have another size than the source; it ends at the same place.
    """
    if kind == "picture":
        image, _ = _read_image(path, file_state(path))
        own = replace(resize, source_width=image.shape[1], source_height=image.shape[0])
        scaled = resize_frame(image, own)
        return repeat(scaled, len(indices))
    facts = _probe_video(path, video)
    own = replace(resize, source_width=facts.width, source_height=facts.height)
    return read_clip(path, facts, indices=indices, resize=own)


@lru_cache(maxsize=8)
def _read_image(path: Path, state: FileState) -> tuple[Frames, bool]:
    """Read an image, uint8 RGB [height, width, 3]; also, whether a part of it is transparent.

    What is transparent is black. The image is read once while its `state` is the same.
    """
    image = read_image(path, (0, 0, 0))
    with open_image(path) as opened:
        return image, is_transparent(opened)
