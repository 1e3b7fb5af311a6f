"""Locks between processes. They save work; nothing is correct only because of them.

Some network and FUSE file systems have no locks, or locks that everyone gets at once. Files are
therefore written whole under names of their own content: without a lock two processes make the same
bytes twice, and that is all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

if sys.platform != "win32":
    import fcntl

POLL_INTERVAL = 0.2
"""Seconds between two attempts to get a lock."""

MAX_FOLDERS = 32
"""Folders that one command keeps in use at a time: a process may open 256 files on some systems."""


def acquire(path: Path, *, waiting: Callable[[], None] | None) -> FileLock | None:
    """Take a lock that no other process holds. It ends with the process, however that ends.

    Its folder is made as often as needed: the process that holds the lock removes it when it is
    done. `waiting` is called once if another process holds it.

    Returns:
        The lock, to be released; None where the file system has none.

    Raises:
        BlockingIOError: Another process holds it, and `waiting` is None.
        OSError: The folder cannot be made.
    """
    from filelock import FileLock, Timeout  # imports asyncio, a quarter of a second

    # A marker file in place of a lock, filelock's own substitute, would outlive a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    is_waiting = False
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if waiting is None:
                raise BlockingIOError(f"{path} is locked") from error
            if not is_waiting:
                waiting()
                is_waiting = True
            time.sleep(POLL_INTERVAL)
        except FileNotFoundError:
            continue  # the folder was removed between the two lines
        except (OSError, NotImplementedError):
            return None
        else:
            return lock


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark a folder as used while the block runs; any number of processes may use it.

    The mark is a shared lock on the folder itself and leaves no file behind. Where a folder cannot
    be locked, the block runs without. Inside of `keeping_in_use` the mark stays until that ends.
    """
    keep_in_use(folder)
    descriptor = _mark(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def keeping_in_use() -> Iterator[None]:
    """Keep every folder that is marked in this thread while the block runs, until it ends.

    The outermost of such blocks counts: what a command made or found is not removed before the
    command has ended, also between its stages.
    """
    if _kept.get() is not None:
        yield
        return
    marks: dict[Path, int] = {}
    token = _kept.set(marks)
    try:
        yield
    finally:
        _kept.reset(token)
        for descriptor in marks.values():
            os.close(descriptor)


def keep_in_use(folder: Path) -> None:
    """Mark a folder as used until the block of `keeping_in_use` ends; outside of one do nothing."""
    marks = _kept.get()
    if marks is None:
        return
    place = Path(os.path.realpath(folder))
    if place in marks:
        return
    descriptor = _mark(place)
    if descriptor is None:
        return
    marks[place] = descriptor
    if len(marks) > MAX_FOLDERS:  # a batch over very many; with the first of them it is done
        os.close(marks.pop(next(iter(marks))))


_kept: ContextVar[dict[Path, int] | None] = ContextVar("kept", default=None)


def _mark(folder: Path) -> int | None:
    """Take a shared lock on a folder; the descriptor holds it, None where there can be none."""
    descriptor = _open_folder(folder)
    if descriptor is not None and sys.platform != "win32":
        with contextlib.suppress(OSError):
            # Waits for a process that removes leftovers, which takes no time.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextlib.contextmanager
def writing_alone(path: Path) -> Iterator[bool | None]:
    """Keep other processes from writing a file while the block runs, if none writes it now.

    Yields True if no other process does, False if one does, and None where there are no locks. The
    lock is a file beside it, which is removed with the lock.
    """
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    lock_file = path.parent / f".cogedit-{name}.lock"
    try:
        lock = acquire(lock_file, waiting=None)
    except BlockingIOError:
        yield False
        return
    except OSError:
        lock = None
    try:
        yield None if lock is None else True
    finally:
        if lock is not None:
            # Removed while locked: whoever opened it before notices that it is gone.
            with contextlib.suppress(OSError):
                lock_file.unlink()
            lock.release()


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool | None]:
    """Keep other processes from using a folder while the block runs, if none uses it now.

    Yields True if no other process uses it, False if one does, and None where the file system has
    no working locks to tell.
    """
    first, second = _open_folder(folder), _open_folder(folder)
    try:
        free = _try_lock(first)
        # A lock that works cannot be had twice; one that everyone gets says nothing.
        yield None if free and _try_lock(second) is not False else free
    finally:
        for descriptor in (first, second):
            if descriptor is not None:
                os.close(descriptor)


def _open_folder(folder: Path) -> int | None:
    if sys.platform == "win32":  # has no locks on folders
        return None
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:
        return None


def _try_lock(descriptor: int | None) -> bool | None:
    """Lock a folder for this process alone; False if it is in use, None if it cannot be locked."""
    if descriptor is None or sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
