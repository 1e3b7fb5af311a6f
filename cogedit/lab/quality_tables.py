"""Results of the quality benchmark as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table

from cogedit.lab.cases import EditKind
from cogedit.lab.configurations import Configuration, Inversion
from cogedit.lab.edit_metrics import EditFigures, Interval, InversionFigures, summarize
from cogedit.lab.tables import make_table
from cogedit.media.metrics import MAX_PSNR

CEILING = "ceiling (VAE of the right answer)"
FLOOR = "source unedited (its VAE)"
COPY = "edited first frame, repeated"

LEGEND = (
    "Mean [95 % bootstrap interval] over held-out clips. target seen: the oracle sees what the "
    "edit asked for; others kept: colour, shape, background and motion that it did not ask for. "
    "right answer: PSNR against the rendered right answer, last frame: of that frame alone; its "
    "VAE: against the right answer after the VAE's round trip. background: pixels outside the "
    "object before and after, against the source clip (edits of the background or its texture: "
    "against the right answer). motion: distance of the object's centre from the source's track. "
    "outline: overlap of the object with the right answer's. resampled: inverted and sampled again "
    "at guidance 1, against the VAE round trip."
)

Edits = Mapping[EditKind, Mapping[str, Sequence[EditFigures]]]
"""Figures of the clips by kind of edit, then by row: `CEILING`, `FLOOR`, `COPY`, configurations."""
Inversions = Mapping[Inversion, Sequence[InversionFigures]]
"""Figures of the clips by inversion."""

EDIT_COLUMNS = {
    "target_seen": ("target seen %", 100, 0),
    "others_kept": ("others kept %", 100, 0),
    "counterfactual_psnr": ("right answer dB", 1, 1),
    "last_frame_psnr": ("last frame dB", 1, 1),
    "round_trip_psnr": ("its VAE dB", 1, 1),
    "background_psnr": ("background dB", 1, 1),
    "motion_distance": ("motion px", 1, 2),
    "mask_overlap": ("outline %", 100, 0),
}
"""Columns of a table of edits: a figure, its column's head, a factor and the decimals shown."""
_INVERSION_COLUMNS = {"psnr": ("resampled dB", 1, 1), "noise_std": ("std of the noise", 1, 3)}


def quality_tables(
    edits: Edits, inversions: Inversions, configurations: Sequence[Configuration]
) -> list[Table]:
    """Return a table per kind of edit, and one of the inversions."""
    tables = [
        figures_table(
            f"{kind} edits, {_num_clips(rows)} clips", "configuration", EDIT_COLUMNS, rows
        )
        for kind, rows in edits.items()
    ]
    named = by_name(inversions, configurations)
    return [*tables, figures_table("inversion", "of", _INVERSION_COLUMNS, named)]


def by_name(
    inversions: Inversions, configurations: Sequence[Configuration]
) -> dict[str, Sequence[InversionFigures]]:
    """Name each inversion after the configurations that use it."""
    return {
        ", ".join(c.name for c in configurations if c.inversion == inversion): figures
        for inversion, figures in inversions.items()
    }


def quality_record(
    edits: Edits, inversions: Inversions, configurations: Sequence[Configuration]
) -> dict[str, object]:
    """Return settings, intervals and the value of every clip, for JSON.

    Clips are in the order of their seeds, the same in every row, so that rows can be compared clip
    by clip.
    """
    return {
        "configurations": [asdict(configuration) for configuration in configurations],
        "edits": {
            kind: {name: _figures(figures) for name, figures in rows.items()}
            for kind, rows in edits.items()
        },
        "inversions": {
            name: _figures(figures) for name, figures in by_name(inversions, configurations).items()
        },
    }


def _figures(figures: Sequence[EditFigures] | Sequence[InversionFigures]) -> dict[str, object]:
    clips = [asdict(clip) for clip in figures]
    return {
        name: asdict(interval) | {"clips": [clip[name] for clip in clips]}
        for name, interval in summarize(figures).items()
    }


def figures_table(
    title: str,
    head: str,
    columns: Mapping[str, tuple[str, int, int]],
    rows: Mapping[str, Sequence[EditFigures]] | Mapping[str, Sequence[InversionFigures]],
) -> Table:
    """Return a table of means with their intervals; columns are as in `EDIT_COLUMNS`."""
    cells = []
    for row, figures in rows.items():
        summary = summarize(figures)
        intervals = (
            format_interval(summary[name], factor, decimals=decimals)
            for name, (_, factor, decimals) in columns.items()
        )
        cells.append((row, *intervals))
    return make_table(title, (head, *(head for head, _, _ in columns.values())), cells)


def _num_clips(rows: Mapping[str, Sequence[EditFigures]]) -> int:
    return max((len(figures) for figures in rows.values()), default=0)


def format_interval(interval: Interval, factor: float = 1.0, *, decimals: int = 1) -> str:
    """Write an interval, times a factor, as "19.3 [18.7 19.9]".

    Without any value it is "-"; a PSNR of clips that are all equal is "=".
    """
    if not interval.count:
        return "-"
    if interval.mean == MAX_PSNR:
        return "="
    mean, low, high = (
        f"{factor * value:.{decimals}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low} {high}]"
