"""A mask of a long clip in memory, at one bit a pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
"""One frame, [H, W], 1 where the edit may change the source and else 0."""


class PackedMask:
    """The frames of a mask, each [H, W] of 0 and 1, or of any numbers of which 0 means 0."""

    def __init__(self, frames: Iterable[NDArray[np.generic]]) -> None:
        self._bits = []
        self._size = (0, 0)
        self.num_white = 0
        for frame in frames:
            white = np.not_equal(frame, 0)
            height, width = frame.shape
            self._size = (height, width)
            self._bits.append(np.packbits(white))
            self.num_white += int(white.sum())

    @property
    def shape(self) -> tuple[int, int, int]:
        """F, H and W."""
        return len(self._bits), *self._size

    def __len__(self) -> int:
        return len(self._bits)

    def __iter__(self) -> Iterator[Mask]:
        height, width = self._size
        for bits in self._bits:
            yield np.unpackbits(bits, count=height * width).reshape(height, width)
