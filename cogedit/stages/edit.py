"""edit: video + prompts -> edited videos, all stages in one."""

from __future__ import annotations

import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    Workspace,
    content_key,
    frames_record,
    short_stem,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.disk import is_no_name
from cogedit.errors import StorageError, UsageError
from cogedit.media.images import VIDEO_OR_PICTURE
from cogedit.places import Output, is_folder_name
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.claim import claim
from cogedit.stages.decode import check_composite
from cogedit.stages.edit_records import as_recorded
from cogedit.stages.encode import encode
from cogedit.stages.export import check_export, encoding_for, export, is_exported
from cogedit.stages.given import Given, check_given, options_for, take_given
from cogedit.stages.invert import invert
from cogedit.stages.inverted import levels_of, trajectory_for
from cogedit.stages.load import load
from cogedit.stages.model import checkpoint_for
from cogedit.stages.reconstruct import check_edits, expect_prompts, make_edits
from cogedit.stages.replacing import check_replaceable, place_of_source
from cogedit.stages.run import Exported, Run, Written, check_is_here, check_output, workspace_for
from cogedit.stages.session import Session, use_session
from cogedit.stages.source import source_needed
from cogedit.types import ExportSettings, ReconstructSettings


def edit(
    video: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    first_frame: str | Path | None = None,
    output: str | Path | None = None,
    source_video: str | Path | None = None,
    with_source: bool = False,
    run: Run | None = None,
    session: Session | None = None,
) -> list[Exported]:
    """Edit a video from start to finish: load, encode, invert, reconstruct, export.

    Args:
        video: The video, or any artifact before an edit.
        prompts: One edited video is made of each; with a first frame there need be none.
        settings: All tables.
        mask: As for `reconstruct`.
        first_frame: Likewise.
        output: The folder for the videos, made if need be, or the video itself for a single
            prompt; None is the workspace. A folder exists, or its name has no suffix, or it is
            text that ends in a slash.
        source_video: As for `export`; None is the video itself where the run starts from it.
        with_source: As for `export`.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Returns:
        The videos, in the order of the prompts, named after source, prompt and content key.
    """
    video, run = source_of(video, settings), run or Run()
    source_video = as_path(source_video, "the source video")
    check_given(mask, first_frame)
    options = options_for(prompts, settings, first_frame=first_frame)

    # 1. Refuse now what could not be computed, shown or written afterwards.
    check_edit(
        video,
        settings,
        mask=mask,
        first_frame=first_frame,
        output=output,
        source_video=source_video,
        num_prompts=len(options),
        run=run,
    )
    named = as_path(output) if names_video(output) else None
    with claim(named, run) as run, use_session(session) as owner:
        checkpoint = checkpoint_for(settings)
        given = take_given(video, settings, checkpoint, mask=mask, first_frame=first_frame)
        num_levels = levels_of(video, settings)
        if named is not None:
            recorded = as_recorded(options[0], num_levels)
            check_replaced(named, recorded, given, with_source=with_source, run=run)
        check_edits(options, checkpoint, num_levels=num_levels)
        expect_prompts(options, owner)
        owner.expect_decoding()

        # 2. Video -> frames -> latents -> trajectory, as far as they are missing.
        inverted = trajectory_for(video, options, settings, given=given, run=run, session=owner)

        # 3. Trajectory + prompts -> edits.
        edits = make_edits(inverted, options, settings, given=given, run=run, session=owner)

        # 4. Edits -> videos.
        return [
            export_edit(
                made,
                video,
                settings,
                output=output,
                source_video=source_video,
                with_source=with_source,
                run=run,
                session=owner,
            )
            for made in edits
        ]


def names_video(output: Output | None) -> bool:
    """Return whether an output is one video, not a folder for several.

    A suffix that no video has is refused where the video is checked: a folder of that name would
    be a surprise.
    """
    if output is None or is_folder_name(output):
        return False
    return Path(output).suffix != "" and not Path(output).is_dir()


def check_edit(
    video: Path,
    settings: Settings,
    *,
    mask: str | Path | None,
    first_frame: str | Path | None,
    output: Output | None,
    source_video: Path | None = None,
    num_prompts: int = 1,
    read_whole: bool = True,
    run: Run,
) -> None:
    """Refuse, before anything is computed, what `edit` could not show or write afterwards.

    `read_whole` is that of `check_export`.
    """
    path = as_path(output)
    named = path if names_video(output) else None
    if named is not None:
        check_is_here(named)
        _check_suffix(named, settings.export)
    if num_prompts > 1 and named is not None:
        raise UsageError(
            f"-o names one video, and there are {num_prompts} prompts",
            hint="name a folder: without a suffix, or with a slash at its end",
        )
    check_composite(settings.export)
    wanted, has_mask = settings.export.composite, mask is not None or settings.reconstruct.auto_mask
    if wanted in ("decode", "source") and not has_mask:
        raise UsageError(f"--composite {wanted} needs a mask", hint="give --mask or --auto-mask")
    read = [video, mask, first_frame, source_video, *settings.read_files]
    check_output(named, inputs=read, run=run)
    if path is not None:
        check_is_here(path)
    if path is not None and named is None:
        _check_folder(path)
    check_export(
        video,
        settings,
        output=named,
        source_video=source_video,
        has_mask=has_mask,
        read_whole=read_whole,
        run=run,
    )


