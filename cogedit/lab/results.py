"""Results of the quality benchmark, read back: of one run, or of several over the same clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.errors import UsageError


@dataclass(frozen=True)
class Mean:
    """A figure of a row over the clips: its mean, and how many clips have it; none is NaN."""

    value: float
    count: int


Edits = Mapping[str, Mapping[str, Mapping[str, Mean]]]
"""By kind of edit, then by row, then by figure (`cogedit.shapes.edit_metrics.EditFigures`)."""


def read_results(paths: Sequence[Path], *, figures: Sequence[str], hint: str) -> Edits:
    """Read what runs of the quality benchmark found.

    Args:
        paths: Their `quality.json`. A kind of edit must have the same clips wherever it comes up;
            a row that comes up again is taken from the first of them.
        figures: Names of what is wanted of each row.
        hint: What to do where a file has something else.

    Raises:
        UsageError: A file cannot be read, is none of that benchmark's, or has other clips, steps or
            another model than one before it.
    """
    found: dict[str, dict[str, dict[str, Mean]]] = {}
    runs: dict[str, Mapping[str, object]] = {}
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            for kind, rows in record["edits"].items():
                if runs.setdefault(kind, record["run"]) != record["run"]:
                    raise UsageError(
                        f"{path} has {kind} edits of another run than the files before it: "
                        f"{_difference(runs[kind], record['run'])}",
                        hint="take runs of the same clips together, and others apart",
                    )
                known = found.setdefault(kind, {})
                for name, row in rows.items():
                    known.setdefault(name, {figure: _mean(row[figure]) for figure in figures})
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}", hint=hint) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} is no result of the quality benchmark: {error!r}", hint=hint
            ) from error
    return found


def _mean(written: Mapping[str, float | None]) -> Mean:
    """Read a figure; what no clip has was written as null."""
    mean, count = written["mean"], written["count"]
    return Mean(float("nan") if mean is None else float(mean), int(count or 0))


def _difference(first: Mapping[str, object], second: Mapping[str, object]) -> str:
    differing = [key for key in first if first[key] != second.get(key)]
    return ", ".join(f"{key} {second.get(key)} in place of {first[key]}" for key in differing)
