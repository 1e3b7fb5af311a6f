"""Marks on folders that processes use, so that `cache prune` takes nothing from under them.

They are locks of the system on the folders themselves: any number of processes holds one, it ends
with its process, leaves no file behind and works in folders that are only read. On some network and
FUSE file systems there are no locks, or everyone gets them, or they are seen on one machine only.
So `prune` also asks for leases, which a command has while it makes or writes something, and where
locks tell nothing, for the time of the last change. What is removed too early is made again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

if sys.platform != "win32":
    import fcntl

MAX_FOLDERS = 32
"""Folders that one command keeps in use at a time: a process may open 256 files on some systems."""


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
