"""Steps on disk: what counts is the sound beginning of the chain, whatever happened to the rest."""

import os
import shutil
import threading

import pytest
import torch

from cogedit.artifacts import (
    SavedSteps,
    Step,
    StepRecord,
    Unfinished,
    forget_steps,
    in_use,
    keep_in_use,
    keeping_in_use,
    made_together,
    newest_step,
    read_last_step,
    read_steps,
    unused,
    write_step,
)
from cogedit.artifacts.locks import MAX_FOLDERS
from cogedit.errors import LeaseLost, StorageError
from cogedit.progress import StepInfo

SHAPE = (1, 3, 4, 2, 2)
KEY = "ab" * 32
MAKES = (KEY,)
NAMES = ("sample", "velocity")


def write_chain(folder, count, *, makes=MAKES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    before, written = None, []
    for index in range(count):
        tensors = {name: torch.randn(SHAPE, generator=generator) for name in NAMES}
        info = StepInfo(index, count, 19 + 20 * index, residual=0.5, num_calls=2)
        record = write_step(folder, tensors, StepRecord(makes, info, before))
        written.append(Step(record, tensors))
        before = record.digest
    return written


def read(folder, *, makes=MAKES, names=NAMES, shape=SHAPE):
    return read_steps(folder, makes=makes, names=names, shape=shape)


def path(folder, number):
    return folder / f"{number:04}.safetensors"


def test_a_chain_comes_back_as_it_was_written(tmp_path):
    folder = tmp_path / "made when needed"
    written = write_chain(folder, 3)
    found = read(folder)
    assert [step.record for step in found] == [step.record for step in written]
    for a, b in zip(found, written, strict=True):
        assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in NAMES)
    assert newest_step(folder) == written[-1].record
    assert sorted(p.name for p in folder.iterdir()) == [
        f"000{number}.safetensors" for number in (1, 2, 3)
    ]


def test_a_step_is_a_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    [step] = write_chain(tmp_path, 1)
    loaded = load_file(path(tmp_path, 1))
    assert all(torch.equal(loaded[name], step.tensors[name]) for name in NAMES)


def test_nothing_is_there(tmp_path):
    assert read(tmp_path / "missing") == []
    assert read(tmp_path) == []


def truncate(folder):
    os.truncate(path(folder, 3), path(folder, 3).stat().st_size - 1)


def extend(folder):
    with path(folder, 3).open("ab") as file:
        file.write(b"\0")


def empty(folder):
    path(folder, 3).write_bytes(b"")


def remove(folder):
    path(folder, 3).unlink()


def foreign(folder):
    path(folder, 3).write_bytes(b"not a step at all")


def huge_header(folder):
    path(folder, 3).write_bytes(b"\xff" * 8 + b"{}")


def swap(folder):
    path(folder, 3).write_bytes(path(folder, 4).read_bytes())


def of_another_machine(folder):
    """The same step with other numbers: what follows was not made from it."""
    other = folder.parent / "other"
    write_chain(other, 3, seed=1)
    shutil.copy(path(other, 3), path(folder, 3))


def pipe(folder):
    path(folder, 3).unlink()
    os.mkfifo(path(folder, 3))


def test_earlier_steps_are_checked_and_let_go(tmp_path):
    written = write_chain(tmp_path, 5)
    found = read_steps(tmp_path, makes=MAKES, names=NAMES, shape=SHAPE, num_whole=2)
    assert [step.record for step in found] == [step.record for step in written]
    assert [{*step.tensors} for step in found] == [set()] * 3 + [{*NAMES}] * 2


def test_what_every_step_collects_is_read_from_disk(tmp_path):
    written = write_chain(tmp_path, 4)
    samples = [step.tensors["sample"] for step in read(tmp_path)]
    saved = SavedSteps(tmp_path, written[-1].record, "sample")
    assert len(saved) == 4
    assert torch.equal(saved[-1], samples[-1])
    assert torch.equal(torch.stack(list(saved)), torch.stack(samples))


