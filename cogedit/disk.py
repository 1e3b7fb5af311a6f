"""How a finished file takes its place on disk: whole, durably, and over nothing that it may not.

Also folders that other processes make, list and remove meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

FileState = tuple[int, int, int, int]
"""Device, inode, size and modification time in ns: equal while a file is unchanged."""

Over = FileState | Literal["anything"] | None
"""What a new file may replace: a file in this very state, anything, or nothing at all."""

OPEN_HINT = "close it there, or choose another place, and run the same command again: what was "
OPEN_HINT += "computed is kept"
"""What to do about an `OpenElsewhere`."""

_SHARING = 32
"""Windows' number for a file that another program has open."""

_OPEN = {5, _SHARING}
"""Those that it may give then: 5 is access denied, for whatever reason."""

_NO_NAMES = {123, 161, 206}
"""Windows' numbers for a name that no file can have: characters such as * and ?, too long."""

NO_NAME = "no file can have this name here"
"""What to say of an error that `is_no_name`."""

_PAUSES = (0.02, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0)
"""Seconds between attempts: a scanner for viruses or an indexer lets go of a new file soon."""

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class OpenElsewhere(PermissionError):
    """What another program has open cannot be renamed or replaced, which is so on Windows."""


def is_no_name(error: OSError) -> bool:
    """Whether Windows says that no file can have a name, which it tells apart from a missing one.

    The numbers of other systems stay what they are: they let nearly all names be.
    """
    return getattr(error, "winerror", None) in _NO_NAMES


def state_of(path: Path) -> FileState | None:
    """The state of what lies at a path, of a link its own; None where nothing does."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return state_from(status)


def state_from(status: os.stat_result) -> FileState:
    """Take the state of a file from what the system says of it."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_regular(path: Path) -> bool:
    """Whether a path is a file itself: no link to one, no folder, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def make_folder(path: Path) -> None:
    """Make a folder that another process may remove at any moment, and may have made.

    `mkdir(exist_ok=True)` looks twice, and fails where the folder went between the two looks. Here
    it is there no more in that case. Raises `OSError` where the system refuses, or something else
    is at this path.
    """
    try:
        path.mkdir()
    except FileExistsError:
        if path.is_file() or (path.is_symlink() and not path.exists()):
            raise
    except OSError:  # some systems say this of the root of a disk, or of a mounted folder
        if not path.is_dir():
            raise


def files_in(folder: Path, pattern: str) -> list[Path]:
    """List the paths in a folder that match a pattern; none where another process removed it.

    `glob` looks twice, and before Python 3.12 fails where the folder went between the two looks.
    """
    with contextlib.suppress(FileNotFoundError):
        return [*folder.glob(pattern)]
    return []


class NamelessFile:
    """A file without a name, for what is too large for memory.

    It is gone when this object is, or when its process ends, however it ends.

    Args:
        folder: Where it has room; None, and where no file can be made there, is the system's folder
            for temporary files.

    Raises:
        OSError: Whenever the system refuses.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = _open_nameless(folder)
        self._size = 0
        weakref.finalize(self, self._file.close)

    def append(self, content: memoryview) -> int:
        """Write bytes at the end; return where they begin."""
        begin = self._size
        self._file.seek(begin)
        while content:
            count = self._file.write(content)
            content = content[count:]
            self._size += count
        return begin

    def read_into(self, content: memoryview, begin: int) -> None:
        """Read as many bytes as `content` has, which were written at `begin`."""
        self._file.seek(begin)
        while content:
            content = content[self._file.readinto(content) :]  # type: ignore[attr-defined]


def _open_nameless(folder: Path | None) -> IO[bytes]:
    if folder is not None:
        with contextlib.suppress(OSError):  # it is only read from, or on a full disk
            return tempfile.TemporaryFile(dir=folder, buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def move_into_place(temporary: Path, path: Path, *, over: Over = "anything") -> None:
    """Give a finished file or folder its name, and have the name on the disk.

    A folder takes the place of another one by way of a third name, since no system call does both:
    what it replaced is left there, under `temporary` again, for the caller to remove.

    Raises:
        FileExistsError: At `path` lies what it may not replace.
        OpenElsewhere: Another program has it open, and keeps it so for seconds.
        OSError: The system refuses.
    """
    found = state_of(path)
    if over != "anything" and found not in (None, over):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if temporary.is_dir():
        _move_folder(temporary, path)
    elif over == "anything" or found is not None:
        _replace(temporary, path)
    else:
        _move_where_nothing_is(temporary, path)
    sync_folder(path.absolute().parent)


def _move_folder(temporary: Path, path: Path) -> None:
    if not os.path.lexists(path):
        _rename(temporary, path)
        return
    aside = temporary.with_name(f"{temporary.name[:-16]}{secrets.token_hex(8)}")
    _rename(path, aside)
    try:
        _rename(temporary, path)
    except OSError:
        _rename(aside, path)
        raise
    _rename(aside, temporary)


def _move_where_nothing_is(temporary: Path, path: Path) -> None:
    """Rename a file unless something took its name meanwhile, which no rename of POSIX can."""
    if os.name == "nt":
        _rename(temporary, path)  # refuses by itself
        return
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        _replace(temporary, path)
    else:
        temporary.unlink()


FRAME_NAME = re.compile(r"frame-\d{4,}\.png")
"""Names of the images in a folder that an export writes."""


def remove_folder(folder: Path, names: re.Pattern[str]) -> None:
    """Remove a folder and the files in it that have such names, through no link.

    Raises:
        OSError: It is a link, or holds something else, which stays.
    """
    if os.unlink not in os.supports_dir_fd:  # Windows
        for file in folder.iterdir():
            if names.fullmatch(file.name):
                file.unlink()
    else:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in os.listdir(opened):  # noqa: PTH208  (of the folder that is open)
                if names.fullmatch(name):
                    os.unlink(name, dir_fd=opened)
        finally:
            os.close(opened)
    folder.rmdir()


def _rename(old: Path, new: Path) -> None:
    """Rename; over a file that exists on POSIX alone."""
    _while_open(lambda: old.rename(new), new)


def _replace(old: Path, new: Path) -> None:
    """Rename over what may lie there."""
    _while_open(lambda: os.replace(old, new), new)  # noqa: PTH105  (the name says what it does)


def _while_open(move: Callable[[], object], path: Path) -> None:
    """Try again for some seconds while another program has a file open."""
    for pause in (*_PAUSES, None):
        try:
            move()
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _OPEN:
                raise
            if pause is None:
                said = "it is open in another program"
                if getattr(error, "winerror", None) != _SHARING:
                    said += ", or may not be written"
                raise OpenElsewhere(error.errno, said, str(path)) from error
        time.sleep(pause)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network and FUSE file systems, and Windows, cannot sync a folder: nothing to do.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
