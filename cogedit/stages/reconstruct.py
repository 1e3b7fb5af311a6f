"""reconstruct: trajectory + prompts -> edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import EditRecord, content_key, keep_in_use, made_together
from cogedit.config import Settings, check_settings
from cogedit.diffusion.schedule import visited
from cogedit.errors import UsageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.schema import show_value
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.artifact_output import check_artifact
from cogedit.stages.claim import claim
from cogedit.stages.edit_notes import no_effect_notes, source_prompt_notes
from cogedit.stages.edit_records import edits_described
from cogedit.stages.given import Given, check_given, options_for, take_given
from cogedit.stages.inverted import Inverted, levels_of, trajectory_for
from cogedit.stages.mask import is_mask_video, place_of_mask, show_mask
from cogedit.stages.model import check_same_model, checkpoint_for
from cogedit.stages.prompts import check_text
from cogedit.stages.run import Run, Written, check_output, find, find_or_make
from cogedit.stages.session import Session, use_session
from cogedit.types import ReconstructSettings

if TYPE_CHECKING:
    from cogedit.stages.edit_passes import EditPasses

MAX_VALUES = 2**24
"""Latent values of the edits that are denoised together: 14 clips of CogVideoX-5B.

Their hidden states are in memory at once, whatever the number of rows that run at a time.
"""


def edits_together(num_values: int) -> int:
    """Return how many edits of a clip of this many latent values are denoised together."""
    return max(1, MAX_VALUES // num_values)


def as_in_one_pass(options: ReconstructSettings) -> ReconstructSettings:
    """Return what edits that are denoised together have in common: all but prompt and seed."""
    return replace(options, prompt="", seed=0)


def reconstruct(
    source: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    first_frame: str | Path | None = None,
    output: str | Path | None = None,
    save_trajectory: bool = False,
    run: Run | None = None,
    session: Session | None = None,
) -> list[Written[EditRecord]]:
    """Denoise a trajectory under new prompts, while attention attends to the source.

    Edits that do not exist yet are computed together: they share the rows of the source and every
    other row that would be equal. An edit has the same content key and file name whether it was
    made alone or with others; its values then agree to rounding and not bit for bit, because a
    matrix product of another size adds up in another order (about 1e-6 of a value in float32, the
    last bit of the model's own results in bf16). The same prompts together give the same bytes.

    Args:
        source: A trajectory, or anything before it; what is missing is run first.
        prompts: One edit is made of each; with a first frame there need be none.
        settings: `reconstruct` and `model`; the tables of the earlier stages where they are run.
        mask: Where the edit may change the source: an image, a video, or a box in pixels of the
            source, "x0,y0,x1,y1" or "x0,y0,x1,y1@FIRST:LAST"; None is everywhere. It belongs to
            one video, as a prompt does, and is no setting.
        first_frame: A picture of the clip's size that an image-to-video model is shown in place of
            the source's own first frame (`save_frame`); likewise.
        output: The artifact, for a single prompt; None is its place in the workspace.
        save_trajectory: Keep every step of the edit in the artifact.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Returns:
        One artifact per prompt, in their order.

    Raises:
        UsageError: No prompt, one `output` for several, a setting out of range, a mask that is
            empty or outside the source, or a first frame of another size or for another model.
        VideoError: The mask or the first frame cannot be read, or the mask does not fit the source.
        ArtifactError: The source is of a later kind, of another model, or damaged.
    """
    source, output, run = source_of(source, settings), as_path(output), run or Run()
    check_given(mask, first_frame)
    options = options_for(prompts, settings, first_frame=first_frame)
    inputs = [source, mask, first_frame, *settings.read_files]
    check_artifact(output, inputs=inputs, num_edits=len(options), run=run)
    checkpoint = checkpoint_for(settings)
    given = take_given(source, settings, checkpoint, mask=mask, first_frame=first_frame)
    check_edits(options, checkpoint, num_levels=levels_of(source, settings))
    with claim(output, run) as run, use_session(session) as owner:
        expect_prompts(options, owner)
        inverted = trajectory_for(
            source,
            options,
            settings,
            given=given,
            output=output,
            save_trajectory=save_trajectory,
            run=run,
            session=owner,
        )
        return make_edits(
            inverted,
            options,
            settings,
            given=given,
            output=output,
            save_trajectory=save_trajectory,
            run=run,
            session=owner,
        )


def make_edits(
    inverted: Inverted,
    options: Sequence[ReconstructSettings],
    settings: Settings,
    *,
    given: Given,
    output: Path | None = None,
    save_trajectory: bool = False,
    run: Run,
    session: Session,
) -> list[Written[EditRecord]]:
    """Make one edit of a trajectory for each of some options; those that exist are reused.

    Options that differ in the prompt and the seed alone are denoised together.
    """
    trajectory, record, workspace = inverted.path, inverted.record, inverted.workspace
    keep_in_use(trajectory.parent)
    checkpoint = checkpoint_for(settings)
    check_same_model(str(trajectory), record, checkpoint)
    check_edits(options, checkpoint, num_levels=record.settings.num_levels)
    edits_of = edits_described(
        options, settings, checkpoint, given=given, save_trajectory=save_trajectory
    )
    records = [workspace.as_kept(edit, output=output) for edit in edits_of(record)]
    keys = [content_key(edit) for edit in records]
    wanted = dict(zip(keys, records, strict=True))
    missing = {
        key
        for key, edit in wanted.items()
        if run.force or find(edit, output=output, workspace=workspace) is None
    }
    if missing and output is not None and options[0].auto_mask:
        check_place_of_mask(output, trajectory, run)
    notes = [*no_effect_notes(options, given)]
    if not record.settings.prompt:
        notes += source_prompt_notes([wanted[key].settings for key in missing])
    for note in notes:
        session.notify_once(note, run)
    if missing and checkpoint.takes_first_frame:
        _notify_of_first_frame(given, run, session)
    folder = workspace.root if output is None else output.parent

    @cache
    def passes() -> EditPasses:
        from cogedit.stages.edit_passes import EditPasses  # brings torch

        with run.wait(f"reading {trajectory.name}"):
            return EditPasses(
                trajectory,
                wanted,
                missing=missing,
                folder=folder,
                given=given,
                notes=workspace.root if output is None else None,
                settings=settings,
                run=run,
                session=session,
            )

    edits: dict[str, Written[EditRecord]] = {}
    for key, edit in wanted.items():
        make = partial(lambda key: passes().edit(key), key)
        edits[key] = find_or_make(
            edit, make, output=output, workspace=workspace, run=run, device=settings.device
        )
        if edit.settings.auto_mask and not edits[key].reused:
            path, share = show_mask(edits[key].path)
            run.notify(f"wrote {path} (the automatic mask: {share:.0%} of the image)")
    for unfinished in made_together(folder, "edit"):
        if {*unfinished.makes} <= edits.keys():
            unfinished.clear()
    # The second of two equal edits was made for the first.
    return [
        replace(edits[key], reused=True) if key in keys[:number] else edits[key]
        for number, key in enumerate(keys)
    ]


def check_place_of_mask(output: Path, trajectory: Path, run: Run) -> None:
    """Refuse to write an automatic mask, whose place follows from the output, over other files."""
    place = place_of_mask(output)
    check_output(place, inputs=[trajectory], run=run)
    if place.exists() and not is_mask_video(place):
        raise UsageError(
            f"{place} exists, where the automatic mask is shown",
            hint="move it, or choose another -o",
        )


def expect_prompts(options: Sequence[ReconstructSettings], session: Session) -> None:
    """Announce the prompts of some edits to a session, so that T5 is loaded once for all."""
    session.expect_prompts([p for edit in options for p in (edit.prompt, edit.negative_prompt)])


def _notify_of_first_frame(given: Given, run: Run, session: Session) -> None:
    """Say which first frame the model is shown, where that may not be what it seems."""
    if given.first_frame is None:
        session.notify_once(
            "the model is shown the source's own first frame (--first-frame takes an edited one)",
            run,
        )
    elif given.first_frame.background is not None:
        run.notify(
            f"{given.first_frame.source.name} is transparent: laid on "
            f"{given.first_frame.background} (--background)"
        )


def check_edits(
    options: Sequence[ReconstructSettings], checkpoint: Checkpoint, *, num_levels: int
) -> None:
    """Refuse what cannot work with an inversion of so many timesteps, before any stage runs."""
    for edit in options:
        check_settings(edit)
        check_text(edit.prompt)
        check_text(edit.negative_prompt)
        visited(num_levels, edit.num_inference_steps, start_step=edit.first_step)
        (first, last), num_layers = edit.injection_layers, checkpoint.geometry.num_layers
        if first >= num_layers or (last is not None and last > num_layers):
            raise UsageError(
                f"injection_layers is {first}:{last or 'END'}; {checkpoint.id} has layers "
                f"0:{num_layers}",
                hint=f"choose a window within 0:{num_layers}",
            )
        if edit.method == "flow" and edit.solver == "midpoint":
            raise UsageError(
                "solver is midpoint, which method flow does not have",
                hint="choose --solver dpm++2m, or --method injection",
            )
        strength = edit.injection_strength
        weight = max(strength) if isinstance(strength, tuple) else strength
        if edit.injection_mode != "concatenate" and weight > 1:
            raise UsageError(
                f"injection_strength is {show_value(strength)}, expected 0 to 1 with "
                f"injection_mode {edit.injection_mode}, which mixes two attentions",
                hint="choose --injection-strength 1, or --injection-mode concatenate",
            )
