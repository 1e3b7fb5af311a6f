"""Tries: who took something on and ended without a word is counted, and nobody else."""

import pytest

from cogedit.artifacts.listing import prune
from cogedit.artifacts.tries import Tries
from cogedit.errors import StorageError


def test_marks_that_were_not_withdrawn_are_counted(tmp_path):
    first, second, third = (Tries(tmp_path / "list") for _ in range(3))
    assert first.begin() == 0
    first.withdraw()
    assert not [*tmp_path.iterdir()]
    assert [first.begin(), second.begin()] == [0, 1]
    assert Tries(tmp_path / "another").begin() == 0
    second.withdraw()
    assert third.begin() == 1
    third.forget()
    assert Tries(tmp_path / "list").begin() == 0


def test_nothing_of_others_is_counted_or_removed(tmp_path):
    tries = Tries(tmp_path / "list")
    tries.begin()
    [folder] = tmp_path.iterdir()
    (folder / "notes.txt").write_text("mine")
    assert Tries(tmp_path / "list").begin() == 1
    tries.forget()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_link_in_its_place_is_refused(tmp_path):
    tries, other = Tries(tmp_path / "list"), tmp_path / "other"
    tries.begin()
    [folder] = tmp_path.iterdir()
    tries.withdraw()
    other.mkdir()
    folder.symlink_to(other)
    with pytest.raises(StorageError, match="a link is in the place"):
        tries.begin()
    assert not [*other.iterdir()]


def test_cache_prune_removes_what_is_left(tmp_path):
    dead = Tries(tmp_path / "list")
    dead.begin()
    [folder] = tmp_path.iterdir()
    [mark] = folder.iterdir()
    machine, _, start, token = mark.name.split(".")
    mark.rename(folder / f"{machine}.999999999.{start}.{token}")  # of a process that is no more
    assert [entry.path for entry in prune([tmp_path], wanted=lambda entry: True).removed] == [
        folder
    ]
    assert not folder.exists()
