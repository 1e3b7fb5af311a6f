"""Files that this process has read or written: none is decoded or hashed twice while unchanged.

A file is known by its path, inode, size and time of change. Such times are coarse: a tick of the
kernel's clock, 4 ms, on most file systems, two seconds on FAT. So a file that changed just now is
not remembered, since it could change again within the tick. A file that this process wrote gets a
time that no later write would give it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from cogedit.artifacts.records import TensorRecord

RecordT = TypeVar("RecordT")
KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

_MOST = 20_000
"""Files that are remembered: a worker of days writes a hundred for each clip."""

_TICK = 2_100_000_000
"""Nanoseconds, longer than a tick of any clock that file times come from."""


@dataclass(frozen=True)
class FileState:
    """What changes when the content of a file does."""

    path: Path
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> FileState:
        """Return the state of an open file."""
        return cls._from(path, os.fstat(file.fileno()))

    @classmethod
    def at(cls, path: Path) -> FileState:
        """Return the state of what lies at a path. Raises `OSError` where nothing does."""
        return cls._from(path, path.stat())

    @classmethod
    def _from(cls, path: Path, stat: os.stat_result) -> FileState:
        return cls(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether the next change will show in the state."""
        return time.time_ns() - self.mtime_ns > _TICK


_records: dict[tuple[FileState, Callable[[bytes], object]], object] = {}
_verified: dict[FileState, tuple[TensorRecord, ...]] = {}


def known_record(state: FileState, decode: Callable[[bytes], RecordT]) -> RecordT | None:
    """Return the record that was decoded from a file in this state."""
    return cast(RecordT | None, _records.get((state, decode)))


def remember_record(state: FileState, decode: Callable[[bytes], RecordT], record: RecordT) -> None:
    """Remember the record of a file whose header and size were checked."""
    if state.is_settled or state in _verified:
        _keep(_records, (state, decode), record)


def is_verified(state: FileState, tensors: tuple[TensorRecord, ...]) -> bool:
    """Whether the bytes of a file in this state are known to be those of its tensors."""
    return _verified.get(state) == tensors


def remember_verified(state: FileState, tensors: tuple[TensorRecord, ...]) -> None:
    """Remember that the bytes of a file were compared with the digests of its tensors."""
    if state.is_settled:
        _keep(_verified, state, tensors)


def stamp(path: Path, file: BinaryIO) -> FileState | None:
    """Give a file that is written whole a time of change that no later write would give it.

    Returns its state for `remember_written`; None where times cannot be set to the nanosecond.
    """
    file.flush()
    if os.utime not in os.supports_fd:
        return None
    now = time.time_ns()  # finer than the kernel's own time of a write
    try:
        os.utime(file.fileno(), ns=(now, now))
    except OSError:
        return None
    state = FileState.of(path, file)
    return state if state.mtime_ns == now else None


def remember_written(state: FileState | None, tensors: tuple[TensorRecord, ...]) -> None:
    """Remember a file that this process wrote: its digests are those of the bytes written."""
    if state is not None:
        _keep(_verified, state, tensors)


def _keep(known: dict[KeyT, ValueT], key: KeyT, value: ValueT) -> None:
    """Note something, and forget what was noted first where there is too much."""
    if len(known) >= _MOST:
        known.pop(next(iter(known)), None)
    known[key] = value
