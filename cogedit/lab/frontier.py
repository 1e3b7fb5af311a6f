"""`python -m cogedit.lab.frontier`: what an edit shows against what it keeps of the source.

An edit that does nothing keeps everything, and one that generates anew shows everything: no figure
of one of them alone says how good a way to edit is. Of one or more runs of the quality benchmark,
each configuration is a dot for each kind of edit. Those that no other beats in both are the
frontier: they go to stdout and, joined by a line, into `frontier.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.lab.command import Say, make_folder, run_command
from cogedit.lab.plots import new_figure, save_figure
from cogedit.lab.results import read_results
from cogedit.lab.tables import CEILING, FLOOR, make_table, print_report


@dataclass(frozen=True)
class Kept:
    """Which figure says how much of the source an edit keeps, and how it is shown."""

    name: str
    label: str
    factor: float = 1.0


_KEPT = {
    "color": Kept("background_psnr", "background, dB"),
    "shape": Kept("background_psnr", "background, dB"),
    "background": Kept("mask_overlap", "outline of the object, %", 100),
}
LEGEND = (
    "Configurations that no other beats in both. seen: the oracle sees what the edit asked for. "
    "kept: PSNR of the background against the source; of background edits, the overlap of the "
    "object's outline with the source's. right answer: PSNR against the rendered right answer."
)


@dataclass(frozen=True)
class Point:
    """A configuration's edits of one kind, as means over the clips.

    Attributes:
        name: Of the configuration.
        seen: Share of the clips in which the edit is seen, 0..1.
        kept: How much of the source is kept, in the unit of its kind of edit.
        counterfactual_psnr: Against the right answer, in dB.
    """

    name: str
    seen: float
    kept: float
    counterfactual_psnr: float

    def beats(self, other: Point) -> bool:
        """Whether this one is no worse in both and better in one."""
        mine, theirs = (self.seen, self.kept), (other.seen, other.kept)
        return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that none of the others beats, from what keeps most to what shows most."""
    best = [one for one in points if not any(other.beats(one) for other in points)]
    return sorted(best, key=lambda one: (-one.kept, one.seen))


def read_points(paths: Sequence[Path]) -> dict[str, list[Point]]:
    """Read runs of the quality benchmark.

    Args:
        paths: Their `quality.json`, as `read_results` takes them.

    Returns:
        The points of each kind of edit that has a frontier.

    Raises:
        UsageError: As `read_results`.
    """
    names = ["target_seen", "counterfactual_psnr", *{kept.name for kept in _KEPT.values()}]
    hint = "`python -m cogedit.lab.quality` writes one"
    return {
        kind: [
            Point(
                name=name,
                seen=figures["target_seen"].value,
                kept=figures[_KEPT[kind].name].value,
                counterfactual_psnr=figures["counterfactual_psnr"].value,
            )
            for name, figures in rows.items()
            # Without an object that the oracle finds, nothing says what was kept.
            if figures["target_seen"].count
            and figures[_KEPT[kind].name].count
            and name not in (CEILING, FLOOR)
        ]
        for kind, rows in read_results(paths, figures=names, hint=hint).items()
        if kind in _KEPT
    }


def draw_frontier(path: Path, found: Mapping[str, Sequence[Point]], *, say: Say) -> Path | None:
    """Draw a panel per kind of edit: what is seen over what is kept.

    Returns:
        `path`; None where there is nothing to draw, or no matplotlib, which is said.

    Raises:
        StorageError: The file cannot be written.
    """
    if not found:
        return None
    figure = new_figure(5 * len(found), 4.2, say=say)
    if figure is None:
        return None
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (kind, points) in zip(panels, found.items(), strict=True):
        kept, best = _KEPT[kind], frontier(points)
        x, y = _coordinates(points, kept)
        axes.plot(x, y, "o", color="#c6dbef", markersize=5)
        x, y = _coordinates(best, kept)
        axes.plot(x, y, "o-", color="#08519c", markersize=5, linewidth=0.8)
        for one in points:
            if one in best or one.name == "upstream":
                axes.annotate(
                    one.name,
                    (kept.factor * one.kept, 100 * one.seen),
                    textcoords="offset points",
                    xytext=(4, 5),
                    fontsize=7,
                    color="#08519c" if one in best else "gray",
                )
        axes.set_title(f"{kind} edits")
        axes.set_xlabel(f"kept: {kept.label}")
        axes.set_ylabel("seen, %")
        axes.set_ylim(-4, 108)
        axes.margins(x=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
    return path


def _coordinates(points: Sequence[Point], kept: Kept) -> tuple[list[float], list[float]]:
    return [kept.factor * one.kept for one in points], [100 * one.seen for one in points]


def show_frontier(options: argparse.Namespace, *, say: Say) -> None:
    """Run as the command line says: tables to stdout, the picture to the folder.

    Raises:
        UsageError: As `read_points`.
        StorageError: The picture cannot be written.
    """
    found = read_points(options.quality)
    make_folder(options.output)
    picture = draw_frontier(options.output / "frontier.png", found, say=say)
    tables = [
        make_table(
            f"{kind} edits, {len(points)} configurations",
            ("on the frontier", "seen %", f"kept: {_KEPT[kind].label}", "right answer dB"),
            [
                (
                    one.name,
                    f"{100 * one.seen:.0f}",
                    f"{_KEPT[kind].factor * one.kept:.1f}",
                    f"{one.counterfactual_psnr:.1f}",
                )
                for one in frontier(points)
            ],
        )
        for kind, points in found.items()
    ]
    print_report(tables, legend=LEGEND, paths=[picture] if picture else [])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or the exit code of what went wrong, which is said on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("quality", type=Path, nargs="+", help="quality.json of a run, or several")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder (default bench)")
    return run_command(show_frontier, parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
