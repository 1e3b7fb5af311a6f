"""edit: video + prompts -> edited videos, all stages in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    Workspace,
    content_key,
)
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.media.ffmpeg import SUFFIXES
from cogedit.stages.export import Decoder, export
from cogedit.stages.reconstruct import reconstruct
from cogedit.stages.run import (
    Exported,
    Run,
    check_output,
    workspace_for,
)

if TYPE_CHECKING:
    pass


def edit(
    video: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    mask: str | Path | None = None,
    output: Path | None = None,
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
    is_file = output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir()
    if is_file and len(prompts) > 1:
        raise UsageError(
            f"-o names one video, and there are {len(prompts)} prompts", hint="name a folder"
        )
    check_output(output if is_file else None, source=video)
    folder = workspace_for(video, settings).root if output is None else output
    written = reconstruct(video, prompts, settings, mask=mask, run=run)
    if not is_file:
        Workspace(folder).create()
    decoder = Decoder(settings)
    return [
        export(
            one.path,
            settings,
            output=output if is_file else folder / _video_name(one.record),
            run=run,
            decoder=decoder,
        )
        for one in written
    ]


def _video_name(record: EditRecord) -> str:
    """Name a video after source, prompt and content key."""
    source = Path(record.trajectory.latents.frames.source.name).stem
    return f"{source}-{_slug(record.settings.prompt)}-{content_key(record)[:8]}.mp4"


def _slug(text: str, length: int = 40) -> str:
    """Make a file name of a prompt: lower-case words and hyphens."""
    words = re.sub(r"[^\w]+", "-", text.lower(), flags=re.ASCII).strip("-")
    return words[:length].strip("-") or "edit"
