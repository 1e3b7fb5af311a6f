"""Writing and reading artifacts. Nothing is used before it is checked, and nothing half written.

Reading a record or verifying a file needs no torch: the header is JSON and the digests are taken
over ranges of the file. Files are read, never mapped: a file truncated under a mapping kills the
process with SIGBUS.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Generic, Literal, TypeVar, overload

from cogedit.artifacts.atomic import atomic_write, show, storage_error
from cogedit.artifacts.layout import (
    MAGIC,
    MAX_HEADER_BYTES,
    decode_header,
    encode_header,
    num_bytes,
    order_tensors,
)
from cogedit.artifacts.records import (
    RECORD_TYPES,
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    RecordT,
    TensorRecord,
    TrajectoryRecord,
    check_meaning,
    with_tensors,
)
from cogedit.artifacts.tensor_file import (
    chunks,
    describe,
    digest,
    on_cpu,
    read_chunks,
    read_tensor,
)
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch
from cogedit.types import ArtifactKind

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"

Expected = ArtifactKind | tuple[ArtifactKind, ...] | None
"""The kind, or the kinds, that a command can use; None for any."""

_COMMANDS: dict[ArtifactKind, tuple[str, str]] = {
    "frames": ("load", ""),
    "latents": ("encode", ""),
    "trajectory": ("invert", ""),
    "edit": ("reconstruct", " --prompt PROMPT"),
}
_KINDS = tuple(RECORD_TYPES)  # in the order of the stages

RecordT_co = TypeVar("RecordT_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class Artifact(Generic[RecordT_co]):
    """An artifact in memory.

    Attributes:
        record: How it was made.
        tensors: Its tensors by name, on the CPU; shapes and dtypes as in the record's docstring.
    """

    record: RecordT_co
    tensors: Mapping[str, torch.Tensor]


def write_artifact(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    record: RecordT,
    *,
    scratch: Path | None = None,
) -> RecordT:
    """Write an artifact: whole or not at all, and the same bytes for the same arguments.

    Args:
        path: The file; an older one stays intact until the new one is complete.
        tensors: Exactly those of the record's kind, on any device.
        record: How they were made; its own `tensors` are ignored.
        scratch: Folder of the unfinished file, as in `atomic_write`.

    Returns:
        The record as written, with names, dtypes, shapes and digests of the tensors.

    Raises:
        ArtifactError: The tensors or a field of the record are not what the kind demands.
        StorageError: Disk full, folder missing, permission denied.
    """
    contiguous = on_cpu(tensors)
    try:
        described = [describe(name, tensor) for name, tensor in contiguous.items()]
        written = with_tensors(record, order_tensors(described))
        header = encode_header(written)
        check_meaning(written)
    except ArtifactError as error:
        raise ArtifactError(f"cannot write {show(path)}: {error.message}") from error
    with atomic_write(path, scratch=scratch) as file:
        file.write(header)
        for tensor in written.tensors:
            for chunk in chunks(contiguous[tensor.name]):
                file.write(chunk)
    return written


@overload
def read_record(path: Path, expected: Literal["frames"]) -> FramesRecord: ...
@overload
def read_record(path: Path, expected: Literal["latents"]) -> LatentsRecord: ...
@overload
def read_record(path: Path, expected: Literal["trajectory"]) -> TrajectoryRecord: ...
@overload
def read_record(path: Path, expected: Literal["edit"]) -> EditRecord: ...
@overload
def read_record(path: Path, expected: Expected = None) -> Record: ...
def read_record(path: Path, expected: Expected = None) -> Record:
    """Read and check an artifact's header, without its tensors and without torch.

    Every byte of the header and the size of the file are checked; the tensors' bytes are not.

    Args:
        path: The artifact.
        expected: The kind or kinds that are wanted; None for any.

    Raises:
        ArtifactError: There is no such file.
        ArtifactDamaged: It is truncated, extended or altered.
        ArtifactMismatch: It is no artifact, of another kind, or made by a newer cogedit.
        StorageError: The system refuses to read it.
    """
    with _open(path, expected) as file:
        return _read_start(path, expected, file)


def verify_artifact(path: Path, expected: Expected = None) -> Record:
    """Check a whole artifact, the digest of every tensor included, without torch.

    Args:
        path: The artifact.
        expected: The kind or kinds that are wanted; None for any.

    Raises:
        ArtifactError: As `read_record`; `ArtifactDamaged` also where a tensor was altered.
        StorageError: The system refuses to read it.
    """
    with _open(path, expected) as file:
        record = _read_start(path, expected, file)
        for tensor in record.tensors:
            _check_digest(path, record.kind, tensor, digest(read_chunks(path, file, tensor)))
        return record


@overload
def read_artifact(path: Path, expected: Literal["frames"]) -> Artifact[FramesRecord]: ...
@overload
def read_artifact(path: Path, expected: Literal["latents"]) -> Artifact[LatentsRecord]: ...
@overload
def read_artifact(path: Path, expected: Literal["trajectory"]) -> Artifact[TrajectoryRecord]: ...
@overload
def read_artifact(path: Path, expected: Literal["edit"]) -> Artifact[EditRecord]: ...
@overload
def read_artifact(path: Path, expected: Expected = None) -> Artifact[Record]: ...
def read_artifact(path: Path, expected: Expected = None) -> Artifact[Record]:
    """Read an artifact into memory, with every digest checked before a tensor is handed out.

    Args:
        path: The artifact.
        expected: The kind or kinds that are wanted; None for any.

    Raises:
        ArtifactError: As `verify_artifact`.
        StorageError: The system refuses to read it.
    """
    tensors: dict[str, torch.Tensor] = {}
    with _open(path, expected) as file:
        record = _read_start(path, expected, file)
        for tensor in record.tensors:
            tensors[tensor.name], found = read_tensor(path, file, tensor)
            _check_digest(path, record.kind, tensor, found)
    return Artifact(record, tensors)


def sniff_kind(path: Path) -> ArtifactKind | None:
    """Tell an artifact from any other file (a video) by its first bytes.

    Args:
        path: A file; it need not exist.

    Returns:
        The kind of the artifact, or None where the file is none of ours or missing. A path that
        ends in ".safetensors" was meant as an artifact and never gives None.

    Raises:
        ArtifactError: It is an artifact that cannot be used, as in `read_record`.
        StorageError: The system refuses to read it.
    """
    if path.suffix.lower() != SUFFIX:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return None
            with path.open("rb") as file:
                if file.read(8 + len(MAGIC))[8:] != MAGIC:
                    return None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(path, error, "read") from error
    return read_record(path).kind


@contextlib.contextmanager
def _open(path: Path, expected: Expected) -> Iterator[BinaryIO]:
    try:
        # Asked before opening: opening a pipe waits for its other end, for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise _refuse(ArtifactMismatch, path, "is not a file", _make(expected))
        with path.open("rb") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _refuse(ArtifactError, path, "does not exist", _instead(path, expected)) from error
    except OSError as error:
        raise storage_error(path, error, "read") from error


def _read_start(path: Path, expected: Expected, file: BinaryIO) -> Record:
    """Read the header, leave `file` at the first tensor."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8 + len(MAGIC))
    if start[8:] != MAGIC:
        found = "is empty" if size == 0 else "is not a cogedit artifact"
        raise _refuse(
            ArtifactMismatch, path, f"{found}, expected {_one_of(expected)}", _make(expected)
        )
    length = int.from_bytes(start[:8], "little")
    again = _make(expected)
    if length > MAX_HEADER_BYTES:
        reason = f"is damaged: its header takes {length} bytes, expected at most {MAX_HEADER_BYTES}"
        raise _refuse(ArtifactDamaged, path, reason, again)
    if size < 8 + length:
        reason = f"is truncated: it has {size} bytes, expected {8 + length} and more"
        raise _refuse(ArtifactDamaged, path, reason, again)
    start += file.read(max(0, 8 + length - len(start)))  # read(-1) would take the whole file
    try:
        record = decode_header(start[: 8 + length])
    except (ArtifactDamaged, ArtifactMismatch) as error:
        raise _refuse(type(error), path, error.message, error.hint or again) from error
    _check_kind(path, record.kind, expected)
    whole = 8 + length + sum(map(num_bytes, record.tensors))
    if size != whole:
        change = "truncated" if size < whole else "extended"
        reason = f"is {change}: it has {size} bytes, expected {whole}"
        raise _refuse(ArtifactDamaged, path, reason, _make(record.kind))
    return record


