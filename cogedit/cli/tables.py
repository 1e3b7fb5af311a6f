"""Tables on stdout, for people: estimates, the edits of a batch, diagnoses and listings.

On a terminal a table has headings and folds what is too wide. Anywhere else it is plain text with
one row per line, however long.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from fractions import Fraction
from typing import TYPE_CHECKING

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cogedit.artifacts.atomic import show_size
from cogedit.cli.progress import duration
from cogedit.cli.screen import Screen, printable
from cogedit.clip_times import show_time
from cogedit.version import __version__
from cogedit.wording import count_of, noun_of

if TYPE_CHECKING:
    from cogedit.artifacts.listing import Entry
    from cogedit.tools import Estimate, LayerProbe
    from cogedit.tools.batch_plan import BatchPlan
    from cogedit.tools.clip_cost import StageEstimate, VAEEstimate
    from cogedit.tools.doctor import Diagnosis

_MAX_DRAWN = 500
"""Rows that rich draws, at a millisecond each; more are printed as they are."""


def show_rows(
    rows: Sequence[Sequence[str]], *, headings: Sequence[str] = (), indent: int = 0
) -> None:
    """Print rows in aligned columns; without headings the first column names the others.

    Args:
        rows: Cells, without markup; control characters are shown by their code.
        headings: Names of the columns, shown on a terminal.
        indent: Columns left free before each row.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty() or len(cells) > _MAX_DRAWN:
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = map(set_cell_size, row, widths)
            typer.echo(f"{'':{indent}}{'  '.join(padded)}".rstrip())
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    if not headings:
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(emoji=False, highlight=False).print(Padding(table, (0, 0, 0, indent)))


def show_estimate(screen: Screen, command: str, estimate: Estimate) -> None:
    """Print what a run would take: reuse, operations, disk, memory and time."""
    if screen.json_output:
        content = {"command": command, "dry_run": True, "outputs": []} | asdict(estimate)
        content |= {"seconds": estimate.seconds, "disk_bytes": estimate.disk_bytes}
        typer.echo(json.dumps(content))
        return
    shape = "x".join(map(str, estimate.latent_shape))
    size = f"{count_of(estimate.num_frames, 'frame')} of {estimate.width}x{estimate.height}"
    span = (Fraction(estimate.start_seconds), Fraction(estimate.end_seconds))
    size += f", {' to '.join(map(show_time, span))} of its source"
    windows = ""
    if estimate.windows is not None:
        windows = f" in {estimate.num_windows} or more windows of {estimate.windows.length}"
    sizes = (
        f"transformer {show_size(estimate.transformer_bytes)}, "
        f"T5 {show_size(estimate.text_encoder_bytes)}"
    )
    rows = [
        ("clip", f"{size}: latents {shape}{windows}, {estimate.num_tokens:,} tokens per row"),
        ("model", f"{estimate.model} in {estimate.dtype} on {estimate.device}: {sizes}"),
    ]
    rows += [("LoRA", f"{lora} for edits") for lora in estimate.lora]
    rows += [("LoRA", f"{lora} for the inversion") for lora in estimate.inversion_lora]
    for stage in estimate.stages:
        text, work = f"{stage.reused} of {stage.artifacts} reused", stage.work
        if work.calls:
            reused = f" ({text})" if stage.reused else ""
            text = f"{cost_text(stage)}{reused}"
        rows.append((stage.name, text))
    rows.append(("disk", show_size(estimate.disk_bytes)))
    ways = {"encode": estimate.encode, "decode": estimate.decode}
    vae_rows = [_vae_row(direction, vae) for direction, vae in ways.items()]
    rows.append(("VAE", "; ".join([*vae_rows, *estimate.notes_on_vae])))
    if estimate.memory_bytes:
        host = f"at least {show_size(estimate.host_bytes)} of host memory"
        on_device = f"about {show_size(estimate.memory_bytes)} on {estimate.device}, {host}"
        rows.append(("memory", host if estimate.device == "cpu" else on_device))
        note = "by a probe of this device; without loading, T5, VAE and --compile"
        if estimate.num_gpus > 1:
            note = f"{estimate.num_gpus} GPUs, {note}, and what passes between them"
        rows.append(("time", f"about {duration(estimate.seconds)} ({note})"))
    show_rows(rows)


def cost_text(stage: StageEstimate) -> str:
    """Say what a stage would compute, and how long it would take."""
    work = stage.work
    numbers = {"call": work.calls, "row": work.rows}
    counted = [f"{number:,} {noun_of(number, noun)}" for noun, number in numbers.items()]
    counted += [flops(work.flops.total), f"about {duration(stage.seconds)}"]
    return ("at least " if stage.is_least else "") + ", ".join(counted)


