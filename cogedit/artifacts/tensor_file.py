"""A file of one record and its tensors: the one writer and the one reader of such files.

Artifacts, steps and prompt embeddings have this form (`cogedit.artifacts.layout`). Headers and
digests are read without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Generic, TypeVar, cast

from cogedit.artifacts.atomic import atomic_write, show
from cogedit.artifacts.codec import canonical_text, decode_record, encode_record
from cogedit.artifacts.known_files import (
    KnownFile,
    is_verified,
    known_record,
    remember_record,
    remember_verified,
    remember_written,
    stamp,
)
from cogedit.artifacts.layout import (
    MAX_HEADER_BYTES,
    decode_envelope,
    header_bytes,
    num_bytes,
    order_tensors,
)
from cogedit.artifacts.records import Record, TensorDType, TensorRecord
from cogedit.artifacts.slices import Pieces, TensorsOnDisk
from cogedit.disk import Over
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch

if TYPE_CHECKING:
    import torch

    from cogedit.artifacts.embeds import EmbedsRecord
    from cogedit.artifacts.steps import StepRecord

RecordT = TypeVar("RecordT", bound="Record | StepRecord | EmbedsRecord")

_CHUNK = 4 * 2**20  # bytes per read, write and digest: small enough for Ctrl-C to be prompt


@dataclass(frozen=True)
class HeaderFormat(Generic[RecordT]):
    """The header of a file that is no artifact: a record under a metadata key."""

    key: str
    record_type: type[RecordT]

    def encode(self, record: RecordT) -> bytes:
        """Length and header. Raises `ArtifactError` for a field that has no such form."""
        return header_bytes(self.key, canonical_text(encode_record(record)), record.tensors)

    def decode(self, header: bytes) -> RecordT:
        """The record, once every byte is known to be right. Raises `ArtifactError`."""
        value, text = decode_envelope(header, self.key)
        record = decode_record(value, self.record_type, text)
        if header_bytes(self.key, text, record.tensors) != header:
            raise ArtifactDamaged("has a header that does not match its record")
        return record


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as contiguous ones on the CPU, whose bytes can be taken."""
    return {name: _on_cpu(tensor) for name, tensor in tensors.items()}


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def write_tensor_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor | Pieces],
    record: RecordT,
    *,
    encode: Callable[[RecordT], bytes],
    scratch: Path | None = None,
    over: Over = "anything",
) -> RecordT:
    """Write a file, whole or not at all, and return its record as written; see `write_artifact`.

    `encode` turns the record into length and header, or refuses it.
    """
    ready = {
        name: tensor if isinstance(tensor, Pieces) else _on_cpu(tensor)
        for name, tensor in tensors.items()
    }
    try:
        described = [_describe(name, tensor) for name, tensor in ready.items()]
        written = replace(record, tensors=order_tensors(described))
        header = encode(written)
    except ArtifactError as error:
        raise ArtifactError(f"cannot write {show(path)}: {error.message}") from error
    with atomic_write(path, scratch=scratch, over=over) as file:
        file.write(header)
        digests = [_write_tensor(ready[tensor.name], file) for tensor in written.tensors]
        # Now that the digests are known: all have one length, and so has the header.
        digested = zip(written.tensors, digests, strict=True)
        tensors_written = tuple(replace(tensor, sha256=digest) for tensor, digest in digested)
        written = replace(written, tensors=tensors_written)
        file.seek(0)
        file.write(encode(written))
        known = stamp(path, file)
    remember_written(known, written.tensors)
    return written


def _write_tensor(tensor: torch.Tensor | Pieces, file: BinaryIO) -> str:
    """Write the bytes of a tensor, and return their sha256."""
    if not isinstance(tensor, Pieces):
        return _sha256(_written(_chunks(tensor), file))
    digest, count = hashlib.sha256(), 0
    for piece in tensor.slices():
        if tuple(piece.shape) != tensor.shape[1:] or _dtype(piece) != tensor.dtype:
            raise ValueError(
                f"a slice is {_dtype(piece)} {list(piece.shape)}, expected {tensor.dtype} "
                f"{list(tensor.shape[1:])}"
            )
        for chunk in _written(_chunks(_on_cpu(piece)), file):
            digest.update(chunk)
        count += 1
    if count != tensor.shape[0]:
        raise ValueError(f"there are {count} slices, expected {tensor.shape[0]}")
    return digest.hexdigest()


def _written(chunks: Iterable[memoryview], file: BinaryIO) -> Iterator[memoryview]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


