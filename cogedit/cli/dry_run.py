"""`--dry-run`: what a run would take, for people or as one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cogedit.cli.screen import Screen, printable
from cogedit.cli.units import duration, flops

if TYPE_CHECKING:
    from cogedit.tools import Estimate


def show_estimate(screen: Screen, command: str, estimate: Estimate) -> None:
    """Print an estimate on stdout.

    Args:
        screen: Whether to print JSON.
        command: Name of the command.
        estimate: What to print.
    """
    if screen.json_output:
        found = {"command": command, "dry_run": True, "outputs": []} | asdict(estimate)
        found |= {"seconds": estimate.seconds, "disk_bytes": estimate.disk_bytes}
        typer.echo(json.dumps(found))
        return
    from cogedit.artifacts.atomic import show_size

    shape = "x".join(map(str, estimate.latent_shape))
    rows = [
        (
            "clip",
            f"{estimate.num_frames} frames of {estimate.width}x{estimate.height}: latents {shape}, "
            f"{estimate.num_tokens:,} tokens in a row",
        ),
        (
            "model",
            f"{printable(estimate.model)} in {estimate.dtype} on {estimate.device}: transformer "
            f"{show_size(estimate.transformer_bytes)}, T5 {show_size(estimate.text_encoder_bytes)}",
        ),
    ]
    for stage in estimate.stages:
        there = f"{stage.reused} of {stage.artifacts} there already"
        work = stage.work
        if not work.calls:
            rows.append((stage.name, there))
            continue
        rows.append(
            (
                stage.name,
                f"{work.calls:,} calls, {work.rows:,} rows, {flops(work.flops.total)}, about "
                f"{duration(stage.seconds)}" + (f" ({there})" if stage.reused else ""),
            )
        )
    rows.append(("disk", show_size(estimate.disk_bytes)))
    if estimate.memory_bytes:
        rows.append(("memory", f"about {show_size(estimate.memory_bytes)} on {estimate.device}"))
        note = "by a probe of this device; without loading, T5 and VAE"
        rows.append(("time", f"about {duration(estimate.seconds)} ({note})"))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name:<{width}}  {text}")
