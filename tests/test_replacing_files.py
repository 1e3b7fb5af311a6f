"""How finished files take their places."""

import errno
import os
import time

import numpy as np
import pytest

from cogedit.artifacts.atomic import atomic_write
from cogedit.disk import FRAME_NAME, is_regular, move_into_place, remove_folder, state_of
from cogedit.errors import StorageError
from cogedit.media.png import save_png


@pytest.fixture(params=["links", "no links"])
def new(request, tmp_path, monkeypatch):
    """A finished file, on a file system with or without hard links."""
    if request.param == "no links":

        def refuse(*args, **options):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    new = tmp_path / ".new"
    new.write_bytes(b"new")
    return new


def test_where_nothing_is(new, tmp_path):
    move_into_place(new, tmp_path / "out", over=None)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"new")]


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"mine"), lambda p: p.mkdir()])
def test_what_appeared_meanwhile_stays(new, tmp_path, make):
    make(tmp_path / "out")
    before = state_of(tmp_path / "out")
    with pytest.raises(FileExistsError):
        move_into_place(new, tmp_path / "out", over=None)
    assert state_of(tmp_path / "out") == before
    assert new.read_bytes() == b"new"


def test_a_file_that_is_made_in_the_last_moment_stays(new, tmp_path, monkeypatch):
    """Between the look at the place and the rename."""
    out = tmp_path / "out"
    monkeypatch.setattr("cogedit.disk.state_of", lambda path: path.write_bytes(b"mine") and None)
    with pytest.raises(FileExistsError):
        move_into_place(new, out, over=None)
    assert out.read_bytes() == b"mine"


def test_the_very_file_that_was_seen_is_replaced(new, tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    seen = state_of(out)
    out.write_bytes(b"changed")
    with pytest.raises(FileExistsError):
        move_into_place(new, out, over=seen)
    assert out.read_bytes() == b"changed"
    move_into_place(new, out, over=state_of(out))
    assert out.read_bytes() == b"new"
    assert not new.exists()


def test_a_link_is_replaced_and_not_what_it_leads_to(new, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "out").symlink_to("mine")
    assert not is_regular(tmp_path / "out")
    move_into_place(new, tmp_path / "out")
    assert is_regular(tmp_path / "out")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name, content in (("out", "old"), (".new-0123456789abcdef", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    new = tmp_path / ".new-0123456789abcdef"
    move_into_place(new, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in new.iterdir()] == ["old"]  # to be removed by the caller
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_removed_with_what_was_made_in_it(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        (folder / f"frame-{number:04d}.png").write_bytes(b"image")
    remove_folder(folder, FRAME_NAME)
    assert not folder.exists()


def test_what_others_put_into_a_folder_or_in_its_place_is_not_removed(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("frame-0000.png", "thesis.tex"):
        (theirs / name).write_bytes(b"mine")
    link = tmp_path / "images"
    link.symlink_to(theirs)
    with pytest.raises(OSError):  # noqa: PT011  (systems say other things of a link)
        remove_folder(link, FRAME_NAME)
    assert len([*theirs.iterdir()]) == 2
    with pytest.raises(OSError, match="not empty"):
        remove_folder(theirs, FRAME_NAME)
    assert [path.name for path in theirs.iterdir()] == ["thesis.tex"]


@pytest.fixture
def held(monkeypatch):
    """Let the next renames of a kind fail as on Windows, where another program has the file open.

    Returns the pauses that were made meanwhile.
    """
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def hold(name, *codes):
        left, rename = [*codes], getattr(os, name)

        def refuse_or_rename(old, new, **options):
            if not left:
                return rename(old, new, **options)
            error = PermissionError(errno.EACCES, "Permission denied")
            error.winerror = left.pop(0)  # type: ignore[attr-defined]
            raise error

        monkeypatch.setattr(os, name, refuse_or_rename)
        return pauses

    return hold


@pytest.mark.parametrize("over", ["anything", "what is there"])
def test_a_file_that_another_program_has_open_is_waited_for(tmp_path, held, over):
    new, out = tmp_path / ".new", tmp_path / "out"
    new.write_bytes(b"new")
    out.write_bytes(b"old")
    pauses = held("replace", 5, 32)
    move_into_place(new, out, over="anything" if over == "anything" else state_of(out))
    assert out.read_bytes() == b"new"
    assert len(pauses) == 2


def test_a_folder_in_which_a_file_is_open_is_waited_for(tmp_path, held):
    new, out = tmp_path / ".new-0123456789abcdef", tmp_path / "out"
    for folder in (new, out):
        folder.mkdir()
        (folder / folder.name).touch()
    assert held("rename", 5, 5, 32) == []
    move_into_place(new, out)
    assert [path.name for path in out.iterdir()] == [new.name]


def test_another_refusal_is_not_waited_for(tmp_path, held):
    new = tmp_path / ".new"
    new.write_bytes(b"new")
    pauses = held("replace", 1314)  # a privilege is not held
    with pytest.raises(PermissionError):
        move_into_place(new, tmp_path / "out")
    assert pauses == []


def write_artifact_at(path):
    with atomic_write(path) as file:
        file.write(b"new")


@pytest.mark.parametrize(
    "write", [write_artifact_at, lambda path: save_png(np.zeros((2, 2, 3), np.uint8), path)]
)
def test_a_file_that_stays_open_is_named_so_and_stays(tmp_path, held, write):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    held("replace", *[32] * 100)
    with pytest.raises(StorageError, match=r"out: it is open in another program") as caught:
        write(out)
    assert "close it" in caught.value.hint
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"old")]
