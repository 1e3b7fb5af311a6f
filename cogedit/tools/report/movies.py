"""The videos and pictures of a report: written one by one, and read again as the page is written.

A page that holds them itself is as long as all of them together, which does not fit into memory.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogedit.disk import NamelessFile
from cogedit.errors import StorageError
from cogedit.media.encoding import Encoding
from cogedit.media.stream import FrameStream
from cogedit.media.writer import write_video
from cogedit.tools.report.measure import Clip as Frames

_NEARLY_LOSSLESS = Encoding(crf=14)


@dataclass(frozen=True)
class Embedded:
    """A video or picture that the page holds itself: as text it is a data URL, read from disk."""

    kept: NamelessFile
    begin: int  # in bytes
    num_bytes: int
    media_type: str

    def __str__(self) -> str:
        content = bytearray(self.num_bytes)
        self.kept.read_into(memoryview(content), self.begin)
        return f"data:{self.media_type};base64," + base64.b64encode(content).decode()


@dataclass(frozen=True)
class Movie:
    """A video and its first frame, by their addresses."""

    src: str | Embedded
    poster: Embedded
    width: int
    height: int
    num_frames: int
    fps: float


class MovieWriter:
    """Writes the videos and pictures of a page.

    Args:
        folder: Where videos are written.
        page_folder: The folder of the page, which then names the videos; None embeds them.
        scratch: Where what is embedded is kept until the page is written; it has room there.

    Raises:
        StorageError: There is no room for them.
    """

    def __init__(self, folder: Path, page_folder: Path | None, *, scratch: Path) -> None:
        self._folder, self._page_folder, self._scratch = folder, page_folder, scratch
        with self._enough_space():
            self._kept = NamelessFile(scratch)

    def write(self, clip: Frames, name: str, *, fps: Fraction) -> Movie:
        """Write the frames of a clip, uint8 [H, W, 3]. Raises `StorageError`."""
        path = self._folder / f"{name}.mp4"
        first = clip[0]
        height, width = first.shape[:2]
        stream = FrameStream(clip, len(clip), height, width)
        write_video(stream, path, fps=fps, encoding=_NEARLY_LOSSLESS)
        src: str | Embedded
        if self._page_folder is None:
            src = self._embed(path.read_bytes(), "video/mp4")
            path.unlink()
        else:
            src = quote(path.relative_to(self._page_folder).as_posix())
        return Movie(src, self.picture(first), width, height, len(clip), float(fps))

    def picture(self, image: NDArray[np.uint8]) -> Embedded:
        """Embed an image, [H, W] or [H, W, 3], as PNG. Raises `StorageError`."""
        png = io.BytesIO()
        Image.fromarray(image).save(png, format="PNG", optimize=True)
        return self._embed(png.getvalue(), "image/png")

    def _embed(self, content: bytes, media_type: str) -> Embedded:
        with self._enough_space():
            begin = self._kept.append(memoryview(content))
        return Embedded(self._kept, begin, len(content), media_type)

    @contextmanager
    def _enough_space(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            instead = (
                ", or keep them beside the page with --beside" if self._page_folder is None else ""
            )
            raise StorageError(
                f"cannot keep the videos of the page in {self._scratch}: {error.strerror or error}",
                hint=f"free some space there{instead}",
            ) from error
