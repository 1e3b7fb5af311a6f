"""The bytes of an artifact: a safetensors file whose header follows from its record alone.

```
8 bytes            length of the header, little-endian
header             {"__metadata__": {"cogedit": ENVELOPE}, NAME: {dtype, shape, data_offsets}, ...}
payload            the tensors, without gaps
```

ENVELOPE is canonical JSON of `{"record": ..., "sha256": digest of the record's canonical JSON}`.
The record names every tensor, so a header can be written again from it and compared byte for byte;
together with the record's digest and the tensors' digests no byte of a file is left unchecked.

This is done here rather than by the safetensors library because that library writes metadata keys
in random order, and accepts duplicate keys, hostile shapes and flipped payload bits. What is
written here is plain safetensors that the library reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from cogedit.artifacts.codec import Json, decode_record
from cogedit.artifacts.records import (
    RECORD_TYPES,
    SCHEMA_VERSION,
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    TensorDType,
    TensorRecord,
    TrajectoryRecord,
    chain_of,
    check_meaning,
    frames_record,
    has_first_frame,
    record_from_json,
    record_text,
)
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch, ArtifactNewer
from cogedit.types import ArtifactKind
from cogedit.version import __version__

MAGIC = b'{"__metadata__":{"cogedit":"'
"""What every artifact has at byte 8, and no other file."""

MAX_HEADER_BYTES = 16 * 2**20
"""A record with prompts of 10,000 characters and a million frame indices stays below 10 MB."""

ITEM_SIZE: dict[TensorDType, int] = {"uint8": 1, "float32": 4, "int64": 8}
_CODE: dict[TensorDType, str] = {"uint8": "U8", "float32": "F32", "int64": "I64"}
_PARENTS: dict[ArtifactKind, ArtifactKind] = {
    "latents": "frames",
    "trajectory": "latents",
    "edit": "trajectory",
}
"""What each kind is made from; the field of its record has the same name."""

_write = json.JSONEncoder(separators=(",", ":")).encode
_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True)
class TensorRule:
    """What a tensor of a kind must be: its dtype and its axes."""

    dtype: TensorDType
    axes: str


_LATENTS = TensorRule("float32", "B F' C H' W'")
_TRAJECTORY = TensorRule("float32", "N B F' C H' W'")
_RULES: dict[ArtifactKind, dict[str, TensorRule]] = {
    "frames": {"frames": TensorRule("uint8", "F H W C")},
    "latents": {"first_frame": _LATENTS, "latents": _LATENTS},
    "trajectory": {
        "first_frame": _LATENTS,
        "latents": _LATENTS,
        "timesteps": TensorRule("int64", "N"),
        "trajectory": _TRAJECTORY,
    },
    "edit": {
        "latents": _LATENTS,
        "mask": TensorRule("uint8", "F H W"),
        "source_latents": _LATENTS,
        "trajectory": _TRAJECTORY,
    },
}


def tensor_rules(record: Record) -> dict[str, TensorRule]:
    """The tensors that the artifact of this record holds, by name."""
    rules = dict(_RULES[record.kind])
    if isinstance(record, EditRecord):
        if not record.has_trajectory:
            del rules["trajectory"]
        if not record.has_mask:
            del rules["mask"], rules["source_latents"]
    elif not has_first_frame(record):
        rules.pop("first_frame", None)
    return rules


def order_tensors(tensors: list[TensorRecord]) -> tuple[TensorRecord, ...]:
    """File order, the one of the safetensors library: widest items first, for alignment."""
    return tuple(sorted(tensors, key=lambda tensor: (-ITEM_SIZE[tensor.dtype], tensor.name)))


def num_bytes(tensor: TensorRecord) -> int:
    """Size of a tensor's payload."""
    return math.prod(tensor.shape) * ITEM_SIZE[tensor.dtype]


