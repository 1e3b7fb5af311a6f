"""Which artifacts of a run exist already."""

from __future__ import annotations

from pathlib import Path

from cogedit.artifacts import (
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    Workspace,
    chain_of,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.encode import latents_record
from cogedit.stages.invert import trajectory_record
from cogedit.stages.load import choose_clip
from cogedit.stages.model import check_same_model
from cogedit.stages.run import Run


def follow(
    source: Path, settings: Settings, checkpoint: Checkpoint, *, workspace: Workspace, run: Run
) -> list[Record]:
    """Return the records from the clip on, as far as the artifacts of the run exist.

    The first is the clip's; where its frames do not exist, it has no tensors.

    Raises:
        CogeditError: As `load`, or an artifact is damaged.
    """
    if sniff_kind(source) is None:
        clip = choose_clip(source, settings, run=run).record
        chain: list[Record] = [existing(clip, workspace) or clip]
    else:
        chain = [*chain_of(read_record(source, ("frames", "latents", "trajectory")))]
    last = chain[-1]
    if isinstance(last, LatentsRecord | TrajectoryRecord):
        check_same_model(str(source), last, checkpoint)
    if isinstance(last, FramesRecord) and last.tensors:
        latents = existing(latents_record(last, checkpoint, settings=settings), workspace)
        chain += [latents] if latents is not None else []
    last = chain[-1]
    if isinstance(last, LatentsRecord):
        trajectory = existing(trajectory_record(last, checkpoint, settings=settings), workspace)
        chain += [trajectory] if trajectory is not None else []
    return chain


def existing(record: Record, workspace: Workspace) -> Record | None:
    """Return the record of an artifact as it is on disk; None where there is none."""
    path = workspace.find(workspace.as_kept(record))
    return None if path is None else read_record(path)
