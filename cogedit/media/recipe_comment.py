"""The comment of a file, in which what is written here carries its recipe.

ffmpeg writes and reads it in mp4, mov and Matroska. It writes none into a GIF, and takes no PNG for
a video; the comments of these are read by Pillow.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import Image

from cogedit.errors import VideoError
from cogedit.media.ffmpeg import run_on_input
from cogedit.media.files import check_file
from cogedit.media.images import FORMATS, are_images, find_images
from cogedit.media.packets import unreadable

COMMENT = "comment"
"""Name of the text in a PNG."""

_PIECE_BYTES = 1 << 20
_COMMENT_LINE = re.compile(r"^comment=((?:[^\\\n]|\\.)*)", re.MULTILINE | re.DOTALL | re.IGNORECASE)


def find_comment(path: Path) -> str | None:
    """The comment of a video, a GIF, a PNG, or the first of a folder of pictures; None if none.

    Raises `VideoError` for a file that is missing or of no known container, and `StorageError` for
    one that may not be read.
    """
    if are_images(path):
        try:
            return _read_image_comment(find_images(path).files[0])
        except VideoError:  # no pictures, or none that were written here
            return None
    if path.suffix.lower() in (".png", ".gif", ".webp") and path.is_file():
        return _read_image_comment(path)
    check_file(path)
    result = run_on_input(path, ["-f", "ffmetadata", "-"])
    if result.returncode != 0:
        raise unreadable(path, result)
    match = _COMMENT_LINE.search(result.stdout.decode("utf-8", errors="replace"))
    return re.sub(r"\\(.)", r"\1", match.group(1), flags=re.DOTALL) if match else None


def add_gif_comment(path: Path, comment: str) -> None:
    """Insert a comment extension (GIF89a, section 24) after the global colour table of a GIF.

    Through no link: OSError where somebody has put one in the file's place.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb+") as file:
        # Header 6 bytes, logical screen descriptor 7; its flags give the size of the colour table.
        packed = file.read(11)[10]
        start = 13 + (3 * 2 ** ((packed & 0b111) + 1) if packed & 0b1000_0000 else 0)
        extension = _comment_extension(comment)
        # What follows makes room from its end on: all of it need not fit into memory.
        end = file.seek(0, os.SEEK_END)
        while end > start:
            begin = max(start, end - _PIECE_BYTES)
            file.seek(begin)
            piece = file.read(end - begin)
            file.seek(begin + len(extension))
            file.write(piece)
            end = begin
        file.seek(start)
        file.write(extension)


def _comment_extension(comment: str) -> bytes:
    text = comment.encode()
    blocks = [text[begin : begin + 255] for begin in range(0, len(text), 255)]
    return b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def _read_image_comment(path: Path) -> str | None:
    try:
        with Image.open(path, formats=("GIF", *FORMATS)) as image:
            comment = image.info.get(COMMENT)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path} is not an image that can be read: {error}") from error
    if isinstance(comment, bytes):
        return comment.decode("utf-8", errors="replace")
    return comment if isinstance(comment, str) else None
