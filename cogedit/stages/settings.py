"""Settings of a run: what was given, what the artifact says, and what the model asks for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cogedit.artifacts import FramesRecord, ModelRecord, frames_record, read_record, sniff_kind
from cogedit.config import (
    ResolvedSettings,
    Settings,
    all_settings,
    preset_for_model,
    preset_names,
    read_preset,
    resolve_settings,
)
from cogedit.errors import ModelError, StorageError, UsageError, VideoError
from cogedit.media.probe import probe_facts
from cogedit.models.checkpoint import EMBEDDED, NotCachedError
from cogedit.models.hardware import cuda_present
from cogedit.models.hub import other_owner
from cogedit.stages.arguments import path_given
from cogedit.stages.model import checkpoint_for, takes_first_frame
from cogedit.types import ReconstructSettings

Inferred = Mapping[str, Mapping[str, object]]
"""What nobody gave: by origin, values by dotted key."""

LARGE_MODEL = "zai-org/CogVideoX-5b"
SMALL_MODEL = "shapes"
_FIRST_FRAME = "first-frame"
EMBEDDED_FRAMES = 9
"""Frames of the clips of the embedded model, and of those that its VAE was trained on."""


def settings_for(
    source: str | Path | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    config: str | None = None,
    rows: Mapping[str, Mapping[str, object]] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    flag_names: Mapping[str, str] | None = None,
) -> ResolvedSettings:
    """Settle every setting of a run.

    What nobody gave follows from the source and the model: an artifact's own model and dtype, the
    size and length of clip that the model was trained at, and, for a video without a model named,
    CogVideoX-5B if this machine has a CUDA device and the embedded model otherwise.

    Args:
        source: The video or artifact that the run starts from.
        flags: Values by dotted key, such as {"invert.num_inference_steps": 25}.
        config: Name of a preset, or a TOML file.
        rows: What a batch file sets, as in `resolve_settings`.
        environ: Environment with COGEDIT_* variables; None is this process's.
        cwd: Folder of `cogedit.toml`; None is the current directory.
        flag_names: As in `resolve_settings`.

    Raises:
        UsageError: A flag has a wrong type or is out of range.
        ConfigError: The same in a file or a variable.
    """
    resolve = partial(
        resolve_settings,
        dict(flags or {}),
        config=config,
        rows=rows,
        environ=os.environ if environ is None else environ,
        cwd=Path.cwd() if cwd is None else cwd,
        flag_names=flag_names,
    )
    path = None if source is None else path_given("the source", source)
    is_artifact = path is not None and sniff_kind(path) is not None
    resolved = resolve(inferred={})
    model = resolved.settings.model
    inferred: dict[str, Mapping[str, object]] = {}
    if is_artifact and path is not None:
        inferred |= _from_artifact(path, resolved.settings)
    if model == "auto" and not any("model" in values for values in inferred.values()):
        model = model_of_machine()
        inferred[_WITH_GPU if model == LARGE_MODEL else _WITHOUT_GPU] = {"model": model}
    if inferred:
        resolved = resolve(inferred=inferred)
    if resolved.settings.model in EMBEDDED:  # its VAE was trained on clips of the model's length
        inferred[f"the VAE of {resolved.settings.model}"] = {"encode.vae_span": EMBEDDED_FRAMES}
        resolved = resolve(inferred=inferred)
    of_model = _from_kind(resolved.settings)
    if not is_artifact:  # only a run that starts from the video chooses a clip
        of_model = {**of_model, **_from_checkpoint(resolved)}
    if of_model:
        inferred |= of_model
        resolved = resolve(inferred=inferred)
    if of_mode := _from_mode(resolved):
        return resolve(inferred={**inferred, **of_mode})
    return resolved


def settle_rate(source: Path, flags: Mapping[str, object]) -> Mapping[str, object]:
    """Settle what `--fps` says, where a command both reads and writes.

    It is the rate of a source that has no times, and of the video that is written from any other.
    Of an artifact the rate of its pictures may be said again: the clip keeps it.
    """
    fps = flags.get("export.fps")
    if fps is None:
        return flags
    others = {key: value for key, value in flags.items() if key != "export.fps"}
    if sniff_kind(source) is not None:
        recorded = frames_record(read_record(source)).source
        with suppress(ValueError):
            rate = all_settings()["export.fps"].read(fps, is_text=True)
            return others if recorded.is_untimed and rate == recorded.fps else flags
    with suppress(VideoError, StorageError):  # they show when it is read
        if probe_facts(source).is_untimed:
            return {**others, "load.fps": fps}
    return flags


def settle_every_frame(source: Path, flags: Mapping[str, object]) -> Mapping[str, object]:
    """Settle what `--frame-rate source` says where a command writes a video of an artifact.

    Of a clip that was taken at that rate it may be said again; of any other it means the export.
    """
    if flags.get("load.frame_rate") != "source" or sniff_kind(source) is None:
        return flags
    if frames_record(read_record(source)).settings.frame_rate == "source":
        return flags
    others = {key: value for key, value in flags.items() if key != "load.frame_rate"}
    return {"export.every_frame": True, **others}


def chosen_model(resolved: ResolvedSettings) -> str | None:
    """Say which model was chosen where nobody named one; None where somebody did."""
    origin = resolved.origins["model"]
    if not origin.startswith("this machine"):
        return None
    model = resolved.settings.model
    knows = ", which knows moving shapes only" if model == SMALL_MODEL else ""
    return f"model {model}{knows}: {origin} (--model chooses another)"


def found_as(settings: Settings) -> str | None:
    """Say that a Hub model is used from the cache under its owner's other name, where it is."""
    if other_owner(settings.model) is None:
        return None
    try:
        found = checkpoint_for(settings, download=False).id
    except (ModelError, StorageError):  # it shows when it is needed
        return None
    if found != other_owner(settings.model):
        return None
    return f"{settings.model} is in the cache as {found}, the same model, which is used"


