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


OnStep = Callable[[StepInfo], None]
ShowStep = Callable[[Step], None]  # shows the progress of any loop; it is an `OnStep`, too


@dataclass(frozen=True)
class RGBPicture:
    """An image for code that knows no arrays."""

    width: int  # in pixels
    height: int
    pixels: bytes  # red, green and blue, a byte each, row by row from the top
