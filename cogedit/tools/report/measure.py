"""The figures of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import show_size
from cogedit.media.metrics import MAX_PSNR, psnr, ssim
from cogedit.media.optical_flow import Flow, estimate_flow, warp_error
from cogedit.media.stream import Frame
from cogedit.stages.pass_times import RunNote

if TYPE_CHECKING:
    from torch import Tensor


Clip = Sequence[Frame]


@dataclass(frozen=True)
class Figure:
    """A number about a clip: its name, its value with the unit, and what it is relative to."""

    name: str
    value: str | None  # None where it could not be measured
    note: str = ""


@dataclass(frozen=True)
class Source:
    """What the edits of a clip are measured against.

    Attributes:
        round_trip: The frames of the clip after the VAE, uint8 [H, W, 3].
        flow: The motion of the clip.
        warp_error: Mean error in levels of the clip's own frames along that motion.
    """

    round_trip: Clip
    flow: Flow
    warp_error: float


def measure_source(
    frames: Clip | None, round_trip: Clip, *, flow: Flow | None = None
) -> tuple[Source, list[Figure]]:
    """Measure a clip itself.

    Args:
        frames: Those of the clip, uint8 [H, W, 3]; None where they are gone.
        round_trip: The clip after the VAE.
        flow: The motion of the frames, where it is known; None estimates it.
    """
    flow = flow or estimate_flow(round_trip if frames is None else frames)
    source = Source(round_trip, flow, warp_error(round_trip, flow))
    figures = []
    if frames is not None:
        note = "its round trip against the clip"
        figures.append(Figure("PSNR of the VAE", _decibels(psnr(round_trip, frames)), note))
        figures.append(Figure("SSIM of the VAE", _number(ssim(round_trip, frames), 3), note))
    figures.append(Figure("Warp error", _number(source.warp_error), "of the source after the VAE"))
    return source, figures


def measure_edit(
    clip: Clip,
    source: Source | None,
    *,
    shown: Clip,
    mask: Sequence[NDArray[np.uint8]] | None,
) -> list[Figure]:
    """Measure an edit; the names are the same for every edit.

    Args:
        clip: The frames of the edit as the model made it, uint8 [H, W, 3].
        source: What it is measured against; None where that is gone.
        shown: The edit as it is shown, with the source outside the mask.
        mask: Frames [H, W], 0 where the source is kept; None without a mask.
    """
    all_psnr = all_ssim = warp = outside_psnr = outside_ssim = math.nan
    if source is not None:
        expected = source.round_trip
        all_psnr, all_ssim = psnr(shown, expected), ssim(shown, expected)
        warp = warp_error(shown, source.flow)
        if mask is not None and any((frame == 0).any() for frame in mask):
            outside_psnr = psnr(clip, expected, where=(frame == 0 for frame in mask))
            outside_ssim = ssim(clip, expected, where=(frame == 0 for frame in mask))
    against = "source after the VAE, over all pixels that are shown"
    own_error = None if source is None else _number(source.warp_error)
    own = f"; the source's own is {own_error}" if own_error else ""
    # Outside the mask the source itself is shown: how well the model kept the background is visible
    # only in what the model made.
    outside = "what the model made there, before the source after the VAE is put back"
    return [
        Figure("PSNR against the source", _decibels(all_psnr), against),
        Figure("SSIM against the source", _number(all_ssim, 3), against),
        Figure("Warp error", _number(warp), f"along the source's motion{own}"),
        Figure("Model's PSNR outside the mask", _decibels(outside_psnr), outside),
        Figure("Model's SSIM outside the mask", _number(outside_ssim, 3), outside),
    ]


def noise_figure(noise: Tensor) -> Figure:
    """Measure the noise [B, F', C, H', W'] that an inversion ended in."""
    return Figure("Noise", _number(float(noise.std()), 3), "standard deviation; 1 is right")


def time_figure(note: RunNote | None) -> Figure:
    """Say how long the steps of an inversion or an edit took, if that was noted."""
    if note is None or note.seconds is None:
        return Figure("Time", None)
    details = [f"of the steps, on {note.device}"]
    if len(note.content_keys) > 1:
        details.append(f"{len(note.content_keys)} edits in one pass")
    if note.peak_bytes is not None:
        details.append(f"at most {show_size(note.peak_bytes)} of its memory")
    minutes, seconds = divmod(round(note.seconds), 60)
    value = f"{minutes} min {seconds} s" if minutes else f"{note.seconds:.1f} s"
    return Figure("Time", value, "; ".join(details))


def residual_figure(note: RunNote | None) -> Figure:
    """Return the largest last correction of the inversion steps, if that was noted."""
    residuals = [] if note is None else [size for _, size, _ in note.steps if size is not None]
    value = f"{max(residuals):.2g}" if residuals else None
    return Figure("Residual", value, "largest last correction of a step, relative to the latents")


def _decibels(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "identical" if value == MAX_PSNR else f"{value:.1f} dB"


def _number(value: float, digits: int = 2) -> str | None:
    return None if math.isnan(value) else f"{value:.{digits}f}"
