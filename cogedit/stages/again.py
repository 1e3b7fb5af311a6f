"""The commands that make an artifact again, written from its record."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from cogedit.artifacts import (
    FramesRecord,
    LatentsRecord,
    ModelRecord,
    TrajectoryRecord,
    Workspace,
)
from cogedit.config import Settings, all_settings
from cogedit.media.clip import plan_clip
from cogedit.schema import flag_name, plain_value
from cogedit.types import EncodeSettings, InvertSettings


def load_again(frames: FramesRecord, workspace: Workspace) -> str:
    """Write the command that makes frames again, and what it lacks to be typed as it is."""
    words = ["cogedit", "load", frames.source.place, *_into(workspace)]
    if frames.source.is_untimed:
        words += ["--fps", str(frames.source.fps)]
    settings = frames.settings
    if settings.max_num_frames is None:
        words += ["--max-num-frames", "all"]
    # Versions that spread frames over the video, unless they were told otherwise, said nothing.
    spread = replace(settings, frame_rate="spread")
    is_spread = plan_clip(frames.source, spread).indices == frames.frame_indices
    if settings.frame_rate == "model" and is_spread:
        settings = spread
    for field in fields(settings):
        value: object = getattr(settings, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        elif value is not None:
            words += [flag, str(value)]
    name = frames.source.name
    place = "" if Path(name).exists() else f" and the path of {name}, which is not here"
    return f"`{shlex.join(words)}`{place}"


def encode_again(latents: LatentsRecord, workspace: Workspace, settings: Settings) -> str:
    """Write the command that makes latents again from their frames, by the model of a run."""
    words = ["cogedit", "encode", str(workspace.path_for(latents.frames)), *_into(workspace)]
    words += [*_model(latents.model, settings), *_changed("encode", latents.settings)]
    return f"`{shlex.join(words)}`"


def invert_again(trajectory: TrajectoryRecord, workspace: Workspace, settings: Settings) -> str:
    """Write the command that makes a trajectory again from its latents, by the model of a run."""
    made_by = trajectory.model
    words = ["cogedit", "invert", str(workspace.path_for(trajectory.latents)), *_into(workspace)]
    words += [*_model(made_by, settings), *_changed("invert", trajectory.settings)]
    if trajectory.windows is not None:  # which hold the overlap
        words += ["--window-overlap", str(trajectory.windows.overlap)]
    if made_by.attention_backend is not None:
        words += ["--attention-backend", made_by.attention_backend]
    if made_by.weights is not None:
        words += ["--weights", made_by.weights]
    for lora in made_by.lora:
        words += ["--inversion-lora", f"{lora.name}:{lora.scale:g}"]
    return f"`{shlex.join(words)}`"


def export_again(artifact: Path, settings: Settings, *flags: str) -> str:
    """Write the command that exports an artifact with some flags, by the model of a run.

    The artifact names its model; where the folder or the files of that lie, it does not know.
    """
    words = ["cogedit", "export", str(artifact), *flags]
    if Path(settings.model).is_dir():
        words += ["--model", settings.model]
    for part, path in settings.files:
        words += [f"--{part}", str(path)]
    return shlex.join(words)


def _into(workspace: Workspace) -> list[str]:
    return ["--workspace", str(workspace.root)]


def _model(made_by: ModelRecord, settings: Settings) -> Iterator[str]:
    """The options of the model that made an artifact; where it is here, the run's settings say."""
    yield from ("--model", settings.model)
    if settings.revision is not None:
        yield from ("--revision", settings.revision)
    for part, path in settings.files:
        yield from (f"--{part}", str(path))
    yield from ("--dtype", made_by.dtype)
    if settings.device != "auto":
        yield from ("--device", settings.device)


def _changed(table: str, settings: EncodeSettings | InvertSettings) -> Iterator[str]:
    """The options of the settings of a table that are not the default."""
    for field in fields(settings):
        value: object = getattr(settings, field.name)
        if value == field.default:
            continue
        key = f"{table}.{field.name}"
        flag = flag_name(key)
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        else:
            text = all_settings()[key].none_text if value is None else str(plain_value(value))
            yield from (flag, text)
