"""What a person sees: sentences and progress on stderr; stdout is for the result alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import typer

from cogedit.cancellation import Cancellation
from cogedit.cli.progress import Notes, Thumbnail, event_progress, plain_progress
from cogedit.cli.waiting import WaitingLine
from cogedit.disk import NO_NAME, is_no_name
from cogedit.errors import (
    CogeditError,
    Interrupted,
    StorageError,
    Terminated,
    memory_expected,
)
from cogedit.progress import RGBPicture, ShowStep

_REFUSED = "ACCES DQUOT FBIG IO LOOP MFILE NAMETOOLONG NFILE NOSPC PERM ROFS STALE"
"""Errors of the operating system that are no bug, by their names in `errno` after the E."""

_STOPPING = "Stopping after this step; press Ctrl-C again to stop now."


@dataclass(frozen=True)
class Screen:
    """Where a command shows what it does.

    Attributes:
        json_output: Print one JSON object instead of paths.
        quiet: Show errors only.
        verbose: Show details too.
        jsonl: Show everything as events, one JSON object per line. The result stays on stdout.
        thumbnail: Shown under the bar; None shows none.
        notes: Sentences for the bar to show above itself.
        line: Says on a terminal what is being waited for.
    """

    json_output: bool = False
    quiet: bool = False
    verbose: bool = False
    jsonl: bool = False
    thumbnail: Thumbnail | None = None
    notes: Notes = field(default_factory=Notes)
    line: WaitingLine = field(default_factory=WaitingLine)

    @property
    def preview(self) -> Callable[[RGBPicture], None] | None:
        """Take an image to show under the bar; None where it could not be seen."""
        if self.thumbnail is None:
            return None
        if self.quiet or self.jsonl or not _is_terminal():
            self.say("--preview shows images on a terminal only")
            return None
        return self.thumbnail.show

    def say(self, text: str) -> None:
        """Show one sentence as it is: brackets are not markup, control characters are visible."""
        if not self.quiet:
            self.emit({"event": "note", "text": text}, printable(text))

    def detail(self, text: str) -> None:
        """Show one sentence under --verbose."""
        if self.verbose:
            self.say(text)

    def error(self, message: str, exit_code: int, *, hint: str | None = None) -> None:
        """Show why the command ends, also under --quiet."""
        text = f"error: {printable(message)}"
        if hint is not None:
            text += f"\nhint: {printable(hint)}"
        event = {"event": "error", "message": message, "hint": hint, "exit_code": exit_code}
        self.emit(event, text)

    def emit(self, event: Mapping[str, object], text: str = "") -> None:
        """Show an event to programs as a JSON line, or its text to people, above the bar."""
        if self.jsonl:
            typer.echo(json.dumps(event), err=True)
        elif not self.notes.put(text):
            with self.line.aside():
                typer.echo(text, err=True)

    def result(self, command: str, outputs: Sequence[Mapping[str, object]]) -> None:
        """Print the `path` of each file that was written, or one JSON object with all else."""
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
        """Show the steps of a loop: a bar on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield lambda info: None
        elif self.jsonl:
            yield event_progress(doing, self.emit)
        elif _is_terminal():
            from cogedit.cli.bar import bar_progress  # brings rich's progress bars

            bar = bar_progress(printable(doing), total, notes=self.notes, thumbnail=self.thumbnail)
            with self.line.aside(), bar as on_step:
                yield on_step
        else:
            yield plain_progress(doing, self.say)

    @contextmanager
    def wait(self, doing: str, *, is_said: bool = False) -> Iterator[None]:
        """Show what is being waited for, with the time that passes, on a terminal.

        Elsewhere it is one sentence, where `is_said`.
        """
        if not (self.quiet or self.jsonl) and _is_terminal():
            with self.line.waiting(printable(doing)):
                yield
            return
        if is_said:
            self.say(doing)
        yield


@contextmanager
def handle_errors(
    screen: Screen, *, cancellation: Cancellation | None = None, debug: bool = False
) -> Iterator[None]:
    """Turn an error that was raised on purpose into a sentence and its exit code.

    Anything else is a bug: it keeps its traceback and ends with 1.

    Args:
        screen: Where to show it.
        cancellation: Passes SIGINT and SIGTERM on to the loop that is running.
        debug: Show the traceback of expected errors too, and the libraries' warnings.
    """
    if not debug:
        warnings.simplefilter("ignore")
    cancellation = cancellation or Cancellation()
    try:
        with _signals_passed_on(cancellation, screen), memory_expected("this run"):
            _check_directory()
            yield
    except CogeditError as error:
        if debug:
            _show_traceback()
        screen.error(error.message, error.exit_code, hint=error.hint)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        # What no stage foresaw, such as a full disk below stdout. The rest is a bug.
        is_refused = errno.errorcode.get(error.errno or 0, "")[1:] in _REFUSED.split()
        if not is_refused and not is_no_name(error):
            raise
        if debug:
            _show_traceback()
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        reason = NO_NAME if is_no_name(error) else error.strerror
        screen.error(f"cannot read or write{where}: {reason}", StorageError.exit_code)
        raise typer.Exit(StorageError.exit_code) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(report_stopped(cancellation.signum, screen)) from error


def _show_traceback() -> None:
    """Write the traceback of the current error, with control characters shown by their codes."""
    for line in traceback.format_exc().splitlines():
        sys.stderr.write(f"{printable(line)}\n")


def _check_directory() -> None:
    """Refuse to run where no relative path means anything."""
    try:
        Path.cwd()
    except OSError as error:
        raise StorageError(
            "the current directory does not exist any more", hint="cd to another one"
        ) from error


@contextmanager
def _signals_passed_on(cancellation: Cancellation, screen: Screen) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM end a long loop after its step, and the second end it now.

    Where no loop can stop between steps, KeyboardInterrupt is raised at the first.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if not cancellation.request(signum):
            raise KeyboardInterrupt
        if screen.notes.put(_STOPPING):
            return
        # Not through Python's stderr, which may be in the middle of a write.
        event = json.dumps({"event": "note", "text": _STOPPING})
        with suppress(OSError):
            os.write(2, f"{event}\n".encode() if screen.jsonl else f"\n{_STOPPING}\n".encode())

    previous = {}
    # Only the main thread may change how signals are handled, and what the parent process ignores,
    # such as SIGINT in the background of a shell, stays ignored.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield
    except Exception as error:
        # A library that reads a file may have turned the interrupt into an error of its own.
        if cancellation.immediate:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def report_stopped(signum: int | None, screen: Screen) -> int:
    """Say that a signal, None is SIGINT, stopped the command at once; return the exit code."""
    kind = Terminated if signum == signal.SIGTERM else Interrupted
    text = f"{kind.verb}: run the same command again to continue from the last saved step"
    screen.emit({"event": "error", "message": text, "exit_code": kind.exit_code}, text)
    return kind.exit_code


def report_unprinted(problem: OSError, screen: Screen) -> int:
    """Say that the result could not be printed; return the exit code."""
    text = f"cannot write to stdout: {problem.strerror}; what was made is in its files"
    screen.error(text, StorageError.exit_code)
    return StorageError.exit_code


def printable(text: str) -> str:
    """Show control characters by their code: a name must not move the cursor or add a line."""
    return (
        text
        if text.isprintable()
        else "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
        )
    )


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"
