"""How a model call is divided among ranks: processes with a device each.

What one process computes one after the other, window by window and in each of them chunk by chunk
of rows, is a list of tasks. It is cut into as many runs of tasks as there are ranks, so windows are
divided first, and rows where there are fewer windows than ranks. An edit row stays together with
the reference row that it attends to, which is computed by every rank that needs it. No matrix has
another shape than in one process, so the results are the same to the bit.

Where there are fewer tasks than ranks, teams of ranks share the tokens of each row (`ulysses`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from cogedit.models.rows import RowPlan, rows_at_a_time

if TYPE_CHECKING:
    from cogedit.models.cost import LatentShape, TransformerSizes, Work


@dataclass(frozen=True)
class Division:
    """Among how many ranks a run is divided, and what sets the size of its chunks of rows."""

    num_ranks: int = 1
    max_rows: int | None = None
    device: str = "cpu"

    def of(
        self,
        plan: RowPlan,
        work: Work,
        calls: Iterable[int],
        sizes: TransformerSizes,
        shape: LatentShape,
    ) -> Work:
        """Count calls, each by its number of windows of a shape, which are so much work in each.

        What the other ranks do while the busiest is at work is `by_others`; rows count alike.
        """
        tokens = sizes.num_tokens(shape)
        at_a_time = rows_at_a_time(self.max_rows, num_tokens=tokens, device=self.device)
        num_windows, by_others = 0, 0.0
        for count, times in Counter(calls).items():
            split = split_call(
                plan,
                count,
                at_a_time=at_a_time,
                num_ranks=self.num_ranks,
                num_heads=sizes.num_attention_heads,
            )
            rows = max(sum(len(share.rows) for share in shares) for shares in split.shares)
            busiest = rows / (plan.num_rows * split.degree)  # in windows
            num_windows += count * times
            by_others += (count - busiest) * times
        return replace(work * num_windows, by_others=work.flops * by_others)


ALONE = Division()


@dataclass(frozen=True)
class Share:
    """What a team computes of one window.

    Attributes:
        window: Its number.
        rows: The rows to compute.
        answers: Those of them whose velocity is wanted, rising; every row is in one share's alone.
    """

    window: int
    rows: frozenset[int]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A model call among ranks: team k is the ranks from k `degree` on; the last may be idle.

    Attributes:
        degree: How many ranks of a team share the tokens of each row.
        shares: Of each team, window by window.
    """

    degree: int
    shares: tuple[tuple[Share, ...], ...]


def split_call(
    plan: RowPlan, num_windows: int, *, at_a_time: int, num_ranks: int, num_heads: int
) -> Split:
    """Divide a call of some windows among ranks, whose layers run so many rows `at_a_time`."""
    chunks = list(_chunks(plan, at_a_time))
    tasks = [(window, chunk) for window in range(num_windows) for chunk in chunks]
    most = max(1, num_ranks // len(tasks))
    degree = max(count for count in range(1, most + 1) if num_heads % count == 0)
    teams = min(num_ranks // degree, len(tasks))
    edges = [len(tasks) * team // teams for team in range(teams + 1)]
    shares: list[tuple[Share, ...]] = []
    answered: set[tuple[int, int]] = set()
    for first, end in pairwise(edges):
        own: list[Share] = []
        for window, group in groupby(tasks[first:end], key=lambda task: task[0]):
            rows = frozenset().union(*(chunk for _, chunk in group))
            answers = tuple(
                row
                for row in sorted(rows)
                if (row < len(plan.edits) or plan.reference_velocity)
                and (window, row) not in answered
            )
            answered |= {(window, row) for row in answers}
            own.append(Share(window, rows, answers))
        shares.append(tuple(own))
    return Split(degree, tuple(shares))


def _chunks(plan: RowPlan, size: int) -> Iterator[frozenset[int]]:
    """Yield the edit rows that a layer runs at a time, each with the references of its rows."""
    edits = range(len(plan.edits))
    if not plan.references:
        for first in range(0, len(edits), size):
            yield frozenset(edits[first : first + size])
        return
    references = range(len(edits), plan.num_rows)
    for first in range(0, len(references), size):
        attended = references[first : first + size]
        rows = [row for row in edits if plan.reference_of[row] in attended]
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            yield frozenset(chunk) | {plan.reference_of[row] for row in chunk}
