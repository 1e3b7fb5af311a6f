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
import time
from typing import TextIO

from cogedit.platforms import IS_WINDOWS

_GONE = {errno.EPIPE, errno.EBADF, errno.ENXIO}
"""Errors of a stream whose reader left."""

_POLL = 0.05
"""Seconds between attempts to write to a full pipe on Windows, where `select` cannot wait."""


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
                if IS_WINDOWS:
                    time.sleep(_POLL)
                else:
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
        if error.errno in _GONE or (IS_WINDOWS and error.errno == errno.EINVAL):
            return True
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)


def make_lasting() -> Stream | None:
    """Let the standard streams outlast their readers.

    Streams that the parent process has closed become the null device: the next file that is opened
    would else take their place, and receive what is printed.

    Returns:
        The stream below `sys.stdout`; None where another program has replaced that, and of a
        console of Windows.
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
        sys.stdout, stdout = lasting(1, like=sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr, _ = lasting(2, like=sys.stderr)
    return stdout


def lasting(descriptor: int, *, like: TextIO | None) -> tuple[TextIO, Stream | None]:
    """Return a text stream in the place of another, and the stream below it.

    The new stream has the same encoding. On Windows a console keeps Python's own stream, the only
    one that can write every character there. Output to a file or a pipe is UTF-8 with plain line
    ends on Windows: the code page, which Python would use, lacks most characters.
    """
    if IS_WINDOWS and like is not None and like.isatty() and like.encoding == "utf-8":
        return like, None  # NUL is said to be a terminal, too, and has the code page
    encoding, errors = getattr(like, "encoding", "utf-8"), getattr(like, "errors", None)
    if IS_WINDOWS:
        encoding, errors = "utf-8", "backslashreplace"
    stream = Stream(descriptor, "w", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=encoding,
        errors=errors or "backslashreplace",
        newline="\n",  # none is translated
        line_buffering=getattr(like, "line_buffering", True),
    )
    return text, stream


def _open_null(descriptor: int) -> None:
    """Make the null device of a descriptor, which child processes inherit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)
