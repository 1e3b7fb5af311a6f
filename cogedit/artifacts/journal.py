"""Files of JSON lines to which runs append, one line for each thing that was done.

Such a file has a fixed name in a folder that others may write to. It is therefore opened as what it
is: never through a link, which may lead to any file of the user, and never a pipe or a device,
which may hang or swallow the line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.leases import acquire, lease_of
from cogedit.errors import StorageError, UsageError

_SAFE = sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "CLOEXEC", "BINARY"))
_CHECKED_BYTES = 2**20
_READ_BYTES = 10**8  # of a file that is no journal of ours there may be any number


def append_line(path: Path, line: bytes) -> None:
    """Append a line, which ends without a newline here, and have it on the disk.

    What a full disk left of an earlier line is closed first, so that it spoils no other. Several
    processes may append to one file, each when its turn comes: between machines the file systems do
    not see to that.

    Raises:
        StorageError: The system refuses, or `path` is a link or no regular file.
    """
    try:
        with _in_turn(path), _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            rest = memoryview(line + b"\n" if _ends_whole(descriptor) else b"\n" + line + b"\n")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
    except OSError as error:
        raise storage_error(path, error, "write") from error


def read_lines(path: Path, *, begin: int = 0) -> list[bytes]:
    """Read the lines of a file; some may be cut short. Raises `StorageError` as `append_line`.

    `begin` is where in the file the first of them begins.
    """
    try:
        with _opened(path, os.O_RDONLY) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(begin)
            return file.read(_READ_BYTES).split(b"\n")
    except OSError as error:
        raise storage_error(path, error, "read") from error


def check_journal(path: Path, is_ours: Callable[[bytes], bool], *, holds: str) -> None:
    """Make sure, before anything runs, that lines may be appended to a file.

    Args:
        path: The file, which need not exist.
        is_ours: Whether a line, whole or cut short by a full disk, is one of those that it holds.
        holds: What the lines are, for the error.

    Raises:
        UsageError: The file holds something else.
        StorageError: As `append_line`.
    """
    if not os.path.lexists(path):
        return
    try:
        with _opened(path, os.O_RDWR | os.O_APPEND) as descriptor:
            start = os.read(descriptor, _CHECKED_BYTES)
    except OSError as error:
        raise storage_error(path, error, "write") from error
    lines = start.split(b"\n")
    if len(start) == _CHECKED_BYTES and len(lines) > 1:
        lines.pop()  # the window ends in the middle of it
    # What a crash left unwritten before the end of a line is zeros.
    lines = [line.lstrip(b"\0") for line in lines]
    is_empty = b"\0" in start and not any(lines)
    if is_empty or not all(is_ours(line) for line in lines if line.strip()):
        raise UsageError(
            f"{show(path)} exists and does not hold {holds}", hint="name another file, or a new one"
        )


@contextlib.contextmanager
def _in_turn(path: Path) -> Iterator[None]:
    lease = None
    with contextlib.suppress(OSError):  # a file may be written where nothing new can be made
        lease = acquire(lease_of(path), waiting=lambda: None)
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Open a regular file; a descriptor."""
    with contextlib.suppress(FileNotFoundError):  # asked first: a device may act on being opened
        _refuse_special(path, path.lstat().st_mode)
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse_special(path, stat.S_IFLNK)
        raise
    try:
        _refuse_special(path, os.fstat(descriptor).st_mode)
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_special(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else None
    raise StorageError(
        f"{show(path)} is {what or 'no regular file'}, expected a file",
        hint="name the file itself, or move this away",
    )


def _ends_whole(descriptor: int) -> bool:
    """Whether a file ends with a newline, or is empty."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return True
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"
