"""Prompt embeddings on disk: one file per text and model, for every video that the text edits.

A file is framed and checked as an artifact's is, but is none: no later file depends on it, and what
is not here is embedded again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
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
)
from cogedit.artifacts.records import TensorRecord
from cogedit.artifacts.tensor_file import chunks, describe, on_cpu, read_tensor
from cogedit.errors import ArtifactDamaged, ArtifactError
from cogedit.types import DType

if TYPE_CHECKING:
    import torch

_KEY = "cogedit_prompt_embeds"


@dataclass(frozen=True)
class EmbedsRecord:
    """What the embeddings of a prompt follow from.

    Attributes:
        prompt: The text.
        model: Digest of the checkpoint whose T5 embedded it, in hex.
        dtype: Floating-point type that T5 computed in.
        device: Kind of device that it ran on: "cpu", "cuda" or "mps". Two kinds round differently.
        max_text_seq_length: Tokens that the text was padded or cut to.
        library: Version of the library that T5 comes from.
        truncated: Tokens that did not fit; not known before the text is embedded.
        unknown: Words that the tokenizer does not know; not known before either.
        tensors: `prompt_embeds` [1, L, D] float32, which holds bf16 and fp16 exactly; empty until
            written.
    """

    json_constants: ClassVar[dict[str, Json]] = {"kind": "prompt_embeds", "schema": 1}

    prompt: str
    model: str
    dtype: DType
    device: str
    max_text_seq_length: int
    library: str
    truncated: int = 0
    unknown: tuple[str, ...] = ()
    tensors: tuple[TensorRecord, ...] = ()

    @property
    def key(self) -> str:
        """What names the file: sha256 in hex of all that is known before the text is embedded."""
        known = replace(self, truncated=0, unknown=(), tensors=())
        return hashlib.sha256(canonical_text(encode_record(known)).encode("ascii")).hexdigest()


def default_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where embeddings are kept where nobody names a folder: `~/.cache/cogedit`.

    `XDG_CACHE_HOME` takes the place of `~/.cache`.
    """
    home = environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cogedit"


def embeds_path(cache: Path, record: EmbedsRecord) -> Path:
    """The file of some embeddings in a cache folder."""
    return cache / "prompts" / f"{record.key[:32]}.safetensors"


def write_embeds(cache: Path, embeds: torch.Tensor, record: EmbedsRecord) -> Path:
    """Write embeddings: whole or not at all.

    Args:
        cache: The folder; made if need be.
        embeds: [1, L, D], any floating-point dtype, on any device.
        record: What they follow from; its own `tensors` are ignored.

    Raises:
        StorageError: Disk full, permission denied.
    """
    path = embeds_path(cache, record)
    tensor = on_cpu({"prompt_embeds": embeds.float()})["prompt_embeds"]
    written = replace(record, tensors=(describe("prompt_embeds", tensor),))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error, "write") from error
    with atomic_write(path) as file:
        file.write(_header(written))
        for chunk in chunks(tensor):
            file.write(chunk)
    return path


def find_embeds(cache: Path, record: EmbedsRecord) -> tuple[EmbedsRecord, torch.Tensor] | None:
    """Read embeddings, every byte checked, if they are there.

    Returns:
        The record as written, and `prompt_embeds` [1, L, D] float32 on the CPU.

    Raises:
        ArtifactDamaged: The file is there and is not what its record says, or of another record.
        StorageError: The system refuses to read it.
    """
    path = embeds_path(cache, record)
    try:
        with path.open("rb") as file:
            return _read(path, file, record)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error, "read") from error
    except ArtifactError as error:
        raise ArtifactDamaged(f"{show(path)} {error.message}") from error


def _read(path: Path, file: BinaryIO, record: EmbedsRecord) -> tuple[EmbedsRecord, torch.Tensor]:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER_BYTES, size):
        raise ArtifactDamaged("is damaged: it is shorter than its header says")
    start += file.read(length)
    found = cast(EmbedsRecord, decode_record(decode_envelope(start, _KEY), EmbedsRecord))
    if len(found.tensors) != 1 or _header(found) != start:
        raise ArtifactDamaged("has a header that does not match its record")
    if found.key != record.key:
        raise ArtifactDamaged("holds the embeddings of another prompt or model")
    [tensor] = found.tensors
    if size != len(start) + num_bytes(tensor):
        raise ArtifactDamaged(f"is truncated or extended: it has {size} bytes")
    embeds, digest = read_tensor(path, file, tensor)
    if digest != tensor.sha256:
        raise ArtifactDamaged("is damaged: the embeddings are not those that were written")
    if embeds.dim() != 3 or embeds.shape[:2] != (1, record.max_text_seq_length):
        raise ArtifactDamaged(f"holds embeddings of shape {list(embeds.shape)}")
    return found, embeds


def _header(record: EmbedsRecord) -> bytes:
    return header_bytes(_KEY, canonical_text(encode_record(record)), record.tensors)
