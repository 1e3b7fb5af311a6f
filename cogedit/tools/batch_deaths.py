"""How often workers of a batch died and with what: who is tried again, and what is given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cogedit.errors import WorkerDied
from cogedit.tools.batch_group import Group

MAX_RETRIES = 3
"""How often a group is given to a worker after one that died with it; how many groups a worker may
die with, one after the other, before others do without it; how often one may die as it starts."""


class Deaths:
    """With what workers died: groups by their numbers, "" is before they had one."""

    def __init__(self) -> None:
        self._times = Counter[str]()
        self._with: dict[int, set[str]] = {}  # all that a worker died with
        self._lately: dict[int, list[str]] = {}  # since its last outcome
        self._why: dict[int, str] = {}
        self._has_outcome = False
        self._given_up = 0

    def explain(self, worker: int, error: Exception) -> None:
        """Keep why a worker will be gone."""
        self._why[worker] = str(error).strip().rpartition("\n")[2]

    def add(self, worker: int, group: Group | None, why: str) -> str:
        """Count a death; return why it was, as the worker told or as it looks from outside."""
        name = _name(group)
        self._times[name] += 1
        self._with.setdefault(worker, set()).add(name)
        self._lately.setdefault(worker, []).append(name)
        self._given_up += group is not None and self.is_over(group)
        return self._why.pop(worker, why)

    def error(self, group: Group | None, why: str) -> WorkerDied:
        """What to say where there is no other try."""
        name, before = _name(group), "it had begun" if group is None else "its edits were made"
        return WorkerDied(
            f"{self._times[name]} workers ended, each before {before}; the last one: {why}",
            hint="with fewer --workers each has more memory",
        )

    def made(self, worker: int) -> None:
        """A worker has an outcome: it is well."""
        self._has_outcome = True
        self._lately.pop(worker, None)

    def begun(self, worker: int) -> None:
        """A worker waits for a group: workers can start."""
        self._times[""] = 0
        if worker in self._lately:
            self._lately[worker] = [name for name in self._lately[worker] if name]

    def is_over(self, group: Group | None) -> bool:
        """Whether too many workers died with a group, or before they had one."""
        return self._times[_name(group)] > MAX_RETRIES

    def avoided(self, worker: int, others: Iterable[int]) -> set[str]:
        """The groups that a worker died with, and some of the others, who are there, did not."""
        spared = [self._with.get(other, set()) for other in others]
        own = self._with.get(worker, set())
        return {name for name in own if any(name not in other for other in spared)}

    def is_sick(self, worker: int) -> bool:
        """Whether a worker dies with whatever it gets, or as it starts.

        A group with which others died as well is not its fault.
        """
        lately = self._lately.get(worker, [])
        others = set[str]().union(*(seen for one, seen in self._with.items() if one != worker))
        return max(len({*lately} - {""} - others), lately.count("")) > MAX_RETRIES

    def are_all(self, number: int) -> bool:
        """Whether nothing was made at all, and by so many workers group after group given up."""
        return not self._has_outcome and self._given_up > MAX_RETRIES * number


def _name(group: Group | None) -> str:
    return "" if group is None else group.numbers
