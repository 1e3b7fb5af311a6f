"""Frames to a folder of PNG images, all of them or none."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.errors import StorageError
from cogedit.media.recipe_comment import COMMENT


def write_images(
    frames: Iterable[NDArray[np.uint8]], folder: Path, *, comment: str | None = None
) -> None:
    """Write frames as frame-0000.png and so on, in a folder that is there whole or not at all.

    A folder of nothing but such images is replaced.

    Args:
        frames: uint8 RGB, [H, W, 3] each.
        folder: Where the images go; its parent exists.
        comment: Text that each image carries.

    Raises:
        StorageError: The folder holds something else or may not be written, or the disk is full.
    """
    from PIL import Image, PngImagePlugin

    _refuse_foreign(folder)
    text = PngImagePlugin.PngInfo()
    if comment is not None:
        text.add_itxt(COMMENT, comment)
    temporary = folder.absolute().parent / f".cogedit-{secrets.token_hex(8)}"
    try:
        temporary.mkdir()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(temporary / f"frame-{number:04d}.png", pnginfo=text)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)  # noqa: PTH105  (the name says what it does)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace anything but a folder of images that were written here."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(
            f"cannot write {folder}: it is a file, and png writes a folder", hint="name another -o"
        )
    foreign = [path.name for path in sorted(folder.iterdir()) if not path.match("frame-*.png")]
    if foreign:
        raise StorageError(
            f"cannot write {folder}: it holds other files, such as {foreign[0]}",
            hint="name a new folder with -o",
        )
