"""Contact sheets: labelled, enlarged frames in one image, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] RGB."""

PAPER, _INK = (250, 250, 248), (20, 20, 20)
_GAP = 6
_FONT_SIZE = 14
_MIN_WIDTH = 192


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        label: Text above the row, wrapped to the sheet's width; empty takes no room.
        pictures: One per column, of one size; None leaves the place empty.
    """

    label: str
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True)
class SheetLayout:
    """A sheet with its labels, to be filled with frames, once or for each frame of a video.

    Attributes:
        sheet: The sheet without frames, [H, W, 3].
        places: Per row, per column, left and top of the frame in pixels of the sheet.
        zoom: Width in pixels of the sheet of one pixel of a frame.
    """

    sheet: Picture
    places: tuple[tuple[tuple[int, int], ...], ...]
    zoom: int

    def fill(self, rows: Sequence[Sequence[Picture | None]]) -> Picture:
        """Return the sheet with frames, per row and column; None leaves a place empty."""
        filled = self.sheet.copy()
        for places, pictures in zip(self.places, rows, strict=True):
            for (left, top), picture in zip(places, pictures, strict=False):
                if picture is not None:
                    shown = enlarge(picture, self.zoom)
                    filled[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        return filled


def enlarge(pictures: Picture, zoom: int) -> Picture:
    """Repeat every pixel of [..., H, W, 3] `zoom` times along both sides: edges stay sharp."""
    return pictures.repeat(zoom, axis=-3).repeat(zoom, axis=-2)


def readable_zoom(width: int) -> int:
    """Return the whole factor that makes frames wide enough for the labels over them."""
    return max(1, -(-_MIN_WIDTH // width))


def lay_out(
    columns: Sequence[str],
    labels: Sequence[str],
    *,
    size: tuple[int, int],
    zoom: int = 1,
    font_size: int = _FONT_SIZE,
) -> SheetLayout:
    """Draw the labels of a grid of frames.

    Args:
        columns: Label above each column, wrapped to its width; a newline is kept.
        labels: Label above each row, wrapped to the sheet's width; empty takes no room.
        size: Width and height of a frame in its own pixels.
        zoom: Width in pixels of the sheet of one pixel of a frame.
        font_size: In pixels.
    """
    width, height = size[0] * zoom, size[1] * zoom
    font = ImageFont.load_default(font_size)
    line_height = round(font_size * 9 / 7)
    heads = [_wrap(column, width, font.getlength) for column in columns]
    head_height = line_height * max(map(len, heads)) + _GAP
    total = _GAP + len(columns) * (width + _GAP)
    texts = [_wrap(label, total - 2 * _GAP, font.getlength) for label in labels]
    row_heights = [height + _GAP + line_height * len(text) for text in texts]
    sheet = Image.new("RGB", (total, head_height + sum(row_heights) + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(lines: Sequence[str], left: int, top: int) -> None:
        for number, line in enumerate(lines):
            draw.text((left, top + number * line_height), line, fill=_INK, font=font)

    lefts = [_GAP + index * (width + _GAP) for index in range(len(columns))]
    for left, lines in zip(lefts, heads, strict=True):
        write(lines, left, _GAP // 2)
    top = head_height
    places = []
    for text, row_height in zip(texts, row_heights, strict=True):
        write(text, _GAP, top)
        top += row_height
        places.append(tuple((left, top - height - _GAP) for left in lefts))
    return SheetLayout(np.asarray(sheet, dtype=np.uint8), tuple(places), zoom)


def draw_sheet(
    columns: Sequence[str], rows: Sequence[SheetRow], *, zoom: int | None = None
) -> Picture:
    """Lay frames out in a labelled grid, [H, W, 3]; `zoom` None leaves room for the labels."""
    shown = next(picture for row in rows for picture in row.pictures if picture is not None)
    height, width = shown.shape[:2]
    layout = lay_out(
        columns,
        [row.label for row in rows],
        size=(width, height),
        zoom=readable_zoom(width) if zoom is None else zoom,
    )
    return layout.fill([row.pictures for row in rows])


def pad_to_even(pictures: Picture) -> Picture:
    """Repeat the last row and column of [..., H, W, 3] where H or W is odd, as H.264 needs it."""
    height, width = pictures.shape[-3:-1]
    odd = [(0, 0)] * (pictures.ndim - 3) + [(0, height % 2), (0, width % 2), (0, 0)]
    padded: Picture = np.pad(pictures, odd, mode="edge")
    return padded


def _wrap(text: str, width: int, measure: Callable[[str], float]) -> list[str]:
    """Break a text at its newlines, and into lines of at most `width` pixels."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if line and measure(joined) > width:
                lines.append(line)
                joined = word
            line = joined
            while len(line) > 1 and measure(line) > width:  # a word wider than the column
                cut = next(
                    n for n in range(len(line) - 1, 0, -1) if n == 1 or measure(line[:n]) <= width
                )
                lines.append(line[:cut])
                line = line[cut:]
        lines += [line] if line else []
    return lines
