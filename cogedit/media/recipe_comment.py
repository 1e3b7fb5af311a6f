"""The text that a written file carries about how it was made: its comment.

mp4, mov and Matroska have a place for it that ffmpeg writes and reads. A GIF has one that ffmpeg
does not write, and a PNG one that ffmpeg does not take pictures for; both are read by Pillow, which
is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cogedit.errors import VideoError
from cogedit.media.probe import read_comment

COMMENT = "comment"
"""Name of the text in a PNG."""


def find_comment(path: Path) -> str | None:
    """The comment of a video, of a GIF, of a PNG, or of the first PNG in a folder; None if none.

    Raises:
        VideoError: The file is missing or of no known container.
        StorageError: The file may not be read.
    """
    if path.is_dir():
        first = next(iter(sorted(path.glob("*.png"))), None)
        return None if first is None else _read_picture_comment(first)
    if path.suffix.lower() in (".png", ".gif") and path.is_file():
        return _read_picture_comment(path)
    return read_comment(path)


def add_gif_comment(path: Path, comment: str) -> None:
    """Put a comment extension (GIF89a, section 24) behind the global colour table of a GIF."""
    data = path.read_bytes()
    # Header 6 bytes, logical screen descriptor 7; its flags say how large the colour table is.
    flags = data[10]
    start = 13 + (3 * 2 ** ((flags & 0b111) + 1) if flags & 0b1000_0000 else 0)
    text = comment.encode()
    blocks = b"".join(bytes([len(block)]) + block for block in _blocks(text))
    path.write_bytes(data[:start] + b"\x21\xfe" + blocks + b"\0" + data[start:])


def _blocks(text: bytes) -> Iterator[bytes]:
    return (text[start : start + 255] for start in range(0, len(text), 255))


def _read_picture_comment(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "GIF")) as picture:
            found = picture.info.get(COMMENT)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path} is not a picture that can be read: {error}") from error
    if isinstance(found, bytes):
        return found.decode("utf-8", errors="replace")
    return found if isinstance(found, str) else None
