"""The edits of a batch before they run: resolved, checked, and compared with what exists."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.artifacts import TrajectoryRecord, sniff_kind
from cogedit.config import BatchRow, ResolvedSettings, Settings
from cogedit.errors import CogeditError, Interrupted, StorageError, UsageError, VideoError
from cogedit.media.masks import check_mask
from cogedit.models.checkpoint import Checkpoint, looked_up_once
from cogedit.places import Output
from cogedit.platforms import IS_MAC
from cogedit.stages.edit import check_edit, names_video, place_of_video
from cogedit.stages.edit_records import as_recorded, edits_described
from cogedit.stages.existing import follow
from cogedit.stages.export import check_export, is_exported
from cogedit.stages.given import Given, take_given
from cogedit.stages.invert import check_inversion_settings
from cogedit.stages.load import find_clip
from cogedit.stages.model import check_transformer, checkpoint_for, lora_records
from cogedit.stages.reconstruct import check_edits
from cogedit.stages.replacing import check_replaceable
from cogedit.stages.run import Run, workspace_for
from cogedit.stages.settings import (
    check_named_model,
    chosen_model,
    found_as,
    settings_for,
    settle_rate,
)
from cogedit.tools.batch_videos import videos_of
from cogedit.types import ExportSettings, ReconstructSettings


@dataclass(frozen=True)
class BatchEdit:
    """One edit of a batch, with all its settings."""

    where: str  # "row 3 of edits.csv"
    video: Path
    prompt: str
    output: Output | None  # a video or a folder; None is the workspace
    mask: str | None  # as for `reconstruct`
    settings: Settings
    first_frame: str | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files that it reads; the box of a mask is none, and lies nowhere."""
        named = tuple(Path(name) for name in (self.video, self.mask, self.first_frame) if name)
        return named + self.settings.read_files

    @property
    def reconstruct(self) -> ReconstructSettings:
        """The `reconstruct` table with the prompt."""
        return self.settings.reconstruct_with(self.prompt)

    @property
    def of_clip(self) -> Settings:
        """The settings that say whether a clip does, and nothing of the edit itself."""
        return replace(self.settings, reconstruct=ReconstructSettings(prompt=""))

    @property
    def group(self) -> object:
        """Equal for edits that share inversion, model and decoder."""
        shared = replace(
            self.settings, reconstruct=ReconstructSettings(prompt=""), export=ExportSettings()
        )
        # All edits of one call have an automatic mask, or none has.
        has_auto = self.settings.reconstruct.auto_mask
        return self.video.resolve(), self.mask, self.first_frame, has_auto, shared

    @property
    def key(self) -> str:
        """Stands for this edit of this list in any process, wherever that computes."""
        settings = replace(self.settings, device="auto", offload="auto", cache=None)
        edit = replace(self, video=self.video.resolve(), settings=settings)
        return hashlib.sha256(repr(edit).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BatchPlan:
    """What would be done for an edit.

    Attributes:
        row: "row 3 of edits.csv".
        video: The video.
        prompt: What the edit shows.
        first_frame: Its first frame; None is the source's own.
        output: The video or the folder that its row names; None is the workspace.
        inversion: Whether the trajectory exists, or was removed and is not needed.
        edit: Whether the edit exists.
        export: Whether its video exists.
        error: Why the edit would fail; None where nothing is known to be wrong.
    """

    row: str
    video: str
    prompt: str
    first_frame: str | None = None
    output: str | None = None
    inversion: bool = False
    edit: bool = False
    export: bool = False
    error: str | None = None


@looked_up_once()
def plan_batch(
    rows: Sequence[BatchRow],
    flags: Mapping[str, object] | None = None,
    *,
    config: str | None = None,
    flag_names: Mapping[str, str] | None = None,
    is_made_here: bool = True,
    download: bool = True,
    run: Run | None = None,
) -> tuple[BatchEdit, ...]:
    """Resolve every edit of a batch file, and refuse what cannot work before anything runs.

    Args:
        rows: As `cogedit.config.read_batch` returns them.
        flags: Settings by dotted key, above those of the rows.
        config: Preset or TOML file, above that of a row.
        flag_names: As for `settings_for`.
        is_made_here: Whether this machine makes the edits; of others it cannot choose the model.
        download: Whether to download models that are not on this machine; else they are missing.
        run: Reports which model was chosen where none was named.

    Raises:
        CogeditError: Settings that do not go together, with the row. Whether the videos can be
            read shows when they are edited.
    """
    run, edits = run or Run(), list[BatchEdit]()
    said: set[str | None] = {None}
    fitting, unfit = set[Settings](), dict[Settings, tuple[str, str, UsageError]]()
    settled: dict[str, ResolvedSettings] = {}  # most rows differ in their prompts alone
    for row in rows:
        with _naming(row.where):
            videos = [video for given in row.videos for video in videos_of(given, run)]
        num_edits = len(row.prompts) * len(videos)
        if num_edits > 1 and names_video(row.output):
            raise UsageError(
                f"the output of {row.where} names one video, and there are {num_edits} edits",
                hint="name a folder: without a suffix, or with a slash at its end",
            )
        for video in videos:
            named = row.where if len(videos) == 1 else f"{row.where}, {video}"
            with _naming(row.where, named):
                if sniff_kind(video) is not None:
                    raise UsageError(f"{video} is an artifact", hint="a batch starts from videos")
                own = settle_rate(video, flags or {})
                given = repr((config or row.config, own, *row.values.values()))
                if given not in settled:
                    settled[given] = settings_for(
                        video,
                        own,
                        config=config or row.config,
                        rows=row.values,
                        flag_names=flag_names,
                    )
                resolved = settled[given]
                if not is_made_here:
                    check_named_model(resolved)
                made, problem = _checked(row, video, resolved.settings, download=download, run=run)
            edits += made
            if problem is None:
                fitting.add(made[0].of_clip)
            else:
                unfit.setdefault(made[0].of_clip, (row.where, named, problem))
            for note in (chosen_model(resolved), found_as(resolved.settings)):
                if note not in said:
                    run.notify(str(note))
                said.add(note)
    for of_clip, (where, named, problem) in unfit.items():
        # Where another clip does under the same settings, it is the file that does not.
        if of_clip not in fitting:
            with _naming(where, named):
                raise problem
    _check_outputs(edits)
    return tuple(edits)


@contextmanager
def _naming(where: str, named: str | None = None) -> Iterator[None]:
    """Name the row in an error, and the video where it has several."""
    try:
        yield
    except CogeditError as error:
        if where in error.message:
            raise
        raise type(error)(f"{named or where}: {error.message}", hint=error.hint) from error


def _checked(
    row: BatchRow, video: Path, settings: Settings, *, download: bool, run: Run
) -> tuple[list[BatchEdit], UsageError | None]:
    """Check the edits of one video; return what its clip lacks for its settings, if it does."""
    edits = [
        BatchEdit(row.where, video, prompt, row.output, row.mask, settings, row.first_frame)
        for prompt in row.prompts
    ]
    checkpoint = checkpoint_for(settings, download=download)
    lora_records(checkpoint, settings.loras)
    check_inversion_settings(settings, checkpoint)
    num_levels = settings.invert.num_levels
    check_edits([edit.reconstruct for edit in edits], checkpoint, num_levels=num_levels)
    try:
        _take(edits[0], checkpoint, run)
    except (VideoError, StorageError):
        pass  # of this edit alone: told when its turn comes
    except UsageError as error:
        if not _is_of_clip(error, edits[0]):
            raise
        return edits, error
    return edits, None


def _is_of_clip(error: UsageError, edit: BatchEdit) -> bool:
    """Whether an error is one of the clip, such as its length, and not of what else a row names."""
    try:
        check_export(
            edit.video,
            edit.settings,
            output=None,
            source_video=None,
            has_mask=edit.mask is not None or edit.settings.reconstruct.auto_mask,
            read_whole=False,
        )
    except CogeditError as own:
        return own.message == error.message
    return False


def _take(edit: BatchEdit, checkpoint: Checkpoint, run: Run) -> Given:
    """Refuse what an edit could not use or write, and identify the files that it is given.

    The video is not read as a whole: of many processes that share a list, the one that makes its
    edits does that.
    """
    video, settings = edit.video, edit.settings
    mask, first_frame = edit.mask, edit.first_frame
    check_edit(
        video,
        settings,
        mask=mask,
        first_frame=first_frame,
        output=edit.output,
        read_whole=False,
        run=run,
    )
    given = take_given(video, settings, checkpoint, mask=mask, first_frame=first_frame)
    if given.mask is not None:
        frames = find_clip(video, settings, read_whole=False).record
        check_mask(given.mask, frames.source, indices=frames.frame_indices)
    return given


def _check_outputs(edits: Sequence[BatchEdit]) -> None:
    """Refuse two rows with one output video, and an output that is a file of another row.

    A row may go on from what another made: that is replaced where it is the other's own export.
    """
    rows: dict[str, str] = {}
    read = {_identity(name): edit.where for edit in edits for name in edit.inputs}
    for edit in edits:
        if edit.output is None or not names_video(edit.output):
            continue
        output = Path(edit.output)
        other = rows.setdefault(_place_of(output), edit.where)
        if other != edit.where:
            raise UsageError(
                f"{other} and {edit.where} have the same output, {output}",
                hint="give each a name of its own, or a folder",
            )
        found = _identity(output)
        if found is not None and found in read:
            try:
                check_replaced(edit, output)
            except UsageError as error:
                raise UsageError(
                    f"the output of {edit.where}, {output}, is what {read[found]} reads",
                    hint="name another file",
                ) from error


def _place_of(output: Path) -> str:
    """One text for each file: a Mac takes names for one that differ by case, or by composition."""
    place = str(output.resolve())
    if IS_MAC:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", place).casefold())
    return os.path.normcase(place)


def check_output_of(edit: BatchEdit, run: Run) -> None:
    """Refuse to replace what lies where the video of a row goes, unless the run is forced to."""
    if edit.output is not None and names_video(edit.output) and not run.force:
        check_replaced(edit, Path(edit.output))


def check_replaced(edit: BatchEdit, output: Path) -> None:
    """Refuse to replace a video that is no export of the same; errors are `take_given`'s, too."""
    if output.exists():
        given = Given()
        if edit.first_frame is not None:
            checkpoint, picture = checkpoint_for(edit.settings), edit.first_frame
            given = take_given(
                edit.video, edit.settings, checkpoint, mask=None, first_frame=picture
            )
        recorded = as_recorded(edit.reconstruct, edit.settings.invert.num_levels)
        check_replaceable(output, recorded, given.picture)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none, as for the box of a mask."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@looked_up_once()
def preview_batch(
    edits: Sequence[BatchEdit], *, is_made_here: bool = True, run: Run | None = None
) -> list[BatchPlan]:
    """Return what `batch` would do and what exists. Nothing is written.

    Args:
        edits: As `plan_batch` returns them.
        is_made_here: Whether this machine computes: what is missing needs its device and kernels.
        run: With `force`, edits and videos count as missing.
    """
    run, plans = run or Run(), []
    for edit in edits:
        output = None if edit.output is None else str(edit.output)
        plan = BatchPlan(edit.where, str(edit.video), edit.prompt, edit.first_frame, output)
        try:
            found = _preview(plan, edit, run)
            if is_made_here and not found.edit:
                check_here(edit.settings)
            plans.append(found)
        except Interrupted:
            raise
        except CogeditError as error:
            plans.append(replace(plan, error=str(error)))
    return plans


def check_here(settings: Settings) -> None:
    """Refuse a device, kernels and weights that this machine does not have, with a UsageError."""
    check_transformer(settings, download=False)
    if settings.device not in ("auto", "cpu"):
        from cogedit.models.device import resolve_device

        resolve_device(settings.device)


def _preview(plan: BatchPlan, edit: BatchEdit, run: Run) -> BatchPlan:
    video, settings = edit.video, edit.settings
    checkpoint = checkpoint_for(settings, download=False)
    given = _take(edit, checkpoint, run)
    check_output_of(edit, run)
    workspace = workspace_for(video, settings)
    quiet = replace(run, notify=run.detail)
    edits_of = edits_described([edit.reconstruct], settings, checkpoint, given=given)
    found = follow(video, settings, checkpoint, wanted=edits_of, workspace=workspace, run=quiet)
    last = found.links[-1]
    if not isinstance(last.record, TrajectoryRecord):
        return plan
    [described] = edits_of(last.record)
    record = workspace.as_kept(described)
    made = workspace.find(record)
    if made is None or run.force:
        return replace(plan, inversion=True)
    path = place_of_video(record, video, settings, output=edit.output)
    exported = path.parent.is_dir() and is_exported(made, settings, output=path)
    return replace(plan, inversion=True, edit=True, export=exported)
