"""Pictures of figures, drawn by matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.errors import StorageError
from cogedit.lab.command import Say

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, *, say: Say) -> Figure | None:
    """Return an empty figure of a size in inches; None without matplotlib, which is said."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no plot: matplotlib is not installed; it comes with the extra 'dev'")
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
