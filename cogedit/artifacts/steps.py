"""Steps of a loop on disk, from the newest of which a killed run is resumed.

The files `0001.safetensors`, `0002.safetensors`, ... are a chain: each names the content keys of
the artifacts in the making and the digest of the step before. Content keys alone would not do,
because two devices round differently under one key. What counts is the longest chain that starts at
the first step and has no damaged, missing or foreign link. A file is renamed into the chain once it
is whole. A loop that is resumed from its last step alone keeps the newest two.

Only files that begin as steps do are ever replaced or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.codec import Json, canonical_text, encode_record
from cogedit.artifacts.records import SCHEMA_VERSION, TensorRecord
from cogedit.artifacts.slices import Pieces
from cogedit.artifacts.tensor_file import (
    HeaderFormat,
    TensorFile,
    open_regular,
    write_tensor_file,
)
from cogedit.disk import files_in, is_regular, make_folder
from cogedit.errors import ArtifactError, StorageError
from cogedit.progress import StepInfo

if TYPE_CHECKING:
    import torch

_ATTEMPTS = 3
_UNSOUND = (ArtifactError, OSError)  # such a step counts as missing


@dataclass(frozen=True)
class StepRecord:
    """One finished step of a loop."""

    json_constants: ClassVar[dict[str, Json]] = {"kind": "step", "schema": SCHEMA_VERSION}

    makes: tuple[str, ...]  # content keys of the artifacts that the loop makes, in order
    info: StepInfo  # its `index` counts from 0
    before: str | None  # digest of the record of the step before; None for the first
    tensors: tuple[TensorRecord, ...] = ()  # what the loop continues from; empty until written

    @property
    def digest(self) -> str:
        """The sha256 in hex of its canonical JSON, the tensors' digests included."""
        return hashlib.sha256(canonical_text(encode_record(self)).encode("ascii")).hexdigest()


_FORMAT = HeaderFormat("cogedit_step", StepRecord)
_MAGIC = b'{"__metadata__":{"cogedit_step":"'


@dataclass(frozen=True)
class Step:
    """A step in memory, with its tensors by name on the CPU."""

    record: StepRecord
    tensors: Mapping[str, torch.Tensor]


def write_step(folder: Path, tensors: Mapping[str, torch.Tensor], record: StepRecord) -> StepRecord:
    """Add a step to a chain, and return its record as written.

    The folder is made where it is missing. `tensors` are the state that the loop continues from, on
    any device; those of `record` are ignored.

    Raises:
        ArtifactError: A tensor or a field cannot be written.
        StorageError: Disk full, permission denied.
    """
    path = step_path(folder, record.info.index)
    if os.path.lexists(path) and not _is_step(path):
        raise StorageError(
            f"cannot write {show(path)}: another file is there, and no step of cogedit",
            hint="move it elsewhere",
        )
    for attempt in range(_ATTEMPTS):
        try:
            make_folder(folder)
            return write_tensor_file(path, tensors, record, encode=_FORMAT.encode)
        except OSError as error:
            raise storage_error(folder, error, "write") from error
        except StorageError as error:
            # A process that took it over may finish the same artifact and remove the folder
            # meanwhile.
            if attempt + 1 == _ATTEMPTS or not isinstance(error.__cause__, FileNotFoundError):
                raise
    raise AssertionError("the last attempt returns or raises")


def read_steps(
    folder: Path,
    *,
    makes: tuple[str, ...],
    names: tuple[str, ...],
    shape: tuple[int, ...],
    num_whole: int | None = None,
) -> list[Step]:
    """Read a chain from its first step on, as far as it is sound; the folder need not exist.

    Args:
        folder: Where the chain is.
        makes: Content keys of what is being made.
        names: Tensors that every step has; there may be more.
        shape: Of each tensor.
        num_whole: How many steps at the end of the chain keep their tensors; those before are
            checked all the same. None is all steps.
    """
    steps: list[Step] = []
    before = None
    while True:
        step = _read_step(step_path(folder, len(steps)), makes, names, shape)
        if step is None or (step.record.info.index, step.record.before) != (len(steps), before):
            return steps
        steps.append(step)
        before = step.record.digest
        if num_whole is not None and len(steps) > num_whole:
            steps[-1 - num_whole] = Step(steps[-1 - num_whole].record, {})