class TensorFile(Generic[RecordT]):
    """An open file whose header has been read and checked.

    Its errors do not name the file, which the caller knows: their messages go on after a path.

    Args:
        file: At its first byte.
        decode: Turns length and header into the record, or refuses them with an `ArtifactError`.

    Raises:
        ArtifactDamaged: The file is shorter than its header says, or the header is too long.
    """

    def __init__(self, file: BinaryIO, decode: Callable[[bytes], RecordT]) -> None:
        self._file, self._decode = file, decode
        status = os.fstat(file.fileno())
        self._known, self._size = KnownFile.of(Path(file.name), status), status.st_size
        record = known_record(self._known, decode)
        if record is not None:
            self._payload = self._size - sum(map(num_bytes, record.tensors))
            self.record = record
            return
        start = file.read(8)
        self._payload = 8 + int.from_bytes(start, "little")
        if self._payload - 8 > MAX_HEADER_BYTES:
            raise ArtifactDamaged(
                f"is damaged: its header takes {self._payload - 8} bytes, expected at most "
                f"{MAX_HEADER_BYTES}"
            )
        if self._size < self._payload:
            raise ArtifactDamaged(
                f"is truncated: it has {self._size} bytes, expected {self._payload} and more"
            )
        self.record = decode(start + file.read(self._payload - 8))

    def check_size(self) -> None:
        """Raise `ArtifactDamaged` unless the file has the bytes that its record says.

        After this no record can ask for more memory than the file has bytes.
        """
        expected = self._payload + sum(map(num_bytes, self.record.tensors))
        if self._size != expected:
            change = "truncated" if self._size < expected else "extended"
            raise ArtifactDamaged(f"is {change}: it has {self._size} bytes, expected {expected}")
        remember_record(self._known, self._decode, self.record)

    def verify(self) -> None:
        """Check size and digests, once per process. Raises `ArtifactDamaged`."""
        self.check_size()
        if is_verified(self._known, self.record.tensors):
            return
        for tensor in self._each_tensor():
            _check_digest(tensor, _sha256(self._read_chunks(num_bytes(tensor))))
        remember_verified(self._known, self.record.tensors)

    def tensors(self) -> TensorsOnDisk:
        """The tensors, to be read when they are needed; `verify` first."""
        return TensorsOnDisk(self._file, self._payload, self.record.tensors)

    def read(self) -> dict[str, torch.Tensor]:
        """Read the tensors onto the CPU, size and digests checked. Raises `ArtifactDamaged`."""
        import torch

        tensors = {}
        verified = is_verified(self._known, self.record.tensors)
        for tensor in self._each_tensor():
            content = bytearray(num_bytes(tensor))
            begin = 0
            for chunk in self._read_chunks(len(content)):
                content[begin : begin + len(chunk)] = chunk
                begin += len(chunk)
            if not verified:
                _check_digest(tensor, _sha256([content]))
            flat = torch.frombuffer(content, dtype=getattr(torch, tensor.dtype))
            tensors[tensor.name] = flat.reshape(tensor.shape)
        remember_verified(self._known, self.record.tensors)
        return tensors

    def _each_tensor(self) -> Iterator[TensorRecord]:
        self.check_size()
        self._file.seek(self._payload)
        yield from self.record.tensors

    def _read_chunks(self, left: int) -> Iterator[bytes]:
        while left:
            chunk = self._file.read(min(left, _CHUNK))
            if not chunk:  # truncated since its size was compared
                raise ArtifactDamaged("became shorter while it was read")
            left -= len(chunk)
            yield chunk


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Raises `ArtifactMismatch` for a folder, a pipe or a device."""
    # Asked before opening: opening a pipe waits for its other end, for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArtifactMismatch("is not a file")
    with path.open("rb") as file:
        yield file


def _describe(name: str, tensor: torch.Tensor | Pieces) -> TensorRecord:
    """Name, dtype and shape of a tensor, whose digest is not known yet."""
    dtype = tensor.dtype if isinstance(tensor, Pieces) else _dtype(tensor)
    shape = tuple(tensor.shape)
    if dtype not in ("uint8", "float32", "int64"):
        raise ArtifactError(f"tensor {name!r} is {dtype}, expected uint8, float32 or int64")
    if 0 in shape:
        raise ArtifactError(f"tensor {name!r} has shape {list(shape)}, expected no empty axis")
    return TensorRecord(name, cast(TensorDType, dtype), shape, sha256="0" * 64)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_digest(tensor: TensorRecord, digest: str) -> None:
    if digest != tensor.sha256:
        raise ArtifactDamaged(
            f"is damaged: tensor {tensor.name!r} has digest {digest[:12]}, "
            f"expected {tensor.sha256[:12]}"
        )


def _chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous CPU tensor, without a copy."""
    import torch

    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    for begin in range(0, len(content), _CHUNK):
        yield content[begin : begin + _CHUNK]


def _sha256(pieces: Iterable[bytes | bytearray | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
