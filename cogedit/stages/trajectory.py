"""A trajectory on disk as the edits use it."""

from __future__ import annotations

from pathlib import Path

from cogedit.artifacts import TrajectoryRecord, read_artifact
from cogedit.artifacts.atomic import show
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import ArtifactMismatch
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.loading import alphas_cumprod
from cogedit.models.sampling import inversion_schedule


def open_trajectory(path: Path, checkpoint: Checkpoint) -> tuple[TrajectoryRecord, Trajectory]:
    """Read the trajectory of a checkpoint's inversion, and its record.

    Raises:
        ArtifactError: It is no trajectory, damaged, or has other timesteps than its settings visit.
    """
    artifact = read_artifact(path, "trajectory")
    record, tensors = artifact.record, artifact.tensors
    timesteps = tuple(int(t) for t in tensors["timesteps"])
    trajectory = Trajectory(tensors["trajectory"], tensors["latents"], timesteps)
    expected = inversion_schedule(record.settings, alphas_cumprod(checkpoint)).timesteps
    if timesteps != expected[::-1]:
        raise ArtifactMismatch(
            f"{show(path)} has the timesteps {_ends(timesteps)}; its inversion visits "
            f"{_ends(expected[::-1])}",
            hint="invert the video again",
        )
    return record, trajectory


def _ends(timesteps: tuple[int, ...]) -> str:
    return f"{timesteps[0]} to {timesteps[-1]} ({len(timesteps)})"
