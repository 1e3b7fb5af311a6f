"""The mask of a run: taken from the user, checked against the clip, and shown as a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import content_key, frames_record, in_use, read_artifact
from cogedit.config import Settings
from cogedit.errors import UsageError, VideoError
from cogedit.media.masks import GivenMask, open_mask
from cogedit.media.recipe_comment import find_comment
from cogedit.media.stream import Frame, FrameStream
from cogedit.media.writer import write_video
from cogedit.types import ReconstructSettings

_COMMENT = "cogedit: automatic mask of edit"


def take_mask(given: str | Path | None, settings: Settings) -> GivenMask | None:
    """Identify the mask of a run, if one was given, as `check_given_mask` allows."""
    check_given_mask(given, [settings.reconstruct])
    return None if given is None else open_mask(given)


def check_given_mask(given: str | Path | None, options: Sequence[ReconstructSettings]) -> None:
    """Refuse edits with a given mask and an automatic one, or outside of one that is not given."""
    if given is not None and any(edit.auto_mask for edit in options):
        raise UsageError(
            "--mask and --auto-mask exclude each other",
            hint="leave one of them out (--no-auto-mask)",
        )
    if given is None and any(edit.mask_keep for edit in options):
        raise UsageError("--mask-keep needs a mask", hint="give --mask, or --no-mask-keep")


def place_of_mask(edit: Path) -> Path:
    """The video that shows the mask of an edit."""
    return edit.with_name(f"{edit.stem}-mask.mp4")


def is_mask_video(path: Path) -> bool:
    """Whether a video was written by `show_mask`."""
    try:
        return (find_comment(path) or "").startswith(_COMMENT)
    except VideoError:
        return False


def show_mask(edit: Path) -> tuple[Path, float]:
    """Write the mask of an edit as NAME-mask.mp4; return it and the share of pixels it covers."""
    artifact = read_artifact(edit, "edit")
    mask, frames = artifact.tensors.slices("mask"), frames_record(artifact.record)
    path, shares = place_of_mask(edit), []

    def gray() -> Iterator[Frame]:
        for frame in islice(mask, frames.num_frames):
            shares.append(float(frame.float().mean()))
            yield (255 * frame[..., None]).expand(-1, -1, 3).numpy()

    with in_use(path.parent):
        comment = f"{_COMMENT} {content_key(artifact.record)}"
        stream = FrameStream(gray(), frames.num_frames, *mask.shape[1:])
        write_video(stream, path, fps=frames.fps, comment=comment)
    return path, sum(shares) / len(shares)


def mask_weight(mask: NDArray[np.uint8], feather: int) -> NDArray[np.float32]:
    """How much of each pixel of a frame is shown under its mask [H, W]."""
    import torch

    from cogedit.diffusion.latent_mask import feather_mask

    weight: NDArray[np.float32] = feather_mask(torch.from_numpy(mask[None]), feather)[0].numpy()
    return weight


def mask_weights(edit: Path, feather: int) -> Iterator[NDArray[np.float32]]:
    """The weights of all frames of an edit that has a mask."""
    artifact = read_artifact(edit, "edit")
    mask, num_frames = artifact.tensors.slices("mask"), frames_record(artifact.record).num_frames
    return (mask_weight(frame.numpy(), feather) for frame in islice(mask, num_frames))
