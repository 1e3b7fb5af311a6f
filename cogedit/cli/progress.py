"""The steps of a loop as lines or events, and what the bar of `bar` shows beside them."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cogedit.progress import RGBPicture, ShowStep, Step, StepInfo, WindowInfo

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_INTERVAL = 30.0
"""Seconds between two progress lines where there is no terminal."""


class Thumbnail:
    """The image that a bar shows below itself; None shows none."""

    def __init__(self) -> None:
        self.image: RGBPicture | None = None

    def show(self, image: RGBPicture | None) -> None:
        """Show another image."""
        self.image = image


class Notes:
    """Sentences that a bar on the screen shows above itself.

    The bar takes them when it is drawn. `put` takes no lock of the bar: it may be called by a
    signal handler while the thread that draws holds that lock.
    """

    def __init__(self) -> None:
        self.bar: Progress | None = None  # of which every loop that is running is a line
        self._has_bar = False
        self._waiting: deque[str] = deque()  # its methods are safe in a signal handler

    def put(self, text: str) -> bool:
        """Leave a sentence to the bar; False where there is none."""
        has_bar = self._has_bar
        if has_bar:
            self._waiting.append(text)
        return has_bar

    @contextmanager
    def shown_by(self, show: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Take sentences while the block runs.

        Args:
            show: Writes one sentence.

        Yields:
            Writes those that wait, oldest first; for one thread at a time.
        """

        def show_waiting() -> None:
            while self._waiting:
                show(self._waiting.popleft())

        self._has_bar = True
        try:
            yield show_waiting
        finally:
            self._has_bar = False
            show_waiting()  # what came after the bar was drawn for the last time


class Pace:
    """Measures how fast steps go, without those of an earlier run."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before: int | None = None

    def after(self, info: Step) -> tuple[float, float]:
        """Return the seconds per step and the seconds that are left."""
        if self._before is None:
            self._before = info.index
        done = info.index + 1
        per_step = (time.monotonic() - self._start) / (done - self._before)
        return per_step, (info.total - done) * per_step


def plain_progress(doing: str, say: Callable[[str], None]) -> ShowStep:
    """Say a line about every 30 s, with step, rate, time left and memory; or step and window."""
    pace, said_at = Pace(), time.monotonic()

    def on_step(info: Step) -> None:
        nonlocal said_at
        now, done = time.monotonic(), info.index + 1
        if isinstance(info, WindowInfo):
            if now - said_at >= PLAIN_INTERVAL:
                said_at = now
                say(
                    f"{doing}: step {done} of {info.total}, window {info.window + 1} "
                    f"of {info.num_windows}"
                )
            return
        per_step, left = pace.after(info)
        if now - said_at < PLAIN_INTERVAL or done == info.total:
            return
        said_at = now
        memory = memory_text()
        say(
            f"{doing}: step {done} of {info.total}, {per_step:.1f} s per step, "
            f"{duration(left)} left" + (f", {memory}" if memory else "")
        )

    return on_step


def event_progress(doing: str, emit: Callable[[Mapping[str, object]], None]) -> ShowStep:
    """Emit every step as an event; `timestep` and `residual` are null where there are none.

    Where a clip takes several windows, each of them is an event, too.
    """
    pace = Pace()

    def on_step(info: Step) -> None:
        if isinstance(info, WindowInfo):
            window = {"window": info.window + 1, "windows": info.num_windows}
            steps = {"doing": doing, "step": info.index + 1, "total": info.total}
            emit({"event": "window"} | steps | window)
            return
        per_step, left = pace.after(info)
        step_info = info if isinstance(info, StepInfo) else None
        emit(
            {
                "event": "step",
                "doing": doing,
                "step": info.index + 1,
                "total": info.total,
                "timestep": step_info and step_info.timestep,
                "residual": step_info and step_info.residual,
                "seconds_per_step": round(per_step, 4),
                "seconds_left": round(left, 2),
                "peak_bytes": peak_memory(),
            }
        )

    return on_step


def duration(seconds: float) -> str:
    """Write a time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate(seconds_per_step: float) -> str:
    """Write how fast steps go."""
    if seconds_per_step >= 1:
        return f"{seconds_per_step:.1f} s/step"
    return f"{1 / max(seconds_per_step, 1e-6):.1f} steps/s"


def memory_text() -> str:
    """`peak_memory` with its unit; empty where there is none."""
    from cogedit.artifacts.atomic import show_size

    memory = peak_memory()
    return show_size(memory) if memory else ""


def peak_memory() -> int | None:
    """The most bytes that tensors took on CUDA devices in this pass; None without CUDA."""
    torch = sys.modules.get("torch")  # loaded by the stage that computes, never from here
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(
        int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count())
    )
