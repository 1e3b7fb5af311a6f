"""A trajectory on disk as the edits use it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cogedit.artifacts import TrajectoryRecord, has_first_frame, read_artifact
from cogedit.artifacts.atomic import show
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import ArtifactMismatch
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.loading import alphas_cumprod
from cogedit.models.predictor import InvertedClips
from cogedit.models.sampling import inversion_schedule
from cogedit.stages.first_frame import condition_of
from cogedit.types import WindowPlan


def open_trajectory(path: Path, checkpoint: Checkpoint) -> tuple[TrajectoryRecord, InvertedClips]:
    """Open the trajectory of a checkpoint's inversion, which is read by timestep.

    Raises:
        ArtifactError: It is no trajectory, damaged, or has other timesteps than its settings visit.
    """
    artifact = read_artifact(path, "trajectory")
    record, tensors = artifact.record, artifact.tensors
    timesteps = tuple(int(t) for t in tensors["timesteps"])
    samples = tensors.slices("trajectory")
    trajectory = Trajectory(samples, tensors["latents"], timesteps, record.windows)
    expected = inversion_schedule(record.settings, alphas_cumprod(checkpoint)).timesteps
    if timesteps != expected[::-1]:
        raise ArtifactMismatch(
            f"{show(path)} has the timesteps {_ends(timesteps)}; its inversion visits "
            f"{_ends(expected[::-1])}",
            hint="invert the video again",
        )
    _check_windows(path, record.windows, checkpoint.geometry.patch_size_t or 1)
    condition = condition_of(tensors["first_frame"], record) if has_first_frame(record) else None
    return record, InvertedClips(trajectory, (record.settings.prompt,), condition)


def _check_windows(path: Path, windows: WindowPlan | None, step: int) -> None:
    """Refuse windows that begin or end in the middle of a token."""
    if windows is not None and any(n % step for n in dataclasses.astuple(windows)):
        raise ArtifactMismatch(
            f"{show(path)} has windows of {windows.length} latent frames that overlap by "
            f"{windows.overlap} and move by {windows.shift}, expected multiples of {step}",
            hint="invert the video again",
        )


def _ends(timesteps: tuple[int, ...]) -> str:
    return f"{timesteps[0]} to {timesteps[-1]} ({len(timesteps)})"
