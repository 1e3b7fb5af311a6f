"""What a run would take, with nothing written: what exists of it, and what the rest costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cogedit.artifacts import TrajectoryRecord, frames_record, sniff_kind
from cogedit.config import Settings
from cogedit.media.masks import check_mask
from cogedit.stages.arguments import source_of
from cogedit.stages.edit_notes import no_effect_notes, source_prompt_notes
from cogedit.stages.edit_records import as_recorded, edits_described
from cogedit.stages.existing import all_exist, follow
from cogedit.stages.given import take_given
from cogedit.stages.invert import check_inversion_settings
from cogedit.stages.inverted import levels_of
from cogedit.stages.model import check_gpus, checkpoint_for, lora_records
from cogedit.stages.reconstruct import check_edits
from cogedit.stages.run import Run, workspace_for
from cogedit.tools.clip_cost import ClipCost, Estimate
from cogedit.tools.grid import edits_of, parse_grid
from cogedit.types import ReconstructSettings


def estimate(
    source: str | Path,
    settings: Settings,
    *,
    prompts: str | Sequence[str] | None = None,
    vary: str | Sequence[str] | None = None,
    save_trajectory: bool = False,
    mask: str | Path | None = None,
    first_frame: str | Path | None = None,
    run: Run | None = None,
) -> Estimate:
    """Estimate what an inversion, or edits with all that comes before them, would take.

    Nothing is written and nothing is downloaded. The time comes from a matrix product and an
    attention at the model's width, measured here in about a second, without loading, T5 and VAE.

    Args:
        source: What the run would start from.
        settings: As for the run.
        prompts: One edit for each; None is the inversion alone.
        vary: As for `sweep`: all edits of its grid.
        save_trajectory: Keep every step of the edits.
        mask: As for `reconstruct`.
        first_frame: Likewise.
        run: With `force`, what the run would recompute counts as missing.

    Raises:
        CogeditError: As the run, where that can be known beforehand.
    """
    source, run = source_of(source, settings), run or Run()
    check_gpus(settings)
    checkpoint = checkpoint_for(settings, download=False)
    lora_records(checkpoint, settings.loras)
    edits: list[ReconstructSettings] = []
    if prompts is not None or vary is not None:
        cells = parse_grid(() if vary is None else vary)
        texts = () if prompts is None else prompts
        edits = edits_of(texts, settings, cells, mask=mask, first_frame=first_frame)
        check_edits(edits, checkpoint, num_levels=levels_of(source, settings))
    if not edits or sniff_kind(source) != "trajectory":
        check_inversion_settings(settings, checkpoint)
    given = take_given(source, settings, checkpoint, mask=mask, first_frame=first_frame)
    workspace = workspace_for(source, settings)
    described = edits_described(
        edits, settings, checkpoint, given=given, save_trajectory=save_trajectory
    )
    # A sweep shows what the trajectory holds of the source.
    is_needed = run.force or not edits or vary is not None
    links = follow(
        source,
        settings,
        checkpoint,
        workspace=workspace,
        run=run,
        suffices=None if is_needed else lambda one: all_exist(described(one), workspace),
    )
    last = links[-1].record
    frames = frames_record(last)
    if given.mask is not None:
        check_mask(given.mask, frames.source, indices=frames.frame_indices)
    trajectory = last if isinstance(last, TrajectoryRecord) else None
    if run.force and not edits:
        trajectory = None
    cost = ClipCost(checkpoint, settings, frames, trajectory)
    stages = [cost.inversion(settings.invert, reused=trajectory is not None)]
    inversion = settings.invert if trajectory is None else trajectory.settings
    samples, earlier_bytes = cost.trajectory_bytes(inversion), cost.earlier_bytes(links)
    if edits:
        # Equal edits are made once.
        missing = list(dict.fromkeys(as_recorded(edit, inversion.num_levels) for edit in edits))
        if trajectory is not None and not run.force:
            missing = [
                edit.settings
                for edit in dict.fromkeys(described(trajectory))
                if workspace.find(workspace.as_kept(edit)) is None
            ]
            earlier_bytes = earlier_bytes if missing or is_needed else 0
        notes = [*no_effect_notes(edits, given)]
        notes += () if inversion.prompt else source_prompt_notes(missing)
        for note in notes:
            run.notify(note)
        stage, size = cost.reconstruction(
            missing, inversion, keeps_steps=save_trajectory, has_mask=given.mask is not None
        )
        stages.append(replace(stage, reused=len(edits) - len(missing), artifacts=len(edits)))
        samples += size
    return cost.total(stages, earlier_bytes=earlier_bytes, samples_bytes=samples)
