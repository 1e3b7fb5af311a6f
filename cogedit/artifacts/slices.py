"""Tensors on disk that are read and written slice by slice: a long clip does not fit into memory.

Slices are read, never mapped: a file truncated under a mapping kills the process with SIGBUS.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.layout import num_bytes
from cogedit.artifacts.records import TensorDType, TensorRecord
from cogedit.errors import ArtifactDamaged

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pieces:
    """A tensor that is written slice by slice.

    Attributes:
        dtype: Of the whole.
        shape: Likewise.
        slices: Gives its slices along the first axis in turn, on any device; asked again where
            writing begins anew.
    """

    dtype: TensorDType
    shape: tuple[int, ...]
    slices: Callable[[], Iterator[torch.Tensor]]


class Slices:
    """A tensor of a file whose bytes were checked: `[i]` and `[i:j]` read a part of its first axis.

    What is read is a copy of its own, on the CPU. The file stays open as long as a tensor of it is
    in use, so a file that takes its place changes nothing; it belongs to one thread.

    Raises, whenever it is read:
        ArtifactDamaged: The file became shorter.
        StorageError: The system refuses to read it.
    """

    def __init__(self, file: _OpenFile, record: TensorRecord, offset: int) -> None:
        self._file, self._record, self._offset = file, record, offset
        self.shape = record.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: int | slice) -> torch.Tensor:
        if not isinstance(part, slice):
            index = range(len(self))[part]
            return self[index : index + 1][0]
        first, last, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"slices are read in order, and not in steps of {step}")
        import torch

        shape = (max(last - first, 0), *self.shape[1:])
        tensor = torch.empty(shape, dtype=getattr(torch, self._record.dtype))
        each = num_bytes(self._record) // len(self)
        content = tensor.reshape(-1).view(torch.uint8).numpy().data.cast("B")
        self._file.read_into(content, self._offset + first * each)
        return tensor

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))


class TensorsOnDisk(Mapping[str, "torch.Tensor"]):
    """The tensors of a checked file by name, each read whole whenever it is asked for."""

    def __init__(self, file: BinaryIO, offset: int, records: tuple[TensorRecord, ...]) -> None:
        opened = _OpenFile(file)
        self._slices = {}
        for record in records:
            self._slices[record.name] = Slices(opened, record, offset)
            offset += num_bytes(record)

    def slices(self, name: str) -> Slices:
        """A tensor to be read slice by slice."""
        return self._slices[name]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._slices[name][:]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)


class _OpenFile:
    """A file that is open until nobody needs it."""

    def __init__(self, file: BinaryIO) -> None:
        self._path = Path(file.name)
        self._file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def read_into(self, content: memoryview, offset: int) -> None:
        try:
            self._file.seek(offset)
            while content:
                count = self._file.readinto(content)
                if not count:
                    raise ArtifactDamaged(f"{show(self._path)} became shorter while it was read")
                content = content[count:]
        except OSError as error:
            raise storage_error(self._path, error, "read") from error
