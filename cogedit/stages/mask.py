"""The mask of a run: taken from the user, checked against the clip, and shown as a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cogedit.artifacts import frames_record, in_use, read_artifact
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.media.masks import GivenMask, open_mask
from cogedit.media.writer import write_video


def take_mask(given: str | Path | None, settings: Settings) -> GivenMask | None:
    """Identify the mask of a run, if one was given; it excludes an automatic one."""
    if given is None:
        return None
    if settings.reconstruct.auto_mask:
        raise UsageError("--mask and --auto-mask exclude each other", hint="leave one of them out")
    return open_mask(given)


def show_mask(edit: Path) -> tuple[Path, float]:
    """Write the mask of an edit as NAME-mask.mp4; return it and the share of pixels it covers."""
    artifact = read_artifact(edit, "edit")
    mask = artifact.tensors["mask"].numpy()
    path = edit.with_name(f"{edit.stem}-mask.mp4")
    with in_use(path.parent):
        gray = np.repeat(255 * mask[..., None], 3, axis=-1)
        write_video(gray, path, fps=frames_record(artifact.record).fps)
    return path, float(mask.mean())
