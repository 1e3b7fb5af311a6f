"""What an export shows outside the mask of an edit."""

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
from cogedit.errors import ArtifactError, ArtifactMismatch, UsageError
from cogedit.stages.run import workspace_for
from cogedit.types import Composite

if TYPE_CHECKING:
    from torch import Tensor


def composite_for(record: Record, settings: Settings) -> Composite:
    """Choose what is shown outside the mask of an artifact.

    Unasked it is the source after the VAE's round trip: the pixels on both sides of the edge have
    then gone through the same codec, so that no seam shows, and the artifact alone suffices.

    Raises:
        UsageError: A composite is asked for, and the artifact has no mask.
    """
    has_mask = isinstance(record, EditRecord) and record.has_mask
    wanted = settings.export.composite
    if wanted is None:
        return "decode" if has_mask else "none"
    if wanted != "none" and not has_mask:
        raise UsageError(
            f"--composite {wanted} needs an edit with a mask; this artifact has none",
            hint="make one with `cogedit reconstruct --mask` or `--auto-mask`",
        )
    return wanted


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


def _load_command(frames: FramesRecord, workspace: Path) -> str:
    """Write the command that makes a frames artifact again."""
    asked = frames.settings
    words = ["cogedit", "load", frames.source.name, "--workspace", str(workspace)]
    for field in fields(asked):
        value: object = getattr(asked, field.name)
        if value is not None:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)
