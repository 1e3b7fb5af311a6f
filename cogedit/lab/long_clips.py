"""`python -m cogedit.lab.long_clips`: edits of clips longer than the model's own, in windows.

Held-out clips of the shapes world, several times as long as the model's, are inverted and edited in
every way that the model could see them: in windows that share none, one or two of their three
latent frames, with the windows moved at every other level and not, and in one pass, longer than any
clip of its training. Beside them stand their own middle nine frames, which fill one window.
Captions and right answers are those of `cogedit.lab.quality`. Tables go to stdout, the figures of
every clip to `long.json` in the folder `--output`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from rich.table import Table

from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.cases import EditCase, EditKind, make_case
from cogedit.lab.configurations import find_configuration
from cogedit.lab.edit_metrics import EditFigures
from cogedit.lab.quality import add_run_options, seed_batches, start_run
from cogedit.lab.quality_tables import EDIT_COLUMNS, LEGEND, figures_table, quality_record
from cogedit.lab.report import notify, run_command, write_json
from cogedit.lab.tables import make_table, print_report
from cogedit.models.geometry import Geometry
from cogedit.models.quiet import quiet_imports
from cogedit.types import WindowPlan

with quiet_imports():
    from cogedit.lab.batch_pipeline import BatchPipeline
    from cogedit.lab.evaluation import Evaluation

EDITS: dict[EditKind, str] = {"color": "faithful@caption", "background": "default"}
"""The edits that are made, and the configuration of each: one under the source's caption, one
without."""

CUT = "middle nine frames"
"""The row of the same clips, cut to the model's own length."""

_COLUMNS = EDIT_COLUMNS | {"border_ratio": ("border", 1, 3)}
_LEGEND = (
    "border: change from frame to frame where windows meet, to that elsewhere, by the same ratio "
    "of the right answer; 1 is no seam."
)


def make_ways(geometry: Geometry) -> dict[str, WindowPlan | None]:
    """Return the ways to see a long clip, by name: every overlap, moved windows and not."""
    length = geometry.num_latent_frames(geometry.num_frames)
    ways: dict[str, WindowPlan | None] = {"one-pass": None}
    for overlap in range(length):
        shift = (length - overlap) // 2
        ways[f"overlap-{overlap}"] = WindowPlan(length, overlap, shift)
        if shift:
            ways[f"overlap-{overlap}-unmoved"] = WindowPlan(length, overlap, 0)
    return ways


def cut_case(seed: int, kind: EditKind, *, num_frames: int) -> EditCase:
    """Draw an edit of a long clip and cut source and right answer to their middle nine frames."""
    case = make_case(seed, kind, num_frames=num_frames)
    source, right = (replace(s, num_frames=world.NUM_FRAMES) for s in (case.source, case.right))
    return replace(case, source=source, right=right)


class Comparison:
    """One kind of edit of clips of one length, in all ways, and of the same clips cut.

    Args:
        pipeline: The model.
        ways: What it sees at a time, by name.
        kind: What changes, one of `EDITS`.
        num_frames: Of the clips.
        num_inference_steps: In place of 50.

    Raises:
        ConfigError: The preset cannot be read.
    """

    def __init__(
        self,
        pipeline: BatchPipeline,
        ways: Mapping[str, WindowPlan | None],
        *,
        kind: EditKind,
        num_frames: int,
        num_inference_steps: int,
    ) -> None:
        self.kind = kind
        self.num_frames = num_frames
        edit = find_configuration(EDITS[kind]).with_steps(num_inference_steps)
        self._rows = {
            make_case: [
                replace(edit, name=name, inversion=replace(edit.inversion, windows=windows))
                for name, windows in ways.items()
            ],
            cut_case: [replace(edit, name=CUT)],
        }
        self._evaluations = {
            draw: Evaluation(
                pipeline, rows, kinds=[kind], draw=partial(draw, num_frames=num_frames)
            )
            for draw, rows in self._rows.items()
        }

    def run_batch(self, seeds: Sequence[int]) -> None:
        """Evaluate some held-out clips.

        Raises:
            NumericalError: NaN or Inf appeared.
        """
        notify(f"{self.num_frames} frames, {self.kind}")
        for evaluation in self._evaluations.values():
            evaluation.run_batch(seeds)

    def tables(self) -> list[Table]:
        """Return the edits and the round trips as tables, the cut clips' row first."""
        cut, long = (self._evaluations[draw] for draw in (cut_case, make_case))
        figures: dict[str, Sequence[EditFigures]] = {CUT: cut.edits[self.kind][CUT]}
        figures |= long.edits[self.kind]
        title = f"{self.kind} by {EDITS[self.kind]}, {self.num_frames} frames"
        title += f", {len(figures[CUT])} clips"
        edits = figures_table(title, "way", _COLUMNS, figures)
        trips = []
        for evaluation, rows in ((cut, self._rows[cut_case]), (long, self._rows[make_case])):
            for row in rows:
                values = [clip.psnr for clip in evaluation.inversions[row.inversion]]
                shown = (np.mean(values), np.median(values), min(values))
                trips.append((row.name, *(f"{value:.1f}" for value in shown)))
        heads = ("way", "mean dB", "median dB", "worst dB")
        return [edits, make_table("inverted and sampled again", heads, trips)]

    def record(self) -> dict[str, object]:
        """Return settings, intervals and the value of every clip, for JSON."""
        records = {
            draw: quality_record(evaluation.edits, evaluation.inversions, self._rows[draw])
            for draw, evaluation in self._evaluations.items()
        }
        return {
            "num_frames": self.num_frames,
            "kind": self.kind,
            "long": records[make_case],
            "cut": records[cut_case],
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.long_clips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(parser, num_clips=8)
    add = parser.add_argument
    add("--frames", type=int, nargs="+", default=[33], help="of the clips, 4n + 1 (default 33)")
    add("--kind", choices=EDITS, nargs="+", default=list(EDITS), help="default: all")
    add("--way", action="append", help="overlap-1 or another row; repeated; default: all")
    return parser


def compare(options: argparse.Namespace) -> None:
    """Run the benchmark as the command line says: tables to stdout, the record to the folder.

    Raises:
        CogeditError: As the stages.
    """
    for num_frames in options.frames:
        if num_frames <= world.NUM_FRAMES or num_frames % 4 != 1:
            raise UsageError(f"--frames is {num_frames}, expected 4n + 1 above {world.NUM_FRAMES}")
    pipeline, facts = start_run(options)
    ways = make_ways(pipeline.checkpoint.geometry)
    unknown = [way for way in options.way or () if way not in ways]
    if unknown:
        raise UsageError(f"--way is {unknown[0]!r}, expected one of {', '.join(ways)}")
    comparisons = [
        Comparison(
            pipeline,
            {way: ways[way] for way in dict.fromkeys(options.way or ways)},
            kind=kind,
            num_frames=num_frames,
            num_inference_steps=options.steps,
        )
        for num_frames in dict.fromkeys(options.frames)
        for kind in dict.fromkeys(options.kind)
    ]
    path = options.output / "long.json"
    for seeds in seed_batches(options):
        for comparison in comparisons:
            comparison.run_batch(seeds)
        # After each batch: an interrupted run keeps what it has measured.
        run = facts | {"num_clips": seeds.stop - options.seed_offset}
        write_json(path, {"run": run, "comparisons": [one.record() for one in comparisons]})
    tables = [table for comparison in comparisons for table in comparison.tables()]
    print_report(tables, legend=f"{LEGEND} {_LEGEND}", paths=[path])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(compare, _parser().parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
