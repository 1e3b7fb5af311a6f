"""Contact sheets: labelled, enlarged frames in one PNG, drawn with Pillow (which diffusers needs).

Pillow is imported where it is used: a benchmark without pictures does not need it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cogedit.errors import StorageError

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] RGB."""

_GAP = 6
_FONT_SIZE = 14
_LINE = 18
_PAPER, _INK = (250, 250, 248), (20, 20, 20)


@dataclass(frozen=True)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        label: Text above the pictures, wrapped to the sheet's width; empty takes no room.
        pictures: One per column, equal sizes; None leaves the place empty.
    """

    label: str
    pictures: tuple[Picture | None, ...]


def enlarge(pictures: Picture, zoom: int) -> Picture:
    """Repeat every pixel of [..., H, W, 3] `zoom` times along both sides: edges stay sharp."""
    return pictures.repeat(zoom, axis=-3).repeat(zoom, axis=-2)


def draw_sheet(columns: Sequence[str], rows: Sequence[SheetRow], *, zoom: int) -> Picture:
    """Lay pictures out in a labelled grid.

    Args:
        columns: Label above each column, wrapped to its width.
        rows: From the top.
        zoom: How many pixels of the sheet one pixel is wide.

    Returns:
        The sheet, [H, W, 3] uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = next(picture for row in rows for picture in row.pictures if picture is not None)
    height, width = shown.shape[0] * zoom, shown.shape[1] * zoom
    font = ImageFont.load_default(_FONT_SIZE)
    letter = font.getlength("n")
    heads = [textwrap.wrap(column, max(8, int(width / letter))) for column in columns]
    head_height = _LINE * max(map(len, heads)) + _GAP
    total = _GAP + len(columns) * (width + _GAP)
    labels = [textwrap.wrap(row.label, max(8, int(total / letter) - 2)) for row in rows]
    row_heights = [height + _GAP + _LINE * len(label) for label in labels]
    sheet = Image.new("RGB", (total, head_height + sum(row_heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)

    for index, lines in enumerate(heads):
        for number, line in enumerate(lines):
            place = _GAP + index * (width + _GAP), _GAP // 2 + number * _LINE
            draw.text(place, line, fill=_INK, font=font)
    top = head_height
    for row, label, row_height in zip(rows, labels, row_heights, strict=True):
        for number, line in enumerate(label):
            draw.text((_GAP, top + number * _LINE), line, fill=_INK, font=font)
        for index, picture in enumerate(row.pictures):
            if picture is not None:
                place = _GAP + index * (width + _GAP), top + row_height - height - _GAP
                sheet.paste(Image.fromarray(enlarge(picture, zoom)), place)
        top += row_height
    return np.asarray(sheet, dtype=np.uint8)


def save_png(picture: Picture, path: Path) -> None:
    """Write a picture as PNG.

    Raises:
        StorageError: The file cannot be written.
    """
    from PIL import Image

    try:
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
