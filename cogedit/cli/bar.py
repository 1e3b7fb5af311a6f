"""The progress bar of a terminal, with sentences above it and a thumbnail below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.style import Style
from rich.table import Column
from rich.text import Text

from cogedit.cli.progress import Notes, Pace, Thumbnail, duration, memory_text, rate
from cogedit.progress import ShowStep, Step, StepInfo, WindowInfo

_OTHER_COLUMNS = 62
"""Columns of a terminal that a bar needs besides its description."""

_FOR_WINDOWS = 80
"""Columns of a terminal that has room for the windows of a step, too."""

_THUMBNAIL = (60, 32)
"""Columns of a thumbnail, and its height in half lines: the bar and some notes stay visible."""


class _HalfBlocks:
    """Draws a thumbnail in true colours: each character is two pixels, one above the other."""

    def __init__(self, thumbnail: Thumbnail) -> None:
        self._thumbnail = thumbnail

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        image = self._thumbnail.image
        if image is None:
            return
        columns, lines = min(_THUMBNAIL[0], options.max_width), min(_THUMBNAIL[1], console.height)
        scale = min(columns / image.width, lines / image.height)
        size = (max(1, round(image.width * scale)), max(2, round(image.height * scale / 2) * 2))
        pixels = Image.frombytes("RGB", (image.width, image.height), image.pixels)
        pixels = pixels.resize(size, Image.Resampling.BILINEAR)
        for y in range(0, size[1], 2):
            for x in range(size[0]):
                above, below = (
                    Color.from_rgb(*pixels.getpixel((x, row)))  # type: ignore[misc]
                    for row in (y, y + 1)
                )
                yield Segment("▀", Style(color=above, bgcolor=below))
            yield Segment.line()


class _Bar(Progress):
    """A bar that writes waiting notes before it draws itself, and a thumbnail below."""

    show_notes: Callable[[], None] | None = None
    below: tuple[RenderableType, ...] = ()
    closing: ExitStack

    @classmethod
    def opened(cls, notes: Notes, thumbnail: Thumbnail | None) -> _Bar:
        """Open a bar on the screen, which is closed when its last loop leaves."""
        whole = Column(no_wrap=True)
        console = Console(stderr=True)
        bar = cls(
            TextColumn("{task.description}", markup=False, table_column=whole),
            BarColumn(bar_width=None, table_column=Column(min_width=5, max_width=30, ratio=1)),
            _Count(table_column=whole),
            TextColumn("{task.fields[rate]}", style="progress.data.speed", table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TextColumn("{task.fields[left]}", style="progress.remaining", table_column=whole),
            TextColumn("{task.fields[memory]}", style="progress.filesize", table_column=whole),
            console=console,
        )
        show = notes.shown_by(lambda text: console.out(text, highlight=False))
        bar.closing = ExitStack()
        bar.show_notes = bar.closing.enter_context(show)
        bar.below = () if thumbnail is None else (_HalfBlocks(thumbnail),)
        bar.closing.callback(setattr, notes, "bar", None)
        bar.closing.enter_context(bar)
        notes.bar = bar
        return bar

    def leave(self, task: TaskID) -> None:
        """End a loop: its line goes, or with the last one the bar does."""
        if len(self.tasks) > 1:
            self.remove_task(task)
        else:
            self.closing.close()

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.show_notes is None:
            return  # the base class asks before there is a screen
        self.show_notes()  # in the thread that draws, which has the lock that this takes
        for part in (*super().get_renderables(), *self.below):
            # A terminal shows Ctrl-C behind the last line. Were that to wrap, the bar would be
            # drawn again one line too low.
            yield Constrain(part, self.console.width - len("^C"))


class _Count(MofNCompleteColumn):
    """Steps that are done, and where a step has windows, those of its model call."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(str(task.fields["window"]))


@contextmanager
def bar_progress(
    doing: str, total: int, *, notes: Notes, thumbnail: Thumbnail | None = None
) -> Iterator[ShowStep]:
    """Show a bar with step, rate, time left and, on a CUDA device, memory.

    Notes are shown above it as they come, the thumbnail below it until the loop ends. The bar stays
    on the screen, except for encoding and writing, which end with a sentence anyway. A loop that
    begins while others run is one more line of their bar.
    """
    bar = notes.bar if isinstance(notes.bar, _Bar) else _Bar.opened(notes, thumbnail)
    console = bar.console
    length = max(12, min(40, console.width - _OTHER_COLUMNS))

    def cut(length: int) -> str:
        return doing if len(doing) <= length else f"{doing[: length - 1]}…"

    task = bar.add_task(cut(length), total=total, rate="", left="", memory="", window="")
    pace = Pace()

    def on_step(info: Step) -> None:
        if isinstance(info, WindowInfo):
            if console.width >= _FOR_WINDOWS:
                text = f", window {info.window + 1}/{info.num_windows}"
                short = cut(max(9, length - len(text)))
                bar.update(task, description=short, window=text)
            return
        per_step, left = pace.after(info)
        bar.live.transient = not isinstance(info, StepInfo)
        bar.update(
            task,
            completed=info.index + 1,
            rate=rate(per_step),
            left=f"+ {duration(left)} left",
            memory=memory_text(),
        )

    try:
        yield on_step
        bar.update(task, completed=total, description=cut(length), window="")
    finally:
        if thumbnail is not None:
            thumbnail.show(None)
        bar.leave(task)
