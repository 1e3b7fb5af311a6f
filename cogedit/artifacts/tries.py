"""Tries: how many processes took something on, and ended without a word of what became of it.

Each leaves a mark beside the lease that it holds, and removes it with its last word. So a mark that
another process finds is one of a process that was killed, or whose machine went down. The marks lie
in a folder that looks like a lease: `cache prune` knows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from cogedit.artifacts.atomic import storage_error
from cogedit.artifacts.leases import HOLDER_NAME, lease_of, name_of_holder
from cogedit.disk import make_folder, remove_folder


class Tries:
    """The marks of those who took one thing on, to be used by whoever holds its lease.

    Args:
        path: What the lease is for; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = lease_of(path.with_name(f"{path.name} tries"))
        self._own = self._folder / name_of_holder()

    def begin(self) -> int:
        """Leave a mark; return how many others are there. Raises `StorageError`."""
        try:
            if self._folder.is_symlink():
                raise FileExistsError(errno.EEXIST, "a link is in the place of a folder of cogedit")
            make_folder(self._folder)
            num_others = sum(1 for one in self._folder.iterdir() if HOLDER_NAME.fullmatch(one.name))
            os.close(os.open(self._own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except OSError as error:
            raise storage_error(self._path, error, "write") from error
        return num_others

    def withdraw(self) -> None:
        """Remove the own mark: this process ends, and says so."""
        with contextlib.suppress(OSError):
            self._own.unlink()
        with contextlib.suppress(OSError):  # there are others
            self._folder.rmdir()

    def forget(self) -> None:
        """Remove all marks: it is known what became of it."""
        with contextlib.suppress(OSError):
            remove_folder(self._folder, HOLDER_NAME)
