"""Every setting by its dotted key, and the record that holds the values of a run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from cogedit.errors import UsageError, shown
from cogedit.schema import Device, Name, Setting, setting, settings_of
from cogedit.types import (
    DType,
    EncodeSettings,
    ExportSettings,
    InvertSettings,
    LoadSettings,
    Loras,
    Offload,
    ReconstructSettings,
    TransformerSettings,
    Weights,
)

SettingsT = TypeVar("SettingsT")

TABLES: Mapping[str, type[object]] = {
    "load": LoadSettings,
    "encode": EncodeSettings,
    "invert": InvertSettings,
    "reconstruct": ReconstructSettings,
    "export": ExportSettings,
    "transformer": TransformerSettings,
}

REMOVED = {
    "reconstruct.drift_correction": "it was removed since it made edits no better: leave it out",
    "transformer.rows": "it was removed: set reconstruct.reference_prompt and "
    "reconstruct.reference_rows, `edit` and `two` for `exact` or `upstream`",
}
"""Settings of earlier versions, with what to do about them."""


@dataclass(frozen=True)
class Settings:
    """Everything that a command can be told, apart from its files and its prompt.

    `reconstruct` has no prompt here: it belongs to one command, `reconstruct_with` adds it.

    One that is made in Python (`dataclasses.replace`) is checked when it is made, and has what a
    `cogedit.toml` would give: lists become tuples, text becomes paths, numbers of NumPy Python's.
    UsageError for a value of a wrong type or out of range.
    """

    model: Name = setting(
        "auto",
        "Model",
        "Hub id, folder, or an embedded model: shapes, shapes-i2v.",
        metavar="ID|DIR",
        default_text="the artifact's model; for a video CogVideoX-5B on a CUDA device and shapes "
        "elsewhere",
    )
    revision: str | None = setting(
        None,
        "Model",
        "Branch, tag or commit of a Hub model.",
        metavar="REV",
        default_text="its main branch",
    )
    transformer_file: Path | None = setting(
        None,
        "Model",
        "One safetensors file with the transformer, in place of the model's own.",
        metavar="FILE",
        default_text="the model's",
    )
    vae_file: Path | None = setting(
        None,
        "Model",
        "One safetensors file with the VAE, likewise.",
        metavar="FILE",
        default_text="the model's",
    )
    lora: Loras = setting(
        (),
        "Model",
        "LoRA that edits run with, and how much of it, 1 if left out; give it again for more.",
        metavar="FILE[:SCALE]",
        default_text="none",
    )
    inversion_lora: Loras = setting(
        (),
        "Model",
        "LoRA that the inversion runs with, likewise.",
        metavar="FILE[:SCALE]",
        default_text="none",
    )
    dtype: DType | None = setting(
        None,
        "Model",
        "Floating-point type of the model: bf16, fp16 or fp32.",
        default_text="the artifact's, otherwise what suits the model's weights and the device",
    )
    weights: Weights | None = setting(
        None,
        "Model",
        "Type in which the transformer's weights are stored: bf16, fp8 or int8. "
        "8 bits need less memory and change results.",
        default_text="as the file of --transformer has them, otherwise as --dtype",
    )
    offload: Offload = setting(
        "auto",
        "Model",
        "Where the transformer's weights wait: on the device (none), in host memory between "
        "passes (model) or between layers (group), or the fastest that fits (auto).",
        metavar="WHERE",
    )
    decode_tiling: bool | None = setting(
        None,
        "Speed and memory",
        "Decode in overlapping tiles: less memory, slightly different pixels. It changes no "
        "artifact.",
        default_text="where it fits in no other way",
    )
    device: Device = setting("auto", "Model", "Where the model runs: auto, cuda, cuda:N, mps, cpu.")
    workspace: Path | None = setting(
        None,
        "Files",
        "Folder of the artifacts.",
        default_text="VIDEO-NAME.cogedit in the current directory",
    )
    cache: Path | None = setting(
        None,
        "Files",
        "Folder of the prompt embeddings, for all videos.",
        default_text="~/.cache/cogedit",
    )
    load: LoadSettings = field(default_factory=LoadSettings)
    encode: EncodeSettings = field(default_factory=EncodeSettings)
    invert: InvertSettings = field(default_factory=InvertSettings)
    reconstruct: ReconstructSettings = field(default_factory=lambda: ReconstructSettings(prompt=""))
    export: ExportSettings = field(default_factory=ExportSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)

    def __post_init__(self) -> None:
        for name, kind in TABLES.items():
            table: object = getattr(self, name)
            if not isinstance(table, kind):
                expected = f"a cogedit.types.{kind.__name__}"
                raise UsageError(f"{name} is {shown(table)}, expected {expected}")
            if changed := _read_values(table, f"{name}."):
                object.__setattr__(self, name, replace(table, **changed))  # type: ignore[type-var]
        for key, value in _read_values(self, "").items():
            object.__setattr__(self, key, value)

    @property
    def files(self) -> tuple[tuple[Literal["transformer", "vae"], Path], ...]:
        """Parts of the model that are files of their own."""
        transformer, vae = self.transformer_file, self.vae_file
        return (
            *((("transformer", transformer),) if transformer is not None else ()),
            *((("vae", vae),) if vae is not None else ()),
        )

    @property
    def loras(self) -> Loras:
        """Every LoRA of the run."""
        return *self.inversion_lora, *self.lora

    @property
    def read_files(self) -> tuple[Path, ...]:
        """Files of the model that the user named, which no output replaces."""
        return *(path for _, path in self.files), *(lora.path for lora in self.loras)

    def reconstruct_with(self, prompt: str) -> ReconstructSettings:
        """The `reconstruct` table under this prompt."""
        return replace(self.reconstruct, prompt=prompt)


@functools.cache
def all_settings() -> Mapping[str, Setting]:
    """Every setting by its dotted key, top level first, then table by table."""
    return {described.key: described for described in settings_of(Settings)}


def check_settings(settings: SettingsT) -> SettingsT:
    """Check a settings record that was made in Python, and return it.

    Raises:
        UsageError: A value has a wrong type or is out of range.
    """
    _read_values(settings, "")
    return settings


def _read_values(settings: object, table: str) -> dict[str, object]:
    """Read the values of a record made in Python as a file's; return those that this changes."""
    changed: dict[str, object] = {}
    for described in settings_of(type(settings)):  # type: ignore[arg-type]
        if "." in described.key:  # of a table
            continue
        value: object = getattr(settings, described.key)
        if value is described.default:
            continue
        try:
            read = described.read(value, is_text=False)
        except ValueError as error:
            found = shown(value)
            raise UsageError(f"{table}{described.key} is {found}, expected {error}") from error
        if not _is_written_so(read, value):
            changed[described.key] = read
    return changed


def _is_written_so(read: object, value: object) -> bool:
    """Whether a record writes both alike: 1 and 1.0 are equal, and so are NumPy's numbers."""
    if isinstance(read, tuple) and isinstance(value, tuple):
        return len(read) == len(value) and all(map(_is_written_so, read, value))
    return type(read) is type(value) and read == value
