"""Files that this process has read or written: none is decoded or hashed twice while unchanged.

A file is known by its path, device, inode, size and time of change. Such times are coarse: a tick
of the kernel's clock, 4 ms, on most file systems, two seconds on FAT. So a file that changed just
now is not remembered, since it could change again within the tick. A file that this process wrote
gets a time that no later write would give it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

from cogedit.artifacts.records import TensorRecord
from cogedit.disk import FileState, state_from

RecordT = TypeVar("RecordT")
KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

_MOST = 20_000
"""Files that are remembered: a worker of days writes a hundred for each clip."""

_TICK = 2_100_000_000
"""Nanoseconds, longer than a tick of any clock that file times come from."""


class KnownFile(NamedTuple):
    """A file in a state that changes when its content does."""

    path: Path
    state: FileState

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> KnownFile:
        """Return a file by what the system says of it."""
        return cls(path.absolute(), state_from(status))

    @property
    def is_settled(self) -> bool:
        """Whether the next change will show in the state."""
        return time.time_ns() - self.state[-1] > _TICK


_records: dict[tuple[KnownFile, Callable[[bytes], object]], object] = {}
_verified: dict[KnownFile, tuple[TensorRecord, ...]] = {}


def known_record(file: KnownFile, decode: Callable[[bytes], RecordT]) -> RecordT | None:
    """Return the record that was decoded from a file in this state."""
    return cast(RecordT | None, _records.get((file, decode)))


def remember_record(file: KnownFile, decode: Callable[[bytes], RecordT], record: RecordT) -> None:
    """Remember the record of a file whose header and size were checked."""
    if file.is_settled or file in _verified:
        _keep(_records, (file, decode), record)


def is_verified(file: KnownFile, tensors: tuple[TensorRecord, ...]) -> bool:
    """Whether the bytes of a file in this state are known to be those of its tensors."""
    return _verified.get(file) == tensors


def remember_verified(file: KnownFile, tensors: tuple[TensorRecord, ...]) -> None:
    """Remember that the bytes of a file were compared with the digests of its tensors."""
    if file.is_settled:
        _keep(_verified, file, tensors)


def stamp(path: Path, file: BinaryIO) -> KnownFile | None:
    """Give a file that is written whole a time of change that no later write would give it.

    Returns it for `remember_written`; None where times cannot be set to the nanosecond.
    """
    file.flush()
    if os.utime not in os.supports_fd:
        return None
    now = time.time_ns()  # finer than the kernel's own time of a write
    try:
        os.utime(file.fileno(), ns=(now, now))
    except OSError:
        return None
    written = KnownFile.of(path, os.fstat(file.fileno()))
    return written if written.state[-1] == now else None


def remember_written(file: KnownFile | None, tensors: tuple[TensorRecord, ...]) -> None:
    """Remember a file that this process wrote: its digests are those of the bytes written."""
    if file is not None:
        _keep(_verified, file, tensors)


def _keep(known: dict[KeyT, ValueT], key: KeyT, value: ValueT) -> None:
    """Note something, and forget what was noted first where there is too much."""
    if len(known) >= _MOST:
        known.pop(next(iter(known)), None)
    known[key] = value