@pytest.mark.parametrize("damage", [truncate, remove, foreign, swap, of_another_machine])
def test_steps_that_changed_meanwhile_are_not_read(tmp_path, damage):
    folder = tmp_path / "steps"
    saved = SavedSteps(folder, write_chain(folder, 5)[-1].record, "sample")
    damage(folder)
    with pytest.raises(StorageError, match="steps"):
        list(saved)


@pytest.mark.parametrize(
    "damage",
    [truncate, extend, empty, remove, foreign, huge_header, swap, of_another_machine, pipe],
)
def test_the_sound_beginning_counts(tmp_path, damage):
    folder = tmp_path / "steps"
    written = write_chain(folder, 5)
    damage(folder)
    assert [step.record for step in read(folder)] == [step.record for step in written[:2]]


def test_no_flipped_byte_is_taken(tmp_path):
    write_chain(tmp_path, 2)
    good = path(tmp_path, 2).read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path(tmp_path, 2).write_bytes(bad)
        assert len(read(tmp_path)) == 1, position


@pytest.mark.parametrize(
    "other",
    [
        {"makes": ("cd" * 32,)},
        {"makes": (KEY, "cd" * 32)},
        {"names": ("offset",)},
        {"shape": (1, 3, 4, 4, 1)},
    ],
)
def test_steps_of_something_else_are_not_taken(tmp_path, other):
    write_chain(tmp_path, 2)
    assert read(tmp_path, **other) == []


def test_a_folder_that_goes_while_a_step_is_written_comes_back(tmp_path, monkeypatch):
    """A process that has taken it over may finish and remove it."""
    folder = tmp_path / "steps"
    replace, removed = os.replace, []

    def replace_late(source, target):
        if not removed:
            removed.append(shutil.rmtree(folder))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_late)
    write_chain(folder, 1)
    assert removed
    assert len(read(folder)) == 1


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        write_chain(tmp_path / "no" / "such", 1)


def last(folder):
    return read_last_step(folder, makes=MAKES, names=NAMES, shape=SHAPE)