def show_probe(screen: Screen, probe: LayerProbe) -> None:
    """Print what leaving the reference out of each layer changes, in percent."""
    if screen.json_output:
        content = {"command": "probe-layers", "outputs": []} | asdict(probe)
        typer.echo(json.dumps(content))
        return
    from cogedit.tools.probe import MOST

    columns = zip(*(level.changes for level in probe.levels), strict=True)
    most = max(probe.means) or 1.0
    rows = [
        (str(layer), *map(_percent, (*changes, mean)), "#" * round(20 * mean / most))
        for layer, changes, mean in zip(probe.layers, columns, probe.means, strict=True)
    ]
    timesteps = [str(level.timestep) for level in probe.levels]
    show_rows(rows, headings=("layer", *(f"t = {t}" for t in timesteps), "mean", ""))
    wholes = ", ".join(_percent(level.whole) for level in probe.levels)
    screen.say(
        f"by layer, at {noun_of(len(timesteps), 'timestep')} {', '.join(timesteps)} and in the "
        "mean: how far the estimate of the clean clip moves where this layer alone leaves the "
        f"source out, in percent of how far it moves where all do, which is {wholes} % of itself"
    )
    first, end = probe.window
    if end - first < len(probe.layers):
        screen.say(f"{MOST:.0%} of the sum lie within --injection-layers {first}:{end}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _vae_row(direction: str, vae: VAEEstimate) -> str:
    if vae.problem is not None:
        return f"{direction} does not fit: {vae.problem}"
    return f"{direction} {vae.way}, {show_size(vae.num_bytes)}"


def flops(count: float) -> str:
    """Write a number of operations with its unit."""
    for unit in ("MFLOP", "GFLOP", "TFLOP"):
        count /= 1000 if unit != "MFLOP" else 1e6
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} PFLOP"


def show_batch_plans(screen: Screen, plans: Sequence[BatchPlan]) -> None:
    """Print what a batch would do: a row for each edit, and their number."""
    if screen.json_output:
        content: dict[str, object] = {"command": "batch", "dry_run": True, "outputs": []}
        typer.echo(json.dumps({**content, "edits": [asdict(plan) for plan in plans]}))
        return
    shows_output = any(plan.output for plan in plans)
    show_rows(
        [
            (
                f"{number} of {len(plans)}",
                plan.video,
                plan.prompt or plan.first_frame or "",
                *((plan.output or "",) if shows_output else ()),
                _remaining(plan),
            )
            for number, plan in enumerate(plans, 1)
        ],
        headings=("edit", "video", "prompt", *(("output",) if shows_output else ()), "to do"),
    )
    done = sum(plan.export for plan in plans)
    failing = sum(plan.error is not None for plan in plans)
    typer.echo(f"{done} done, {len(plans) - done - failing} to make, {failing} would fail")


def _remaining(plan: BatchPlan) -> str:
    if plan.error is not None:
        return f"fails: {plan.error}"
    if plan.export:
        return "done"
    if plan.edit:
        return "export"
    return "edit, export" if plan.inversion else "invert, edit, export"


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what was checked, what is missing, and the commands that mend it."""
    tables = {
        f"cogedit {__version__}": diagnosis.findings,
        "\nother models": diagnosis.models,
        "\nmemory": diagnosis.presets,
    }
    for title, findings in tables.items():
        if not findings:
            continue
        typer.echo(title)
        show_rows(
            [
                (finding.name, f"{finding.found}: {finding.hint}")
                if finding.problem and finding.hint
                else (finding.name, finding.found)
                for finding in findings
            ],
            indent=2,
        )
    typer.echo()
    for finding in diagnosis.problems:
        typer.echo(f"problem: {printable(finding.problem or '')}")
        if finding.hint is not None:
            typer.echo(f"hint: {printable(finding.hint)}")
    if not diagnosis.problems:
        typer.echo(f"This machine can run an edit with {printable(diagnosis.model)}.")


def show_entries(entries: Sequence[Entry]) -> None:
    """Print what is in the workspaces, a row for each file."""
    show_rows(
        [
            (
                str(entry.path),
                show_size(entry.size),
                _minute(entry.modified),
                entry.state,
                entry.about[:100],
            )
            for entry in entries
        ],
        headings=("path", "size", "written", "state", "about"),
    )


def _minute(seconds: float) -> str:
    """Write a time since the epoch; file systems know years that `datetime` does not."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
    except (OSError, OverflowError, ValueError):
        return "-"
