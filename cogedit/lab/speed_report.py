"""What a run of the speed benchmark found: tables, a plot, one JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.errors import StorageError, UsageError
from cogedit.lab.command import Say
from cogedit.lab.plots import new_figure, save_figure
from cogedit.lab.results import read_results
from cogedit.lab.tables import make_table
from cogedit.types import TransformerSettings

if TYPE_CHECKING:
    from rich.table import Table

LEGEND = (
    "fewer: operations of upstream over those of the row, both for N prompts; faster: the same of "
    "the median seconds, with the shortest and the longest run; of its count: faster over fewer. "
    "5B: 49 frames at 480x720, 50 steps, frames to frames; the transformer by formula, VAE and T5 "
    "counted. peak: on a CPU the resident memory beyond that before the run, on a CUDA device what "
    "torch had allocated. distance: largest difference of the edits from upstream's, of the "
    "largest value; rows after `exact` make other edits. edits: the share in which the oracle sees "
    "what was asked for, and PSNR against the right answer, of the quality benchmark."
)


@dataclass(frozen=True)
class SpeedFacts:
    """What a run was.

    Attributes:
        cogedit_version: Version of this package.
        torch_version: Version of torch.
        size: Model and clip.
        device: What it ran on.
        num_threads: Threads of the CPU.
        num_inference_steps: Of the measured jobs, in place of 50.
        repeats: Turns of the timing.
        how: How the transformer ran the rows other than upstream.
    """

    cogedit_version: str
    torch_version: str
    size: str
    device: str
    num_threads: int
    num_inference_steps: int
    repeats: int
    how: TransformerSettings


@dataclass(frozen=True)
class JobFigures:
    """What was measured of one job.

    Attributes:
        name: Its row.
        num_prompts: Edits N.
        flops: Operations, counted; of 5B by formula.
        peak: The most memory in bytes; None where the system does not say.
        distance: Largest difference from the first row's edits, as a share of their largest value;
            None where only some steps were run.
        seconds: Of each run.
    """

    name: str
    num_prompts: int
    flops: float
    peak: int | None
    distance: float | None
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class FullSizeFigures:
    """Operations of one job at the size of 5B."""

    name: str
    num_prompts: int
    flops: float


@dataclass(frozen=True)
class StepRow:
    """What was measured of one kind of step.

    Attributes:
        name: Its row.
        flops: Operations of a step, by formula.
        seconds: Of each timed step.
        peak: The most memory in bytes.
    """

    name: str
    flops: float
    seconds: tuple[float, ...]
    peak: int | None


@dataclass(frozen=True)
class ModelFigures:
    """A large model by its steps.

    Attributes:
        linear: Operations per second of a bare matrix product of the model's size: the ceiling.
        attention: Of a bare attention.
        steps: The kinds of step.
    """

    linear: float
    attention: float
    steps: tuple[StepRow, ...]


@dataclass(frozen=True)
class EditQuality:
    """How good the edits of one kind are that a row makes: means over the clips.

    Attributes:
        kind: Kind of edit.
        target_seen: Share of clips, 0 to 1.
        counterfactual_psnr: Against the right answer, in dB.
    """

    kind: str
    target_seen: float
    counterfactual_psnr: float


Quality = Mapping[str, Sequence[EditQuality]]
"""By row: every kind of edit that asks for something, in the same order."""


def read_quality(paths: Sequence[Path], rows: Mapping[str, str]) -> Quality:
    """Read what the quality benchmark found of some rows.

    Args:
        paths: Its `quality.json`, of one run or of several over the same clips.
        rows: For each row of this benchmark, its row there.

    Raises:
        UsageError: As `read_results`, or a row is missing.
    """
    names = " ".join(f"--configuration {name}" for name in dict.fromkeys(rows.values()))
    hint = f"`python -m cogedit.lab.quality {names}` writes one"
    edits = read_results(paths, figures=("target_seen", "counterfactual_psnr"), hint=hint)
    quality: dict[str, list[EditQuality]] = {row: [] for row in rows}
    for kind, found in edits.items():
        if not any(figures["target_seen"].count for figures in found.values()):
            continue  # the same prompt asks for nothing that could be seen
        for row, name in rows.items():
            if name not in found:
                raise UsageError(
                    f"no {kind} edits of {name!r} in {', '.join(map(str, paths))}", hint=hint
                )
            seen, right = found[name]["target_seen"], found[name]["counterfactual_psnr"]
            quality[row].append(EditQuality(kind, seen.value, right.value))
    if not all(quality.values()):
        raise UsageError(
            f"no edits that ask for something in {', '.join(map(str, paths))}", hint=hint
        )
    return quality


def full_size_table(figures: Sequence[FullSizeFigures], quality: Quality | None = None) -> Table:
    """Return the table of what the jobs cost on 5B, and beside it how good their edits are."""
    counts = list(dict.fromkeys(one.num_prompts for one in figures))
    cost = {(one.name, one.num_prompts): one.flops for one in figures}
    names = list(dict.fromkeys(one.name for one in figures))
    rows = [
        (
            name,
            *(f"{cost[name, n] / 1e15:.1f}" for n in counts),
            *(f"{cost[names[0], n] / cost[name, n]:.2f}" for n in counts),
            *(_quality_cells(quality[name]) if quality else ()),
        )
        for name in names
    ]
    heads = ["row", *(f"PFLOP, N = {n}" for n in counts), *(f"fewer, N = {n}" for n in counts)]
    if quality:
        heads += [*(f"{one.kind} edits" for one in quality[names[0]]), "all kinds"]
    return make_table("CogVideoX-5B, counted", heads, rows)


def _quality_cells(edits: Sequence[EditQuality]) -> list[str]:
    """Write how good the edits of each kind are, and their mean over the kinds."""
    pairs = [(one.target_seen, one.counterfactual_psnr) for one in edits]
    pairs.append(
        (statistics.fmean(seen for seen, _ in pairs), statistics.fmean(db for _, db in pairs))
    )
    return [f"{100 * seen:.1f} %, {db:.1f} dB" for seen, db in pairs]


def job_table(figures: Sequence[JobFigures]) -> Table:
    """Return the table of the measured jobs."""
    first = _first_of(figures)
    rows = []
    for one in figures:
        base = first[one.num_prompts]
        fewer, faster = base.flops / one.flops, base.median / one.median
        rows.append(
            (
                f"N = {one.num_prompts}: {one.name}",
                f"{one.flops / 1e12:.3g}",
                f"{fewer:.2f}",
                f"{one.median:.2f} [{min(one.seconds):.2f} {max(one.seconds):.2f}]",
                f"{faster:.2f}",
                f"{100 * faster / fewer:.0f} %",
                "-" if one.peak is None else f"{one.peak / 1e6:.0f}",
                "-" if one.distance is None else f"{one.distance:.0e}",
            )
        )
    heads = ("row", "TFLOP", "fewer", "seconds", "faster", "of its count", "peak MB", "distance")
    return make_table("Measured jobs", heads, rows)


def step_table(model: ModelFigures) -> Table:
    """Return the table of the kinds of step of a large model."""
    rows = []
    for one in model.steps:
        seconds = statistics.median(one.seconds)
        rate = one.flops / seconds
        rows.append(
            (
                one.name,
                f"{seconds:.3f} [{min(one.seconds):.3f} {max(one.seconds):.3f}]",
                f"{one.flops / 1e12:.0f}",
                f"{rate / 1e12:.0f}",
                f"{100 * rate / model.linear:.0f} %",
                "-" if one.peak is None else f"{one.peak / 1e9:.1f}",
            )
        )
    title = (
        f"Steps; a bare matrix product makes {model.linear / 1e12:.0f} TFLOP/s, a bare attention "
        f"{model.attention / 1e12:.0f}"
    )
    heads = ("kind of step", "seconds", "TFLOP", "TFLOP/s", "of the product", "peak GB")
    return make_table(title, heads, rows)


def _first_of(figures: Sequence[JobFigures]) -> Mapping[int, JobFigures]:
    """Return the first row of every number of edits."""
    first: dict[int, JobFigures] = {}
    for one in figures:
        first.setdefault(one.num_prompts, one)
    return first


def write_speed_json(
    path: Path,
    facts: SpeedFacts,
    *,
    full_size: Sequence[FullSizeFigures],
    jobs: Sequence[JobFigures],
    model: ModelFigures | None,
    quality: Quality | None = None,
) -> None:
    """Write everything that was found.

    Raises:
        StorageError: The file cannot be written.
    """
    record = {
        "run": asdict(facts),
        "full_size": [asdict(one) for one in full_size],
        "jobs": [asdict(one) for one in jobs],
        "model": None if model is None else asdict(model),
        "quality": None if quality is None else _plain(quality),
    }
    try:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _plain(quality: Quality) -> dict[str, list[dict[str, object]]]:
    return {row: [asdict(one) for one in found] for row, found in quality.items()}


def draw_plot(
    path: Path,
    full_size: Sequence[FullSizeFigures],
    jobs: Sequence[JobFigures],
    *,
    say: Say,
) -> Path | None:
    """Draw how many times fewer operations, and less time, each row takes than upstream.

    Returns:
        `path`; None where matplotlib is not installed, which is said.

    Raises:
        StorageError: The file cannot be written.
    """
    counts = list(dict.fromkeys(one.num_prompts for one in full_size))
    figure = new_figure(4 * len(counts), 3.2, say=say)
    if figure is None:
        return None
    names = list(dict.fromkeys(one.name for one in full_size))
    cost = {(one.name, one.num_prompts): one.flops for one in full_size}
    first = _first_of(jobs)
    all_axes = figure.subplots(1, len(counts), squeeze=False, sharex=True, sharey=True)[0]
    for axes, count in zip(all_axes, counts, strict=True):
        fewer = [cost[names[0], count] / cost[name, count] for name in names]
        axes.barh(names, fewer, color="#c6dbef", label="fewer operations, 5B")
        timed = [one for one in jobs if one.num_prompts == count]
        axes.plot(
            [first[count].median / one.median for one in timed],
            [one.name for one in timed],
            "o",
            color="#08519c",
            label="less time, measured",
        )
        axes.set_title(f"N = {count}")
        axes.set_xlabel("times less than upstream")
        axes.axvline(1, color="gray", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].invert_yaxis()
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save_figure(figure, path)
    return path
