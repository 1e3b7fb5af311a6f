"""The edits of a batch before they are made: settled, checked, and compared with what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.artifacts import TrajectoryRecord, sniff_kind
from cogedit.config import BatchRow, ResolvedSettings, Settings
from cogedit.errors import CogeditError, Interrupted, StorageError, UsageError, VideoError
from cogedit.models.checkpoint import find_checkpoint
from cogedit.stages.edit import check_edit, names_video, place_of_video
from cogedit.stages.export import is_exported
from cogedit.stages.mask import take_mask
from cogedit.stages.model import transformer_record
from cogedit.stages.reconstruct import check_edits, edit_record
from cogedit.stages.run import Run, workspace_for
from cogedit.stages.settings import chosen_model, settings_for
from cogedit.tools.estimate import follow
from cogedit.types import ExportSettings, ReconstructSettings


@dataclass(frozen=True)
class BatchEdit:
    """One edit of a batch.

    Attributes:
        where: "row 3 of edits.csv", for people.
        video: The video.
        prompt: What the edit shows.
        output: Video or folder; None is the workspace.
        mask: As for `reconstruct`.
        settings: All tables.
    """

    where: str
    video: Path
    prompt: str
    output: Path | None
    mask: str | None
    settings: Settings

    @property
    def asked(self) -> ReconstructSettings:
        """The `reconstruct` table under the prompt."""
        return self.settings.reconstruct_with(self.prompt)

    @property
    def shared(self) -> object:
        """Equal for edits that share inversion, model and decoder."""
        plain = replace(
            self.settings, reconstruct=ReconstructSettings(prompt=""), export=ExportSettings()
        )
        # Whether a mask is looked for says whether one may be given, for all edits of a call.
        return self.video.resolve(), self.mask, self.settings.reconstruct.auto_mask, plain


@dataclass(frozen=True)
class BatchPlan:
    """What would be done for an edit.

    Attributes:
        row: "row 3 of edits.csv".
        video: The video.
        prompt: What the edit shows.
        inversion: Whether the trajectory is there.
        edit: Whether the edit is there.
        export: Whether its video is there.
        error: Why the edit would fail; None where nothing is known.
    """

    row: str
    video: str
    prompt: str
    inversion: bool = False
    edit: bool = False
    export: bool = False
    error: str | None = None


def plan_batch(
    rows: Sequence[BatchRow],
    flags: Mapping[str, object] | None = None,
    *,
    config: str | None = None,
    run: Run | None = None,
) -> tuple[BatchEdit, ...]:
    """Settle every edit of a batch file, and refuse what cannot work before anything runs.

    Args:
        rows: As `cogedit.config.read_batch` returns them.
        flags: Settings by dotted key, above those of the rows.
        config: Preset or TOML file, above that of a row.
        run: Told which model was chosen where nobody named one.

    Raises:
        CogeditError: Settings that do not go together, with the row; whether the videos can be
            read shows when they are edited.
    """
    edits: list[BatchEdit] = []
    told: set[str] = set()
    for row in rows:
        if len(row.prompts) * len(row.videos) > 1 and names_video(row.output):
            raise UsageError(
                f"the output of {row.where} names one video, and there are "
                f"{len(row.prompts) * len(row.videos)} edits",
                hint="name a folder",
            )
        for video in row.videos:
            with _named(row.where):
                resolved = _resolve(row, video, flags or {}, config=config)
                edits += _edits_of(row, video, resolved.settings)
            chosen = chosen_model(resolved)
            if run is not None and chosen is not None and chosen not in told:
                told.add(chosen)
                run.notify(chosen)
    taken: dict[Path, str] = {}
    for edit in edits:
        if edit.output is not None and names_video(edit.output):
            other = taken.setdefault(edit.output.resolve(), edit.where)
            if other != edit.where:
                raise UsageError(
                    f"{other} and {edit.where} have the same output, {edit.output}",
                    hint="give each a name of its own, or a folder",
                )
    return tuple(edits)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Name the row in an error."""
    try:
        yield
    except CogeditError as error:
        if where in error.message:
            raise
        raise type(error)(f"{where}: {error.message}", hint=error.hint) from error


def _resolve(
    row: BatchRow, video: Path, flags: Mapping[str, object], *, config: str | None
) -> ResolvedSettings:
    if sniff_kind(video) is not None:
        raise UsageError(f"{video} is an artifact", hint="a batch starts from videos")
    return settings_for(video, flags, config=config or row.config, rows=row.values)


def _edits_of(row: BatchRow, video: Path, settings: Settings) -> list[BatchEdit]:
    """Check the edits of one video."""
    edits = [
        BatchEdit(row.where, video, prompt, row.output, row.mask, settings)
        for prompt in row.prompts
    ]
    checkpoint = find_checkpoint(settings.model, settings.revision, download=False)
    num_levels = settings.invert.num_inference_steps
    check_edits([edit.asked for edit in edits], checkpoint, num_levels=num_levels)
    try:
        check_edit(video, settings, mask=row.mask, output=row.output)
        take_mask(row.mask, settings)
    except (VideoError, StorageError):
        pass  # of this edit alone, when its turn comes
    return edits


def preview_batch(edits: Sequence[BatchEdit], *, run: Run | None = None) -> list[BatchPlan]:
    """Say what `batch` would do, and what is there already. Nothing is written.

    Args:
        edits: As `plan_batch` returns them.
        run: With `force`, edits and videos count as missing.
    """
    run = run or Run()
    plans: list[BatchPlan] = []
    for edit in edits:
        try:
            plans.append(_preview(edit, run))
        except Interrupted:
            raise
        except CogeditError as error:
            plans.append(replace(_blank(edit), error=str(error)))
    return plans


def _preview(edit: BatchEdit, run: Run) -> BatchPlan:
    video, settings = edit.video, edit.settings
    check_edit(video, settings, mask=edit.mask, output=edit.output)
    mask = take_mask(edit.mask, settings)
    checkpoint = find_checkpoint(settings.model, settings.revision, download=False)
    workspace = workspace_for(video, settings)
    quiet = replace(run, notify=run.detail)
    trajectory = follow(video, settings, checkpoint, workspace=workspace, run=quiet)[-1]
    plan = _blank(edit)
    if not isinstance(trajectory, TrajectoryRecord):
        return plan
    model = transformer_record(checkpoint, settings)
    record = edit_record(edit.asked, trajectory, model=model, has_trajectory=False, mask=mask)
    found = workspace.find(record)
    if found is None or run.force:
        return replace(plan, inversion=True)
    path = place_of_video(record, video, settings, output=edit.output)
    there = path.parent.is_dir() and is_exported(found, settings, output=path)
    return replace(plan, inversion=True, edit=True, export=there)


def _blank(edit: BatchEdit) -> BatchPlan:
    return BatchPlan(edit.where, str(edit.video), edit.prompt)
