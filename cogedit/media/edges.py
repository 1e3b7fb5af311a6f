"""The change of an edit, fitted to the edges of its source: the guided filter.

The change of an edit is its difference from the reconstruction of its source by the VAE, so that
the VAE's own losses cancel. In every window of the image it is modelled as a linear function of the
colours I of the source's own frame,

    d = a . I + b    with a, b by least squares and a ridge of eps on a,

and a pixel gets the mean of the windows around it (He, Sun and Tang, "Guided Image Filtering",
section 3, with a colour guide as in section 3.5); the sum I + d is shown. So a change ends where
the source has an edge, and grain and texture are the source's own. A change that the source has no
edge for is blurred, over up to twice the radius of a window: this suits other colours and another
light, not other shapes.

The function may be applied to the same frame at a larger size, which keeps its detail ("Fast Guided
Filter", arXiv 1505.00996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cogedit.media.reader import Frames

if TYPE_CHECKING:
    from torch import Tensor

Levels = NDArray[np.float32]

RIDGE = 1e-4
"""eps, for colours in 0 to 1: differences of the source below 0.01 count as noise."""


@dataclass(frozen=True)
class Change:
    """The change of a frame as a linear function of the source's colours.

    Attributes:
        planes: [H, W, 4, 3] float32: a in the first three rows and b in the last, for each pixel
            and for colours in 0 to 1.
    """

    planes: Levels

    def on(
        self, source: Frames, scale: Callable[[Levels], Levels] = lambda levels: levels
    ) -> Frames:
        """Apply the change to a frame of the source, uint8 RGB [H', W', 3].

        `scale` brings [H, W, 4] to [H', W', 4].
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
    window: tuple[slice, slice] = (slice(None), slice(None)),
) -> Iterator[Change]:
    """Fit the changes of an edit to its source, frame by frame.

    Args:
        edited: uint8 RGB, each [H, W, 3].
        round_trip: The source after the VAE, likewise.
        source: Its own frames, likewise.
        radius: Of the filter's windows in pixels, which have 2 radius + 1 to a side.
        window: Rows and columns of the image in each frame; the bars around it do not change and
            do not count.
    """
    import torch

    for frame, before, own in zip(edited, round_trip, source, strict=True):
        guide = torch.from_numpy(own[window] / 255.0)
        change = torch.from_numpy(frame[window] / 255.0 - before[window] / 255.0)
        planes = np.zeros((*own.shape[:2], 4, 3), dtype=np.float32)
        planes[window] = _fit(guide, change, radius).numpy()
        yield Change(planes)


def align_edges(edited: Frames, round_trip: Frames, source: Frames, *, radius: int) -> Frames:
    """Show an edit [F, H, W, 3] with the edges of its source; the arguments of `fit_changes`."""
    changes = fit_changes(edited, round_trip, source, radius=radius)
    return np.stack([change.on(own) for change, own in zip(changes, source, strict=True)])


def _fit(guide: Tensor, change: Tensor, radius: int) -> Tensor:
    """Fit a change [H, W, 3] to a guide [H, W, 3], both float64: a and b averaged, [H, W, 4, 3]."""
    import torch

    mean_guide, mean_change = _window_mean(guide, radius), _window_mean(change, radius)
    variance = _window_mean(_outer(guide, guide), radius) - _outer(mean_guide, mean_guide)
    covariance = _window_mean(_outer(guide, change), radius) - _outer(mean_guide, mean_change)
    ridge = RIDGE * torch.eye(3, dtype=guide.dtype)
    slope = torch.linalg.solve(variance + ridge, covariance)
    offset = mean_change[..., None, :] - mean_guide[..., None, :] @ slope
    return _window_mean(torch.cat([slope, offset], dim=-2), radius)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left[..., :, None] * right[..., None, :]


def _window_mean(values: Tensor, radius: int) -> Tensor:
    """Mean of [H, W, ...] over the window of each pixel, which is cut off at the border."""
    from torch.nn.functional import avg_pool1d

    size = 2 * radius + 1
    for axis in (0, 1):  # the mean over a rectangle is the mean of the means over its lines
        lines = values.movedim(axis, -1)
        means = avg_pool1d(lines.flatten(0, -2), size, 1, radius, count_include_pad=False)
        values = means.reshape(lines.shape).movedim(-1, axis)
    return values
