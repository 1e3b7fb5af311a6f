"""reconstruct: trajectory + prompt -> edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    ModelRecord,
    TrajectoryRecord,
    content_key,
    frames_record,
    made_together,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings, check_settings
from cogedit.diffusion.schedule import visited
from cogedit.errors import UsageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.editor import Editor
from cogedit.stages.invert import invert
from cogedit.stages.load import load
from cogedit.stages.mask import (
    check_fits,
    show_mask,
    take_mask,
)
from cogedit.stages.model import (
    check_same_model,
    check_transformer,
    checkpoint_for,
    transformer_record,
)
from cogedit.stages.run import (
    Run,
    Written,
    check_output,
    check_text,
    find,
    find_or_make,
    workspace_for,
)
from cogedit.types import ReconstructSettings

if TYPE_CHECKING:
    from cogedit.media.masks import GivenMask


def reconstruct(
    source: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    output: Path | None = None,
    save_trajectory: bool = False,
    run: Run | None = None,
) -> list[Written[EditRecord]]:
    """Denoise a trajectory under new prompts, with attention looking at the source.

    Edits that are not there yet are computed together, so that they share the rows of the source
    and every other row that would be equal. An edit has the same content key and file name whether
    it was made alone or with others. Its numbers then agree to rounding and not bit for bit: a
    matrix product of another size adds up in another order (about 1e-6 of a value in float32, the
    last bit of the model's own results in bf16). The same prompts together give the same bytes.

    Args:
        source: A trajectory, or anything before it; what is missing is run first.
        prompts: One edit is made of each.
        settings: `reconstruct` and `model`; the tables of the earlier stages where they are run.
        mask: Where the edit may change the source: a picture, a video, or a box in pixels of the
            source, "x0,y0,x1,y1" or "x0,y0,x1,y1@FIRST:LAST"; None is everywhere. It belongs to
            one video, as a prompt does, and is no setting.
        output: The artifact, for a single prompt; None is its place in the workspace.
        save_trajectory: Keep every step of the edit in the artifact.
        run: How to run; None is silent.

    Returns:
        One artifact per prompt, in their order.

    Raises:
        UsageError: No prompt, one `output` for several, a setting out of range, or a mask that is
            empty or outside the source.
        VideoError: The mask cannot be read, or does not fit the source.
        ArtifactError: The source is of a later kind, of another model, or damaged.
        ModelError: The model is missing or incomplete.
        DeviceMemoryError: The device is full.
        NumericalError: NaN or Inf appeared.
        Interrupted: Somebody asked to stop.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    return make_edits(
        Path(source),
        [settings.reconstruct_with(prompt) for prompt in prompts],
        settings,
        mask=mask,
        output=output,
        save_trajectory=save_trajectory,
        run=run or Run(),
    )


def make_edits(
    source: Path,
    asked: Sequence[ReconstructSettings],
    settings: Settings,
    *,
    mask: str | Path | None,
    output: Path | None,
    save_trajectory: bool,
    run: Run,
) -> list[Written[EditRecord]]:
    """Make one edit for each of some settings, with the model loaded once.

    Settings that differ in the prompt and the seed alone are denoised together.

    Args and errors are those of `reconstruct`, with `asked` in place of its prompts and table.
    """
    if output is not None and len(asked) > 1:
        raise UsageError(
            f"-o names one file, and there are {len(asked)} prompts",
            hint="leave -o out: each edit gets a name of its own in the workspace",
        )
    check_output(output, source=source)
    workspace = workspace_for(source, settings)
    given = take_mask(mask, settings)
    checkpoint = checkpoint_for(settings)
    check_edits(asked, checkpoint, num_levels=levels_of(source, settings))
    check_transformer(settings)
    source = trajectory_for(source, settings, mask=given, run=run)
    trajectory = read_record(source, "trajectory")
    check_same_model(str(source), trajectory, checkpoint)
    records = [
        edit_record(
            one,
            trajectory,
            model=transformer_record(checkpoint, settings),
            has_trajectory=save_trajectory,
            mask=given,
        )
        for one in asked
    ]
    wanted = {content_key(record): record for record in records}
    missing = {
        key
        for key, record in wanted.items()
        if run.force or find(record, output=output, workspace=workspace) is None
    }
    _say_what_does_nothing(asked, run)
    if missing and not trajectory.settings.prompt:
        _say_what_is_missing(asked, run)
    folder = workspace.root if output is None else output.parent
    editor = Editor(
        source,
        trajectory,
        checkpoint,
        wanted,
        missing=missing,
        folder=folder,
        mask=given,
        notes=workspace.root if output is None else None,
        settings=settings,
        run=run,
    )
    edits: dict[str, Written[EditRecord]] = {}
    for key, record in wanted.items():
        make = partial(editor.edit, key)
        edits[key] = find_or_make(record, make, output=output, workspace=workspace, run=run)
        if record.settings.auto_mask and not edits[key].reused:
            _show_found_mask(edits[key], run)
    for unfinished in made_together(folder, "edit"):
        if {*unfinished.makes} <= edits.keys():
            unfinished.clear()
    return _in_order(edits, [content_key(record) for record in records])


def _say_what_does_nothing(asked: Sequence[ReconstructSettings], run: Run) -> None:
    """Say that a seed or a prompt has no effect: the edit is not what it may seem to be."""
    fixed = [one for one in asked if not one.draws_noise]
    if {one.seed for one in fixed} - {ReconstructSettings.seed}:
        remedy = "--start random" if fixed[0].method == "flow" else "--start-noise 0.3"
        run.notify(
            "the seed changes nothing: the edit starts from the source's own noise "
            f"({remedy} lets it count)"
        )
    if any(not one.prompt.strip() for one in asked):
        run.notify(
            "the prompt is empty: the edit shows what the model makes of the source by itself"
        )


def _say_what_is_missing(asked: Sequence[ReconstructSettings], run: Run) -> None:
    """Say which settings have a use for the source's text, where it is empty."""
    if any(one.auto_mask for one in asked):
        run.notify(
            "--auto-mask compares the prompt with an empty one: the mask is better where "
            "--source-prompt says what the source shows"
        )
    if any(one.unconditional == "source" for one in asked):
        run.notify(
            "guidance points from the source's text to the prompt, and that text is empty: the "
            "edit is better where --source-prompt says what the source shows"
        )


def _in_order(
    edits: Mapping[str, Written[EditRecord]], keys: Sequence[str]
) -> list[Written[EditRecord]]:
    """Return the edit of each key; one that was asked for again is one that was there already."""
    return [
        replace(edits[key], reused=True) if key in keys[:number] else edits[key]
        for number, key in enumerate(keys)
    ]


def check_edits(
    asked: Sequence[ReconstructSettings], checkpoint: Checkpoint, *, num_levels: int
) -> None:
    """Refuse what cannot work before any stage runs.

    Args:
        asked: The edits.
        checkpoint: Of the model.
        num_levels: How many levels the inversion visits (`levels_of`).

    Raises:
        UsageError: No prompt, one that is no text, or a setting out of range by itself or with
            another.
    """
    if not asked:
        raise UsageError("reconstruct needs a prompt", hint='--prompt "what the edit shows"')
    for one in asked:
        check_settings(one)
        check_text(one.prompt)
        check_text(one.negative_prompt)
        visited(num_levels, one.num_inference_steps, start_step=one.start_step)
        (first, last), num_layers = one.injection_layers, checkpoint.geometry.num_layers
        if first >= num_layers or (last is not None and last > num_layers):
            raise UsageError(
                f"injection_layers is {first}:{last or 'END'}; {checkpoint.id} has layers "
                f"0:{num_layers}",
                hint=f"choose a window within 0:{num_layers}",
            )
        if one.injection_mode == "queries-keys" and one.injection_strength > 1:
            raise UsageError(
                f"injection_strength is {one.injection_strength:g}, expected 0 to 1 with "
                "injection_mode queries-keys, which mixes two attentions",
                hint="choose a strength of at most 1, or --injection-mode concatenate",
            )


def _is_uninverted(source: Path) -> bool:
    return sniff_kind(source) in (None, "frames", "latents")


def levels_of(source: Path, settings: Settings) -> int:
    """How many levels the inversion of a source visits, or visited."""
    if _is_uninverted(source):
        return settings.invert.num_inference_steps
    return read_record(source, "trajectory").settings.num_inference_steps


def trajectory_for(source: Path, settings: Settings, *, mask: GivenMask | None, run: Run) -> Path:
    """Run the stages before the edits, as far as they are missing.

    Returns:
        The trajectory; an artifact of a later kind is returned as it is.
    """
    if mask is not None:
        source = _fit_mask(mask, source, settings, run=run)
    if _is_uninverted(source):
        source = invert(source, settings, run=run.earlier).path
    return source


def _fit_mask(mask: GivenMask, source: Path, settings: Settings, *, run: Run) -> Path:
    """Refuse a mask that does not fit before the inversion, which takes long: the clip tells.

    Returns:
        What the run goes on from: `source`, or its frames where that is a video.
    """
    if sniff_kind(source) is None:
        source = load(source, settings, run=run.earlier).path
    check_fits(mask, frames_record(read_record(source)))
    return source


def edit_record(
    asked: ReconstructSettings,
    trajectory: TrajectoryRecord,
    *,
    model: ModelRecord,
    has_trajectory: bool,
    mask: GivenMask | None,
) -> EditRecord:
    """Describe an edit of a trajectory."""
    return EditRecord(
        trajectory=trajectory,
        model=model,
        settings=_canonical(asked, trajectory),
        has_trajectory=has_trajectory,
        mask=mask.source if mask is not None else None,
    )


def _canonical(asked: ReconstructSettings, trajectory: TrajectoryRecord) -> ReconstructSettings:
    """Give one edit one content key.

    All levels of the inversion is what None stands for, and where no noise is drawn, all seeds
    make the same edit.
    """
    if asked.num_inference_steps == trajectory.settings.num_inference_steps:
        asked = replace(asked, num_inference_steps=None)
    return asked if asked.draws_noise else replace(asked, seed=ReconstructSettings.seed)


def _show_found_mask(written: Written[EditRecord], run: Run) -> None:
    """Write the mask that was found beside its edit, and say where and how large it is."""
    pixels = read_artifact(written.path, "edit").tensors["mask"]
    path = show_mask(pixels, written.path, fps=frames_record(written.record).fps)
    share = float(pixels.float().mean())
    run.notify(f"wrote {path} (the mask that was found: {share:.0%} of the picture)")
