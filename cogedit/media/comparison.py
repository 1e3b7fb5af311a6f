"""Clips beside each other in one video or on one sheet, under their captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cogedit.errors import VideoError
from cogedit.media.contact_sheet import (
    Picture,
    SheetRow,
    draw_sheet,
    enlarge,
    lay_out,
    pad_to_even,
    readable_zoom,
)
from cogedit.media.restore import lanczos
from cogedit.media.stream import FrameStream
from cogedit.types import ComparisonLayout

_SHEET_WIDTH = 320
_MIN_FONT, _MAX_FONT = 14, 32
_MAX_LABEL = 240
_LINE_WIDTH = 2

_Compose = Callable[[Sequence[Picture], int], Picture]
"""Makes one frame from the frames of all clips and their number."""


@dataclass(frozen=True)
class Compared:
    """A clip under its caption `label`; all clips of a comparison have as many frames."""

    label: str
    stream: FrameStream

    @property
    def caption(self) -> str:
        """The caption, shortened to a few lines."""
        return textwrap.shorten(self.label, _MAX_LABEL, placeholder=" …")


def compare_frames(clips: Sequence[Compared], layout: ComparisonLayout) -> FrameStream:
    """Compose clips into one of even size: frame k shows frame k of each.

    Smaller clips are scaled to the largest with Lanczos. Small frames are enlarged by whole pixels,
    so that their captions can be read.

    Args:
        clips: At least two, of one aspect ratio and number of frames; a wipe takes two.
        layout: "row" and "column" lay them side by side; "wipe" shows the first left of a line that
            moves to the left and back, and the second right of it.

    Raises:
        VideoError: While they are read: a clip ends before the others.
    """
    width, height = _largest(clips)
    zoom = readable_zoom(width)
    font_size = min(_MAX_FONT, max(_MIN_FONT, width * zoom // 32))
    captions = [clip.caption for clip in clips]
    if layout == "wipe":
        heads, labels = ["left: {}\nright: {}".format(*captions)], [""]
    elif layout == "row":
        heads, labels = captions, [""]
    else:
        heads, labels = [""], captions
    sheet = lay_out(heads, labels, size=(width * zoom, height * zoom), font_size=font_size)
    num_frames = clips[0].stream.num_frames

    def compose(frames: Sequence[Picture], number: int) -> Picture:
        large = [enlarge(frame, zoom) for frame in frames]
        if layout == "wipe":
            return sheet.fill([[_wipe(*large, share=_share(number, num_frames))]])
        return sheet.fill([large] if layout == "row" else [[frame] for frame in large])

    return _stream(clips, (width, height), compose)


def compare_sheet(clips: Sequence[Compared], numbers: Sequence[int]) -> Picture:
    """Lay clips out on a contact sheet, a row per clip; frame `numbers` head the columns."""
    width, height = _largest(clips)
    if width > _SHEET_WIDTH:
        width, height = _SHEET_WIDTH, max(1, round(height * _SHEET_WIDTH / width))
    rows = [
        SheetRow(
            clip.caption,
            tuple(lanczos(frame, width, height=height) for frame in clip.stream.frames),
        )
        for clip in clips
    ]
    return draw_sheet([f"frame {number}" for number in numbers], rows)


def _wipe(left: Picture, right: Picture, *, share: float) -> Picture:
    """Show one frame left of a white line and another right of it."""
    edge = round(left.shape[1] * share)
    joined = np.concatenate([left[:, :edge], right[:, edge:]], axis=1)
    if 0 < edge < joined.shape[1]:
        joined[:, max(0, edge - _LINE_WIDTH // 2) : edge + _LINE_WIDTH // 2] = 255
    return joined


def _share(number: int, total: int) -> float:
    """Share of the first clip in a frame of a wipe: all, none in the middle, and all again."""
    return 0.5 if total == 1 else 0.5 + 0.5 * math.cos(2 * math.pi * number / total)


def _stream(clips: Sequence[Compared], size: tuple[int, int], compose: _Compose) -> FrameStream:
    """Compose frame by frame."""
    width, height = size
    num_frames = clips[0].stream.num_frames
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    shape = pad_to_even(compose([blank] * len(clips), 0)).shape

    def frames() -> Iterator[Picture]:
        readers = [iter(clip.stream.frames) for clip in clips]
        for number in range(num_frames):
            read = [next(reader, None) for reader in readers]
            missing = [clip.label for clip, f in zip(clips, read, strict=True) if f is None]
            if missing:
                raise VideoError(f"{missing[0]} ends before frame {number}")
            scaled = [lanczos(frame, width, height=height) for frame in read if frame is not None]
            yield pad_to_even(compose(scaled, number))

    return FrameStream(frames(), num_frames, shape[0], shape[1])


def _largest(clips: Sequence[Compared]) -> tuple[int, int]:
    """Return width and height of the largest clip."""
    return max((clip.stream.width, clip.stream.height) for clip in clips)
