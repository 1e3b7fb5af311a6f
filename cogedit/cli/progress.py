"""The steps of a loop as they go: a bar on a terminal, lines or events elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING

from cogedit.cli.units import duration, rate

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.progress import Task

    from cogedit.types import RGBPicture, ShowStep, Step

PLAIN_INTERVAL = 30.0
"""Seconds between two progress lines where there is no terminal."""

_SPEED_PERIOD = 600.0
"""Seconds over which a bar takes its rate: in a shorter time a large model may do no two steps."""

_BESIDE = 62
"""Columns of a terminal that a bar takes beside what it does."""


_THUMBNAIL = (60, 32)
"""Columns of a thumbnail, and its height in half lines: a bar and some notes stay in sight."""


class Thumbnail:
    """A small picture for a terminal of true colours: two pixels above each other per character."""

    def __init__(self) -> None:
        self._picture: RGBPicture | None = None

    def show(self, picture: RGBPicture | None) -> None:
        """Show another picture; None shows none."""
        self._picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as large as the terminal and `_THUMBNAIL` allow."""
        if self._picture is None:
            return
        from PIL import Image
        from rich.color import Color
        from rich.segment import Segment
        from rich.style import Style

        given = self._picture
        columns, lines = min(_THUMBNAIL[0], options.max_width), min(_THUMBNAIL[1], console.height)
        scale = min(columns / given.width, lines / given.height)
        size = (max(1, round(given.width * scale)), max(2, round(given.height * scale / 2) * 2))
        pixels = Image.frombytes("RGB", (given.width, given.height), given.pixels)
        pixels = pixels.resize(size, Image.Resampling.BILINEAR)
        for y in range(0, size[1], 2):
            for x in range(size[0]):
                above, below = (
                    Color.from_rgb(*pixels.getpixel((x, row)))  # type: ignore[misc]
                    for row in (y, y + 1)
                )
                yield Segment("▀", Style(color=above, bgcolor=below))
            yield Segment.line()


class Notes:
    """What is said while a bar is on the screen, which shows it above itself.

    The bar takes it when it is drawn. Who says something, a signal handler too, takes no lock of
    the bar: the thread that draws might hold it and wait for another that is held here.
    """

    def __init__(self) -> None:
        self._has_bar = False
        self._waiting: SimpleQueue[str] = SimpleQueue()  # safe in a signal handler

    def leave(self, text: str) -> bool:
        """Leave a text to the bar; False where there is none."""
        has_bar = self._has_bar
        if has_bar:
            self._waiting.put(text)
        return has_bar

    def show(self, console: Console) -> None:
        """Write what was left, oldest first; for one thread at a time."""
        while not self._waiting.empty():
            console.out(self._waiting.get(), highlight=False)

    @contextmanager
    def above_a_bar(self, console: Console) -> Iterator[None]:
        """Take what is said in the block, where a bar is on this console."""
        self._has_bar = True
        try:
            yield
        finally:
            self._has_bar = False
            self.show(console)  # what came after the bar was drawn for the last time


class _Pace:
    """Measures how fast steps go, those that an earlier run did left out."""

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
    """Say a line about every 30 s, with step, rate, time left and memory.

    Args:
        doing: What the loop does.
        say: Told each line.
    """
    pace, told = _Pace(), time.monotonic()

    def on_step(info: Step) -> None:
        nonlocal told
        per_step, left = pace.after(info)
        now, done = time.monotonic(), info.index + 1
        if now - told < PLAIN_INTERVAL or done == info.total:
            return
        told = now
        memory = _memory()
        say(
            f"{doing}: step {done} of {info.total}, {per_step:.1f} s per step, "
            f"{duration(left)} left" + (f", {memory}" if memory else "")
        )

    return on_step


def event_progress(doing: str, tell: Callable[[Mapping[str, object]], None]) -> ShowStep:
    """Tell every step as an event.

    Its timestep and its residual are null where the loop has no noise levels.

    Args:
        doing: What the loop does.
        tell: Told each event.
    """
    from cogedit.types import StepInfo

    pace = _Pace()

    def on_step(info: Step) -> None:
        per_step, left = pace.after(info)
        level = info if isinstance(info, StepInfo) else None
        tell(
            {
                "event": "step",
                "doing": doing,
                "step": info.index + 1,
                "total": info.total,
                "timestep": level and level.timestep,
                "residual": level and level.residual,
                "seconds_per_step": round(per_step, 4),
                "seconds_left": round(left, 2),
                "peak_bytes": peak_memory(),
            }
        )

    return on_step


@contextmanager
def bar_progress(
    doing: str, total: int, *, notes: Notes, thumbnail: Thumbnail | None = None
) -> Iterator[ShowStep]:
    """Show a bar with step, rate, time left and, on a CUDA device, memory.

    It stays on the screen, except that of coding and writing: these say what they wrote.

    Args:
        doing: What the loop does.
        total: Its number of steps.
        notes: Shown above it as they come.
        thumbnail: Shown under it until the loop ends.
    """
    from rich.console import Console
    from rich.constrain import Constrain
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    from cogedit.types import StepInfo

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate(1 / task.speed) if task.speed else "", style="progress.data.speed")

    class MemoryColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_memory(), style="progress.filesize")

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(min_width=5, max_width=30, ratio=1)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        RateColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("+", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
        MemoryColumn(table_column=Column(no_wrap=True)),
    )
    console = Console(stderr=True)

    class PicturedProgress(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            notes.show(console)  # in the thread that draws, which has the lock that this takes
            below = () if thumbnail is None else (thumbnail,)
            for part in (*super().get_renderables(), *below):
                # A terminal shows Ctrl-C behind the last line. Where that takes another line, the
                # bar is drawn anew one line too low.
                yield Constrain(part, console.width - len("^C"))

    length = max(12, min(40, console.width - _BESIDE))
    short = doing if len(doing) <= length else f"{doing[: length - 1]}…"
    drawn = PicturedProgress(*columns, console=console, speed_estimate_period=_SPEED_PERIOD)
    with notes.above_a_bar(console), drawn as bar:
        task = bar.add_task(short, total=total)
        is_first = True

        def on_step(info: Step) -> None:
            nonlocal is_first
            if is_first and info.index:  # steps of an earlier run say nothing of the rate
                bar.reset(task, completed=info.index)
            is_first = False
            bar.live.transient = not isinstance(info, StepInfo)
            bar.update(task, completed=info.index + 1)

        try:
            yield on_step
            bar.update(task, completed=total)
        finally:
            if thumbnail is not None:
                thumbnail.show(None)


def _memory() -> str:
    """`peak_memory` for people; empty where there is none."""
    from cogedit.artifacts.atomic import show_size

    memory = peak_memory()
    return show_size(memory) if memory else ""


def peak_memory() -> int | None:
    """The most memory that tensors took on CUDA devices in this pass; None where there is none."""
    torch = sys.modules.get("torch")  # brought by the stage that computes, never from here
    if torch is None or not torch.cuda.is_initialized():
        return None
    return sum(
        int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count())
    )
