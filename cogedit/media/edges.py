"""What an edit changed, fitted to the edges of its source: the guided filter.

What an edit changed is its difference from its source, both as the VAE shows them: what the VAE
loses is in neither. In every window of the picture this change is taken for a linear function of
the colours of the source's own frames,

    d = a . I + b    with a, b of least squares and a ridge of eps on a,

and a pixel gets the mean of what the windows around it say (He, Sun and Tang, "Guided Image
Filtering", section 3, with a guide in colour as in their section 3.5); the sum I + d is shown. So
a change ends where the source has an edge, and grain and texture are the source's own. A change
that the source has no edge for is blurred, and reaches twice the radius of a window: this is for
other colours and another light, not for other shapes.

The function may be laid over the same frame at a larger size, which keeps its detail ("Fast Guided
Filter", arXiv 1505.00996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cogedit.media.reader import Frames

_Array = NDArray[np.float64]
Levels = NDArray[np.float32]

RIDGE = 1e-4
"""eps, for colours in 0 to 1: differences of the source below 0.01 count as none."""


@dataclass(frozen=True)
class Change:
    """What an edit changed in a frame, as a linear function of the source's colours.

    Attributes:
        planes: [H, W, 4, 3] float32: for each pixel a in its first three rows and b in the last,
            for colours in 0 to 1.
    """

    planes: Levels

    def on(
        self, source: Frames, scale: Callable[[Levels], Levels] = lambda levels: levels
    ) -> Frames:
        """Lay the change over a frame of the source.

        Args:
            source: uint8 RGB, [H', W', 3].
            scale: Brings [H, W, 4] to [H', W', 4].

        Returns:
            Like `source`.
        """
        colors = source.astype(np.float32) / 255
        result = np.empty_like(source)
        for channel in range(3):  # one by one, for less memory at large sizes
            plane = scale(self.planes[..., channel])
            shown = colors[..., channel] + plane[..., 3]
            for index in range(3):
                shown += colors[..., index] * plane[..., index]
            result[..., channel] = np.rint(shown.clip(0, 1) * 255)
        return result


def fit_changes(
    edited: Iterable[Frames],
    round_trip: Iterable[Frames],
    source: Iterable[Frames],
    *,
    radius: int,
    picture: tuple[slice, slice] = (slice(None), slice(None)),
) -> Iterator[Change]:
    """Fit the changes of an edit to its source, frame by frame.

    Args:
        edited: uint8 RGB, each [H, W, 3].
        round_trip: The source after the VAE, likewise.
        source: Its own frames, likewise.
        radius: Of the windows in pixels, which have 2 radius + 1 to a side.
        picture: Rows and columns of the picture in each frame; on the bars around it nothing
            changes, and they say nothing of what does.

    Yields:
        The change of each frame.
    """
    count: _Array | None = None
    for frame, before, own in zip(edited, round_trip, source, strict=True):
        guide = own[picture] / 255.0
        change = frame[picture] / 255.0 - before[picture] / 255.0
        if count is None:
            count = _window_sum(np.ones((*guide.shape[:2], 1)), radius)
        planes = np.zeros((*own.shape[:2], 4, 3), dtype=np.float32)
        planes[picture] = _fit(guide, change, radius, count=count)
        yield Change(planes)


def align_edges(edited: Frames, round_trip: Frames, source: Frames, *, radius: int) -> Frames:
    """Show an edit [F, H, W, 3] with the edges of its source; the arguments of `fit_changes`."""
    changes = fit_changes(edited, round_trip, source, radius=radius)
    return np.stack([change.on(own) for change, own in zip(changes, source, strict=True)])


_PAIRS = [(i, j) for i in range(3) for j in range(i, 3)]


def _fit(guide: _Array, change: _Array, radius: int, *, count: _Array) -> _Array:
    """Fit a change [H, W, 3] to a guide [H, W, 3]: a and b, averaged, [H, W, 4, 3]."""

    def mean(values: _Array) -> _Array:
        """Mean over the window of each pixel, of [H, W, C]."""
        return _window_sum(values, radius) / count

    size = guide.shape[:2]
    mean_guide, mean_change = mean(guide), mean(change)
    products = mean(np.stack([guide[..., i] * guide[..., j] for i, j in _PAIRS], axis=-1))
    variance = np.empty((*size, 3, 3))
    for number, (i, j) in enumerate(_PAIRS):
        covaried = products[..., number] - mean_guide[..., i] * mean_guide[..., j]
        variance[..., i, j] = variance[..., j, i] = covaried
    mixed = (guide[..., :, None] * change[..., None, :]).reshape(*size, 9)
    covariance = mean(mixed).reshape(*size, 3, 3)
    covariance -= mean_guide[..., :, None] * mean_change[..., None, :]
    slope = np.linalg.solve(variance + RIDGE * np.eye(3), covariance)
    offset = mean_change - (mean_guide[..., None, :] @ slope)[..., 0, :]
    fits = np.concatenate([slope.reshape(*size, 9), offset], axis=-1)
    return mean(fits).reshape(*size, 4, 3)


def _window_sum(values: _Array, radius: int) -> _Array:
    """Sum [H, W, C] over windows of 2 radius + 1 pixels to a side, cut off at the border."""
    for axis in (0, 1):
        total = np.moveaxis(np.cumsum(values, axis=axis), axis, 0)
        size = len(total)
        reach = min(radius, size - 1)
        summed = np.empty_like(total)
        summed[: size - reach] = total[reach:]
        summed[size - reach :] = total[-1]
        summed[reach + 1 :] -= total[: size - reach - 1]
        values = np.moveaxis(summed, 0, axis)
    return values
