"""Standard streams that cannot end a run: what nobody can read any more is dropped.

A run takes minutes on a GPU, and its results are files. So a terminal that is closed, a reader that
has read enough (`2>&1 | head -1`) or a full disk below stderr must not stop it.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from typing import TextIO

_GONE = {errno.EPIPE, errno.EBADF, errno.ENXIO}
"""Errors of a stream whose reader left."""


class Stream(io.FileIO):
    """A standard stream that accepts whatever is written, also when its file takes no more.

    Attributes:
        problem: Why something that was meant for a file is not in it; None also where the reader
            left of its own accord.
    """

    problem: OSError | None = None

    def write(self, data: object) -> int:
        """Write bytes; after the first failure they go to the null device."""
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            while (written := super().write(view)) is None:
                # Another process has made the pipe or the terminal non-blocking.
                select.select([], [self.fileno()], [])
        except OSError as error:
            if not self._reader_left(error):
                self.problem = error
            # Below Python too: libraries and child processes write to the same descriptor.
            _open_null(self.fileno())
            return view.nbytes
        return written

    def _reader_left(self, error: OSError) -> bool:
        """Whether the pipe's reader or the terminal went away; a full disk is another matter."""
        if error.errno in _GONE:
            return True
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)


def make_lasting() -> Stream | None:
    """Let the standard streams outlast their readers.

    Streams that the parent process has closed become the null device: the next file that is opened
    would else take their place, and receive what is printed.

    Returns:
        The stream below `sys.stdout`; None where another program has replaced that.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    stdout = None
    if sys.stdout is sys.__stdout__:
        stdout = Stream(1, "w", closefd=False)
        sys.stdout = _text(stdout, like=sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(Stream(2, "w", closefd=False), like=sys.stderr)
    return stdout


def _text(stream: Stream, *, like: TextIO | None) -> io.TextIOWrapper:
    """Return a text stream with the encoding of the one that it replaces."""
    return io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=getattr(like, "encoding", "utf-8"),
        errors=getattr(like, "errors", "backslashreplace"),
        line_buffering=getattr(like, "line_buffering", True),
    )


def _open_null(descriptor: int) -> None:
    """Make the null device of a descriptor, which child processes inherit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)
