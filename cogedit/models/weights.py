"""Header parsing and a content fingerprint for safetensors files. No torch in here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

PAGE = 4096
"""Bytes read from the middle of every tensor for a digest."""

_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
Count = Annotated[int, Meta(ge=0)]
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2"), 1),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of a model is: its file, its name in there, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightFile:
    """A complete safetensors file.

    Attributes:
        path: The file.
        header: Names, shapes and dtypes of its tensors, as JSON.
        spans: First byte of each tensor and the one after its last, in the order of the file.
    """

    path: Path
    header: bytes
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, path: Path) -> WeightFile:
        """Read the header and compare the size of the file with it.

        Raises:
            ValueError: The file is cut off or no safetensors file; the text is the second half of
                a sentence that begins with its name.
        """
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ValueError("is a Git LFS pointer in place of the weights")
            length = int.from_bytes(start, "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise ValueError("is not a safetensors file")
            header = file.read(length)
        if len(header) < length:
            raise ValueError(f"is cut off at {size} bytes")
        try:
            spans = _spans(header)
        except (ValueError, KeyError, RecursionError) as error:
            raise ValueError("is not a safetensors file") from error
        data = 8 + length
        expected = data + max((end for _, end in spans), default=0)
        if size != expected:
            raise ValueError(f"has {size} bytes; expected {expected}")
        return cls(path, header, tuple((data + begin, data + end) for begin, end in spans))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by its name."""
        return {name: entry.shape for name, entry in _entries(self.header).items()}

    @property
    def metadata(self) -> dict[str, str]:
        """What its header says beside the tensors; empty where that is no text."""
        try:
            found = msgspec.json.decode(self.header, type=_Header)
        except msgspec.ValidationError:
            return {}
        return found.metadata

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors of the file together."""
        return sum(self.dtypes.values())

    @property
    def dtypes(self) -> Counter[str]:
        """How many numbers are stored in each dtype, by its name in the file ("BF16")."""
        counts: Counter[str] = Counter()
        for entry in _entries(self.header).values():
            counts[entry.dtype] += math.prod(entry.shape)
        return counts

    def sample(self) -> Iterator[bytes]:
        """Yield the header and a page from the middle of every tensor, for a digest.

        Reading all of 20 GB takes half a minute at every command. A fine-tune, or an adapter merged
        into some of the layers, changes nearly every number of the matrices that it touches, so
        one page of each tells two models apart.
        """
        yield self.header
        with self.path.open("rb") as file:
            for begin, end in self.spans:
                size = min(PAGE, end - begin)
                file.seek(begin + (end - begin - size) // 2)
                yield file.read(size)


class _Entry(msgspec.Struct):
    """A tensor of a safetensors header."""

    dtype: str
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]
    data_offsets: tuple[Count, Count]


class _Header(msgspec.Struct):
    """The part of a safetensors header that is no tensor."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict, name=_METADATA)


def _entries(header: bytes) -> dict[str, _Entry]:
    """Return the tensors of a header by name; ValueError or RecursionError if it is none."""
    found = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    return {
        name: msgspec.json.decode(entry, type=_Entry)
        for name, entry in found.items()
        if name != _METADATA
    }


def _spans(header: bytes) -> list[tuple[int, int]]:
    """Return each tensor's place in the data; ValueError at a gap or a shape of another size."""
    spans: list[tuple[int, int]] = []
    for entry in sorted(_entries(header).values(), key=lambda entry: entry.data_offsets):
        begin, end = entry.data_offsets
        if begin != (spans[-1][1] if spans else 0):
            raise ValueError("gap or overlap")
        if end - begin != math.prod(entry.shape) * _ITEM_BYTES[entry.dtype]:
            raise ValueError("shape and size differ")
        spans.append((begin, end))
    return spans
