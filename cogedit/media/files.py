"""Checks on the files that a user names, before anything parses them."""

from __future__ import annotations

import difflib
import hashlib
import stat
import threading
from pathlib import Path

from cogedit.disk import FileState, is_no_name, state_from
from cogedit.errors import StorageError, VideoError
from cogedit.one_at_a_time import OneAtATime
from cogedit.places import find_elsewhere

_PLAYLIST_HEADS = (b"#EXTM3U", b"ffconcat", b"[playlist]")


def check_file(path: Path, what: str = "video", *, hint: str | None = None) -> None:
    """Refuse playlists, and whatever is not a regular file with bytes in it.

    Args:
        path: The file.
        what: What it is meant to be: "video", "mask" or "picture".
        hint: What to do where it does not exist; None names a file that is spelled like it.

    Raises:
        VideoError: It is no such file.
        StorageError: It may not be read.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(path, what, hint=hint or _near(path)) from error
    except OSError as error:
        if is_no_name(error):
            raise _missing(path, what, hint=hint or _near(path)) from error
        raise _unreadable(path, error) from error
    except ValueError as error:  # a NUL byte in the name
        raise VideoError(f"not a file name: {path!r}") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(
            f"{path} is a folder, expected a {what} file", hint=f"name one {what} in it"
        )
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(
            f"{path} is not a regular file, expected a {what} file", hint="copy it to a file first"
        )
    if status.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes), expected a {what}", hint="copy it again")
    if read_start(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLIST_HEADS):
        raise VideoError(
            f"{path} is a playlist that refers to other files, expected the {what} itself",
            hint="join the parts into one video first, for example with ffmpeg",
        )


def read_start(path: Path, count: int) -> bytes:
    """The first bytes of a file, at most `count`. Raises `StorageError` if it may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise _unreadable(path, error) from error


def file_state(path: Path) -> FileState:
    """What changes when a file does. Raises `StorageError` if it may not be read."""
    try:
        return state_from(path.stat())
    except OSError as error:
        raise _unreadable(path, error) from error


def file_digest(path: Path, *, unless: threading.Event | None = None) -> str:
    """The sha256 of a file in hex, once per process while it is unchanged.

    A thread that asks while another one computes it waits for that one.

    Raises:
        StorageError: It may not be read.
        Left: The event `unless` was set meanwhile.
    """
    key = path, file_state(path)
    with _one_digest.turn():
        if key not in _digests:
            _digests[key] = _digest(path, unless or threading.Event())
        return _digests[key]


class Left(Exception):
    """Nobody waits for a digest any more."""


_digests: dict[tuple[Path, FileState], str] = {}
_one_digest = OneAtATime()


def _digest(path: Path, unless: threading.Event) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(2**20))
    try:
        with path.open("rb") as file:
            while count := file.readinto(piece):
                digest.update(piece[:count])
                if unless.is_set():
                    raise Left
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _missing(path: Path, what: str, *, hint: str) -> VideoError:
    elsewhere = find_elsewhere(str(path))
    if elsewhere is not None:
        return VideoError(elsewhere.message, hint=elsewhere.hint)
    return VideoError(f"no such {what}: {path}", hint=hint)


_OURS = (".cogedit", ".csv", ".json", ".jsonl", ".safetensors", ".toml", ".tsv", ".txt")
"""Of workspaces, artifacts and lists, which are not meant where a video is missing."""


def _near(path: Path) -> str:
    """What may have been meant by a path that does not exist."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.suffix not in _OURS]
    except OSError:
        return "check the path"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.with_name(near[0])}?" if near else "check the path"


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot read {path}: {error.strerror or error}")
