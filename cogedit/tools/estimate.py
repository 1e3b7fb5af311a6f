"""What a run would take, with nothing written: what exists of it, and what the rest costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    Workspace,
    frames_record,
    sniff_kind,
)
from cogedit.config import Settings, check_settings
from cogedit.media.masks import check_mask
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.artifact_output import check_artifact
from cogedit.stages.edit_notes import inversion_notes, no_effect_notes, source_prompt_notes
from cogedit.stages.edit_records import as_recorded, edits_described
from cogedit.stages.existing import follow
from cogedit.stages.given import check_given, take_given
from cogedit.stages.inversion_record import trajectory_record
from cogedit.stages.invert import check_inversion_settings
from cogedit.stages.inverted import levels_of
from cogedit.stages.model import check_transformer, checkpoint_for
from cogedit.stages.reconstruct import check_edits, check_place_of_mask
from cogedit.stages.run import Run, find, workspace_for
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
    output: str | Path | None = None,
    check: bool = False,
    run: Run | None = None,
) -> Estimate:
    """Estimate what an inversion, or edits with all that comes before them, would take.

    Nothing is written and nothing is downloaded. The time comes from a block and an attention at
    the model's width, measured here in seconds, without loading, T5, VAE and `--compile`.

    Args:
        source: What the run would start from.
        settings: As for the run.
        prompts: One edit for each; None is the inversion alone.
        vary: As for `sweep`: all edits of its grid.
        save_trajectory: Keep every step of the edits.
        mask: As for `reconstruct`.
        first_frame: Likewise.
        output: The artifact that `invert` or `reconstruct` would write; None is its place in the
            workspace.
        check: Whether the inversion is sampled back (`check_inversion`).
        run: With `force`, what the run would recompute counts as missing; of a sweep nothing.

    Raises:
        CogeditError: As the run, where that can be known beforehand.
    """
    source, output, run = source_of(source, settings), as_path(output), run or Run()
    if vary is not None:
        run = replace(run, force=False)  # of a sweep it draws the sheet anew, and no edit
    check_given(mask, first_frame)
    check_settings(settings.transformer)
    checkpoint = checkpoint_for(settings, download=False)
    edits = _edits_asked(
        source, settings, checkpoint, prompts, vary, mask=mask, first_frame=first_frame
    )
    if not edits or sniff_kind(source) != "trajectory":
        check_inversion_settings(settings, checkpoint)
        for note in inversion_notes(settings.invert):
            run.notify(note)
    read = [source, mask, first_frame, *settings.read_files]
    check_artifact(output, inputs=read, num_edits=len(edits), run=run)
    given = take_given(source, settings, checkpoint, mask=mask, first_frame=first_frame)
    workspace = workspace_for(source, settings)
    described = edits_described(
        edits, settings, checkpoint, given=given, save_trajectory=save_trajectory
    )
    shows_source = vary is not None  # a sweep, as the trajectory holds it
    found = follow(
        source,
        settings,
        checkpoint,
        wanted=described if edits else lambda trajectory: [trajectory],
        needs_file=shows_source,
        workspace=workspace,
        run=run,
        output=output,
    )
    if check or not found.is_complete:
        check_transformer(settings, download=False)
    links, last = found.links, found.links[-1].record
    frames = frames_record(last)
    if given.mask is not None:
        check_mask(given.mask, frames.source, indices=frames.frame_indices)
    trajectory = last if isinstance(last, TrajectoryRecord) else None
    if run.force and not edits:
        trajectory = None
    elif output is not None and not edits:
        trajectory = _inverted_at(output, last, settings, workspace)
    cost = ClipCost(checkpoint, settings, frames, trajectory)
    stages = [cost.inversion(settings.invert, reused=trajectory is not None)]
    inversion = settings.invert if trajectory is None else trajectory.settings
    if check:
        stages.append(cost.check(inversion))
    samples, earlier_bytes = cost.trajectory_bytes(inversion), cost.earlier_bytes(links)
    if edits:
        if trajectory is None or run.force:
            # Equal edits are made once.
            missing = list(dict.fromkeys(as_recorded(edit, inversion.num_levels) for edit in edits))
        else:
            missing = _not_made(described(trajectory), workspace, output)
            earlier_bytes = earlier_bytes if missing or shows_source else 0
        if missing and output is not None and edits[0].auto_mask:
            check_place_of_mask(output, source, run)
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


def _edits_asked(
    source: Path,
    settings: Settings,
    checkpoint: Checkpoint,
    prompts: str | Sequence[str] | None,
    vary: str | Sequence[str] | None,
    *,
    mask: str | Path | None,
    first_frame: str | Path | None,
) -> list[ReconstructSettings]:
    """Return the edits of a call, checked; none for an inversion alone."""
    if prompts is None and vary is None:
        return []
    cells = parse_grid(() if vary is None else vary)
    texts = () if prompts is None else prompts
    edits = edits_of(texts, settings, cells, mask=mask, first_frame=first_frame)
    check_edits(edits, checkpoint, num_levels=levels_of(source, settings))
    return edits


def _not_made(
    edits: Sequence[EditRecord], workspace: Workspace, output: Path | None
) -> list[ReconstructSettings]:
    """Return which edits of a trajectory do not exist, each once."""
    return [
        edit.settings
        for edit in dict.fromkeys(edits)
        if find(workspace.as_kept(edit, output=output), output=output, workspace=workspace) is None
    ]


def _inverted_at(
    output: Path, last: Record, settings: Settings, workspace: Workspace
) -> TrajectoryRecord | None:
    """Return the inversion that an output holds; UsageError where it holds something else.

    What the latents of a clip will be, its frames do not tell.
    """
    if isinstance(last, LatentsRecord):
        last = trajectory_record(last, checkpoint_for(settings, download=False), settings=settings)
    if not isinstance(last, TrajectoryRecord):
        return None
    return None if find(last, output=output, workspace=workspace) is None else last
