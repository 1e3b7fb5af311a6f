"""Clips beside each other in one picture, frame by frame, under their captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cogedit.errors import VideoError
from cogedit.media.contact_sheet import Picture, enlarge, lay_out, pad_to_even
from cogedit.media.restore import lanczos
from cogedit.media.writer import FrameStream
from cogedit.types import ComparisonLayout

_MIN_WIDTH, _SHEET_WIDTH = 192, 320
_MIN_FONT, _MAX_FONT = 14, 32
_MAX_LABEL = 240
_LINE = 2

_Compose = Callable[[Sequence[Picture], int], Picture]


@dataclass(frozen=True)
class Compared:
    """One of the clips that are compared.

    Attributes:
        label: Its caption.
        stream: Its frames, as many as the others'.
    """

    label: str
    stream: FrameStream


def compare_frames(clips: Sequence[Compared], layout: ComparisonLayout) -> FrameStream:
    """Compose clips into one: frame k shows frame k of each.

    Clips of another size than the largest are scaled to it with Lanczos. What is small is enlarged
    by whole pixels, so that its caption can be read.

    Args:
        clips: At least two, of one shape and number of frames; a wipe takes two.
        layout: "row" and "column" lay them side by side; "wipe" shows the first left of a line that
            moves to the left and back, and the second right of it.

    Returns:
        Frames of even width and height.

    Raises:
        VideoError: While they are read: a clip ends before the others.
    """
    size = _largest(clips)
    if layout == "wipe":
        return _wipe(clips, size)
    labels = [_shorten(clip.label) for clip in clips]
    is_row = layout == "row"
    zoom = _zoom(size[0])
    sheet = lay_out(
        labels if is_row else [""],
        [""] if is_row else labels,
        size=size,
        zoom=zoom,
        font_size=_font_size(size[0] * zoom),
    )

    def compose(pictures: Sequence[Picture], number: int) -> Picture:
        return sheet.fill([pictures] if is_row else [[picture] for picture in pictures])

    return _stream(clips, size, compose)


def compare_sheet(clips: Sequence[Compared], numbers: Sequence[int]) -> Picture:
    """Lay the frames of clips out on a contact sheet: a row per clip, captioned.

    Args:
        clips: As for `compare_frames`.
        numbers: Number of each frame, for the heads of the columns.
    """
    width, height = _largest(clips)
    if width > _SHEET_WIDTH:
        width, height = _SHEET_WIDTH, max(1, round(height * _SHEET_WIDTH / width))
    heads = [f"frame {number}" for number in numbers]
    labels = [_shorten(clip.label) for clip in clips]
    sheet = lay_out(heads, labels, size=(width, height), zoom=_zoom(width))
    return sheet.fill(
        [[lanczos(frame, width, height=height) for frame in clip.stream.frames] for clip in clips]
    )


def _wipe(clips: Sequence[Compared], size: tuple[int, int]) -> FrameStream:
    zoom = _zoom(size[0])
    left, right = (_shorten(clip.label) for clip in clips)
    sheet = lay_out(
        [f"left: {left}\nright: {right}"],
        [""],
        size=(size[0] * zoom, size[1] * zoom),
        font_size=_font_size(size[0] * zoom),
    )
    total = clips[0].stream.num_frames

    def compose(pictures: Sequence[Picture], number: int) -> Picture:
        first, second = (enlarge(picture, zoom) for picture in pictures)
        edge = round(first.shape[1] * _share(number, total))
        shown = np.concatenate([first[:, :edge], second[:, edge:]], axis=1)
        if 0 < edge < shown.shape[1]:
            shown[:, max(0, edge - _LINE // 2) : edge + _LINE // 2] = 255
        return sheet.fill([[shown]])

    return _stream(clips, size, compose)


def _share(number: int, total: int) -> float:
    """The share of the first clip in a frame: all, none in the middle, and all again."""
    return 0.5 if total == 1 else 0.5 + 0.5 * math.cos(2 * math.pi * number / total)


def _stream(clips: Sequence[Compared], size: tuple[int, int], compose: _Compose) -> FrameStream:
    """The composed frames, their size taken from the first."""
    width, height = size
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    shape = pad_to_even(compose([blank] * len(clips), 0)).shape

    def frames() -> Iterator[Picture]:
        readers = [iter(clip.stream.frames) for clip in clips]
        for number in range(clips[0].stream.num_frames):
            pictures = [next(reader, None) for reader in readers]
            missing = [clip.label for clip, p in zip(clips, pictures, strict=True) if p is None]
            if missing:
                raise VideoError(f"{missing[0]} ends before frame {number}")
            scaled = [lanczos(p, width, height=height) for p in pictures if p is not None]
            yield pad_to_even(compose(scaled, number))

    return FrameStream(frames(), clips[0].stream.num_frames, shape[0], shape[1])


def _largest(clips: Sequence[Compared]) -> tuple[int, int]:
    """Width and height of the largest clip."""
    return max((clip.stream.width, clip.stream.height) for clip in clips)


def _zoom(width: int) -> int:
    return max(1, -(-_MIN_WIDTH // width))


def _font_size(width: int) -> int:
    return min(_MAX_FONT, max(_MIN_FONT, width // 32))


def _shorten(label: str) -> str:
    return textwrap.shorten(label, _MAX_LABEL, placeholder=" …")
