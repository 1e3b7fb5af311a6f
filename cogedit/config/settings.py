"""Every setting: its key, type, default and range."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from cogedit.errors import UsageError
from cogedit.types import (
    DType,
    EncodeSettings,
    ExportSettings,
    InvertSettings,
    LoadSettings,
    Offload,
    ReconstructSettings,
    TransformerSettings,
    Weights,
)

SettingsT = TypeVar(
    "SettingsT",
    LoadSettings,
    EncodeSettings,
    InvertSettings,
    ReconstructSettings,
    ExportSettings,
    TransformerSettings,
)


@dataclass(frozen=True)
class Settings:
    """Everything that a command can be told, apart from its files and its prompt.

    Attributes:
        model: Hub id or folder; "auto" is the model of the artifact that the command reads.
        revision: Branch, tag or commit of a hub model; None is its main branch.
        dtype: Floating-point type of the model; None is the checkpoint's own.
        weights: Format in which the transformer's weights are kept, cast to `dtype` layer by layer;
            None is `dtype` itself.
        offload: Where its weights are between their layers' turns: on the device ("none"), in host
            memory between passes ("model") or layers ("group"); "auto" is the fastest that fits.
        device: "auto", "cuda", "cuda:N", "mps" or "cpu".
        workspace: Folder of the artifacts; None is `<video stem>.cogedit`.
        cache: Folder of the prompt embeddings, for all videos; None is `~/.cache/cogedit`.
        load: How frames are chosen.
        encode: How the VAE encodes.
        invert: How latents are inverted.
        reconstruct: How a trajectory is denoised. Its prompt is empty: a prompt belongs to one
            command, `reconstruct_with` adds it.
        export: How a video is written.
        transformer: How the transformer runs its rows: time and memory, not numbers.
    """

    model: str = "auto"
    revision: str | None = None
    dtype: DType | None = None
    weights: Weights | None = None
    offload: Offload = "auto"
    device: str = "auto"
    workspace: Path | None = None
    cache: Path | None = None
    load: LoadSettings = field(default_factory=LoadSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    invert: InvertSettings = field(default_factory=InvertSettings)
    reconstruct: ReconstructSettings = field(default_factory=lambda: ReconstructSettings(prompt=""))
    export: ExportSettings = field(default_factory=ExportSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)

    def reconstruct_with(self, prompt: str) -> ReconstructSettings:
        """The `reconstruct` table under this prompt."""
        return replace(self.reconstruct, prompt=prompt)


TABLES: dict[str, type[object]] = {
    "load": LoadSettings,
    "encode": EncodeSettings,
    "invert": InvertSettings,
    "reconstruct": ReconstructSettings,
    "export": ExportSettings,
    "transformer": TransformerSettings,
}


def setting_types() -> dict[str, object]:
    """Every dotted key with its type."""
    hints = {name: hint for name, hint in get_type_hints(Settings).items() if name not in TABLES}
    for table, record in TABLES.items():
        hints |= {f"{table}.{name}": hint for name, hint in get_type_hints(record).items()}
    del hints["reconstruct.prompt"]
    return hints


def setting_choices(key: str) -> tuple[str, ...]:
    """The words that a setting takes; empty where it takes others than words of a list."""
    hint = setting_types()[key]
    members = (hint, *get_args(hint))  # the members of `Literal[...] | None`
    literal = next((member for member in members if get_origin(member) is Literal), None)
    if literal is not None:
        return tuple(str(word) for word in get_args(literal))
    return ("auto", "cuda", "mps", "cpu") if key == "device" else ()


def _within(low: float, high: float = math.inf) -> Callable[[object], bool]:
    return lambda value: low <= cast(float, value) <= high and math.isfinite(cast(float, value))


def _is_window(value: object) -> bool:
    first, last = cast(tuple[float, float], value)
    return 0 <= first <= last <= 1


def _is_layer_range(value: object) -> bool:
    first, end = cast(tuple[int, int | None], value)
    return first >= 0 and (end is None or end > first)


_POSITIVE = (_within(1), "1 or more")
_COUNT = (_within(0), "0 or more")
_SHARE = (_within(0, 1), "0 to 1")
_WINDOW = (_is_window, "FIRST:LAST with 0 <= FIRST <= LAST <= 1")
_GUIDANCE = (_within(0), "a finite number, 0 or more")
RANGES: dict[str, tuple[Callable[[object], bool], str]] = {
    "model": (bool, "a hub id or a folder"),
    "device": (
        lambda value: re.fullmatch(r"auto|cuda(:\d+)?|mps|cpu", cast(str, value)) is not None,
        "auto, cuda, cuda:N, mps or cpu",
    ),
    "load.width": _POSITIVE,
    "load.height": _POSITIVE,
    "load.max_num_frames": _POSITIVE,
    "load.skip_frames_start": _COUNT,
    "load.skip_frames_end": _COUNT,
    "load.frame_sample_step": _POSITIVE,
    "invert.guidance_scale": _GUIDANCE,
    "invert.num_inference_steps": (_within(1, 1000), "1 to 1000"),
    "invert.inversion_iterations": (_within(1, 100), "1 to 100"),
    "reconstruct.guidance_scale": _GUIDANCE,
    "reconstruct.guidance_steps": _WINDOW,
    "reconstruct.source_guidance_scale": _GUIDANCE,
    "reconstruct.num_inference_steps": (_within(1, 1000), "1 to 1000"),
    "reconstruct.start_noise": _SHARE,
    "reconstruct.start_step": _COUNT,
    "reconstruct.drift_correction": _SHARE,
    "reconstruct.mask_dilation": _COUNT,
    "reconstruct.auto_mask_threshold": _SHARE,
    "reconstruct.seed": (_within(0, 2**63 - 1), "0 to 2^63 - 1"),
    "reconstruct.injection_strength": (_within(0, 100), "0 to 100"),
    "reconstruct.injection_steps": _WINDOW,
    "reconstruct.injection_layers": (_is_layer_range, "FIRST:END with 0 <= FIRST < END"),
    "transformer.max_rows": _POSITIVE,
    "export.fps": (
        lambda value: 0 < cast(Fraction, value) <= 1000,
        "more than 0 and at most 1000",
    ),
    "export.crf": (_within(0, 63), "0 to 63"),
    "export.feather": _COUNT,
    "export.align_edges": _COUNT,
}


def check_settings(settings: SettingsT) -> SettingsT:
    """Check the ranges of a settings record that was made in Python.

    Returns:
        The same record.

    Raises:
        UsageError: A value is out of its range.
    """
    table = next(name for name, made in TABLES.items() if made is type(settings))
    for item in fields(settings):
        key = f"{table}.{item.name}"
        value = cast(object, getattr(settings, item.name))
        if value is not None and key in RANGES and not RANGES[key][0](value):
            raise UsageError(f"{item.name} is {reprlib.repr(value)}, expected {RANGES[key][1]}")
    return settings
