"""Settings of a run: what was given, what the artifact says, and what the model asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cogedit.artifacts import FramesRecord, Record, read_record, sniff_kind
from cogedit.config import ResolvedSettings, preset_for_model, resolve_settings
from cogedit.errors import ModelError
from cogedit.models.checkpoint import EMBEDDED, cuda_present, find_checkpoint

Inferred = Mapping[str, Mapping[str, object]]
"""What nobody gave: by origin, values by dotted key."""

LARGE_MODEL = "zai-org/CogVideoX-5b"
SMALL_MODEL = "shapes"


def settings_for(
    source: Path | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> ResolvedSettings:
    """Settle every setting of a run.

    What nobody gave follows from the source and the model: an artifact's own model and dtype, the
    size and length of clip that the model was trained at, and, for a video without a model named,
    CogVideoX-5B if this machine has a CUDA device and the embedded model otherwise.

    Args:
        source: The video or artifact that the run starts from.
        flags: Values by dotted key, such as {"invert.num_inference_steps": 25}.
        config: Name of a preset, or a TOML file.
        environ: Environment with COGEDIT_* variables; None is this process's.
        cwd: Folder of `cogedit.toml`; None is the current directory.

    Raises:
        UsageError: A flag has a wrong type or is out of range.
        ConfigError: The same in a file or a variable.
    """
    given = dict(flags or {})
    environment = os.environ if environ is None else environ
    folder = Path.cwd() if cwd is None else cwd

    def resolve(inferred: Inferred) -> ResolvedSettings:
        return resolve_settings(
            given, config=config, environ=environment, cwd=folder, inferred=inferred
        )

    inferred: Inferred = {}
    first = resolve(inferred)
    if first.settings.model == "auto":
        inferred = _from_artifact(source) or _from_machine()
        first = resolve(inferred)
    return resolve({**inferred, **_from_checkpoint(first)})


def _from_artifact(source: Path | None) -> Inferred:
    """Take the model of the artifact that the run starts from, where it can be found again."""
    if source is None or sniff_kind(source) is None:
        return {}
    record: Record = read_record(source)
    if isinstance(record, FramesRecord):
        return {}
    model, origin = record.model, f"artifact {source.name}"
    if model.id not in EMBEDDED and model.revision is None:
        raise ModelError(
            f"{source} was made with the local model {model.id}, whose folder it does not know",
            hint="name the folder with --model DIR",
        )
    values = {"model": model.id, "revision": model.revision, "dtype": model.dtype}
    return {origin: {key: value for key, value in values.items() if value is not None}}


def _from_machine() -> Inferred:
    if cuda_present():
        return {"this machine has a CUDA device": {"model": LARGE_MODEL}}
    return {"this machine has no CUDA device": {"model": SMALL_MODEL}}


def _from_checkpoint(resolved: ResolvedSettings) -> Inferred:
    """Take size and length of the clip from the model's own files, for a model without a preset.

    A hub model that is not here yet is not downloaded for this.
    """
    settings = resolved.settings
    if preset_for_model(settings.model) is not None:
        return {}
    try:
        geometry = find_checkpoint(settings.model, settings.revision, download=False).geometry
    except ModelError:
        return {}
    clip = {
        "load.width": geometry.width,
        "load.height": geometry.height,
        "load.max_num_frames": geometry.num_frames,
    }
    return {f"model {settings.model}": clip}
