"""Files that are whole or absent, and messages for what the system refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cogedit.artifacts.locks import in_use
from cogedit.disk import (
    NO_NAME,
    OPEN_HINT,
    OpenElsewhere,
    Over,
    files_in,
    is_no_name,
    is_regular,
    move_into_place,
)
from cogedit.errors import StorageError, UsageError

_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextlib.contextmanager
def atomic_write(
    path: Path, *, scratch: Path | None = None, over: Over = "anything"
) -> Iterator[BinaryIO]:
    """Open `path` for writing so that it appears whole, or not at all.

    The bytes go to a temporary file, which takes the name of `path` when the block ends and is
    removed when the block raises. File and folder are fsynced: without the first a power loss may
    leave a renamed file of zeros, without the second the old name.

    Args:
        path: The file to write; an older one stays untouched until the new one is complete.
        scratch: Folder of the temporary file, on the same file system; by default that of `path`.
        over: What it may replace.

    Raises:
        UsageError: At `path` lies what may not be replaced; caused by a `FileExistsError`.
        StorageError: Disk full, folder missing, permission denied, or `path` is no regular file.
    """
    folder = path.parent if scratch is None else scratch
    temporary = folder / f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
    with in_use(path.parent):  # `cache prune` leaves the temporary file alone
        try:
            _refuse_special(path)
            # Created with mode 0666, which the kernel reduces by the umask; asking for the umask in
            # order to chmod would have to change it for every thread of the process.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
            descriptor = os.open(temporary, flags, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            move_into_place(temporary, path, over=over)
        except FileExistsError as error:
            raise UsageError(
                f"{show(path)} was written by another process meanwhile",
                hint="choose another -o, or replace it with --force",
            ) from error
        except OSError as error:
            raise storage_error(path, error, "write") from error
        finally:
            with contextlib.suppress(OSError):  # after os.replace it is gone
                temporary.unlink()


def temporary_files(folder: Path) -> list[Path]:
    """The half-written files in a folder; only a killed process leaves one behind."""
    found = files_in(folder, f".*{_TEMPORARY_SUFFIX}")
    return [path for path in found if _TEMPORARY.fullmatch(path.name) and is_regular(path)]


def storage_error(path: Path, error: OSError, verb: str) -> StorageError:
    """One sentence for what the system refused: `verb` is "read" or "write"."""
    hint: str | None = None
    match error.errno:
        case _ if isinstance(error, OpenElsewhere):
            reason, hint = error.strerror, OPEN_HINT
        case _ if is_no_name(error):
            reason, hint = NO_NAME, "choose a shorter or a plainer one"
        case errno.ENOSPC | errno.EDQUOT:
            reason, hint = "the disk is full", "free some space and run the command again"
        case errno.ENOENT:
            reason = f"the folder {show(path.parent)} does not exist"
            hint = "create the folder first"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            reason = "permission denied"
            hint = "choose another place with --output or --workspace" if verb == "write" else None
        case errno.EISDIR:
            reason = "it is a folder"
        case _:
            reason = error.strerror or type(error).__name__
    return StorageError(f"cannot {verb} {show(path)}: {reason}", hint=hint)


def show(path: Path) -> str:
    """A path for a message: on one line, whatever the file is called."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def show_size(num_bytes: float) -> str:
    """A number of bytes for a message, such as "4.5 MB"."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    for unit in ("KB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes:.0f} GB"


_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would translate line ends otherwise


def _refuse_special(path: Path) -> None:
    """Keep `-o /dev/null` from replacing the device by a file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise StorageError(f"cannot write {show(path)}: it is {what}")
