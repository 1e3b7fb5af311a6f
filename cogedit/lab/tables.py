"""What a run of the quality benchmark found: tables for the terminal, one JSON beside them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.errors import StorageError
from cogedit.lab.configurations import Configuration, Inversion
from cogedit.media.metrics import MAX_PSNR
from cogedit.shapes.cases import EditKind
from cogedit.shapes.edit_metrics import EditFigures, Interval, InversionFigures, summarize

if TYPE_CHECKING:
    from rich.table import Table

_PIPE_WIDTH = 170

CEILING = "ceiling (VAE of the right answer)"
FLOOR = "source unedited (its VAE)"


@dataclass(frozen=True)
class RunFacts:
    """What a run was, so that it can be run again.

    Attributes:
        cogedit_version: Version of this package.
        model: Id of the checkpoint.
        model_digest: Its digest, in hex.
        device: Where it ran.
        dtype: Number format of the model.
        num_inference_steps: Of every row that is written for 50 steps.
        first_seed: First held-out clip.
        num_clips: Held-out clips from there on, the same for every kind of edit.
    """

    cogedit_version: str
    model: str
    model_digest: str
    device: str
    dtype: str
    num_inference_steps: int
    first_seed: int
    num_clips: int


@dataclass(frozen=True)
class Findings:
    """Figures per clip, in the order of the seeds.

    Attributes:
        edits: By kind, then by row: `CEILING`, `FLOOR` and the configurations' names.
        inversions: Each inversion with its figures.
    """

    edits: Mapping[EditKind, Mapping[str, Sequence[EditFigures]]]
    inversions: Mapping[Inversion, Sequence[InversionFigures]]


@dataclass(frozen=True)
class _Column:
    """A figure in a table: its head, its name, a factor and the decimals shown."""

    head: str
    name: str
    factor: float = 1.0
    decimals: int = 1


_EDIT_COLUMNS = (
    _Column("target seen %", "target_seen", 100, 0),
    _Column("others kept %", "others_kept", 100, 0),
    _Column("right answer dB", "counterfactual_psnr"),
    _Column("its VAE dB", "round_trip_psnr"),
    _Column("background dB", "background_psnr"),
    _Column("motion px", "motion_distance", 1, 2),
    _Column("outline %", "mask_overlap", 100, 0),
)
_INVERSION_COLUMNS = (
    _Column("resampled dB", "psnr"),
    _Column("std of the noise", "noise_std", 1, 3),
)
LEGEND = (
    "Mean [95 % bootstrap interval] over held-out clips. target seen: the oracle sees what the "
    "edit asked for; others kept: colour, shape, background and motion that it did not ask for. "
    "right answer: PSNR against the rendered right answer; its VAE: against that after the VAE's "
    "round trip. background: pixels outside the object before and after, against the source clip "
    "(background edits: against the right answer). motion: distance of the object's centre from "
    "the source's track. outline: overlap of the object with the right answer's. resampled: "
    "inverted and sampled again at guidance 1, against the VAE round trip."
)


def edit_table(kind: EditKind, rows: Mapping[str, Sequence[EditFigures]]) -> Table:
    """Return the table of one kind of edit."""
    summaries = {name: summarize(figures) for name, figures in rows.items()}
    count = max((len(figures) for figures in rows.values()), default=0)
    return _table(f"{kind} edits, {count} clips", "configuration", _EDIT_COLUMNS, summaries)


def inversion_table(
    inversions: Mapping[Inversion, Sequence[InversionFigures]],
    configurations: Sequence[Configuration],
) -> Table:
    """Return the table of the inversions, each named after the configurations that use it."""
    summaries = {
        inversion_name(inversion, configurations): summarize(figures)
        for inversion, figures in inversions.items()
    }
    return _table("inversion", "of", _INVERSION_COLUMNS, summaries)


def inversion_name(inversion: Inversion, configurations: Sequence[Configuration]) -> str:
    """Name an inversion after the configurations that use it."""
    return ", ".join(one.name for one in configurations if one.inversion == inversion)


def _table(
    title: str,
    head: str,
    columns: Sequence[_Column],
    summaries: Mapping[str, Mapping[str, Interval]],
) -> Table:
    cells = [
        (
            name,
            *(format_interval(summary[c.name], c.factor, decimals=c.decimals) for c in columns),
        )
        for name, summary in summaries.items()
    ]
    return make_table(title, (head, *(column.head for column in columns)), cells)


def make_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table: the first column is text, the others are figures.

    Args:
        title: Above the table.
        heads: One per column.
        rows: One cell per column each; brackets in them are no markup.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for index, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_report(tables: Sequence[Table], *, legend: str, paths: Sequence[Path]) -> None:
    """Print tables, what their figures mean, and the files that were written, to stdout.

    Args:
        tables: In their order.
        legend: One paragraph.
        paths: One line each, whole, for whoever reads them from a pipe.
    """
    from rich.console import Console

    # A pipe has no width: the tables must not be folded into 80 columns there.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for table in tables:
        console.print(table)
    console.print(legend, markup=False, highlight=False)
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def format_interval(interval: Interval, factor: float = 1.0, *, decimals: int = 1) -> str:
    """Write an interval as "19.3 [18.7 19.9]".

    Without any value it is "-"; a PSNR of clips that are all equal is "=".

    Args:
        interval: What to write.
        factor: Multiplies it, as 100 for percent.
        decimals: Digits after the point.
    """
    if not interval.count:
        return "-"
    if interval.mean == MAX_PSNR:
        return "="
    mean, low, high = (
        f"{factor * value:.{decimals}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low} {high}]"


def write_json(
    path: Path, findings: Findings, configurations: Sequence[Configuration], *, facts: RunFacts
) -> None:
    """Write everything: facts, settings, intervals and the value of every clip.

    Values that do not exist are null. Clips are in the order of their seeds, the same in every
    row, so that rows can be compared clip by clip.

    Raises:
        StorageError: The file cannot be written.
    """
    record = {
        "run": asdict(facts),
        "configurations": [asdict(configuration) for configuration in configurations],
        "edits": {
            kind: {name: _rows(figures) for name, figures in rows.items()}
            for kind, rows in findings.edits.items()
        },
        "inversions": {
            inversion_name(inversion, configurations): _rows(figures)
            for inversion, figures in findings.inversions.items()
        },
    }
    try:
        path.write_text(json.dumps(_without_nan(record), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _rows(figures: Sequence[EditFigures] | Sequence[InversionFigures]) -> dict[str, object]:
    per_clip = [asdict(one) for one in figures]
    return {
        name: {**asdict(interval), "clips": [clip[name] for clip in per_clip]}
        for name, interval in summarize(figures).items()
    }


def _without_nan(value: object) -> object:
    """Replace NaN, which JSON does not know, by None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
