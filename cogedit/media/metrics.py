"""How near a clip is to another."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MAX_PSNR = 100.0
"""PSNR of equal clips in dB, in place of infinity: means stay finite."""


def psnr(
    clip: npt.ArrayLike, expected: npt.ArrayLike, *, where: npt.NDArray[np.bool_] | None = None
) -> float:
    """Return the peak signal-to-noise ratio of a clip in dB.

    Args:
        clip: [F, H, W, 3] in levels of 0..255, any dtype.
        expected: The same shape.
        where: [F, H, W], the pixels that count; None is all.

    Returns:
        10 log10(255^2 / mean squared error), at most `MAX_PSNR`; NaN if no pixel counts.
    """
    error = (np.asarray(clip, dtype=np.float64) - np.asarray(expected, dtype=np.float64)) ** 2
    if where is not None:
        error = error[where]
    if not error.size:
        return math.nan
    mean = float(error.mean())
    return MAX_PSNR if mean == 0 else min(MAX_PSNR, 10 * math.log10(255**2 / mean))
