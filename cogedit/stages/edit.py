"""edit: video + prompts -> edited videos, all stages in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    Workspace,
    content_key,
    short_stem,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.errors import StorageError, UsageError
from cogedit.media.encoding import VIDEO_SUFFIXES, plan_encoding
from cogedit.stages.composite import check_composite
from cogedit.stages.decode import Decoder
from cogedit.stages.export import check_export, check_replaceable, export
from cogedit.stages.reconstruct import reconstruct
from cogedit.stages.run import (
    Exported,
    Run,
    Written,
    check_output,
    workspace_for,
)


def edit(
    video: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    output: Path | None = None,
    source_video: Path | None = None,
    with_source: bool = False,
    run: Run | None = None,
) -> list[Exported]:
    """Edit a video from start to finish: load, encode, invert, reconstruct, export.

    Args:
        video: The video, or any artifact before an edit.
        prompts: One edited video is made of each.
        settings: All tables.
        mask: As for `reconstruct`.
        output: The folder for the videos, made if need be, or the video itself for a single
            prompt; None is the workspace.
        source_video: As for `export`; None is the video itself where the run starts from it.
        with_source: As for `export`.
        run: How to run; None is silent.

    Returns:
        The videos, in the order of the prompts, named after source, prompt and content key.

    Raises:
        CogeditError: As the stages.
    """
    video, run = Path(video), run or Run()
    prompts = [prompts] if isinstance(prompts, str) else prompts
    check_edit(
        video,
        settings,
        mask=mask,
        output=output,
        source_video=source_video,
        num_prompts=len(prompts),
    )
    if output is not None and names_video(output) and not run.force:
        check_replaceable(output, prompts[0])
    written = reconstruct(video, prompts, settings, mask=mask, run=run)
    decoder = Decoder(settings, run=run)
    return [
        export_edit(
            one,
            video,
            settings,
            output=output,
            source_video=source_video,
            with_source=with_source,
            run=run,
            decoder=decoder,
        )
        for one in written
    ]


_OTHER_SUFFIXES = (".3gp", ".avi", ".flv", ".jpg", ".m4v", ".mpg", ".ogv", ".png", ".webm", ".wmv")
"""Of pictures and of containers that no export writes: nobody means a folder by such a name."""


def names_video(output: Path | None) -> bool:
    """Tell whether an output is one video, and no folder for several."""
    known = (*VIDEO_SUFFIXES, *_OTHER_SUFFIXES)
    return output is not None and output.suffix.lower() in known and not output.is_dir()


def check_edit(
    video: Path,
    settings: Settings,
    *,
    mask: str | Path | None,
    output: Path | None,
    source_video: Path | None = None,
    num_prompts: int = 1,
) -> None:
    """Refuse, before anything is computed, what could not be shown or written afterwards.

    Args:
        video: As for `edit`.
        settings: `export`, `load`, and whether a mask is looked for.
        mask: As for `edit`.
        output: As for `edit`.
        source_video: As for `edit`.
        num_prompts: How many edits there are to be.

    Raises:
        ArtifactError: The source's frames or latents are needed for the video, and not there.
        UsageError: A composite without a mask, or an output that does not go with the rest.
        VideoError: The video cannot be read.
        StorageError: The output cannot be written.
    """
    if num_prompts > 1 and names_video(output):
        raise UsageError(
            f"-o names one video, and there are {num_prompts} prompts", hint="name a folder"
        )
    check_composite(settings.export)
    wanted, has_mask = settings.export.composite, mask is not None or settings.reconstruct.auto_mask
    if wanted in ("decode", "source") and not has_mask:
        raise UsageError(f"--composite {wanted} needs a mask", hint="give --mask or --auto-mask")
    named = output if names_video(output) else None
    check_output(named, source=video)
    if output is not None and named is None and output.exists() and not output.is_dir():
        raise StorageError(
            f"cannot write videos into {output}: it is a file", hint="choose another -o"
        )
    check_export(video, settings, output=named, source_video=source_video, has_mask=has_mask)


def export_edit(
    edited: Written[EditRecord],
    video: Path,
    settings: Settings,
    *,
    output: Path | None,
    source_video: Path | None = None,
    with_source: bool = False,
    run: Run,
    decoder: Decoder,
) -> Exported:
    """Write the video of one edit, under its name or a name of its own.

    Args and errors are those of `edit` and `export`.
    """
    path = place_of_video(edited.record, video, settings, output=output)
    if not names_video(output):
        Workspace(path.parent).create()
    if source_video is None and sniff_kind(video) is None:
        source_video = video
    return export(
        edited.path,
        settings,
        output=path,
        source_video=source_video,
        with_source=with_source,
        run=run,
        decoder=decoder,
    )


def place_of_video(
    record: EditRecord, video: Path, settings: Settings, *, output: Path | None
) -> Path:
    """Where the video of an edit goes: the file that was named, or a name of its own."""
    if output is not None and names_video(output):
        return output
    asked = settings.export
    suffix = plan_encoding(None, asked.codec, crf=asked.crf, lossless=asked.lossless).suffix
    folder = workspace_for(video, settings).root if output is None else output
    return folder / f"{_video_name(record)}{suffix}"


def _video_name(record: EditRecord) -> str:
    """Name a video after source, prompt and content key, without a suffix."""
    source = short_stem(Path(record.trajectory.latents.frames.source.name))
    return f"{source}-{_slug(record.settings.prompt)}-{content_key(record)[:8]}"


def _slug(text: str, length: int = 40) -> str:
    """Make a file name of a prompt: lower-case words and hyphens."""
    words = re.sub(r"[^\w]+", "-", text.lower(), flags=re.ASCII).strip("-")
    return words[:length].strip("-") or "edit"