@dataclass(frozen=True)
class SavedSteps:
    """One tensor of every step of a whole chain, read when it is needed; `[i]` is that of step i.

    Raises `StorageError` where the chain is not the one that was written.

    Attributes:
        folder: Where the chain is.
        last: The record of its last step.
        name: The tensor.
    """

    folder: Path
    last: StepRecord
    name: str

    def __len__(self) -> int:
        return self.last.info.index + 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._open(range(len(self))[index])[1]

    def __iter__(self) -> Iterator[torch.Tensor]:
        before = None
        for index in range(len(self)):
            record, tensor = self._open(index)
            if record.before != before:
                raise self._changed()
            before = record.digest
            yield tensor
        if before != self.last.digest:
            raise self._changed()

    def pieces(self, shape: tuple[int, ...]) -> Pieces:
        """All of them as one tensor [N, *shape] to be written."""
        return Pieces("float32", (len(self), *shape), lambda: iter(self))

    def _open(self, index: int) -> tuple[StepRecord, torch.Tensor]:
        try:
            with _open(step_path(self.folder, index)) as step:
                step.verify()
                return step.record, step.tensors()[self.name]
        except _UNSOUND as error:
            raise self._changed() from error

    def _changed(self) -> StorageError:
        return StorageError(
            f"another process has changed the steps in {show(self.folder)}",
            hint="run the command again",
        )


def read_last_step(
    folder: Path, *, makes: tuple[str, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> Step | None:
    """Read the newest sound step, with or without those before it; arguments of `read_steps`."""
    for path in _newest_first(folder):
        step = _read_step(path, makes, names, shape)
        if step is not None and path == step_path(folder, step.record.info.index):
            return step
    return None


def newest_step(folder: Path) -> StepRecord | None:
    """Return the record of the newest sound step, without its tensors and without torch."""
    for path in _newest_first(folder):
        with contextlib.suppress(*_UNSOUND), _open(path) as step:
            step.verify()
            return step.record
    return None


def forget_steps(folder: Path, *, before: int) -> None:
    """Remove the steps with an index below `before`."""
    for path in step_files(folder):
        if path < step_path(folder, before):
            with contextlib.suppress(OSError):
                path.unlink()


def step_path(folder: Path, index: int) -> Path:
    """The file of a step; names sort as the steps do."""
    return folder / f"{index + 1:04}.safetensors"


def step_files(folder: Path) -> list[Path]:
    """The steps in a folder, sound or not, newest first; no other file and no link."""
    return [path for path in _newest_first(folder) if _is_step(path)]


def _is_step(path: Path) -> bool:
    """Whether a file was written as a step, whatever became of it; an empty one holds nothing."""
    try:
        if not is_regular(path):
            return False
        with path.open("rb") as file:
            start = file.read(8 + len(_MAGIC))
    except OSError:
        return False
    return not start or start[8:] == _MAGIC


def _newest_first(folder: Path) -> list[Path]:
    return sorted(files_in(folder, "[0-9][0-9][0-9][0-9].safetensors"), reverse=True)


def _read_step(
    path: Path, makes: tuple[str, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> Step | None:
    """Read a step if it is there, sound, and one of this loop."""
    with contextlib.suppress(*_UNSOUND), _open(path) as step:
        record = step.record
        fits = all((t.shape, t.dtype) == (shape, "float32") for t in record.tensors)
        if record.makes == makes and fits and {*names} <= {t.name for t in record.tensors}:
            return Step(record, step.read())
    return None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[TensorFile[StepRecord]]:
    with open_regular(path) as file:
        yield TensorFile(file, _FORMAT.decode)
