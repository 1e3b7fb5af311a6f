"""Prompt embeddings on disk: one file per prompt and model, shared by every video.

They are a cache, not artifacts: no later file depends on them, and a missing or damaged one is
computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.codec import Json, canonical_text, encode_record
from cogedit.artifacts.records import TensorRecord
from cogedit.artifacts.tensor_file import (
    HeaderFormat,
    TensorFile,
    open_regular,
    write_tensor_file,
)
from cogedit.errors import ArtifactDamaged, ArtifactError
from cogedit.types import DType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EmbedsRecord:
    """Everything that determines the embeddings of a prompt, `prompt_embeds` [1, L, D].

    They are written as float32, which holds bf16 and fp16 exactly.
    """

    json_constants: ClassVar[dict[str, Json]] = {"kind": "prompt_embeds", "schema": 1}

    prompt: str
    model: str  # digest of the checkpoint whose T5 embedded it, in hex
    dtype: DType  # that T5 computed in
    device: str  # type of the device that it ran on, "cpu", "cuda" or "mps": rounding differs
    max_text_seq_length: int  # tokens that the prompt was padded or cut to
    library: str  # version of the library that T5 comes from
    truncated: int = 0  # tokens that did not fit; known once the prompt is embedded
    unknown: tuple[str, ...] = ()  # words that the tokenizer does not know; likewise
    tensors: tuple[TensorRecord, ...] = ()  # empty until written

    @property
    def key(self) -> str:
        """Names the file: sha256 in hex of all that is known before the prompt is embedded."""
        known = replace(self, truncated=0, unknown=(), tensors=())
        return hashlib.sha256(canonical_text(encode_record(known)).encode("ascii")).hexdigest()


_FORMAT = HeaderFormat("cogedit_prompt_embeds", EmbedsRecord)


def default_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The default cache folder: `$XDG_CACHE_HOME/cogedit` or `~/.cache/cogedit`."""
    home = environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cogedit"


def embeds_path(cache: Path, record: EmbedsRecord) -> Path:
    """The file of some embeddings in a cache folder."""
    return cache / "prompts" / f"{record.key[:32]}.safetensors"


def write_embeds(cache: Path, embeds: torch.Tensor, record: EmbedsRecord) -> Path:
    """Write embeddings [1, L, D] of any floating-point dtype, whole or not at all.

    The cache is made if need be. Raises `StorageError` where the system refuses.
    """
    path = embeds_path(cache, record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error, "write") from error
    tensors = {"prompt_embeds": embeds.float()}
    write_tensor_file(path, tensors, record, encode=_FORMAT.encode)
    return path


def find_embeds(cache: Path, record: EmbedsRecord) -> tuple[EmbedsRecord, torch.Tensor] | None:
    """Read embeddings, every byte checked, if they are there.

    Returns:
        The record as written, and `prompt_embeds` [1, L, D] float32 on the CPU.

    Raises:
        ArtifactDamaged: The file is not what its record says, or belongs to another record.
        StorageError: The system refuses to read it.
    """
    path = embeds_path(cache, record)
    length = record.max_text_seq_length
    try:
        with open_regular(path) as file:
            opened = TensorFile(file, _FORMAT.decode)
            if opened.record.key != record.key:
                raise ArtifactDamaged("holds the embeddings of another prompt or model")
            described = [(t.name, t.shape[:2], len(t.shape)) for t in opened.record.tensors]
            if described != [("prompt_embeds", (1, length), 3)]:
                raise ArtifactDamaged(f"holds other tensors than prompt_embeds [1, {length}, D]")
            return opened.record, opened.read()["prompt_embeds"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(path, error, "read") from error
    except ArtifactError as error:
        raise ArtifactDamaged(f"{show(path)} {error.message}") from error
