"""The inversion that edits are made of: made as far as it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.artifacts import TrajectoryRecord, Workspace, frames_record, read_record, sniff_kind
from cogedit.config import Settings, check_settings
from cogedit.media.masks import check_mask
from cogedit.stages.edit_notes import source_prompt_notes
from cogedit.stages.edit_records import edits_described
from cogedit.stages.encode import encode
from cogedit.stages.existing import follow
from cogedit.stages.given import Given
from cogedit.stages.invert import check_inversion_settings, invert, is_inverted
from cogedit.stages.load import load
from cogedit.stages.model import check_transformer, checkpoint_for
from cogedit.stages.run import Run, workspace_for
from cogedit.stages.session import Session
from cogedit.types import ReconstructSettings


@dataclass(frozen=True)
class Inverted:
    """A trajectory of which edits are wanted.

    Attributes:
        path: Its file, which may have been removed where every edit exists.
        record: How it was made.
        workspace: Where its edits are.
    """

    path: Path
    record: TrajectoryRecord
    workspace: Workspace


def levels_of(source: Path, settings: Settings) -> int:
    """Return how many timesteps the inversion of a source visits, or visited."""
    if _is_uninverted(source):
        return settings.invert.num_levels
    return read_record(source, "trajectory").settings.num_levels


def trajectory_for(
    source: Path,
    options: Sequence[ReconstructSettings],
    settings: Settings,
    *,
    given: Given,
    output: Path | None = None,
    save_trajectory: bool = False,
    needs_file: bool = False,
    run: Run,
    session: Session,
) -> Inverted:
    """Run the stages before the edits as far as they are missing, and return the trajectory.

    Where every edit exists, nothing that was removed is made again, and no device, kernel or
    package is asked for; with `needs_file` where the trajectory exists, too. The others are the
    arguments of `make_edits`.
    """
    checkpoint = checkpoint_for(settings)
    check_settings(settings.transformer)
    workspace, notes = workspace_for(source, settings), list[str]()
    if _is_uninverted(source):
        check_inversion_settings(settings, checkpoint)
    there = follow(
        source,
        settings,
        checkpoint,
        wanted=edits_described(
            options, settings, checkpoint, given=given, save_trajectory=save_trajectory
        ),
        needs_file=needs_file,
        workspace=workspace,
        run=replace(run, notify=notes.append),
        output=output,
    )
    found, last = None, there.links[-1]
    if _is_uninverted(source) and isinstance(last.record, TrajectoryRecord):
        found = Inverted(last.path or workspace.path_for(last.record), last.record, workspace)
        if there.is_complete:
            for note in notes:  # else the first stage says it
                run.notify(note)
            for link in there.links:
                if link.path is not None:
                    run.notify(f"reused {link.path}")
            return found
        if all(link.path is not None for link in there.links):
            found = None  # the stages find what there is
    if not there.is_complete:
        check_transformer(settings)
    if given.mask is not None or found is not None:
        # Before the inversion, which takes long: whether the mask fits follows from the clip.
        if sniff_kind(source) is None:
            source = load(source, settings, run=run.earlier).path
        frames = frames_record(read_record(source))
        if given.mask is not None:
            check_mask(given.mask, frames.source, indices=frames.frame_indices)
        if found is not None and frames.tensors == frames_record(found.record).tensors:
            run.notify(f"reused {found.path}")
            return found
    if _is_uninverted(source):
        if sniff_kind(source) != "latents":
            source = encode(source, settings, run=run.earlier, session=session).path
        if not settings.invert.prompt and not is_inverted(source, settings):
            for note in source_prompt_notes(options):  # before the inversion, which it is for
                session.notify_once(note, run)
        source = invert(source, settings, run=run.earlier, session=session).path
    record = read_record(source, "trajectory")
    return Inverted(source, record, workspace_for(source, settings))


def _is_uninverted(source: Path) -> bool:
    return sniff_kind(source) in (None, "frames", "latents")
