"""Clips as videos and pictures that a page can show."""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from cogedit.artifacts import Workspace, atomic_write
from cogedit.media.encoding import Encoding
from cogedit.tools.report.contents import Movie

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CRF = 14
"""Little loss: the page is there to look for small differences."""


@dataclass(frozen=True)
class MovieWriter:
    """Writes the videos of a page.

    Attributes:
        folder: Where they are written.
        page_folder: The page's own folder, where they stay in files; None puts them into the page.
    """

    folder: Path
    page_folder: Path | None

    def write(self, clip: NDArray[np.uint8], name: str, *, fps: Fraction) -> Movie:
        """Write a clip [F, H, W, 3] under a name and return how the page finds it."""
        from cogedit.media.writer import write_video

        path = self.folder / f"{name}.mp4"
        write_video(clip, path, fps=fps, encoding=Encoding(crf=_CRF))
        if self.page_folder is None:
            src = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
            path.unlink()
        else:
            src = quote(path.relative_to(self.page_folder).as_posix())
        return Movie(
            src=src,
            poster=picture_address(clip[0]),
            width=clip.shape[2],
            height=clip.shape[1],
            num_frames=len(clip),
            fps=float(fps),
        )


@contextmanager
def movie_writer(page: Path, *, beside: bool) -> Iterator[MovieWriter]:
    """Prepare to write the videos of a page.

    Args:
        page: The page, which is not there yet.
        beside: Keep the videos in `<page stem>-videos` beside the page; else they go into it.

    Raises:
        StorageError: That folder cannot be made.
    """
    if beside:
        kept = page.parent / f"{page.stem}-videos"
        Workspace(kept).create()
        yield MovieWriter(kept, page.parent)
        return
    folder = Path(tempfile.mkdtemp(prefix="cogedit-report-"))
    try:
        yield MovieWriter(folder, None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def picture_address(picture: NDArray[np.uint8]) -> str:
    """Return a picture, [H, W] or [H, W, 3], as "data:image/png;base64,..."."""
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(picture).save(written, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def write_page(path: Path, text: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        StorageError: It cannot be written.
    """
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))
