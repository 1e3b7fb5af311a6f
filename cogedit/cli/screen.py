"""What a person sees: sentences and progress on stderr; stdout is for the result alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from cogedit.cli.progress import Notes, Thumbnail, bar_progress, event_progress, plain_progress
from cogedit.errors import CogeditError, Interrupted, StorageError, Terminated

if TYPE_CHECKING:
    from cogedit.stages.cancellation import Cancellation
    from cogedit.types import RGBPicture, ShowStep

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
        jsonl: Show everything as events, one JSON object per line. The result stays on stdout.
        thumbnail: Shown under the bar; None shows none.
        notes: What is said while a bar is there, for the bar to show.
    """

    json_output: bool = False
    quiet: bool = False
    verbose: bool = False
    jsonl: bool = False
    thumbnail: Thumbnail | None = None
    notes: Notes = field(default_factory=Notes)

    @property
    def preview(self) -> Callable[[RGBPicture], None] | None:
        """Take a picture to show under the bar; None where none would be seen."""
        if self.thumbnail is None:
            return None
        if self.quiet or self.jsonl or not _is_terminal():
            self.say("--preview shows pictures on a terminal only")
            return None
        return self.thumbnail.show

    def say(self, text: str) -> None:
        """Show one sentence, as it is: brackets are no markup, control characters are visible."""
        if not self.quiet:
            self.tell({"event": "note", "text": text}, printable(text))

    def error(self, message: str, exit_code: int, *, hint: str | None = None) -> None:
        """Show why the command ends, also where all else is quiet.

        Args:
            message: What happened.
            exit_code: What the command ends with.
            hint: What mends it.
        """
        text = f"error: {printable(message)}"
        if hint is not None:
            text += f"\nhint: {printable(hint)}"
        event = {"event": "error", "message": message, "hint": hint, "exit_code": exit_code}
        self.tell(event, text)

    def tell(self, event: Mapping[str, object], text: str = "") -> None:
        """Show something as the kind of line that was asked for, above a bar that is there.

        Args:
            event: For programs, with its kind as `event`.
            text: The same for people.
        """
        if self.jsonl:
            typer.echo(json.dumps(event), err=True)
        elif not self.notes.leave(text):
            typer.echo(text, err=True)

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
    def progress(self, doing: str, total: int) -> Iterator[ShowStep]:
        """Show the steps of a loop: a bar on a terminal, a line now and then elsewhere.

        Args:
            doing: What the loop does.
            total: Its number of steps.
        """
        if self.quiet:
            yield lambda info: None
        elif self.jsonl:
            yield event_progress(doing, self.tell)
        elif _is_terminal():
            bar = bar_progress(printable(doing), total, notes=self.notes, thumbnail=self.thumbnail)
            with bar as on_step:
                yield on_step
        else:
            yield plain_progress(doing, self.say)


@contextmanager
def handle_errors(stop: Cancellation, screen: Screen, *, debug: bool) -> Iterator[None]:
    """Turn an error that was raised on purpose into a sentence and its exit code.

    Anything else is a bug: it keeps its traceback and ends with 1.

    Args:
        stop: Which signal asked to stop, if one did.
        screen: Where to show it.
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
        screen.error(error.message, error.exit_code, hint=error.hint)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        # What no stage foresaw, such as a full disk below stdout. The rest is a bug.
        if error.errno not in _REFUSED_BY_THE_SYSTEM:
            raise
        if debug:
            traceback.print_exc()
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        screen.error(f"cannot read or write{where}: {error.strerror}", StorageError.exit_code)
        raise typer.Exit(StorageError.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(tell_stopped(stop.signum, screen)) from error


@contextmanager
def _interrupts(stop: Cancellation) -> Iterator[None]:
    """Take what happens after a wish to stop at once for the interrupt that it comes from.

    Libraries that read a file on the way may make an error of their own of it.
    """
    try:
        yield
    except Exception as error:
        if stop.immediate:
            raise KeyboardInterrupt from error
        raise


def tell_stopped(signum: int | None, screen: Screen) -> int:
    """Say that a command was stopped at once, and how to go on.

    Args:
        signum: The signal that stopped it; None is SIGINT.
        screen: Where to say it.

    Returns:
        The exit code.
    """
    kind = Terminated if signum == signal.SIGTERM else Interrupted
    text = f"{kind.verb}: the same command goes on from what is kept"
    screen.tell({"event": "error", "message": text, "exit_code": kind.exit_code}, text)
    return kind.exit_code


def printable(text: str) -> str:
    """Show control characters by their code: a name must not move the cursor or add a line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"
