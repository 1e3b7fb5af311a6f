"""Masks of an edit: the one that was given or found, as pixels of the clip and as latents."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import EditRecord, FramesRecord, in_use
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.stages.source import resize_plan

if TYPE_CHECKING:
    from torch import Tensor

    from cogedit.media.masks import GivenMask
    from cogedit.models.geometry import Geometry


def take_mask(given: str | Path | None, settings: Settings) -> GivenMask | None:
    """Identify the mask of a run, if one was given.

    Raises:
        UsageError: It is no mask, or one is to be found as well.
        VideoError: There is no such file.
    """
    if given is None:
        return None
    if settings.reconstruct.auto_mask:
        raise UsageError("--mask and --auto-mask exclude each other", hint="leave one of them out")
    from cogedit.media.masks import open_mask  # brings numpy, which --help does not need

    return open_mask(given)


def check_fits(mask: GivenMask, frames: FramesRecord) -> None:
    """Refuse a mask that does not fit a clip, before the clip is inverted.

    Raises:
        UsageError: A box outside the source's picture or the clip's frames.
        VideoError: A file that cannot be read, of another shape, or with too few frames.
    """
    from cogedit.media.masks import check_mask

    check_mask(mask, frames.source, indices=frames.frame_indices)


def pixels_of(mask: GivenMask, frames: FramesRecord) -> Tensor:
    """Read a mask as pixels of a clip, [F, H, W] uint8.

    Raises:
        UsageError: As `check_fits`, or nothing of the clip may change.
        VideoError: As `check_fits`.
    """
    import torch

    from cogedit.media.masks import read_mask

    read = read_mask(mask, frames.source, indices=frames.frame_indices, resize=resize_plan(frames))
    return torch.from_numpy(read)


def found_pixels(found: Tensor, geometry: Geometry, *, num_pad_frames: int) -> Tensor:
    """Turn a mask of latents [F', 1, H', W'] that was found into pixels, [F, H, W] uint8.

    Raises:
        UsageError: Nothing was found.
    """
    from cogedit.diffusion.latent_mask import unpool_mask

    if not found.any():
        raise UsageError(
            "the automatic mask is empty: the prompt and the inversion's own predict the same",
            hint="give another prompt, or a mask with --mask",
        )
    return unpool_mask(
        found[num_pad_frames:],
        spatial=geometry.spatial_compression,
        temporal=geometry.temporal_compression,
    )


def latents_of(
    pixels: Tensor, record: EditRecord, geometry: Geometry, *, num_pad_frames: int
) -> Tensor:
    """Turn a mask of pixels into one of latents, [F', 1, H', W'] float32, as an edit's record says.

    A mask that was found has been dilated as it was found.
    """
    from cogedit.diffusion.latent_mask import pool_mask

    return pool_mask(
        pixels,
        spatial=geometry.spatial_compression,
        temporal=geometry.temporal_compression,
        dilation=0 if record.mask is None else record.settings.dilation,
        num_pad_frames=num_pad_frames,
    )


def show_mask(pixels: Tensor, edit: Path, *, fps: Fraction) -> Path:
    """Write a mask as a video beside its edit, so that one can see what was found.

    Returns:
        The video: the edit's name with "-mask.mp4".
    """
    import numpy as np

    from cogedit.media.writer import write_video

    path = edit.with_name(f"{edit.stem}-mask.mp4")
    gray = 255 * pixels.numpy()[..., None]
    with in_use(path.parent):
        write_video(np.repeat(gray, 3, axis=-1), path, fps=fps)
    return path