def check_tensors(record: Record) -> None:
    """Check the names, dtypes and shapes of a record's tensors against its kind and settings.

    Raises:
        ArtifactError: Naming the tensor, what was found and what was expected.
    """
    rules = tensor_rules(record)
    names = sorted(tensor.name for tensor in record.tensors)
    if names != sorted(rules):
        found = reprlib.repr(", ".join(names)) if names else "none"
        raise ArtifactError(f"its tensors are {found}, expected {', '.join(sorted(rules))!r}")
    shapes = {tensor.name: tensor.shape for tensor in record.tensors}
    for tensor in record.tensors:
        rule = rules[tensor.name]
        axes = rule.axes.split()
        if tensor.dtype != rule.dtype or len(tensor.shape) != len(axes):
            raise ArtifactError(
                f"tensor {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {rule.dtype} [{', '.join(axes)}]"
            )
    for name, shape in _shapes_by_settings(record, shapes).items():
        if shapes[name] != shape:
            raise ArtifactError(
                f"tensor {name!r} has shape {list(shapes[name])}, expected {list(shape)} "
                "by the record's settings"
            )


def _shapes_by_settings(
    record: Record, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes that follow from the settings, from the parent, and from the other tensors."""
    expected: dict[str, tuple[int, ...]] = {}
    if isinstance(record, FramesRecord):
        size = record.settings
        expected["frames"] = (len(record.frame_indices), size.height, size.width, 3)
    if isinstance(record, LatentsRecord | TrajectoryRecord) and has_first_frame(record):
        batch, _, *rest = shapes["latents"]
        expected["first_frame"] = (batch, 1, *rest)
    if isinstance(record, TrajectoryRecord):
        num_steps = record.settings.num_levels
        batch, num_frames, *rest = _shape_of_latents(record.latents)
        expected["latents"] = (batch, num_frames + record.num_pad_frames, *rest)
        expected["timesteps"] = (num_steps,)
        expected["trajectory"] = (num_steps, *shapes["latents"])
    if isinstance(record, EditRecord):
        expected["latents"] = _shape_of_latents(record.trajectory)
    if isinstance(record, EditRecord) and record.has_mask:
        frames = frames_record(record)
        size = frames.settings
        expected["mask"] = (len(frames.frame_indices), size.height, size.width)
        expected["source_latents"] = shapes["latents"]
    return expected


def _shape_of_latents(record: Record) -> tuple[int, ...]:
    return next(tensor.shape for tensor in record.tensors if tensor.name == "latents")


def encode_header(record: Record) -> bytes:
    """The start of an artifact's file: length and header, of a record with tensors in file order.

    Raises:
        ArtifactError: The record cannot be written: a wrong type in a field, a wrong tensor, or
            more than `MAX_HEADER_BYTES`.
    """
    for link in chain_of(record):
        check_tensors(link)
    return header_bytes("cogedit", record_text(record), record.tensors)


def header_bytes(key: str, text: str, tensors: tuple[TensorRecord, ...]) -> bytes:
    """Length and header of a safetensors file with one record.

    The record is canonical JSON under the metadata `key`; its tensors are in file order.

    Raises:
        ArtifactError: The header takes more than `MAX_HEADER_BYTES`.
    """
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    header: dict[str, object] = {"__metadata__": {key: f'{{"record":{text},"sha256":"{digest}"}}'}}
    begin = 0
    for tensor in tensors:
        end = begin + num_bytes(tensor)
        header[tensor.name] = {
            "dtype": _CODE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    body = _write(header).encode("ascii")
    body += b" " * (-len(body) % 8)
    if len(body) > MAX_HEADER_BYTES:
        raise ArtifactError(
            f"the record takes {len(body)} bytes, expected at most {MAX_HEADER_BYTES}"
        )
    return len(body).to_bytes(8, "little") + body


def decode_header(start: bytes) -> Record:
    """The record of an artifact, once every byte of `start`, length and header, is checked.

    Raises:
        ArtifactDamaged: The bytes are not what a record says.
        ArtifactNewer: The record was written by a newer cogedit.
    """
    value: dict[str, Json] = {}
    try:
        value, text = decode_envelope(start, "cogedit")
        record = record_of(value, text)
        for link in chain_of(record):
            check_tensors(link)
        canonical = header_bytes("cogedit", text, record.tensors)
    except (ArtifactDamaged, ArtifactMismatch):
        raise
    except ArtifactError as error:
        if _is_newer(value.get("cogedit_version")):  # its digest is right: no damage
            raise ArtifactNewer(
                f"was made by cogedit {value['cogedit_version']}; this is cogedit {__version__}",
                hint="update cogedit",
            ) from error
        raise ArtifactDamaged(f"has a damaged record: {error.message}") from error
    if canonical != start:
        raise ArtifactDamaged("has a header that does not match its record")
    return record


class _Header(msgspec.Struct, rename={"metadata": "__metadata__"}):
    """What is read of a header; reading it whole takes as long as all else."""

    metadata: dict[str, object]


_read_header = msgspec.json.Decoder(_Header).decode


def decode_envelope(start: bytes, key: str) -> tuple[dict[str, Json], str]:
    """The record under a header's metadata `key`: its object and canonical JSON, digest checked.

    Raises:
        ArtifactError: There is none, or its bytes are not what its digest says.
    """
    if not start[8:].isascii():
        raise ArtifactDamaged("has a header that is not ASCII")
    try:
        envelope = _read_header(start[8:]).metadata.get(key)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactDamaged(f"has a damaged header: {error}") from error
    if not isinstance(envelope, str):
        raise ArtifactDamaged("has no record")
    # As `header_bytes` writes it: in the end the whole header is compared with what that gives.
    text, _, found = envelope.removeprefix('{"record":').rpartition(',"sha256":"')
    digest = hashlib.sha256(text.encode()).hexdigest()
    if found != f'{digest}"}}':
        raise ArtifactDamaged(
            f"has a record with digest {digest[:12]}, expected {reprlib.repr(found)}"
        )
    try:
        record = json.loads(text)  # a key that stands twice is not canonical, and refused as such
    except (ValueError, RecursionError) as error:
        raise ArtifactDamaged(f"has a record that is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ArtifactDamaged(f"has the record {reprlib.repr(record)}, expected an object")
    return record, text


def record_of(record: dict[str, Json], text: str | None = None) -> Record:
    """The record that a JSON object says; `text` is its `canonical_text`, where it is known.

    Raises:
        ArtifactDamaged: It is of no kind.
        ArtifactNewer: It was written in a newer schema.
        ArtifactError: A field is missing, unknown, of another type or without meaning.
    """
    schema, kind = record.get("schema"), record.get("kind")
    if type(schema) is int and schema > SCHEMA_VERSION:
        raise ArtifactNewer(
            f"was made by a newer cogedit in schema {reprlib.repr(schema)}; "
            f"this cogedit {__version__} reads schema {SCHEMA_VERSION}",
            hint="update cogedit",
        )
    if not isinstance(kind, str) or kind not in RECORD_TYPES:
        raise ArtifactDamaged(
            f"is of kind {reprlib.repr(kind)}, expected one of {', '.join(RECORD_TYPES)}"
        )
    known = None if text is None else _beside_known_parent(text, kind)
    return known or record_from_json(record, kind, text)


def _beside_known_parent(text: str, kind: ArtifactKind) -> Record | None:
    """Decode a record's own fields: its parent is that of many, and is decoded once.

    None where it has none, or where something is wrong: decoding the whole tells what.
    """
    parent = _PARENTS.get(kind)
    if parent is None:
        return None
    try:
        inner = bytes(_split(text)[parent]).decode()
        own = text.replace(f'"{parent}":{inner}', f'"{parent}":null', 1)
        known: dict[str, object] = {parent: _record_of_text(inner)}
        record: Record = decode_record(json.loads(own), RECORD_TYPES[kind], own, known=known)
        check_meaning(record)
    except (ArtifactError, ValueError, LookupError, RecursionError, msgspec.DecodeError):
        return None
    return record


@lru_cache(maxsize=64)
def _record_of_text(text: str) -> Record:
    return record_of(json.loads(text), text)


def _is_newer(version: Json) -> bool:
    """Whether a version is later than this one."""
    own, other = _numbers(__version__), _numbers(version)
    return other is not None and own is not None and other > own


def _numbers(version: Json) -> list[int] | None:
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,9}(\.\d{1,9}){2}", version):
        return None
    return [int(part) for part in version.split(".")]
