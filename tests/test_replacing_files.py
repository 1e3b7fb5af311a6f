"""How finished files take their places."""

import errno
import os

import pytest

from cogedit.disk import FRAME_NAME, is_regular, move_into_place, remove_folder, state_of


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
