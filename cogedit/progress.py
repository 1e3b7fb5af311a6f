"""What a long loop reports after each of its steps, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One finished step of a long loop."""

    index: int  # from 0
    total: int


@dataclass(frozen=True)
class StepInfo(Step):
    """One finished step over the timesteps, as handed to `on_step`."""

    timestep: int  # that the step arrived at; -1 is the clean sample
    residual: float | None = None  # relative size of an inverse step's last correction
    num_calls: int = 1  # model calls that the step took


@dataclass(frozen=True)
class WindowInfo(Step):
    """One finished window of a model call in the step `index`, which is still under way."""

    window: int  # from 0
    num_windows: int


OnStep = Callable[[StepInfo], None]
ShowStep = Callable[[Step], None]  # shows the progress of any loop; it is an `OnStep`, too


@dataclass(frozen=True)
class RGBPicture:
    """An image for code that knows no arrays."""

    width: int  # in pixels
    height: int
    pixels: bytes  # red, green and blue, a byte each, row by row from the top


class WindowProgress:
    """Shows the steps of a loop, and the windows of the step that is under way.

    Args:
        show: Shows both.
        total: Number of steps.
        num_done: Steps of an earlier run.
    """

    def __init__(self, show: ShowStep, *, total: int, num_done: int = 0) -> None:
        self._show = show
        self._total = total
        self._index = num_done

    def step(self, info: StepInfo) -> None:
        """Show a finished step."""
        self._index = info.index + 1
        self._show(info)

    def window(self, num_done: int, num_windows: int) -> None:
        """Show that so many windows of a model call are done."""
        self._show(WindowInfo(self._index, self._total, num_done - 1, num_windows))
