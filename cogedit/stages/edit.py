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
from cogedit.errors import UsageError
from cogedit.media.encoding import VIDEO_SUFFIXES, plan_encoding
from cogedit.stages.decode import Decoder
from cogedit.stages.export import check_export, export
from cogedit.stages.reconstruct import reconstruct
from cogedit.stages.run import (
    Exported,
    Run,
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
    wanted = settings.export.composite
    if wanted in ("decode", "source") and mask is None and not settings.reconstruct.auto_mask:
        raise UsageError(f"--composite {wanted} needs a mask", hint="give --mask or --auto-mask")
    is_file = output is not None and output.suffix.lower() in VIDEO_SUFFIXES and not output.is_dir()
    if is_file and len(prompts) > 1:
        raise UsageError(
            f"-o names one video, and there are {len(prompts)} prompts", hint="name a folder"
        )
    check_output(output if is_file else None, source=video)
    named = output if is_file else None
    check_export(video, settings, output=named, source_video=source_video)
    if source_video is None and sniff_kind(video) is None:
        source_video = video
    asked = settings.export
    suffix = plan_encoding(named, asked.codec, crf=asked.crf, lossless=asked.lossless).suffix
    folder = workspace_for(video, settings).root if output is None else output
    written = reconstruct(video, prompts, settings, mask=mask, run=run)
    if not is_file:
        Workspace(folder).create()
    decoder = Decoder(settings)
    return [
        export(
            one.path,
            settings,
            output=named or folder / f"{_video_name(one.record)}{suffix}",
            source_video=source_video,
            with_source=with_source,
            run=run,
            decoder=decoder,
        )
        for one in written
    ]


def _video_name(record: EditRecord) -> str:
    """Name a video after source, prompt and content key, without a suffix."""
    source = short_stem(Path(record.trajectory.latents.frames.source.name))
    return f"{source}-{_slug(record.settings.prompt)}-{content_key(record)[:8]}"


def _slug(text: str, length: int = 40) -> str:
    """Make a file name of a prompt: lower-case words and hyphens."""
    words = re.sub(r"[^\w]+", "-", text.lower(), flags=re.ASCII).strip("-")
    return words[:length].strip("-") or "edit"
