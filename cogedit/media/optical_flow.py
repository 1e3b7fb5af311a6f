"""Optical flow by block matching, and the warp error of a clip under a flow.

The warp error is how much a clip changes between frames where its source merely moves (Lai et al.
2018, arXiv 1808.00449, section 4.1). Flow and counted pixels are the source's, so that the figures
of several edits of one source compare. A learned flow would follow thin and fast things better, but
would have to be downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cogedit.media.metrics import luma

Frame = npt.NDArray[np.uint8]
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
    """Where the pixels of each frame are in the next; kept by block and bit, 64 kB for 480x720.

    Attributes:
        height: Of a frame, in pixels.
        width: Likewise.
        blocks: For each frame but the last, the displacement (x, y) of its blocks in whole pixels.
        explained: For each of them 8 pixels to a byte, where that holds.
    """

    height: int
    width: int
    blocks: list[Vectors] = field(default_factory=list)
    explained: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Vectors, npt.NDArray[np.bool_]]]:
        """Yield vectors [H, W, 2], and where they hold [H, W], for each frame but the last.

        Pixel p of frame t is at p + vector in frame t + 1.
        """
        shape = (self.height, self.width)
        for blocks, bits in zip(self.blocks, self.explained, strict=True):
            holds = np.unpackbits(bits, count=self.height * self.width).reshape(shape)
            yield _of_pixels(blocks, shape), holds.astype(np.bool_)


def estimate_flow(clip: Iterable[Frame]) -> Flow:
    """Estimate the motion of a clip from frame to frame, each uint8 RGB [H, W, 3].

    Blocks are matched by their mean absolute difference, coarse to fine (Anandan 1989).
    """
    flow: Flow | None = None
    for frame, following in pairwise(clip):
        flow = flow or Flow(*frame.shape[:2])
        blocks = _match(luma(frame), luma(following))
        moved, inside = _follow(following, _of_pixels(blocks, frame.shape))
        difference = np.abs(moved.astype(np.int16) - frame).mean(axis=-1)
        flow.blocks.append(blocks)
        flow.explained.append(np.packbits(inside & (difference <= _EXPLAINED)))
    return flow or Flow(0, 0)


def warp_error(clip: Iterable[Frame], flow: Flow) -> float:
    """Return how far the frames of a clip are from the next ones, warped back along a flow.

    Args:
        clip: Frames, uint8 RGB [H, W, 3].
        flow: That of its source.

    Returns:
        The mean absolute difference in levels of 0..255 over the pixels that the flow explains;
        NaN if it explains none.
    """
    total, count = 0.0, 0
    for (frame, following), (vectors, holds) in zip(pairwise(clip), flow, strict=True):
        moved, _ = _follow(following, vectors)
        difference = np.abs(moved.astype(np.int16) - frame)[holds]
        total += float(difference.sum())
        count += difference.size
    return total / count if count else math.nan


def _match(frame: Plane, following: Plane) -> Vectors:
    """The displacement in `following` of every block of `frame`."""
    pyramid = [(frame, following)]
    while min(pyramid[-1][0].shape) >= 2 * _SMALLEST:
        pyramid.append((_halve(pyramid[-1][0]), _halve(pyramid[-1][1])))
    still: Vectors = np.zeros((*pyramid[-1][0].shape, 2), dtype=np.int16)
    blocks = _refine(*pyramid[-1], still, reach=_FIRST_REACH)
    for (coarse, _), (small, large) in pairwise(reversed(pyramid)):
        around = _double(_of_pixels(blocks, coarse.shape), small.shape)
        blocks = _refine(small, large, around, reach=_REACH)
    return blocks


def _refine(frame: Plane, following: Plane, field: Vectors, *, reach: int) -> Vectors:
    """Search around the displacement of a field [H, W, 2]; return that of every block."""
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
    return chosen


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
