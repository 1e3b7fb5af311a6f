"""The videos of a report: what is in memory while its page is made does not grow with them."""

import base64
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from cogedit.errors import StorageError
from cogedit.tools.report.contents import Clip, Edit
from cogedit.tools.report.movies import MovieWriter
from cogedit.tools.report.page import write_page

FPS = Fraction(8)


def noise(seed):
    """Frames that no codec makes small."""
    return [*np.random.default_rng(seed).integers(0, 256, (8, 96, 128, 3), dtype=np.uint8)]


def make_page(folder, num_edits, *, beside):
    """Write the page of a clip with edits; the peak of memory in bytes, and the page's length."""
    folder.mkdir()
    page = folder / "page.html"
    tracemalloc.start()
    try:
        movies = MovieWriter(folder, folder if beside else None, scratch=folder)
        source = movies.write(noise(0), "source", fps=FPS)
        edits = [
            Edit(
                key=f"{number:012}",
                prompt=f"edit {number}",
                movie=movies.write(noise(number), f"edit-{number}", fps=FPS),
                mask=movies.picture(noise(number)[0][..., 0]),
                figures=[],
                distinct={},
                changed={},
                settings={},
                origin={},
            )
            for number in range(1, num_edits + 1)
        ]
        write_page(page, [Clip("clip.mp4", {}, source, "source", [], [], [], edits)], {})
        return tracemalloc.get_traced_memory()[1], page.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("beside", [False, True])
def test_memory_does_not_grow_with_the_number_of_edits(tmp_path, beside):
    make_page(tmp_path / "first", 1, beside=beside)  # what is loaded and compiled once
    few, short = make_page(tmp_path / "few", 2, beside=beside)
    many, long = make_page(tmp_path / "many", 10, beside=beside)
    assert long > 3 * short
    assert many < 1.3 * few


def test_the_page_holds_the_files_that_were_written(tmp_path):
    make_page(tmp_path / "beside", 2, beside=True)
    make_page(tmp_path / "held", 2, beside=False)
    assert [path.name for path in (tmp_path / "held").iterdir()] == ["page.html"]
    held, beside = ((tmp_path / name / "page.html").read_text() for name in ("held", "beside"))
    for name, times in (("source", 3), ("edit-1", 1), ("edit-2", 1)):
        content = (tmp_path / "beside" / f"{name}.mp4").read_bytes()
        url = "data:video/mp4;base64," + base64.b64encode(content).decode()
        assert held.count(f'src="{url}"') == beside.count(f'src="{name}.mp4"') == times


def test_without_room_for_them_no_page_is_written(tmp_path, monkeypatch):
    page = tmp_path / "page"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cogedit.disk.NamelessFile.append", full)
    with pytest.raises(StorageError, match="No space left on device") as refused:
        make_page(page, 1, beside=False)
    assert "--beside" in str(refused.value)
    assert not (page / "page.html").exists()
