"""How the transformer runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from cogedit.schema import Positive, path_of, setting
from cogedit.types.words import AttentionBackend

INEXACT_BACKENDS: frozenset[AttentionBackend] = frozenset({"sage"})
"""Kernels that compute in fewer bits than the model; an artifact's record names them."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that is added to the transformer's weights, and how much of it; 1 is as trained."""

    path: Path
    scale: float = 1.0

    def __str__(self) -> str:
        """Write it as it is read."""
        return f"{self.path}:{self.scale}"

    @classmethod
    def read(cls, value: object) -> LoraFile:
        """Read FILE or FILE:SCALE; a scale is what follows the last colon and is a finite number.

        Raises:
            ValueError: It names no file.
        """
        if isinstance(value, LoraFile):
            path, scale = value.path, value.scale
            if not isinstance(path, str | Path) or not str(path):
                raise ValueError("no file is named")
            if not isinstance(scale, int | float) or not math.isfinite(scale):
                raise ValueError("a scale is a finite number")
            return cls(path_of(path), float(scale))
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("no file is named")
        file, colon, number = str(value).rpartition(":")
        try:
            scale = float(number) if colon else math.nan
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            return cls(path_of(value))
        if not file:
            raise ValueError("no file is named")
        return cls(path_of(file), scale)


Loras = Annotated[
    tuple[LoraFile, ...],
    Meta(description="FILE or FILE:SCALE, or none", extra={"read": LoraFile.read}),
]


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
