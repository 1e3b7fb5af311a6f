"""`cogedit batch`: the edits of a file, one after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogedit.cli.options import Call, with_options
from cogedit.cli.screen import Screen, printable
from cogedit.errors import BatchError

if TYPE_CHECKING:
    from cogedit.tools.batch import BatchResult
    from cogedit.tools.batch_plan import BatchPlan


@with_options("load", "encode", "invert", "reconstruct", "export", "transformer")
def batch(
    call: Call,
    edits: Annotated[
        str,
        typer.Argument(
            metavar="EDITS.toml|.csv|.jsonl|-",
            help="A video and a prompt per row, and any setting; - reads CSV or JSON lines.",
        ),
    ],
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="Gets a line for each edit, after those of earlier runs. Default: results.jsonl "
            "in the --workspace or here.",
            show_default=False,
        ),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="End with the first failure.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and what is there; write nothing."),
    ] = False,
) -> None:
    """Make the edits of a file, reusing what is there: EDITS -> mp4 each, results.jsonl."""
    from cogedit.config import read_batch
    from cogedit.tools.batch import batch
    from cogedit.tools.batch_plan import plan_batch, preview_batch

    planned = plan_batch(read_batch(edits), call.flags_of_all, config=call.config, run=call.run)
    if dry_run:
        plans = preview_batch(planned, run=call.run)
        _show_plans(call.screen, plans)
        if num_failing := sum(one.error is not None for one in plans):
            raise BatchError(f"{num_failing} of {len(plans)} edits would fail")
        return
    done = batch(planned, results=results, fail_fast=fail_fast, run=call.run)
    _show_results(call.screen, done)
    num_failed = sum(one.status == "failed" for one in done)
    if num_failed:
        left = len(planned) - len(done)
        raise BatchError(
            f"{num_failed} of {len(planned)} edits failed"
            + (f", {left} were not begun" if left else ""),
            hint="the same command tries them again and reuses the others",
        )


def _show_results(screen: Screen, results: Sequence[BatchResult]) -> None:
    """Print the videos, or one JSON object with the failures too."""
    if screen.json_output:
        typer.echo(json.dumps({"command": "batch", "outputs": [asdict(one) for one in results]}))
        return
    screen.result("batch", [{"path": one.path} for one in results if one.path is not None])


def _show_plans(screen: Screen, plans: Sequence[BatchPlan]) -> None:
    """Print what would be done, a line per edit and the sum."""
    if screen.json_output:
        found = {"command": "batch", "dry_run": True, "outputs": []}
        typer.echo(json.dumps({**found, "edits": [asdict(one) for one in plans]}))
        return
    for number, plan in enumerate(plans, 1):
        text = f"{number} of {len(plans)}  {plan.video}: {plan.prompt}: {_still(plan)}"
        typer.echo(printable(text))
    there = sum(one.export for one in plans)
    failing = sum(one.error is not None for one in plans)
    typer.echo(
        f"{there} there already, {len(plans) - there - failing} to make, {failing} would fail"
    )


def _still(plan: BatchPlan) -> str:
    if plan.error is not None:
        return f"fails: {plan.error}"
    if plan.export:
        return "there already"
    if plan.edit:
        return "export"
    return "edit, export" if plan.inversion else "invert, edit, export"
