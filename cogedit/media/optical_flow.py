"""Optical flow by block matching, and the warp error of a clip under a flow.

The warp error is how much a clip changes between frames where its source merely moves (Lai et al.
2018, arXiv 1808.00449, section 4.1). Flow and counted pixels are the source's, so that the figures
of several edits of one source compare. A learned flow would follow thin and fast things better, but
would have to be downloaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cogedit.media.metrics import luma

Frames = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.int16]
Level = TypeVar("Level", np.uint8, np.float32)

_BLOCK = 8
_FIRST_REACH, _REACH = 7, 2  # search radius in pixels: on the smallest level, and on the others
_SMALLEST = 24  # pixels to a side of the smallest level of the pyramid, at least
_STAY = 0.25  # cost, in gray levels, of each pixel away from the expected displacement
# A pixel whose match differs by more gray levels was uncovered there, or changed its brightness.
_EXPLAINED = 12.0


@dataclass(frozen=True)
class Flow:
    """Where the pixels of each frame are in the next.

    Attributes:
        vectors: [F - 1, H, W, 2] whole pixels (x, y): pixel p of frame t is at p + vector in frame
            t + 1.
        explained: [F - 1, H, W], where that holds.
    """

    vectors: Vectors
    explained: npt.NDArray[np.bool_]


def estimate_flow(clip: Frames) -> Flow:
    """Estimate the motion of a clip, uint8 RGB [F, H, W, 3], from frame to frame.

    Blocks are matched by their mean absolute difference, coarse to fine (Anandan 1989).
    """
    frames = (luma(frame) for frame in clip)
    fields = [_match(frame, following) for frame, following in pairwise(frames)]
    vectors = np.array(fields, dtype=np.int16).reshape(-1, *clip.shape[1:3], 2)
    explained = np.empty(vectors.shape[:-1], dtype=np.bool_)
    for index, field in enumerate(vectors):
        moved, inside = _follow(clip[index + 1], field)
        difference = np.abs(moved.astype(np.int16) - clip[index]).mean(axis=-1)
        explained[index] = inside & (difference <= _EXPLAINED)
    return Flow(vectors, explained)


def warp_error(clip: Frames, flow: Flow) -> float:
    """Return how far the frames of a clip are from the next ones, warped back along a flow.

    Args:
        clip: uint8 RGB, [F, H, W, 3].
        flow: That of its source.

    Returns:
        The mean absolute difference in levels of 0..255 over the pixels that the flow explains;
        NaN if it explains none.
    """
    total, count = 0.0, 0
    for index, (field, explained) in enumerate(zip(flow.vectors, flow.explained, strict=True)):
        moved, _ = _follow(clip[index + 1], field)
        difference = np.abs(moved.astype(np.int16) - clip[index])[explained]
        total += float(difference.sum())
        count += difference.size
    return total / count if count else math.nan


def _match(frame: Plane, following: Plane) -> Vectors:
    """The displacement [H, W, 2] of every pixel of `frame` in `following`."""
    pyramid = [(frame, following)]
    while min(pyramid[-1][0].shape) >= 2 * _SMALLEST:
        pyramid.append((_halve(pyramid[-1][0]), _halve(pyramid[-1][1])))
    field: Vectors = np.zeros((*pyramid[-1][0].shape, 2), dtype=np.int16)
    field = _refine(*pyramid[-1], field, reach=_FIRST_REACH)
    for small, large in reversed(pyramid[:-1]):
        field = _refine(small, large, _double(field, small.shape), reach=_REACH)
    return field


def _refine(frame: Plane, following: Plane, field: Vectors, *, reach: int) -> Vectors:
    """Search around the displacement of a field, block by block."""
    expected = _of_blocks(field)
    best = np.full(expected.shape[:2], np.inf, dtype=np.float32)
    chosen = expected
    around = sorted(
        ((x, y) for x in range(-reach, reach + 1) for y in range(-reach, reach + 1)),
        key=lambda step: step[0] ** 2 + step[1] ** 2,
    )
    for x, y in around:
        tried = expected + np.asarray((x, y), dtype=np.int16)
        moved, _ = _follow(following, _of_pixels(tried, frame.shape))
        cost = _block_means(np.abs(moved - frame)) + _STAY * math.hypot(x, y)
        better = cost < best
        best = np.where(better, cost, best)
        chosen = np.where(better[..., None], tried, chosen)
    return _of_pixels(chosen, frame.shape)


def _follow(
    frame: npt.NDArray[Level], field: Vectors
) -> tuple[npt.NDArray[Level], npt.NDArray[np.bool_]]:
    """The pixels of a frame [H, W, ...] that a field points at, and which of them are inside it."""
    height, width = field.shape[:2]
    y, x = np.indices((height, width), dtype=np.int32)
    x, y = x + field[..., 0], y + field[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return frame[y.clip(0, height - 1), x.clip(0, width - 1)], inside


def _halve(frame: Plane) -> Plane:
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    quads = frame[:height, :width].reshape(height // 2, 2, width // 2, 2)
    return np.asarray(quads.mean(axis=(1, 3)), dtype=np.float32)


def _double(field: Vectors, shape: tuple[int, ...]) -> Vectors:
    larger = 2 * field.repeat(2, axis=0).repeat(2, axis=1)
    missing = [(0, shape[axis] - larger.shape[axis]) for axis in range(2)]
    return np.asarray(np.pad(larger, [*missing, (0, 0)], mode="edge"), dtype=np.int16)


def _block_means(frame: Plane) -> Plane:
    """The mean of every block; those at the right and lower border are padded."""
    missing = [(0, -size % _BLOCK) for size in frame.shape]
    filled = np.pad(frame, missing, mode="edge")
    height, width = filled.shape[0] // _BLOCK, filled.shape[1] // _BLOCK
    blocks = filled.reshape(height, _BLOCK, width, _BLOCK)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def _of_blocks(field: Vectors) -> Vectors:
    """The displacement in the middle of every block."""
    height, width = field.shape[:2]
    half = _BLOCK // 2
    rows = np.arange(half, height + half, _BLOCK).clip(max=height - 1)
    columns = np.arange(half, width + half, _BLOCK).clip(max=width - 1)
    return np.asarray(field[np.ix_(rows, columns)], dtype=np.int16)


def _of_pixels(blocks: Vectors, shape: tuple[int, ...]) -> Vectors:
    pixels = blocks.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)
    return np.asarray(pixels[: shape[0], : shape[1]], dtype=np.int16)
