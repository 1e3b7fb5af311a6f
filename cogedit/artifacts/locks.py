"""Locks between processes. They save work; nothing is right only because of them.

Some network and FUSE file systems have no locks, or locks that everyone gets at once. Files are
therefore written whole under names of their own content: without a lock two processes make the same
bytes twice, and that is all.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

POLL_INTERVAL = 0.2
"""Seconds between two looks at a lock that another process holds."""


def acquire(path: Path, *, waiting: Callable[[], None] | None) -> FileLock | None:
    """Wait until no other process holds a lock, and hold it.

    The lock ends with the process, however it ends. The folder of `path` is made as often as
    needed: the process that was waited for removes it when it is done.

    Args:
        path: The lock file.
        waiting: Called once if another process holds it; None does not wait.

    Returns:
        The lock, to be released; None where the file system has none.

    Raises:
        BlockingIOError: Another process holds it, and `waiting` is None.
        OSError: The folder cannot be made.
    """
    from filelock import FileLock, Timeout

    # A marker file in place of a lock, filelock's own substitute, would outlive a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    told = False
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if waiting is None:
                raise BlockingIOError(f"{path} is held") from error
            if not told:
                waiting()
                told = True
            time.sleep(POLL_INTERVAL)
        except FileNotFoundError:
            continue  # the folder went between the two lines
        except (OSError, NotImplementedError):
            return None
        else:
            return lock


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Mark a folder as used while the block runs; any number of processes may use it.

    The mark is a shared lock on the folder itself and leaves no file behind. Where a folder cannot
    be locked, the block runs without.
    """
    descriptor = _lock_folder(folder, shared=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool | None]:
    """Keep processes from using a folder while the block runs, if none uses it now.

    Yields:
        True if no other process uses it; False if one does; None where nobody can tell, because
        the file system has no locks.
    """
    descriptor = _lock_folder(folder, shared=False)
    if descriptor is None:
        yield None
        return
    try:
        held = _try_lock(descriptor)
        if held and not _second_lock_fails(folder):
            yield None
        else:
            yield held
    finally:
        os.close(descriptor)


def _lock_folder(folder: Path, *, shared: bool) -> int | None:
    """Open a folder and, if shared, lock it; None where that is not possible."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    if shared:
        try:
            # Whoever holds it alone removes leftovers, which takes no time.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            return None
    return descriptor


def _try_lock(descriptor: int) -> bool | None:
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _second_lock_fails(folder: Path) -> bool:
    """Tell a lock that works from one that everyone gets: it cannot be had twice."""
    second = _lock_folder(folder, shared=False)
    if second is None:
        return False
    try:
        return _try_lock(second) is False
    finally:
        os.close(second)
