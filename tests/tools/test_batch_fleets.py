"""The driver over workers that die in all ways, in simulated time: every list comes to its end."""

import heapq
import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

import cogedit
from cogedit.config import Settings
from cogedit.errors import WorkerDied
from cogedit.tools.batch_driver import Broken, Gone, Ready, drive
from cogedit.tools.batch_group import BatchResult, groups_of
from cogedit.tools.batch_plan import BatchEdit
from cogedit.tools.batch_shared import SharedList


class Fleet:
    """Workers whose events come in the order of a clock that runs as they do.

    `poison` are groups that kill whoever makes them, `sick` workers that die with whatever they
    get, `stillborn` those that die before they are ready. `seconds` of a worker for a group.
    """

    def __init__(self, number, *, poison=(), sick=(), stillborn=(), seconds=lambda worker: 3.0):
        self.number = number
        self.poison, self.sick, self.stillborn = set(poison), set(sick), set(stillborn)
        self._seconds = seconds
        self._events, self._count, self._now = [], itertools.count(), 0.0
        for worker in range(number):
            self.renew(worker)

    def _tell(self, after, worker, event):
        heapq.heappush(self._events, (self._now + after, next(self._count), worker, event))

    def renew(self, worker):
        event = Gone("it dies as it starts") if worker in self.stillborn else Ready()
        self._tell(1.0 + 0.1 * worker, worker, event)

    def events(self):
        assert self._events, "the driver waits for workers that have nothing to do"
        self._now, _, worker, event = heapq.heappop(self._events)
        yield worker, event

    def give(self, worker, group):
        after = self._seconds(worker)
        if group.numbers in self.poison or worker in self.sick:
            self._tell(after / 2, worker, Broken(RuntimeError("Traceback\nZeroDivisionError")))
            self._tell(after / 2, worker, Gone("it ended with 1"))
            return
        for edit in group.edits:
            made = BatchResult(edit.where, str(edit.video), edit.prompt, "written", "x.mp4")
            self._tell(after, worker, made)
        self._tell(after, worker, Ready())

    def stop(self, signum):
        raise AssertionError("nobody asked")


def run_fleet(folder, fleet, num_groups):
    """The outcomes, what was said, and the list at its end."""
    edits = [
        BatchEdit(f"row {row}", Path(f"{row}.mp4"), "x", None, None, Settings())
        for row in range(1, num_groups + 1)
    ]
    said = []
    shared = SharedList(groups_of(edits), folder / "results.jsonl", force=False)
    done = [*drive(shared, fleet, cogedit.Run(notify=said.append))]
    assert Counter(one.row for one in done) == {edit.where: 1 for edit in edits}
    assert shared.is_empty
    assert not [*folder.iterdir()], "every lease is given back"
    return {one.row for one in done if one.status == "failed"}, said


@pytest.mark.parametrize("seed", range(40))
def test_every_list_ends_and_only_poison_fails(tmp_path, seed):
    draw = random.Random(seed)
    number, num_groups = draw.randint(1, 4), draw.randint(2, 12)
    poison = draw.sample(range(1, num_groups + 1), draw.randint(0, min(3, num_groups - 1)))
    pace = [draw.uniform(0.5, 6.0) for _ in range(number)]
    fleet = Fleet(number, poison=map(str, poison), seconds=lambda worker: pace[worker])
    failed, _ = run_fleet(tmp_path, fleet, num_groups)
    assert failed == {f"row {row}" for row in poison}


@pytest.mark.parametrize("number", [2, 3, 8])
def test_a_sick_worker_costs_no_edit_and_is_left_out(tmp_path, number):
    fleet = Fleet(number, sick=[0], seconds=lambda worker: 0.1 if worker == 0 else 5.0)
    failed, said = run_fleet(tmp_path, fleet, 30)
    assert not failed
    assert sum("go on without it" in text for text in said) == 1


def test_poison_in_a_row_leaves_all_workers_in(tmp_path):
    failed, said = run_fleet(tmp_path, Fleet(4, poison="12345678"), 60)
    assert len(failed) == 8
    assert not any("go on without it" in text for text in said)


@pytest.mark.parametrize("stillborn", [range(1), range(4), range(7)])
def test_workers_that_cannot_start_are_left_out(tmp_path, stillborn):
    failed, said = run_fleet(tmp_path, Fleet(8, stillborn=stillborn), 30)
    assert not failed
    assert sum("go on without it" in text for text in said) <= len(stillborn)


@pytest.mark.parametrize("fault", [{"stillborn": range(3)}, {"sick": range(3)}])
def test_a_fleet_of_which_nobody_makes_anything_ends_the_batch(tmp_path, fault):
    with pytest.raises(WorkerDied, match=r"it dies as it starts|ZeroDivisionError"):
        run_fleet(tmp_path, Fleet(3, **fault), 100)
