"""Steps of a loop on disk: a run that was killed goes on from the newest of them.

A step is one safetensors file, written like every other: whole or not at all. It names the content
keys of the artifacts that are being made and the digest of the step before, so that the files
`0001.safetensors`, `0002.safetensors`, ... are a chain; what counts is the longest piece of it that
starts at the first step and has no damaged, missing or foreign link. Renaming a finished file into
the chain is the commit. A loop that goes on from its last step alone keeps the newest two.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, cast

from cogedit.artifacts.atomic import atomic_write, show, storage_error
from cogedit.artifacts.codec import Json, canonical_text, decode_record, encode_record
from cogedit.artifacts.layout import (
    MAX_HEADER_BYTES,
    decode_envelope,
    header_bytes,
    num_bytes,
    order_tensors,
)
from cogedit.artifacts.records import SCHEMA_VERSION, TensorRecord
from cogedit.artifacts.tensor_file import (
    chunks,
    describe,
    digest,
    on_cpu,
    read_chunks,
    read_tensor,
)
from cogedit.errors import ArtifactDamaged, ArtifactError, StorageError
from cogedit.types import StepInfo

if TYPE_CHECKING:
    import torch

_KEY = "cogedit_step"
_ATTEMPTS = 3


@dataclass(frozen=True)
class StepRecord:
    """One finished step of a loop.

    Attributes:
        makes: Content keys of the artifacts that the loop makes, in its own order.
        info: The step; `index` counts from 0.
        before: Digest of the record of the step before; None for the first.
        tensors: What the loop goes on from; empty until written.
    """

    json_constants: ClassVar[dict[str, Json]] = {"kind": "step", "schema": SCHEMA_VERSION}

    makes: tuple[str, ...]
    info: StepInfo
    before: str | None
    tensors: tuple[TensorRecord, ...] = ()

    @property
    def digest(self) -> str:
        """The sha256 in hex of its canonical JSON, the tensors' digests included."""
        return hashlib.sha256(_text(self).encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Step:
    """A step in memory.

    Attributes:
        record: Which step of what.
        tensors: By name, on the CPU.
    """

    record: StepRecord
    tensors: Mapping[str, torch.Tensor]


def write_step(folder: Path, tensors: Mapping[str, torch.Tensor], record: StepRecord) -> StepRecord:
    """Add a step to a chain.

    Args:
        folder: Where the chain is; made where it is missing.
        tensors: What the loop goes on from, on any device.
        record: Which step of what; its own `tensors` are ignored.

    Returns:
        The record as written.

    Raises:
        ArtifactError: A tensor or a field is not one that can be written.
        StorageError: Disk full, permission denied.
    """
    contiguous = on_cpu(tensors)
    described = [describe(name, tensor) for name, tensor in contiguous.items()]
    written = replace(record, tensors=order_tensors(described))
    header = header_bytes(_KEY, _text(written), written.tensors)
    path = step_path(folder, record.info.index)
    for attempt in range(_ATTEMPTS):
        try:
            folder.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                file.write(header)
                for tensor in written.tensors:
                    for chunk in chunks(contiguous[tensor.name]):
                        file.write(chunk)
            break
        except OSError as error:
            raise storage_error(folder, error, "write") from error
        except StorageError as error:
            # Where locks do nothing, another process may be done with the same artifact and
            # remove the folder meanwhile.
            if attempt + 1 == _ATTEMPTS or not isinstance(error.__cause__, FileNotFoundError):
                raise
    return written


def read_steps(
    folder: Path, *, makes: tuple[str, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> list[Step]:
    """Read a chain as far as it is sound, every digest checked.

    Args:
        folder: Where the chain is; it need not exist.
        makes: What is being made.
        names: Names of the tensors that every step has; there may be more.
        shape: Of each tensor.

    Returns:
        The steps from the first on; none where there is no chain, or one of something else.
    """
    steps: list[Step] = []
    before = None
    while True:
        step = _read_step(step_path(folder, len(steps)), makes, names, shape)
        if step is None or (step.record.info.index, step.record.before) != (len(steps), before):
            return steps
        steps.append(step)
        before = step.record.digest


def read_last_step(
    folder: Path, *, makes: tuple[str, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> Step | None:
    """Read the newest step that is sound, whether or not those before it are there.

    Args:
        folder: Where the steps are; it need not exist.
        makes: What is being made.
        names: Names of the tensors that every step has; there may be more.
        shape: Of each tensor.
    """
    for path in _paths(folder):
        step = _read_step(path, makes, names, shape)
        if step is not None and path == step_path(folder, step.record.info.index):
            return step
    return None


def newest_step(folder: Path) -> StepRecord | None:
    """Return the record of the newest sound step, without its tensors and without torch."""
    for path in _paths(folder):
        with contextlib.suppress(ArtifactError, StorageError), _open(path) as file:
            record = _read_start(path, file)
            for tensor in record.tensors:
                _check_digest(path, tensor, digest(read_chunks(path, file, tensor)))
            return record
    return None


def forget_steps(folder: Path, *, before: int) -> None:
    """Remove the steps with an index below `before`."""
    for path in _paths(folder):
        if path < step_path(folder, before):
            with contextlib.suppress(OSError):
                path.unlink()


def step_path(folder: Path, index: int) -> Path:
    """The file of a step; names sort as the steps do."""
    return folder / f"{index + 1:04}.safetensors"


def _paths(folder: Path) -> list[Path]:
    """The files of steps, the newest first."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9].safetensors"), reverse=True)


def _read_step(
    path: Path, makes: tuple[str, ...], names: tuple[str, ...], shape: tuple[int, ...]
) -> Step | None:
    """Read a step if it is there, sound, and one of this loop."""
    with contextlib.suppress(ArtifactError, StorageError), _open(path) as file:
        record = _read_start(path, file)
        fits = all((t.shape, t.dtype) == (shape, "float32") for t in record.tensors)
        if record.makes != makes or not fits or not {*names} <= {t.name for t in record.tensors}:
            return None
        tensors = {}
        for tensor in record.tensors:
            tensors[tensor.name], found = read_tensor(path, file, tensor)
            _check_digest(path, tensor, found)
        return Step(record, tensors)
    return None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ArtifactDamaged(f"{show(path)} is not a file")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise storage_error(path, error, "read") from error


def _read_start(path: Path, file: BinaryIO) -> StepRecord:
    """Read and check the header, leave `file` at the first tensor."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(MAX_HEADER_BYTES, size):
        raise ArtifactDamaged(f"{show(path)} is no step")
    start += file.read(length)
    value = decode_envelope(start, _KEY)
    record = cast(StepRecord, decode_record(value, StepRecord))
    if header_bytes(_KEY, _text(record), record.tensors) != start:
        raise ArtifactDamaged(f"{show(path)} has a header that does not match its record")
    if size != 8 + length + sum(map(num_bytes, record.tensors)):
        raise ArtifactDamaged(f"{show(path)} has {size} bytes, other than its header says")
    return record


def _check_digest(path: Path, tensor: TensorRecord, found: str) -> None:
    if found != tensor.sha256:
        raise ArtifactDamaged(f"{show(path)} is damaged: tensor {tensor.name!r}")


def _text(record: StepRecord) -> str:
    return canonical_text(encode_record(record))