def known_models() -> list[str]:
    """Models that need no description: the embedded ones, and those of the presets."""
    of_presets = (read_preset(name).get("model") for name in preset_names())
    return [*EMBEDDED, *dict.fromkeys(str(model) for model in of_presets if model is not None)]


def settings_as_made(path: Path, made_by: ModelRecord, settings: Settings) -> Settings:
    """Settle model, dtype and weights as what made an artifact had them, where nobody gave them.

    It is for what reads artifacts of several models, where `settings` name none or one for all.

    Raises:
        ModelError: It was made with a file or a folder of which it knows the name alone.
    """
    values = _as_made(path, made_by, settings)
    left = {key: value for key, value in values.items() if getattr(settings, key) in (None, "auto")}
    return replace(settings, **left)


def _from_artifact(path: Path, settings: Settings) -> Inferred:
    """Take model, dtype and weights from what made an artifact; of frames, no model did."""
    record = read_record(path)
    if isinstance(record, FramesRecord):
        return {}
    return {f"artifact {path.name}": _as_made(path, record.model, settings)}


def _as_made(path: Path, made_by: ModelRecord, settings: Settings) -> dict[str, Any]:
    given = {part for part, _ in settings.files}
    for part, name in (("transformer", made_by.transformer), ("vae", made_by.vae)):
        if name is not None and part not in given:
            raise ModelError(
                f"{path} was made with the {part} of {name}, whose folder it does not know",
                hint=f"name the file with --{part} FILE",
            )
    values: dict[str, Any] = {"dtype": made_by.dtype}
    if made_by.weights is not None:
        values["weights"] = made_by.weights
    if settings.model == "auto":
        values |= _named_again(made_by, path)
    return values


def _named_again(model: ModelRecord, source: Path) -> dict[str, object]:
    """Return the settings that name an artifact's model; ModelError if it was a local folder."""
    if model.revision is not None:
        return {"model": model.id, "revision": model.revision}
    if model.id in EMBEDDED:
        return {"model": model.id}
    raise ModelError(
        f"{source} was made with the local model {model.id}, whose folder it does not know",
        hint="name the folder with --model DIR",
    )


def model_of_machine() -> str:
    """Return the model of a run for which nobody named one."""
    return LARGE_MODEL if cuda_present() else SMALL_MODEL


_WITH_GPU, _WITHOUT_GPU = "this machine has a CUDA device", "this machine has no CUDA device"


def check_named_model(resolved: ResolvedSettings) -> None:
    """Refuse the model of a machine without a GPU for edits that are made on other machines."""
    if resolved.origins["model"] == _WITHOUT_GPU:
        raise UsageError(
            f"no model is named, and by itself this machine takes {SMALL_MODEL}, as it has no GPU; "
            "the edits are made elsewhere",
            hint=f"name it, such as --model {LARGE_MODEL}",
        )


def _from_kind(settings: Settings) -> Inferred:
    """Take the preset of models that take a first frame, where this is one.

    What a preset of its own says goes before.
    """
    if not takes_first_frame(settings):
        return {}
    own = preset_for_model(settings.model)
    known = {} if own is None else read_preset(own)
    values = {key: value for key, value in read_preset(_FIRST_FRAME).items() if key not in known}
    return {f"preset {_FIRST_FRAME}": values}


def _from_mode(resolved: ResolvedSettings) -> Inferred:
    """Take the strength of the mode where nobody gave one."""
    options, key = resolved.settings.reconstruct, "reconstruct.injection_strength"
    strength = strength_of_mode(options)
    if strength is None or resolved.origins[key] != "default":
        return {}
    return {f"injection_mode {options.injection_mode}": {key: strength}}


def strength_of_mode(options: ReconstructSettings) -> float | None:
    """Return the strength of a mode that replays attention maps, whose share of them is at most 1.

    It is for edits whose strength nobody gave. None is any other mode, which has the default.
    """
    return None if options.injection_mode == "concatenate" else 1.0


def _from_checkpoint(resolved: ResolvedSettings) -> Inferred:
    """Take size and length of the clip from the model's own files, for a model without a preset.

    Of a Hub model that is not downloaded yet they would be a guess.
    """
    settings = resolved.settings
    keys = ("load.width", "load.height", "load.max_num_frames")
    if preset_for_model(settings.model) is not None:
        return {}
    if all(resolved.origins[key] != "default" for key in keys):
        return {}
    try:
        geometry = checkpoint_for(settings, download=False).geometry
    except NotCachedError as error:
        raise ModelError(
            f"{error.message}, and what size of clip it takes is not known without it",
            hint=f"{error.hint}, or give --width, --height and --max-num-frames",
        ) from error
    values = (geometry.width, geometry.height, geometry.num_frames)
    return {f"model {settings.model}": dict(zip(keys, values, strict=True))}
