"""What an edit changed, fitted to the edges of its source: the guided filter.

What an edit changed is its difference from its source, both as the VAE shows them: what the VAE
loses is in neither. In every window of the picture this change is taken for a linear function of
the colours of the source's own frames,

    d = a . I + b    with a, b of least squares and a ridge of eps on a,

and a pixel gets the mean of what the windows around it say (He, Sun and Tang, "Guided Image
Filtering", section 3, with a guide in colour as in their section 3.5); the sum I + d is shown. So
a change ends where the source has an edge, and grain and texture are the source's own. A change
that the source has no edge for is blurred over the window: this is for other colours and another
light, not for other shapes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cogedit.media.reader import Frames

_Array = NDArray[np.float64]

RIDGE = 1e-4
"""eps, for colours in 0 to 1: differences of the source below 0.01 count as none."""


def align_edges(edited: Frames, round_trip: Frames, source: Frames, *, radius: int) -> Frames:
    """Fit the changes of an edit to the edges of its source.

    Args:
        edited: uint8 RGB, [F, H, W, 3].
        round_trip: The source after the VAE, likewise.
        source: Its own frames, likewise.
        radius: Of the windows in pixels, which have 2 radius + 1 to a side.

    Returns:
        uint8 RGB, like `edited`; where nothing was changed, the source's own frames.
    """
    triples = zip(edited, round_trip, source, strict=True)
    return np.stack([_align_frame(*triple, radius) for triple in triples])


def _align_frame(edited: Frames, round_trip: Frames, source: Frames, radius: int) -> Frames:
    """Do it for a frame [H, W, 3]."""
    guide = source / 255.0
    change = edited / 255.0 - round_trip / 255.0
    count = _window_sum(np.ones((*guide.shape[:2], 1)), radius)

    def mean(values: _Array) -> _Array:
        """Mean over the window of each pixel, of [H, W, ...]."""
        flat = values.reshape(*values.shape[:2], -1)
        return (_window_sum(flat, radius) / count).reshape(values.shape)

    mean_guide, mean_change = mean(guide), mean(change)
    variance = mean(guide[..., :, None] * guide[..., None, :])
    variance -= mean_guide[..., :, None] * mean_guide[..., None, :]
    covariance = mean(guide[..., :, None] * change[..., None, :])
    covariance -= mean_guide[..., :, None] * mean_change[..., None, :]
    slope = np.asarray(np.linalg.solve(variance + RIDGE * np.eye(3), covariance), dtype=np.float64)
    offset = mean_change - _times(mean_guide, slope)
    fitted = _times(guide, mean(slope)) + mean(offset)
    aligned: Frames = np.rint((guide + fitted).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return aligned


def _times(colors: _Array, slope: _Array) -> _Array:
    """Multiply row vectors [H, W, 3] and matrices [H, W, 3, 3]."""
    product: _Array = (colors[..., None, :] @ slope)[..., 0, :]
    return product


def _window_sum(values: _Array, radius: int) -> _Array:
    """Sum [H, W, C] over windows of 2 radius + 1 pixels to a side, cut off at the border."""
    for axis in (0, 1):
        total = np.cumsum(values, axis=axis)
        size = values.shape[axis]
        position = np.arange(size)
        upper = total.take(np.minimum(position + radius, size - 1), axis=axis)
        below = position - radius - 1
        lower = total.take(np.maximum(below, 0), axis=axis)
        inside = (below >= 0).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        values = upper - lower * inside
    return values
