"""A batch that several processes run at once, on one machine or on many: each makes some groups.

What they share is the file of results. Whoever makes a group holds a lease beside it, and a group
of which every edit got its line from another process since this one began is done. A process that
dies is missed by its lease, and another goes on from the steps that are on disk; of a group with
which too many died, the next one writes down that it failed. A failure that may be the other
machine's, such as a missing model, a disk that is not mounted or a full GPU, does not count: this
process tries, too.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from cogedit.artifacts import Tries, read_lines, writing_alone
from cogedit.errors import CogeditError, DeviceMemoryError, ModelError, StorageError, WorkerDied
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.tools.batch_deaths import MAX_RETRIES
from cogedit.tools.batch_group import BatchResult, Group, make_or_fail, result_of

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two looks at what other processes hold."""

_OF_A_MACHINE = {
    error.exit_code for error in (CogeditError, ModelError, DeviceMemoryError, StorageError)
}
"""Exit codes of failures that another machine may not have; the first is a broken GPU, or a bug."""


@dataclass(frozen=True)
class Heard:
    """An outcome that another process has written down."""

    result: BatchResult


@dataclass(frozen=True)
class _Held:
    """What this process holds of a group."""

    lease: contextlib.ExitStack
    tries: Tries
    num_deaths: int  # of processes that held it before


class SharedList:
    """The groups of a batch that are left for this process, or for others.

    Args:
        groups: All groups.
        results: The file of results, which need not exist.
        force: Whether what existed is made anew: then it does not count that another process
            reused an edit.
    """

    def __init__(self, groups: Sequence[Group], results: Path, *, force: bool) -> None:
        self._left = deque(groups)
        if not force and (made := _made_before(results)):
            # Last what an earlier run has made, which is only looked through: new work comes first.
            self._left = deque(sorted(groups, key=lambda group: made.issuperset(_keys(group))))
        self._held: dict[str, _Held] = {}
        self._results = results
        self._force = force
        self._begin = results.stat().st_size if results.exists() else 0
        self._told: dict[str, BatchResult] = {}
        self._done: list[Heard] = []

    @property
    def is_empty(self) -> bool:
        """Whether no group is left that nobody has made, as far as this process knows."""
        return not self._left

    def take(self) -> Group | None:
        """Take the next group that no process has; None where others have all that are left."""
        for _ in range(len(self._left)):
            group = self._left.popleft()
            with contextlib.ExitStack() as stack:
                name = f"{self._results.name} {group.edits[0].key}"
                place = self._results.with_name(name)
                alone, tries = stack.enter_context(writing_alone(place)), Tries(place)
                # Read after that: who made it wrote its results before it gave the lease back.
                outcomes = self._outcomes(group)
                if outcomes is not None:
                    self._done += map(Heard, outcomes)
                    if alone:  # who made it may have died before it gave it back
                        tries.forget()
                elif alone:
                    num_deaths = tries.begin()
                    stack.callback(tries.withdraw)
                    self._held[group.numbers] = _Held(stack.pop_all(), tries, num_deaths)
                    return group
                else:
                    self._left.append(group)
        return None

    def given_up(self, group: Group) -> list[BatchResult | Heard]:
        """What becomes of a group that was taken, if too many processes died with it; else nothing.

        Edits that they had not made fail, for all processes until the command is run again.
        """
        num_deaths = self._held[group.numbers].num_deaths
        if num_deaths <= MAX_RETRIES:
            return []
        error = WorkerDied(
            f"{num_deaths} processes ended without a word while they made the edits of this clip",
            hint="if memory ran out, fewer processes at once leave more for each; the same command "
            "tries it again",
        )
        return [
            Heard(self._told[edit.key])
            if edit.key in self._told
            else replace(result_of(edit, error), is_of_machine=False)
            for edit in group.edits
        ]

    def give_back(self, group: Group) -> None:
        """Let others see what became of a group, whose outcomes are written down."""
        held = self._held.pop(group.numbers)
        held.tries.forget()
        held.lease.close()

    def heard(self) -> list[Heard]:
        """Return the outcomes of groups that turned out to be made by others."""
        heard, self._done = self._done, []
        return heard

    def close(self) -> None:
        """Give back every group."""
        while self._held:
            self._held.popitem()[1].lease.close()

    def _outcomes(self, group: Group) -> list[BatchResult] | None:
        """What other processes made of a group; None if it lacks an edit."""
        self._listen()
        found = [self._told.get(key) for key in _keys(group)]
        return None if None in found else [one for one in found if one is not None]

    def _listen(self) -> None:
        """Read what was written down since the last time."""
        results, self._begin = _read_results(self._results, self._begin)
        for result in results:
            if self._counts(result) and result.key is not None:
                self._told[result.key] = result

    def _counts(self, result: BatchResult) -> bool:
        """Whether what another process made of an edit spares this one the edit."""
        if result.status == "failed":
            return not result.is_of_machine and result.exit_code not in _OF_A_MACHINE
        return not (self._force and result.status == "reused")


def _keys(group: Group) -> list[str]:
    return [edit.key for edit in group.edits]


def _read_results(path: Path, begin: int) -> tuple[list[BatchResult], int]:
    """Read outcomes from a place in a file on; return where the first that is not read begins."""
    results: list[BatchResult] = []
    if path.exists():
        *lines, _ = read_lines(path, begin=begin)  # the last may be half a line
        begin += sum(len(line) + 1 for line in lines)
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError):
                text = line.lstrip(b"\0").decode(errors="replace")  # zeros: a crash left them
                results.append(msgspec.json.decode(text, type=BatchResult))
    return results, begin


def _made_before(path: Path) -> set[str]:
    """The keys of the edits that earlier runs wrote down as made."""
    made: set[str] = set()
    begin, end = -1, 0
    while end > begin:  # a long file is read piece by piece
        begin = end
        results, end = _read_results(path, begin)
        made |= {one.key for one in results if one.status != "failed" and one.key is not None}
    return made


def make_shared(
    shared: SharedList, *, run: Run, session: Session
) -> Generator[BatchResult | Heard, None, None]:
    """Make the groups that no other process makes, and wait for what the others do.

    Raises:
        Interrupted: A stop was requested.
    """
    pause = FIRST_PAUSE
    with contextlib.ExitStack() as waiting:
        while not shared.is_empty:
            group, heard = shared.take(), shared.heard()
            yield from heard
            if group is not None or heard:
                waiting.close()
                pause = FIRST_PAUSE
            if group is not None:
                yield from shared.given_up(group) or make_or_fail(group, run=run, session=session)
                shared.give_back(group)
            elif not shared.is_empty:
                if pause == FIRST_PAUSE:
                    run.notify("other processes make the rest; waiting for them")
                    waiting.enter_context(run.wait("waiting for other processes"))
                time.sleep(pause)
                pause = min(1.5 * pause, LONGEST_PAUSE)