def test_the_last_step_alone_is_enough_for_some_loops(tmp_path):
    written = write_chain(tmp_path, 5)
    forget_steps(tmp_path, before=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0004.safetensors", "0005.safetensors"]
    assert read(tmp_path) == []
    assert last(tmp_path).record == written[-1].record == newest_step(tmp_path)
    path(tmp_path, 5).write_bytes(b"damaged")
    assert last(tmp_path).record == written[-2].record == newest_step(tmp_path)
    path(tmp_path, 4).rename(path(tmp_path, 7))
    assert last(tmp_path) is None, "a step under the name of another"


def test_steps_of_very_many_edits_are_read_back(tmp_path):
    makes = tuple(f"{number:064x}" for number in range(2000))
    [step] = write_chain(tmp_path, 1, makes=makes)
    assert [found.record for found in read(tmp_path, makes=makes)] == [step.record]


def test_what_is_made_together_is_found_by_its_steps(tmp_path):
    together = Unfinished.of(tmp_path, "edit", [KEY, "cd" * 32])
    alone = Unfinished.of(tmp_path, "edit", [KEY])
    assert alone.root.name == f"edit-{KEY[:12]}.unfinished"
    write_chain(together.root, 1, makes=together.makes)
    write_chain(alone.root, 1, makes=alone.makes)
    assert made_together(tmp_path, "edit") == [together]


@pytest.fixture
def unfinished(tmp_path):
    return Unfinished(tmp_path / "trajectory-0123.unfinished", MAKES)


def never():
    raise AssertionError("nobody else is in it")


def test_only_steps_stay(unfinished):
    with unfinished.alone(waiting=never):
        write_chain(unfinished.root, 2)
        (unfinished.root / ".00ff00ff00ff00ff.tmp").write_bytes(b"half a file")
        assert (unfinished.root / "lease").exists()
    assert sorted(p.name for p in unfinished.root.iterdir()) == [
        "0001.safetensors",
        "0002.safetensors",
    ]
    with unfinished.alone(waiting=never):
        unfinished.remove_steps()
    assert not unfinished.root.exists()


def test_the_next_one_waits_and_is_told(unfinished):
    order, held, told = [], threading.Event(), threading.Event()

    def first():
        with unfinished.alone(waiting=never):
            held.set()
            told.wait()
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()

    def waiting():
        order.append("waiting")
        told.set()

    with unfinished.alone(waiting=waiting):
        order.append("second")
    thread.join()
    assert order == ["waiting", "first", "second"]
    assert not unfinished.root.exists()


def test_who_lost_the_folder_leaves_it_alone(unfinished):
    with unfinished.alone(waiting=never):
        unfinished.check_alone()
        write_chain(unfinished.root, 2)
        [file] = (unfinished.root / "lease").iterdir()
        file.rename(file.with_name(f"{'0' * 16}.1.1.{'0' * 16}"))
        (unfinished.root / ".00ff00ff00ff00ff.tmp").write_bytes(b"half a file")
        with pytest.raises(LeaseLost, match="trajectory-0123"):
            unfinished.check_alone()
        unfinished.remove_steps()
    assert len(read(unfinished.root)) == 2
    assert len(list(unfinished.root.iterdir())) == 4
    with pytest.raises(BlockingIOError), unfinished.alone(waiting=None):
        pass


def test_steps_in_use_are_not_cleared(unfinished):
    write_chain(unfinished.root, 2)
    with unfinished.alone(waiting=never):
        assert not unfinished.clear()
        assert len(read(unfinished.root)) == 2
    assert unfinished.clear()
    assert not unfinished.root.exists()
    assert unfinished.clear()


def test_a_folder_knows_whether_it_is_used(tmp_path, monkeypatch):
    with unused(tmp_path) as free:
        assert free is True
    with in_use(tmp_path), in_use(tmp_path), unused(tmp_path) as free:
        assert free is False
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    with unused(tmp_path) as free:
        assert free is None, "a lock that everyone gets tells nothing"


def test_a_link_is_not_followed(unfinished, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    write_chain(model, 1)
    (model / "0002.safetensors").write_bytes(b"weights")
    unfinished.root.symlink_to(model)
    assert not unfinished.clear()
    unfinished.remove_steps()
    with pytest.raises(StorageError, match="trajectory-0123"), unfinished.alone(waiting=never):
        pass
    assert made_together(tmp_path, "trajectory") == []
    assert sorted(p.name for p in model.iterdir()) == ["0001.safetensors", "0002.safetensors"]


def test_only_steps_are_removed_and_replaced(unfinished):
    others = {"0002.safetensors": b"weights", "model.safetensors": b"weights", "lock": b"a file"}
    write_chain(unfinished.root, 1)
    for name, content in others.items():
        (unfinished.root / name).write_bytes(content)
    with pytest.raises(StorageError, match=r"0002\.safetensors"):
        write_chain(unfinished.root, 2)
    step = newest_step(unfinished.root)
    assert step is not None
    assert step.info.index == 0
    assert not unfinished.clear()
    assert {p.name: p.read_bytes() for p in unfinished.root.iterdir()} == others


def is_free(folder):
    with unused(folder) as free:
        return free


def test_what_a_command_uses_stays_in_use_until_it_ends(tmp_path):
    folders = [tmp_path / f"{number}" for number in range(MAX_FOLDERS + 1)]
    for folder in folders:
        folder.mkdir()
    keep_in_use(folders[0])  # outside of a command
    assert is_free(folders[0])
    with keeping_in_use():
        with keeping_in_use(), in_use(folders[0]):
            assert not is_free(folders[0])
        assert not is_free(folders[0])
        keep_in_use(tmp_path / "missing")
        for folder in folders[1:]:
            keep_in_use(folder)
        assert is_free(folders[0]), "a batch over very many folders has no file left to open"
        assert not any(map(is_free, folders[1:]))
    assert all(map(is_free, folders))
