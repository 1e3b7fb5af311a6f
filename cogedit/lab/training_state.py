"""Checkpoints of a training run, and its loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cogedit.lab.optim import WeightAverage

History = list[dict[str, float]]


def save_checkpoint(
    path: Path,
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    average: WeightAverage,
    step: int,
    history: History,
) -> None:
    """Write everything that a run needs to go on; a torn file never replaces a good one.

    Args:
        path: The checkpoint, replaced as a whole. Its folder is created.
        module: The model.
        optimizers: Its optimizers.
        average: The average of its weights.
        step: Number of steps done.
        history: One record of measurements per entry.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "average": average.state_dict(),
        "step": step,
        "history": history,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(
    path: Path,
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    average: WeightAverage,
    history: History,
) -> int:
    """Load what `save_checkpoint` wrote, in place; `history` is extended.

    Returns:
        Number of steps done; 0, with nothing loaded, if there is no checkpoint.

    Raises:
        OSError: If the file cannot be read.
        RuntimeError: If it belongs to another model.
    """
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    average.load_state_dict(state["average"])
    history.extend(state["history"])
    return int(state["step"])


def plot_losses(path: Path, history: History, names: Sequence[str], *, unit: str) -> None:
    """Draw the named measurements over the steps as a PNG; without matplotlib, do nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    for name in names:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
