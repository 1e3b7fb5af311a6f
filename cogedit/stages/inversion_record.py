"""What an inversion is before it is made: its record, which tells whether it exists."""

from __future__ import annotations

from dataclasses import replace

from cogedit.artifacts import LatentsRecord, TrajectoryRecord
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.model import latent_shape_of, scheduler_record, transformer_record


def trajectory_record(
    latents: LatentsRecord, checkpoint: Checkpoint, *, settings: Settings
) -> TrajectoryRecord:
    """Describe the inversion of some latents."""
    geometry = checkpoint.geometry
    num_latent_frames, *_ = latent_shape_of(latents.frames, geometry)
    num_pad_frames = geometry.num_pad_frames(num_latent_frames)
    overlap = settings.invert.window_overlap
    # It says what is done: the overlap is in the windows, and low levels are a number.
    done = replace(settings.invert, window_overlap=None, low_levels=settings.invert.num_low_levels)
    return TrajectoryRecord(
        latents=latents,
        model=transformer_record(checkpoint, settings, loras=settings.inversion_lora),
        settings=done,
        scheduler=scheduler_record(checkpoint),
        num_pad_frames=num_pad_frames,
        windows=geometry.window_plan(num_latent_frames + num_pad_frames, overlap),
    )
