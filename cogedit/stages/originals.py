"""The clip that an artifact was made of: its frames and its latents, from the workspace."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    Record,
    frames_record,
    read_artifact,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactError, ArtifactMismatch
from cogedit.stages.run import workspace_for

if TYPE_CHECKING:
    from torch import Tensor


def source_frames(artifact: Path, record: Record, settings: Settings, *, otherwise: str) -> Tensor:
    """Read the clip that an artifact was made of, uint8 [F, H, W, 3], from its workspace.

    Args:
        artifact: The artifact, or the clip itself.
        record: Its record.
        settings: `workspace`.
        otherwise: What else would do, for the hint.

    Raises:
        ArtifactError: It is not there, or not the same.
    """
    wanted = frames_record(record)
    if sniff_kind(artifact) == "frames":
        return read_artifact(artifact, "frames").tensors["frames"]
    workspace = workspace_for(artifact, settings)
    hint = f"make it with `{_load_command(wanted, workspace.root)}`, {otherwise}"
    path = workspace.find(wanted)
    if path is None:
        raise ArtifactError(
            f"the source's frames, {workspace.path_for(wanted).name}, are not in {workspace.root}",
            hint=hint,
        )
    frames = read_artifact(path, "frames")
    if frames.record.tensors != wanted.tensors:
        raise ArtifactMismatch(f"{path} holds other pixels than {artifact} was made of", hint=hint)
    return frames.tensors["frames"]


def source_latents(artifact: Path, record: EditRecord, settings: Settings, *, hint: str) -> Tensor:
    """Read the clean latents that an edit was made of, [1, F', C', H', W'] float32.

    Args:
        artifact: The edit. One with a mask has them itself; otherwise they are looked for in its
            workspace, as latents or in the trajectory.
        record: Its record.
        settings: `workspace`.
        hint: What to do where they are not there.

    Raises:
        ArtifactError: They are not there, or damaged.
    """
    if record.has_mask:
        return read_artifact(artifact, "edit").tensors["source_latents"]
    workspace = workspace_for(artifact, settings)
    for wanted in (record.trajectory.latents, record.trajectory):
        path = workspace.find(wanted)
        if path is not None:
            return read_artifact(path, wanted.kind).tensors["latents"]
    raise ArtifactError(
        f"the source's latents, {workspace.path_for(record.trajectory.latents).name}, are not in "
        f"{workspace.root}",
        hint=hint,
    )


def _load_command(frames: FramesRecord, workspace: Path) -> str:
    """Write the command that makes a frames artifact again."""
    asked = frames.settings
    words = ["cogedit", "load", frames.source.name, "--workspace", str(workspace)]
    for field in fields(asked):
        value: object = getattr(asked, field.name)
        if value is not None:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)
