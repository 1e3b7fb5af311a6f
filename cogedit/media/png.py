"""PNG files and folders of them; how a picture or a video takes its place, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from cogedit.disk import (
    FRAME_NAME,
    OPEN_HINT,
    OpenElsewhere,
    Over,
    is_regular,
    move_into_place,
    remove_folder,
)
from cogedit.errors import StorageError, UsageError
from cogedit.media.recipe_comment import COMMENT

_WRITTEN_HERE = ("Software", "cogedit")
"""Text of every image in a folder of them."""


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield another name in the folder of a path, for what is to take its place.

    A file, or images of ours, that have this name when the block ends are removed.
    """
    temporary = path.absolute().parent / f".cogedit-{secrets.token_hex(8)}{path.suffix}"
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                remove_folder(temporary, FRAME_NAME)
            else:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses while a path is written into errors with a sentence."""
    try:
        yield
    except FileExistsError as error:
        raise UsageError(
            f"{path} was written by another process meanwhile",
            hint="choose another -o, or replace it with --force",
        ) from error
    except OSError as error:
        hint = OPEN_HINT if isinstance(error, OpenElsewhere) else None
        raise StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def save_png(picture: NDArray[np.uint8], path: Path, *, over: Over = "anything") -> None:
    """Write an image [H, W, 3], uint8 RGB, as PNG, whole or not at all.

    Raises `StorageError` where the file cannot be written, and `UsageError` where it may not
    replace what is there.
    """
    with beside(path) as temporary, storage_errors(path):
        Image.fromarray(picture).save(temporary, format="png")
        finish(temporary, path, over=over)


def finish(temporary: Path, path: Path, *, over: Over) -> None:
    """Have a complete file on the disk, and move it into its place."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    move_into_place(temporary, path, over=over)


def write_images(
    frames: Iterable[NDArray[np.uint8]], folder: Path, *, comment: str | None, over: Over
) -> None:
    """Write frames as frame-0000.png and so on; a folder of nothing but such images is replaced."""
    text = PngImagePlugin.PngInfo()
    text.add_text(*_WRITTEN_HERE)
    if comment is not None:
        text.add_itxt(COMMENT, comment)
    with beside(folder) as temporary, storage_errors(folder):
        temporary.mkdir()
        for number, frame in enumerate(frames):
            with (temporary / f"frame-{number:04d}.png").open("xb") as file:  # through no link
                Image.fromarray(frame).save(file, format="png", pnginfo=text)
        check_image_folder(folder)  # others may have written into it meanwhile
        move_into_place(temporary, folder, over=over)


def check_image_folder(folder: Path) -> None:
    """Raise `StorageError` unless a folder of images may be written at a path.

    All that lies there must be a folder of nothing but images that were written here.
    """
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a file"
        raise StorageError(
            f"cannot write {folder}: it is {what}, and png writes a folder",
            hint="name another -o",
        )
    with storage_errors(folder):
        try:
            found = sorted(folder.iterdir())
        except FileNotFoundError:  # removed since that line
            return
    others = [path for path in found if not _is_own_image(path)]
    # What went meanwhile was an image: another process has replaced the folder.
    others = [*filter(os.path.lexists, others)]
    if others:
        raise StorageError(
            f"cannot write {folder}: it holds files of others, such as {others[0].name}",
            hint="name a new folder with -o",
        )


def _is_own_image(path: Path) -> bool:
    """Whether an image of a folder was written here: it says so, or carries a recipe."""
    if not FRAME_NAME.fullmatch(path.name) or not is_regular(path):
        return False
    try:
        with Image.open(path, formats=("PNG",)) as image:
            texts = image.info
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    key, value = _WRITTEN_HERE
    return texts.get(key) == value or '"cogedit":' in str(texts.get(COMMENT))
