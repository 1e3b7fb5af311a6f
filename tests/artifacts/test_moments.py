"""Another process acts at any moment: what is looked at goes, comes or gets its name meanwhile."""

import contextlib
import shutil
from itertools import islice

import pytest
import torch
from interleaving import at_every_moment

from cogedit.artifacts import StepRecord, Unfinished, Workspace, made_together, write_step
from cogedit.artifacts.leases import acquire
from cogedit.artifacts.listing import survey
from cogedit.artifacts.steps import newest_step, step_path
from cogedit.disk import make_folder
from cogedit.progress import StepInfo

MAKES = ("ab" * 32, "cd" * 32)


@pytest.fixture
def unfinished(tmp_path):
    return Unfinished.of(tmp_path, "edit", MAKES)


def add_step(unfinished, index=0):
    record = StepRecord(MAKES, StepInfo(index, 50, 19), None)
    return write_step(unfinished.root, {"sample": torch.zeros(1, 1, 1, 2, 2)}, record)


@pytest.mark.parametrize(
    ("look", "before", "after"),
    [
        (lambda u: made_together(u.root.parent, "edit"), lambda u: [u], []),
        (lambda u: newest_step(u.root), lambda u: newest_step(u.root), None),
        (lambda u: [e.state for e in survey(u.root.parent)], lambda _: ["unfinished"], []),
        (lambda u: u.clear(), lambda _: True, True),
    ],
)
def test_a_run_ends_and_its_folder_goes(unfinished, look, before, after):
    def prepare():
        unfinished.root.mkdir(exist_ok=True)
        add_step(unfinished)

    prepare()
    expected = before(unfinished)
    ends = at_every_moment(
        prepare, lambda: shutil.rmtree(unfinished.root), lambda: look(unfinished)
    )
    seen = [one for one in ends if one != expected]
    assert seen == [after] * len(seen)
    assert seen or before(unfinished) == after


def test_a_step_gets_its_name(unfinished):
    """A file of cogedit under one name or the other; none of another program."""
    half = unfinished.root / ".00ff00ff00ff00ff.tmp"
    second = step_path(unfinished.root, 1)

    def prepare():
        add_step(unfinished, index=1)
        second.rename(half)
        add_step(unfinished)

    looks = at_every_moment(
        prepare, lambda: half.rename(second), lambda: survey(unfinished.root.parent)
    )
    assert {entry.state for entries in looks for entry in entries} == {"unfinished"}


def test_the_folder_of_a_step_goes_while_it_is_empty(unfinished):
    """Whoever has taken it over, and is done, removes it."""

    def prepare():
        shutil.rmtree(unfinished.root, ignore_errors=True)
        unfinished.root.mkdir()

    def remove():
        with contextlib.suppress(OSError):
            unfinished.root.rmdir()

    steps = at_every_moment(
        prepare, remove, lambda: (add_step(unfinished), newest_step(unfinished.root))
    )
    found = [*steps]
    assert found
    assert all(written == newest for written, newest in found)


def test_a_lease_is_given_back_and_its_folder_goes(unfinished, monkeypatch):
    monkeypatch.setattr("cogedit.artifacts.leases.FIRST_POLL", 0)
    lease, held = unfinished.root / "lease", []

    def prepare():
        held.append(acquire(lease, waiting=None))

    def give_back():
        held.pop().release()
        unfinished.root.rmdir()

    def take():
        acquire(lease, waiting=lambda: None).release()
        return lease.exists()

    assert [*islice(at_every_moment(prepare, give_back, take), 40)] == [False] * 40


def test_an_artifact_is_removed(chain, tmp_path):
    record, workspace = chain.records["frames"], Workspace(tmp_path)
    path = workspace.path_for(record)

    def prepare():
        chain.copy("frames", path)

    found = [*at_every_moment(prepare, path.unlink, lambda: workspace.find(record))]
    assert None in found
    assert {*found} <= {None, path}
    looks = at_every_moment(prepare, path.unlink, lambda: survey(tmp_path))
    assert {entry.state for entries in looks for entry in entries} <= {"whole"}


def test_a_folder_that_exists_is_made_whatever_the_system_says_of_it(tmp_path, monkeypatch):
    """Some say that it is a folder, or refuse, of the root of a disk or a mounted folder."""

    def refuse(path, mode=0o777):
        raise PermissionError(path)

    monkeypatch.setattr("os.mkdir", refuse)
    make_folder(tmp_path)
    with pytest.raises(PermissionError):
        make_folder(tmp_path / "new")
