"""Tensors as bytes of a file: described, digested, written and read back in bounded pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from cogedit.artifacts.atomic import show
from cogedit.artifacts.layout import num_bytes
from cogedit.artifacts.records import TensorDType, TensorRecord
from cogedit.errors import ArtifactDamaged, ArtifactError

if TYPE_CHECKING:
    import torch

CHUNK = 4 * 2**20  # bytes per read, write and digest: small enough for Ctrl-C to be prompt


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as contiguous ones on the CPU, whose bytes can be taken."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def describe(name: str, tensor: torch.Tensor) -> TensorRecord:
    """Name, dtype, shape and digest of a contiguous CPU tensor.

    Raises:
        ArtifactError: It has another dtype than files hold, or an empty axis.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ("uint8", "float32", "int64"):
        raise ArtifactError(f"tensor {name!r} is {dtype}, expected uint8, float32 or int64")
    if tensor.numel() == 0:
        raise ArtifactError(
            f"tensor {name!r} has shape {list(tensor.shape)}, expected no empty axis"
        )
    shape = tuple(int(size) for size in tensor.shape)
    return TensorRecord(name, cast(TensorDType, dtype), shape, digest(chunks(tensor)))


def chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous CPU tensor, without a copy."""
    import torch

    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    for begin in range(0, len(content), CHUNK):
        yield content[begin : begin + CHUNK]


def digest(pieces: Iterable[bytes] | Iterable[memoryview]) -> str:
    """The sha256 of some bytes, in hex."""
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    return sha256.hexdigest()


def read_chunks(path: Path, file: BinaryIO, tensor: TensorRecord) -> Iterator[bytes]:
    """The bytes of the tensor that `file` stands at.

    Raises:
        ArtifactDamaged: The file ends before the tensor does.
    """
    left = num_bytes(tensor)
    while left:
        chunk = file.read(min(left, CHUNK))
        if not chunk:  # truncated since its size was compared
            raise ArtifactDamaged(f"{show(path)} became shorter while it was read")
        left -= len(chunk)
        yield chunk


def read_tensor(path: Path, file: BinaryIO, tensor: TensorRecord) -> tuple[torch.Tensor, str]:
    """The tensor that `file` stands at, and the digest of its bytes.

    Call it only once the size of the file is known to be what its header says: then no header can
    ask for more memory than the file has bytes.

    Raises:
        ArtifactDamaged: The file ends before the tensor does.
    """
    import torch

    dtypes: dict[TensorDType, torch.dtype] = {
        "uint8": torch.uint8,
        "float32": torch.float32,
        "int64": torch.int64,
    }
    content = bytearray(num_bytes(tensor))
    begin = 0
    for chunk in read_chunks(path, file, tensor):
        content[begin : begin + len(chunk)] = chunk
        begin += len(chunk)
    flat = torch.frombuffer(content, dtype=dtypes[tensor.dtype])
    return flat.reshape(tensor.shape), hashlib.sha256(content).hexdigest()
