"""Writing and reading artifacts. Nothing is used before it is checked, and nothing half written.

Reading a record or verifying a file needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Generic, Literal, TypeVar, overload

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.layout import MAGIC, MAX_HEADER_BYTES, decode_header, encode_header
from cogedit.artifacts.records import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    RecordT,
    TrajectoryRecord,
    check_meaning,
)
from cogedit.artifacts.slices import Pieces, TensorsOnDisk
from cogedit.artifacts.tensor_file import TensorFile, open_regular, write_tensor_file
from cogedit.disk import Over, is_no_name
from cogedit.errors import ArtifactError, ArtifactMismatch
from cogedit.types import ArtifactKind

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"

Expected = ArtifactKind | tuple[ArtifactKind, ...] | None
"""The kind or kinds that a command accepts; None for any."""

MADE_BY: dict[ArtifactKind, str] = {
    "frames": "load",
    "latents": "encode",
    "trajectory": "invert",
    "edit": "reconstruct",
}
"""The stage that makes each kind, and its command, in their order."""

_KINDS = tuple(MADE_BY)
_NAME = re.compile(rf"({'|'.join(_KINDS)})-[0-9a-f]{{12}}\{SUFFIX}")

RecordT_co = TypeVar("RecordT_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class Artifact(Generic[RecordT_co]):
    """An artifact whose every byte was checked.

    Attributes:
        record: How it was made.
        tensors: By name, as the record's docstring has them. Each is read from the file, whole or
            slice by slice, whenever it is asked for.
    """

    record: RecordT_co
    tensors: TensorsOnDisk


def write_artifact(
    path: Path,
    tensors: Mapping[str, torch.Tensor | Pieces],
    record: RecordT,
    *,
    scratch: Path | None = None,
    over: Over = "anything",
) -> RecordT:
    """Write an artifact: whole or not at all, and the same bytes for the same arguments.

    Args:
        path: The file; an older one stays intact until the new one is complete.
        tensors: Exactly those of the record's kind, on any device, or slice by slice.
        record: How they were made; its own `tensors` are ignored.
        scratch: Folder of the unfinished file, as in `atomic_write`.
        over: What it may replace, likewise.

    Returns:
        The record as written, with names, dtypes, shapes and digests of the tensors.

    Raises:
        ArtifactError: The tensors or a field of the record are not what the kind demands.
        StorageError: Disk full, folder missing, permission denied.
    """

    def encode(written: RecordT) -> bytes:
        header = encode_header(written)
        check_meaning(written)
        return header

    return write_tensor_file(path, tensors, record, encode=encode, scratch=scratch, over=over)


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
    """Read an artifact's record. Header and file size are checked, the tensors' bytes are not.

    Raises:
        ArtifactError: There is no such file.
        ArtifactDamaged: It is truncated, extended or altered.
        ArtifactMismatch: It is no artifact, not of an expected kind, or made by a newer cogedit.
        StorageError: The system refuses to read it.
    """
    with _open(path, expected) as file:
        return file.record


def verify_artifact(path: Path, expected: Expected = None) -> Record:
    """Check every byte of an artifact, and return its record. Raises what `read_record` does."""
    with _open(path, expected) as file:
        file.verify()
        return file.record


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
    """Check every byte of an artifact and open it. Raises what `read_record` does."""
    with _open(path, expected) as file:
        file.verify()
        return Artifact(file.record, file.tensors())


def sniff_kind(path: Path) -> ArtifactKind | None:
    """The kind of an artifact, or None for any other file (a video) and for a missing one.

    A path that ends in ".safetensors" is meant as an artifact and never gives None. Raises what
    `read_record` does.
    """
    if path.suffix.lower() != SUFFIX:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return None
            with path.open("rb") as file:
                if not _has_magic(file):
                    return None
        except FileNotFoundError:
            return None
        except OSError as error:
            if is_no_name(error):
                return None
            raise storage_error(path, error, "read") from error
    return read_record(path).kind


def is_artifact_file(path: Path) -> bool:
    """Whether a file was written as an artifact, whatever became of it.

    It begins as one; or it has the name of one, and is no safetensors file of another program.
    Raises `OSError` where the system refuses to read it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        return False
    with path.open("rb") as file:
        if _has_magic(file):
            return True
        return _NAME.fullmatch(path.name) is not None and not _is_safetensors(file)


