"""A line at the bottom of a terminal that says what is being waited for, and for how long."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cogedit.cli.progress import duration
from cogedit.platforms import IS_WINDOWS

_FIRST_AFTER = 0.5
"""Seconds until the line appears: what is quicker shows nothing."""

_INTERVAL = 0.25
_CLEAR = "\r\x1b[K"


class WaitingLine:
    """Shows the innermost of the waits that are open; its time passes while nothing is reported.

    A thread of its own draws, as long as there is a wait. What else is written to the terminal goes
    through `aside`, which takes the line away first.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waits: list[tuple[str, float]] = []
        self._is_shown = False

    @contextmanager
    def waiting(self, doing: str) -> Iterator[None]:
        """Say what is being waited for while the block runs."""
        done = threading.Event()
        with self._lock:
            self._waits.append((doing, time.monotonic()))
            mine = len(self._waits)
        thread = threading.Thread(target=self._draw_until, args=(done, mine), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            with self.aside():
                del self._waits[mine - 1 :]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the line away, and draw none while the block runs."""
        with self._lock:
            if self._is_shown:
                self._write(_clear())
                self._is_shown = False
            yield

    def _draw_until(self, done: threading.Event, mine: int) -> None:
        left = _FIRST_AFTER
        while not done.wait(left):
            left = _INTERVAL
            with self._lock:
                if len(self._waits) == mine and not done.is_set():
                    doing, since = self._waits[-1]
                    text = f"{doing} {duration(time.monotonic() - since)}"
                    self._is_shown = True
                    self._write(_clear() + text[: _width()])

    @staticmethod
    def _write(text: str) -> None:
        with suppress(OSError):  # the terminal has gone away
            if IS_WINDOWS:  # whose console takes bytes in its own code page
                sys.stderr.write(text)
                sys.stderr.flush()
            else:
                os.write(2, text.encode(errors="replace"))


def _width() -> int:
    """Columns of the line: a terminal shows Ctrl-C behind it, and it must not wrap."""
    return max(1, shutil.get_terminal_size().columns - len("^C") - 1)


def _clear() -> str:
    """Take the line away. Not every console of Windows knows the sequence for that."""
    return f"\r{' ' * _width()}\r" if IS_WINDOWS else _CLEAR