def _check_digest(path: Path, kind: ArtifactKind, tensor: TensorRecord, found: str) -> None:
    if found != tensor.sha256:
        reason = (
            f"is damaged: tensor {tensor.name!r} has digest {found[:12]}, "
            f"expected {tensor.sha256[:12]}"
        )
        raise _refuse(ArtifactDamaged, path, reason, _make(kind))


def _check_kind(path: Path, kind: ArtifactKind, expected: Expected) -> None:
    kinds = _kinds(expected)
    if kind in kinds:
        return
    # An earlier kind of file is what the missing stage starts from.
    earlier = _KINDS.index(kind) < _KINDS.index(_furthest(kinds))
    source = shlex.quote(show(path)) if earlier else "VIDEO"
    reason = f"holds {_article(kind)}, expected {_one_of(expected)}"
    raise _refuse(ArtifactMismatch, path, reason, _make(_furthest(kinds), source))


def _refuse(error: type[ArtifactError], path: Path, reason: str, hint: str) -> ArtifactError:
    return error(f"{show(path)} {reason}", hint=hint)


def _kinds(expected: Expected) -> tuple[ArtifactKind, ...]:
    if expected is None:
        return _KINDS
    return (expected,) if isinstance(expected, str) else expected


def _furthest(kinds: tuple[ArtifactKind, ...]) -> ArtifactKind:
    return max(kinds, key=_KINDS.index)


def _make(expected: Expected, source: str = "VIDEO") -> str:
    """The command that makes a good file; for several kinds, the furthest along."""
    kind = _furthest(_kinds(expected)) if expected else "frames"
    command, options = _COMMANDS[kind]
    return f"make it with `cogedit {command} {source}{options}`"


def _instead(path: Path, expected: Expected) -> str:
    """What there is in place of a missing artifact: its like, or the command that makes one."""
    kinds = _kinds(expected)
    named = next((kind for kind in kinds if path.name.startswith(f"{kind}-")), None)
    if named is None:
        return _make(expected) if expected else "`cogedit cache ls` lists what is there"
    like = sorted(one.name for one in path.parent.glob(f"{named}-*{SUFFIX}"))
    if not like:
        return _make(named)
    more = f" and {len(like) - 3} more" if len(like) > 3 else ""
    return f"beside it: {', '.join(map(show, map(Path, like[:3])))}{more}"


def _article(kind: ArtifactKind) -> str:
    return {"trajectory": "a trajectory", "edit": "an edit"}.get(kind, kind)


def _one_of(expected: Expected) -> str:
    return " or ".join(map(_article, _kinds(expected))) if expected else "an artifact"
