"""Which rows one call of the transformer runs, and which of them looks at which.

An edit row is a sample under a text; a reference row is the source's sample, at the same level,
under a text. Rows that would be equal are run once: the unconditional reference row that all
prompts share, or the single row that is left where both sides are under one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_CHUNK_TOKENS = 2**15
"""Tokens of a chunk of rows where `max_rows` leaves it open: one row of 49 frames at 720x480.

That many keep every kernel of a large device busy; a small model takes all its rows at once.
"""
_CHUNK_TOKENS_CPU = 2**11
"""The same on a CPU, where a chunk that the caches hold is faster than a larger one."""


def rows_at_a_time(max_rows: int | None, *, num_tokens: int, device: str) -> int:
    """Return how many rows of so many tokens run at a time in a layer, on this type of device."""
    chunk = _CHUNK_TOKENS_CPU if device == "cpu" else _CHUNK_TOKENS
    return max_rows or max(1, chunk // num_tokens)


@dataclass(frozen=True)
class EditTexts:
    """The texts of one edit, as indices into the embeddings of a run.

    Attributes:
        conditional: What the edit shows.
        unconditional: The other side of guidance; None means no guidance.
        reference_conditional: Text of the reference row that the conditional row looks at.
        reference_unconditional: Text of the one that the unconditional row looks at.
        source: Index of the source clip.
    """

    conditional: int
    unconditional: int | None
    reference_conditional: int
    reference_unconditional: int
    source: int = 0


@dataclass(frozen=True)
class Row:
    """One row of a batch: sample number `sample` (of the edits or of the sources) under `text`."""

    sample: int
    text: int


@dataclass(frozen=True)
class RowPlan:
    """The rows of one call, edits first.

    Attributes:
        edits: Rows of the edits.
        references: Rows of the sources.
        reference_of: For each edit row, the row of the batch that it looks at; empty without
            references.
        conditional: For each edit, its conditional row.
        unconditional: For each edit, its unconditional row; the conditional one without guidance.
        reference: For each edit, the reference row of its conditional row; empty without.
    """

    edits: tuple[Row, ...]
    references: tuple[Row, ...]
    reference_of: tuple[int, ...]
    conditional: tuple[int, ...]
    unconditional: tuple[int, ...]
    reference: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(self.edits) + len(self.references)


def plan_rows(
    texts: Sequence[EditTexts], *, guided: bool, referenced: bool, share: bool = True
) -> RowPlan:
    """Lay out the rows of one call.

    With guidance and references, one edit under upstream's texts gives upstream's four rows,
    [edit-uncond, edit-cond, ref-uncond, ref-cond]; N edits of one source give 3N + 1, or 2N + 1
    where all reference rows are under one text. Without sharing they give 4N.

    Args:
        texts: One entry per edit.
        guided: Whether the unconditional rows are run.
        referenced: Whether the reference rows are run.
        share: Run rows that are equal once; False runs upstream's four rows for each edit.
    """
    edits: dict[tuple[Row, int | None, object], int] = {}
    references: dict[tuple[Row, object], int] = {}
    conditional, unconditional, looked_at = [], [], []

    def edit_row(edit: int, text: int, reference_text: int, side: str) -> tuple[int, int]:
        target, owner = None, None if share else (edit, side)
        if referenced:
            seen = Row(texts[edit].source, reference_text)
            target = references.setdefault((seen, owner), len(references))
        return edits.setdefault((Row(edit, text), target, owner), len(edits)), target or 0

    for edit, own in enumerate(texts):
        if guided and own.unconditional is not None:
            row, _ = edit_row(edit, own.unconditional, own.reference_unconditional, "unconditional")
            unconditional.append(row)
        row, target = edit_row(edit, own.conditional, own.reference_conditional, "conditional")
        conditional.append(row)
        looked_at.append(target)
        if len(unconditional) < len(conditional):
            unconditional.append(row)
    first = len(edits)
    return RowPlan(
        edits=tuple(row for row, _, _ in edits),
        references=tuple(row for row, _ in references),
        reference_of=tuple(first + t for _, t, _ in edits if t is not None),
        conditional=tuple(conditional),
        unconditional=tuple(unconditional),
        reference=tuple(first + t for t in looked_at) if referenced else (),
    )
