"""Similarity of two clips, measured frame by frame: a clip of CogVideoX 1.5 has 2 GB of float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Clip = npt.NDArray[np.uint8]

MAX_PSNR = 100.0
"""PSNR of equal clips in dB, in place of infinity: means stay finite."""


def psnr(
    clip: Iterable[npt.ArrayLike],
    expected: Iterable[npt.ArrayLike],
    *,
    where: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return the peak signal-to-noise ratio of a clip in dB.

    Args:
        clip: Frames [H, W, 3] in levels of 0..255, any dtype; taken one by one.
        expected: As many of the same shape.
        where: [F, H, W], the pixels that count; None is all.

    Returns:
        10 log10(255^2 / mean squared error), at most `MAX_PSNR`; NaN if no pixel counts.
    """
    total, count = 0.0, 0
    for index, frames in enumerate(zip(clip, expected, strict=True)):
        error = np.subtract(*frames, dtype=np.float64) ** 2
        if where is not None:
            error = error[where[index]]
        total += float(error.sum())
        count += error.size
    if not count:
        return math.nan
    return MAX_PSNR if total == 0 else min(MAX_PSNR, 10 * math.log10(255**2 / (total / count)))


def mean_change(clip: Clip, expected: Clip) -> float:
    """Return the mean absolute difference of two clips, uint8 [F, H, W, 3], in levels."""
    total = sum(_sum_of_sizes(change) for change in _changes(clip, expected))
    return total / clip.size


def flicker(clip: Clip, expected: Clip) -> float:
    """Return how much the difference of two clips, uint8 [F, H, W, 3], changes between frames.

    Mean absolute, in levels; of at least two frames.
    """
    changes = pairwise(_changes(clip, expected))
    return sum(_sum_of_sizes(now - before) for before, now in changes) / clip[1:].size


def _changes(clip: Clip, expected: Clip) -> Iterator[npt.NDArray[np.int16]]:
    for frame, other in zip(clip, expected, strict=True):
        yield np.subtract(frame, other, dtype=np.int16)


def _sum_of_sizes(change: npt.NDArray[np.int16]) -> int:
    return int(np.abs(change).sum(dtype=np.int64))


def ssim(
    clip: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.uint8],
    *,
    where: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return the mean structural similarity of two clips' luma (Wang et al. 2004, equation 13).

    The window is theirs, a Gaussian of 11 pixels with standard deviation 1.5; only places where it
    lies within the image count.

    Args:
        clip: [F, H, W, 3] in levels of 0..255, H and W at least 11.
        expected: The same shape.
        where: [F, H, W], the pixels at which a window counts; None is all.

    Returns:
        At most 1, which only equal clips reach; NaN if no pixel counts.
    """
    total, count = 0.0, 0
    inner = slice(_RADIUS, -_RADIUS)
    for index, frames in enumerate(zip(clip, expected, strict=True)):
        similarity = _ssim_map(*map(luma, frames))
        counted = similarity if where is None else similarity[where[index, inner, inner]]
        total += float(counted.sum())
        count += counted.size
    return total / count if count else math.nan


def luma(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the brightness of a frame [..., 3] in levels of 0..255 (ITU-R BT.601)."""
    weights = np.asarray((0.299, 0.587, 0.114), dtype=np.float32)
    return np.asarray(frame @ weights, dtype=np.float32)


_RADIUS = 5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _ssim_map(
    frame: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return the similarity [H - 10, W - 10] of two frames [H, W]."""
    x, y = frame.astype(np.float64), expected.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    shared = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return np.asarray(shared / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)))


def _blur(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Blur [H, W] with the window, where it lies within the image."""
    taps = np.exp(-((np.arange(-_RADIUS, _RADIUS + 1) / 1.5) ** 2) / 2)
    taps /= taps.sum()
    height, width = image.shape[0] - 2 * _RADIUS, image.shape[1] - 2 * _RADIUS
    rows = np.asarray(sum(tap * image[i : i + height] for i, tap in enumerate(taps)))
    return np.asarray(sum(tap * rows[:, i : i + width] for i, tap in enumerate(taps)))
