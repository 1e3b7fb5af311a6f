"""What edits are before they are made: their records, which tell whether they exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cogedit.artifacts import EditRecord, TrajectoryRecord
from cogedit.config import Settings
from cogedit.diffusion.schedule import Schedule
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.rows import guidance_reused
from cogedit.stages.given import Given
from cogedit.stages.model import transformer_record
from cogedit.types import ReconstructSettings


def as_recorded(options: ReconstructSettings, num_levels: int) -> ReconstructSettings:
    """Return the settings of an edit of so many timesteps as they are recorded, one way for one.

    All timesteps of the inversion are written as None. Where no noise is drawn, all seeds make the
    same edit, and where all guided steps predict both sides of guidance, whatever else was asked.
    """
    if not guidance_reused(options, Schedule.of_steps(options.num_steps(num_levels))):
        options = replace(options, guidance_reuse=0.0)
    if options.num_inference_steps == num_levels:
        options = replace(options, num_inference_steps=None)
    if not options.draws_noise:
        options = replace(options, seed=ReconstructSettings.seed)
    return options


def edits_described(
    options: Sequence[ReconstructSettings],
    settings: Settings,
    checkpoint: Checkpoint,
    *,
    given: Given,
    save_trajectory: bool = False,
) -> Callable[[TrajectoryRecord], list[EditRecord]]:
    """Return what describes edits of any trajectory, so that one edit has one content key."""
    model = transformer_record(checkpoint, settings, loras=settings.lora)

    def describe(trajectory: TrajectoryRecord) -> list[EditRecord]:
        return [
            EditRecord(
                trajectory=trajectory,
                model=model,
                settings=as_recorded(edit, trajectory.settings.num_levels),
                has_trajectory=save_trajectory,
                mask=given.mask.source if given.mask is not None else None,
                first_frame=given.picture,
            )
            for edit in options
        ]

    return describe
