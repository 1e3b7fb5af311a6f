"""The clip that an artifact was made of: its frames and its latents, from the workspace."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    Workspace,
    frames_record,
    num_pad_frames,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactError, ArtifactMismatch
from cogedit.stages.run import workspace_for
from cogedit.types import ExportSettings

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
    path = artifact
    if sniff_kind(artifact) != "frames":
        path = _find_frames(workspace_for(artifact, settings), record, otherwise=otherwise)
    return read_artifact(path, "frames").tensors["frames"]


def source_latents(
    artifact: Path, record: EditRecord, settings: Settings, *, otherwise: str
) -> Tensor:
    """Read the clean latents that an edit was made of, [1, F', C, H', W'] without pad frames.

    Args:
        artifact: The edit; in its workspace they are looked for, as latents or in the trajectory.
        record: Its record.
        settings: `workspace`.
        otherwise: What else would do, for the hint.

    Raises:
        ArtifactError: They are not there.
    """
    workspace = workspace_for(artifact, settings)
    path = _find_latents(workspace, record.trajectory, otherwise=otherwise)
    found = read_artifact(path, ("latents", "trajectory"))
    return found.tensors["latents"][:, num_pad_frames(found.record) :]


def otherwise_use(export: ExportSettings) -> str:
    """Name, for a hint, the options under which an export needs nothing of the source's."""
    words = ["--align-edges 0"] if export.align_edges else []
    if export.composite == "source":
        words.append("--composite decode")
    return f"or use {' '.join(words)}"


def check_originals(artifact: Path, settings: Settings, *, has_mask: bool) -> None:
    """Refuse, before anything is computed, to start from an artifact whose clip is not there.

    Args:
        artifact: What a run of `settings` starts from.
        settings: `workspace`, and whether the export aligns edges or shows the source's frames.
        has_mask: Whether the edits will have one: they then carry the source's latents.

    Raises:
        ArtifactError: The frames or the latents that the export will need are not there.
    """
    export = settings.export
    # At the source's size a composite is made of the video itself.
    around = export.composite == "source" and export.size == "clip"
    if not export.align_edges and not around:
        return
    otherwise = otherwise_use(export)
    record, workspace = read_record(artifact), workspace_for(artifact, settings)
    _find_frames(workspace, record, otherwise=otherwise)
    # Earlier artifacts still become latents, in the workspace.
    if export.align_edges and not has_mask and isinstance(record, TrajectoryRecord):
        _find_latents(workspace, record, otherwise=otherwise)


def _find_frames(workspace: Workspace, record: Record, *, otherwise: str) -> Path:
    wanted = frames_record(record)
    name = wanted.source.name
    place = "" if Path(name).exists() else f" and the path of {name}, which is not here"
    hint = f"make it with `{_load_command(wanted, workspace.root)}`{place}, {otherwise}"
    path = workspace.find(wanted)
    if path is None:
        raise ArtifactError(
            f"the source's frames, {workspace.path_for(wanted).name}, are not in {workspace.root}",
            hint=hint,
        )
    if read_record(path).tensors != wanted.tensors:
        raise ArtifactMismatch(
            f"{path} holds other pixels than the artifact was made of", hint=hint
        )
    return path


def _find_latents(workspace: Workspace, trajectory: TrajectoryRecord, *, otherwise: str) -> Path:
    wanted: tuple[LatentsRecord, TrajectoryRecord] = (trajectory.latents, trajectory)
    for one in wanted:
        path = workspace.find(one)
        if path is not None:
            return path
    frames = workspace.path_for(frames_record(trajectory))
    again = ["cogedit", "encode", str(frames), "--workspace", str(workspace.root)]
    raise ArtifactError(
        f"the source's latents, {workspace.path_for(wanted[0]).name}, are not in {workspace.root}",
        hint=f"make them with `{shlex.join(again)}`, {otherwise}",
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
