"""What a person sees: sentences and progress on stderr; stdout is for the result alone."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from cogedit.errors import CogeditError, Interrupted, StorageError, Terminated

if TYPE_CHECKING:
    from cogedit.stages.stop import Stop
    from cogedit.types import OnStep, StepInfo

PLAIN_INTERVAL = 30.0
"""Seconds between two progress lines where there is no terminal."""

_REFUSED_BY_THE_SYSTEM = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}


@dataclass(frozen=True)
class Screen:
    """Where a command shows what it does.

    Attributes:
        json_output: Print one JSON object instead of paths.
        quiet: Show errors only.
        verbose: Show details too.
    """

    json_output: bool = False
    quiet: bool = False
    verbose: bool = False

    def say(self, text: str) -> None:
        """Show one sentence, as it is: brackets are no markup, control characters are visible."""
        if not self.quiet:
            typer.echo(printable(text), err=True)

    def detail(self, text: str) -> None:
        """Show one sentence to those who asked for more."""
        if self.verbose:
            self.say(text)

    def result(self, command: str, outputs: Sequence[Mapping[str, object]]) -> None:
        """Print what was written: a path per line, or one JSON object.

        Args:
            command: Name of the command.
            outputs: Per file its `path`, and what else is known of it.
        """
        if self.json_output:
            import json

            typer.echo(json.dumps({"command": command, "outputs": list(outputs)}, default=str))
            return
        for output in outputs:
            path = str(output["path"])
            # A path that begins with a dash would be an option to the next command.
            path = f"./{path}" if path.startswith("-") else path
            # A terminal is shown what is in it; another program gets the very bytes, which may be
            # no UTF-8.
            typer.echo(printable(path) if sys.stdout.isatty() else os.fsencode(path))

    @contextmanager
    def progress(self, doing: str, total: int) -> Iterator[OnStep]:
        """Show the steps of a loop: a bar on a terminal, a line now and then elsewhere.

        Args:
            doing: What the loop does.
            total: Its number of steps.
        """
        doing = printable(doing)
        if self.quiet:
            yield lambda info: None
        elif _is_terminal():
            with _bar(doing, total) as on_step:
                yield on_step
        else:
            yield _PlainProgress(doing, self)


class _PlainProgress:
    """A line about every 30 s, with step, rate and time left."""

    def __init__(self, doing: str, screen: Screen) -> None:
        self._doing = doing
        self._screen = screen
        self._start = self._told = time.monotonic()
        self._before: int | None = None  # steps that an earlier run did

    def __call__(self, info: StepInfo) -> None:
        """Tell of a step, if the last time is long enough ago."""
        now = time.monotonic()
        done = info.index + 1
        if self._before is None:
            self._before = info.index
        if now - self._told < PLAIN_INTERVAL or done == info.total:
            return
        self._told = now
        rate = (done - self._before) / (now - self._start)
        left = (info.total - done) / rate
        self._screen.say(
            f"{self._doing}: step {done} of {info.total}, {1 / rate:.1f} s per step, "
            f"{duration(left)} left"
        )


@contextmanager
def _bar(doing: str, total: int) -> Iterator[OnStep]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    short = doing if len(doing) <= 40 else f"{doing[:39]}…"
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(short, total=total)
        yield lambda info: bar.update(task, completed=info.index + 1)
        bar.update(task, completed=total)


@contextmanager
def handle_errors(stop: Stop, *, debug: bool) -> Iterator[None]:
    """Turn an error that was raised on purpose into a sentence and its exit code.

    Anything else is a bug: it keeps its traceback and ends with 1.

    Args:
        stop: Which signal asked to stop, if one did.
        debug: Show the traceback of expected errors too, and the libraries' warnings.
    """
    if not debug:
        import warnings

        warnings.simplefilter("ignore")
    try:
        with _interrupts(stop):
            yield
    except CogeditError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {printable(error.message)}", err=True)
        if error.hint is not None:
            typer.echo(f"hint: {printable(error.hint)}", err=True)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        # What no stage foresaw, such as a full disk below stdout. The rest is a bug.
        if error.errno not in _REFUSED_BY_THE_SYSTEM:
            raise
        if debug:
            traceback.print_exc()
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        typer.echo(f"error: cannot read or write{printable(where)}: {error.strerror}", err=True)
        raise typer.Exit(StorageError.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(tell_stopped(stop.signum)) from error


@contextmanager
def _interrupts(stop: Stop) -> Iterator[None]:
    """Take what happens after a wish to stop at once for the interrupt that it comes from.

    Libraries that read a file on the way may make an error of their own of it.
    """
    try:
        yield
    except Exception as error:
        if stop.at_once:
            raise KeyboardInterrupt from error
        raise


def tell_stopped(signum: int | None) -> int:
    """Say that a command was stopped at once, and how to go on.

    Args:
        signum: The signal that stopped it; None is SIGINT.

    Returns:
        The exit code.
    """
    kind = Terminated if signum == signal.SIGTERM else Interrupted
    typer.echo(f"{kind.verb}: the same command goes on from what is kept", err=True)
    return kind.exit_code


def printable(text: str) -> str:
    """Show control characters by their code: a name must not move the cursor or add a line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def duration(seconds: float) -> str:
    """Write a time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
