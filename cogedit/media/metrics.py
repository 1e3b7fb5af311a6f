"""Similarity of two clips, measured frame by frame: neither needs to be in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise, repeat, zip_longest
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cogedit.errors import UsageError

Frame = npt.NDArray[np.uint8]
Pair = TypeVar("Pair")

MAX_PSNR = 100.0
"""PSNR of equal clips in dB, in place of infinity: means stay finite."""


def psnr(
    clip: Iterable[npt.ArrayLike],
    expected: Iterable[npt.ArrayLike],
    *,
    where: Iterable[npt.NDArray[np.bool_]] | None = None,
) -> float:
    """Return the peak signal-to-noise ratio of a clip in dB.

    Args:
        clip: Frames [H, W, 3] in levels of 0..255, any dtype; taken one by one.
        expected: As many of the same shape.
        where: As many [H, W], the pixels that count; None is all.

    Raises:
        UsageError: The clips have other numbers of frames, or frames of other shapes.

    Returns:
        10 log10(255^2 / mean squared error), at most `MAX_PSNR`; NaN if no pixel counts.
    """
    total, count = 0.0, 0
    for frames, chosen in _with_choice(_pairs(clip, expected), where):
        error = np.subtract(*frames, dtype=np.float64) ** 2
        if chosen is not None:
            error = error[chosen]
        total += float(error.sum())
        count += error.size
    if not count:
        return math.nan
    return MAX_PSNR if total == 0 else min(MAX_PSNR, 10 * math.log10(255**2 / (total / count)))


_Array = npt.NDArray[Any]


def _pairs(
    clip: Iterable[npt.ArrayLike], expected: Iterable[npt.ArrayLike]
) -> Iterator[tuple[_Array, _Array]]:
    """Join the frames of two clips; UsageError where they have other numbers or shapes of them."""
    for number, pair in enumerate(zip_longest(clip, expected)):
        if any(frame is None for frame in pair):
            raise UsageError(f"the clips have different lengths: one ends after frame {number}")
        frame, other = map(np.asarray, pair)
        if frame.shape != other.shape:
            raise UsageError(
                f"frame {number} is {frame.shape} in one clip, {other.shape} in the other"
            )
        yield frame, other


def mean_change(clip: Iterable[Frame], expected: Iterable[Frame]) -> float:
    """Return the mean absolute difference of two clips' frames, uint8 [H, W, 3], in levels."""
    return _mean_size(_changes(clip, expected))


def flicker(clip: Iterable[Frame], expected: Iterable[Frame]) -> float:
    """Return how much the difference of two clips' frames, [H, W, 3], changes between frames.

    Mean absolute, in levels; NaN of a single frame.
    """
    changes = pairwise(_changes(clip, expected))
    return _mean_size(now - before for before, now in changes)


def _changes(clip: Iterable[Frame], expected: Iterable[Frame]) -> Iterator[npt.NDArray[np.int16]]:
    for frame, other in _pairs(clip, expected):
        yield np.subtract(frame, other, dtype=np.int16)


def _mean_size(changes: Iterable[npt.NDArray[np.int16]]) -> float:
    total = count = 0
    for change in changes:
        total += int(np.abs(change).sum(dtype=np.int64))
        count += change.size
    return total / count if count else math.nan


def ssim(
    clip: Iterable[Frame],
    expected: Iterable[Frame],
    *,
    where: Iterable[npt.NDArray[np.bool_]] | None = None,
) -> float:
    """Return the mean structural similarity of two clips' luma (Wang et al. 2004, equation 13).

    The window is theirs, a Gaussian of 11 pixels with standard deviation 1.5; only places where it
    lies within the image count.

    Args:
        clip: Frames [H, W, 3] in levels of 0..255, H and W at least 11; taken one by one.
        expected: As many of the same shape.
        where: As many [H, W], the pixels at which a window counts; None is all.

    Returns:
        At most 1, which only equal clips reach; NaN if no pixel counts.
    """
    total, count = 0.0, 0
    inner = slice(_RADIUS, -_RADIUS)
    for frames, chosen in _with_choice(_pairs(clip, expected), where):
        similarity = _ssim_map(*map(luma, frames))
        counted = similarity if chosen is None else similarity[chosen[inner, inner]]
        total += float(counted.sum())
        count += counted.size
    return total / count if count else math.nan


def _with_choice(
    frames: Iterable[Pair], where: Iterable[npt.NDArray[np.bool_]] | None
) -> Iterable[tuple[Pair, npt.NDArray[np.bool_] | None]]:
    """Join pairs of frames with the pixels that count in them; None is all."""
    return zip(frames, repeat(None)) if where is None else zip(frames, where, strict=True)


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
