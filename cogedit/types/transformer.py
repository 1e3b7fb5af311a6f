"""How the transformer runs."""

from __future__ import annotations

from dataclasses import dataclass

from cogedit.schema import Positive, setting
from cogedit.types.words import AttentionBackend

INEXACT_BACKENDS: frozenset[AttentionBackend] = frozenset({"sage"})
"""Kernels that compute in fewer bits than the model; an artifact's record names them."""


@dataclass(frozen=True)
class TransformerSettings:
    """How the transformer runs. Results stay the same to rounding, except where said."""

    max_rows: Positive | None = setting(
        None,
        "Speed and memory",
        "Rows of a batch to compute at a time in a layer; fewer need less memory.",
        unit="rows",
        default_text="chosen by the size of the clip",
    )
    attention_backend: AttentionBackend = setting(
        "native",
        "Speed and memory",
        "Attention kernel: native, cudnn, flash, flash3, or sage (8 bits, which changes results).",
    )
    compile: bool = setting(
        False,
        "Speed and memory",
        "Compile the transformer's blocks: a slow first step, then faster ones.",
    )
    gpus: Positive = setting(
        1,
        "Speed and memory",
        "GPUs of this machine that compute one clip together; torchrun sets it.",
        metavar="N",
    )