def check_dry_run(
    video: Path,
    prompts: Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None,
    first_frame: str | Path | None,
    output: Output | None,
    source_video: Path | None,
    with_source: bool,
    run: Run,
) -> None:
    """Refuse what `edit` would refuse before it computes anything; the arguments are its own."""
    check_edit(
        video,
        settings,
        mask=mask,
        first_frame=first_frame,
        output=output,
        source_video=source_video,
        num_prompts=len(prompts),
        run=run,
    )
    if output is not None and names_video(output):
        checkpoint = checkpoint_for(settings, download=False)
        given = take_given(video, settings, checkpoint, mask=mask, first_frame=first_frame)
        options = settings.reconstruct_with(prompts[0] if prompts else "")
        recorded = as_recorded(options, levels_of(video, settings))
        check_replaced(Path(output), recorded, given, with_source=with_source, run=run)


def check_replaced(
    video: Path, edit: ReconstructSettings, given: Given, *, with_source: bool, run: Run
) -> None:
    """Refuse to replace what is no export of such an edit, or beside it of its source clip."""
    if with_source:
        check_replaceable(place_of_source(video), None)
    if not run.force:
        check_replaceable(video, edit, given.picture)


def _check_folder(path: Path) -> None:
    """Raise `StorageError` unless a folder is there and may be written to, or can be made."""
    nearest = path.absolute()
    while not _is_there(nearest) and nearest != nearest.parent:  # a drive may not be there
        nearest = nearest.parent
    problem = None
    if not _is_there(nearest):
        problem = f"there is no {nearest}"
    elif not nearest.is_dir():
        kind = "a link to nothing" if nearest.is_symlink() and not nearest.exists() else "a file"
        problem = f"it is {kind}" if nearest == path.absolute() else f"{nearest.name} is {kind}"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problem = "permission denied"
    if problem is not None:
        raise StorageError(f"cannot write videos into {path}: {problem}", hint="choose another -o")


def _is_there(path: Path) -> bool:
    """Whether anything has this name; OSError for one that is too long, which `exists` hides."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_no_name(error):
            raise
        return False
    return True


def _check_suffix(video: Path, export: ExportSettings) -> None:
    """Refuse a suffix that the codec does not have; of a folder, say how it is named."""
    try:
        encoding_for(video, export)
    except UsageError as error:
        if video.suffix.lower() in VIDEO_OR_PICTURE:
            raise
        folder = f"a folder of that name ends in a slash: -o {shlex.quote(f'{video}/')}"
        raise UsageError(error.message, hint=folder) from error


def export_edit(
    edited: Written[EditRecord],
    video: Path,
    settings: Settings,
    *,
    output: Output | None,
    source_video: Path | None = None,
    with_source: bool = False,
    run: Run,
    session: Session,
) -> Exported:
    """Write the video of one edit, under the name that was given or one of its own."""
    path = place_of_video(edited.record, video, settings, output=output)
    is_ours = not names_video(output)
    if is_ours:
        Workspace(path.parent).create()
    if sniff_kind(video) is None:
        source_video = source_video or video
    restore_source(
        edited, video, settings, path=path, with_source=with_source, run=run, session=session
    )
    with claim(path, run, is_ours=is_ours) as claimed:
        return export(
            edited.path,
            settings,
            output=path,
            source_video=source_video,
            with_source=with_source,
            run=claimed,
            session=session,
        )


def restore_source(
    edited: Written[EditRecord],
    video: Path,
    settings: Settings,
    *,
    path: Path,
    with_source: bool,
    run: Run,
    session: Session,
) -> None:
    """Make again what was removed of the clip, as far as the export of an edit shows it.

    From an artifact what comes after it can be made alone, and of a trajectory nothing.
    """
    needs_frames, needs_latents = source_needed(
        settings.export, has_mask=edited.record.has_mask, with_source=with_source
    )
    if not needs_frames or (
        not run.force and is_exported(edited.path, settings, output=path, with_source=with_source)
    ):
        return
    workspace, trajectory = workspace_for(video, settings), edited.record.trajectory
    has_latents = workspace.holds(trajectory.latents) or workspace.holds(trajectory)
    kind = sniff_kind(video)
    if needs_latents and not has_latents and kind in (None, "frames"):
        encode(video, settings, run=run.earlier, session=session)
    elif needs_latents and not has_latents and kind == "latents":
        invert(video, settings, run=run.earlier, session=session)  # which holds them, too
    elif kind is None and not workspace.holds(frames_record(trajectory)):
        load(video, settings, run=run.earlier)


_SLUG_LENGTH = 40


def place_of_video(
    record: EditRecord, video: Path, settings: Settings, *, output: Output | None
) -> Path:
    """Return where the video of an edit goes: the file that was named, or a name of its own."""
    if output is not None and names_video(output):
        return Path(output)
    suffix = encoding_for(None, settings.export).suffix
    folder = workspace_for(video, settings).root if output is None else Path(output)
    source = short_stem(Path(record.trajectory.latents.frames.source.name))
    shown = record.settings.prompt
    if record.first_frame is not None and not shown.strip():
        shown = Path(record.first_frame.name).stem
    return folder / f"{source}-{_slug(shown)}-{content_key(record)[:8]}{suffix}"


def _slug(text: str) -> str:
    """Make a file name of a prompt: its words in small letters, of any script, and hyphens."""
    codec = sys.getfilesystemencoding()
    known = text.lower().encode(codec, "replace").decode(codec)  # "?" for what it cannot write
    # A mark belongs to the letter before it; what only chooses how a sign is drawn to none.
    marks = "".join(
        {c for c in known if unicodedata.category(c) in ("Mn", "Mc")} - {*"\ufe0e\ufe0f"}
    )
    words = "-".join(re.findall(rf"\w[\w{marks}]*", known))[:_SLUG_LENGTH]
    return words.encode()[: 2 * _SLUG_LENGTH].decode(errors="ignore").strip("-") or "edit"