def _is_safetensors(file: BinaryIO) -> bool:
    """Whether a file has the header of any safetensors file."""
    size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        return False
    try:
        return isinstance(json.loads(file.read(size)), dict)
    except (ValueError, RecursionError):
        return False


@contextlib.contextmanager
def _open(path: Path, expected: Expected) -> Iterator[TensorFile[Record]]:
    """Open an artifact of an expected kind; what goes wrong while it is open names the file."""
    kinds = expected
    try:
        with open_regular(path) as file:
            if not _has_magic(file):
                problem = "is not a cogedit artifact" if file.read(1) else "is empty"
                raise ArtifactMismatch(f"{problem}, expected {_one_of(expected)}")
            opened = TensorFile(file, decode_header)
            _check_kind(path, opened.record.kind, expected)
            kinds = opened.record.kind
            opened.check_size()
            yield opened
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{show(path)} does not exist", hint=_instead(path, kinds)) from error
    except OSError as error:
        raise storage_error(path, error, "read") from error
    except ArtifactError as error:
        hint = error.hint or _mend(path, kinds)
        raise type(error)(f"{show(path)} {error.message}", hint=hint) from error


def _has_magic(file: BinaryIO) -> bool:
    """Whether a file begins as artifacts do; it stands at its first byte again."""
    start = file.read(8 + len(MAGIC))
    file.seek(0)
    return start[8:] == MAGIC


def _check_kind(path: Path, kind: ArtifactKind, expected: Expected) -> None:
    kinds = _kinds(expected)
    if kind in kinds:
        return
    # An earlier kind of file is what the missing stage starts from.
    earlier = _KINDS.index(kind) < _KINDS.index(_furthest(kinds))
    source = shlex.quote(show(path)) if earlier else "VIDEO"
    raise ArtifactMismatch(
        f"holds {_article(kind)}, expected {_one_of(expected)}",
        hint=_make(_furthest(kinds), source),
    )


def _kinds(expected: Expected) -> tuple[ArtifactKind, ...]:
    if expected is None:
        return _KINDS
    return (expected,) if isinstance(expected, str) else expected


def _furthest(kinds: tuple[ArtifactKind, ...]) -> ArtifactKind:
    return max(kinds, key=_KINDS.index)


def removal_hint(path: Path, *, by: str) -> str:
    """What to do about a damaged artifact, which is recomputed `by` a command."""
    return f"remove it, and {by} recomputes it: rm {shlex.quote(show(path))}"


def _mend(path: Path, expected: Expected) -> str:
    """What helps where a file is damaged, or no artifact at all."""
    place = shlex.quote(show(path))
    with contextlib.suppress(OSError):
        if is_artifact_file(path):
            return removal_hint(path, by="the command that made it")
    if any(path.glob(f"*{SUFFIX}")):
        return f"`cogedit cache ls {place}` lists the artifacts in it"
    # As for `sniff_kind`: what is neither an artifact nor named as one is a video.
    return _make(expected, "VIDEO" if path.suffix.lower() == SUFFIX else place)


def _make(expected: Expected, source: str = "VIDEO") -> str:
    """The command that makes a good file; for several kinds, the furthest along."""
    kind = _furthest(_kinds(expected))
    options = " --prompt PROMPT" if kind == "edit" else ""
    return f"make it with `cogedit {MADE_BY[kind]} {source}{options}`"


def _instead(path: Path, expected: Expected) -> str:
    """What there is in place of a missing artifact: its like, or the command that makes one."""
    kinds = _kinds(expected)
    named = next((kind for kind in kinds if path.name.startswith(f"{kind}-")), None)
    if named is None:
        return _make(expected) if expected else "`cogedit cache ls` lists what is there"
    like = sorted(sibling.name for sibling in path.parent.glob(f"{named}-*{SUFFIX}"))
    if not like:
        return _make(named)
    more = f" and {len(like) - 3} more" if len(like) > 3 else ""
    return f"beside it: {', '.join(map(show, map(Path, like[:3])))}{more}"


def _article(kind: ArtifactKind) -> str:
    return {"trajectory": "a trajectory", "edit": "an edit"}.get(kind, kind)


def _one_of(expected: Expected) -> str:
    return " or ".join(map(_article, _kinds(expected))) if expected else "an artifact"
