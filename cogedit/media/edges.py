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
Filter", arXiv 1505.00996), and to frames nearby in time: a fit is made of means over windows alone,
and the means of two frames, weighted, are those of a window that reaches over both.

All is float32, on the device that is given. Colours count from middle gray, so that the means of
products keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cogedit.media.reader import Frames

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

RIDGE = 1e-4
"""eps, for colours in 0 to 1: differences of the source below 0.01 count as noise."""

LEAST_CHANGE = 5.0
"""Levels of 0 to 255, root mean square over the clip, below which `FitShare` judges nothing: of so
little much may be what inversion and sampling left."""

Window = tuple[slice, slice]
"""Rows and columns."""

_SQUARE = 4
_STRIP = 64  # rows to which a change is applied at a time: what they need stays in the cache
_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # of colours: a symmetric matrix


@dataclass(frozen=True)
class Moments:
    """What a fit needs of a frame: means over the window of each pixel.

    Attributes:
        means: [21, H, W] float32: colours of the source (3) and the change (3), then the products
            of the source's colours with each other (6, as `_PAIRS`) and with the change (9).
        radius: Of the windows, in pixels.
        bars: Columns on the left and the right, and rows above and below, that are no image: the
            means are without them.
    """

    means: Tensor
    radius: int
    bars: tuple[int, int, int, int] = (0, 0, 0, 0)

    def toward(self, other: Moments, share: float) -> Moments:
        """The means over the windows of both frames, with this share of the weight on the other."""
        if share == 0:
            return self
        return replace(self, means=self.means.lerp(other.means, share))

    def fit(self) -> Change:
        """Fit the change, window by window, and average over the windows of each pixel.

        The systems of three equations are symmetric and positive; they are solved by their LDL
        factors, which keep their digits where a window is all one colour or all gray. Bars do not
        change.
        """
        import torch
        from torch.nn.functional import pad

        means = self.means
        guide, change, products = means[0:3], means[3:6], means[6:12]
        mixed = means[12:21].reshape(3, 3, *means.shape[1:])
        variance = {
            pair: product - guide[pair[0]] * guide[pair[1]]
            for pair, product in zip(_PAIRS, products, strict=True)
        }
        covariance = [mixed[color] - guide[color] * change for color in range(3)]
        pivot0 = variance[0, 0] + RIDGE
        lower1, lower2 = variance[0, 1] / pivot0, variance[0, 2] / pivot0
        pivot1 = variance[1, 1] + RIDGE - lower1 * variance[0, 1]
        left = variance[1, 2] - lower1 * variance[0, 2]
        lower21 = left / pivot1
        pivot2 = variance[2, 2] + RIDGE - lower2 * variance[0, 2] - lower21 * left
        second = covariance[1] - lower1 * covariance[0]
        slope2 = (covariance[2] - lower2 * covariance[0] - lower21 * second) / pivot2
        slope1 = second / pivot1 - lower21 * slope2
        slope0 = covariance[0] / pivot0 - lower1 * slope1 - lower2 * slope2
        offset = change - slope0 * guide[0] - slope1 * guide[1] - slope2 * guide[2]
        planes = torch.cat([slope0, slope1, slope2, offset])
        return Change(pad(_window_means(planes, self.radius), self.bars))


@dataclass(frozen=True)
class Change:
    """The change of a frame as a linear function of the source's colours.

    Attributes:
        planes: [12, H, W] float32: the slopes for red, green and blue and the offset, each for the
            three colours of the change; for colours in -1/2 to 1/2.
    """

    planes: Tensor

    def within(self, rows: slice, columns: slice) -> Change:
        """The change of a part of the frame."""
        return Change(self.planes[:, rows, columns])

    def beyond(self, left: int, right: int, top: int, bottom: int) -> Change:
        """The change with as many more columns and rows on each side, as those at the border."""
        from torch.nn.functional import pad

        return Change(pad(self.planes, (left, right, top, bottom), mode="replicate"))

    def on(self, source: Frames) -> Frames:
        """Apply the change to a frame of the source, uint8 RGB [H', W', 3], of any size."""
        import torch

        planes, height, width = self.planes, *source.shape[:2]
        pixels = torch.tensor(source, device=planes.device).permute(2, 0, 1)
        shown = torch.empty_like(pixels)
        wide = _scaled(planes, height, width)
        above, below, share = _rows(wide.shape[1], height, device=planes.device)
        for start in range(0, height, _STRIP):
            rows = slice(start, start + _STRIP)
            change = wide[:, above[rows]]
            if wide.shape[1] != height:
                change = change.lerp_(wide[:, below[rows]], share[rows, None])
            colors = pixels[:, rows].to(torch.float32).div_(255)
            result = change[9:12] + colors
            for color in range(3):
                result.addcmul_(change[3 * color : 3 * color + 3], colors[color] - 0.5)
            shown[:, rows] = result.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        frame: Frames = shown.permute(1, 2, 0).contiguous().cpu().numpy()
        return frame


def measure_moments(
    edited: Iterable[Frames],
    round_trip: Iterable[Frames],
    source: Iterable[Frames],
    *,
    radius: int,
    window: Window = (slice(None), slice(None)),
    device: torch.device | str = "cpu",
) -> Iterator[Moments]:
    """Measure what the fits of an edit's changes to its source need, frame by frame.

    Args:
        edited: uint8 RGB, each [H, W, 3].
        round_trip: The source after the VAE, likewise.
        source: Its own frames, likewise.
        radius: Of the filter's windows in pixels, which have 2 radius + 1 to a side.
        window: Rows and columns of the image in each frame; the bars around it do not count.
        device: Where to compute.
    """
    import torch

    for frame, before, own in zip(edited, round_trip, source, strict=True):
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(window, own.shape, strict=False)
        )
        bars = (left, own.shape[1] - right, top, own.shape[0] - bottom)
        shown, unedited, guide = (
            torch.tensor(picture[window], device=device).permute(2, 0, 1).to(torch.float32)
            for picture in (frame, before, own)
        )
        change, guide = (shown - unedited) / 255, guide / 255 - 0.5
        products = [guide[first] * guide[second] for first, second in _PAIRS]
        products += [color * channel for color in guide for channel in change]
        means = _window_means(torch.stack([*guide, *change, *products]), radius)
        yield Moments(means, radius, bars)


class FitShare:
    """How much of what an edit changed its fits show: little where the source has no such edges.

    Compared are means over squares of 4 pixels: noise that the sampling left, and that the fits are
    to leave out, counts for less there. Of finer textures nothing is said.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._made, self._missed = 0.0, 0.0
        self._num_values = 0

    def add(self, edited: Frames, round_trip: Frames, source: Frames, *, fitted: Moments) -> None:
        """Count a frame, as `measure_moments` had it."""
        made = self._difference(edited, round_trip)
        shown = self._difference(fitted.fit().on(source), source)
        self._made += float(np.square(made).sum())
        self._missed += float(np.square(made - shown).sum())
        self._num_values += made.size

    def _difference(self, frame: Frames, other: Frames) -> NDArray[np.float32]:
        """Mean differences of squares of pixels, of the image alone."""
        difference = np.subtract(frame, other, dtype=np.float32)[self._window]
        height, width = (size // _SQUARE for size in difference.shape[:2])
        whole = difference[: height * _SQUARE, : width * _SQUARE]
        means: NDArray[np.float32] = whole.reshape(height, _SQUARE, width, _SQUARE, 3).mean((1, 3))
        return means

    @property
    def share(self) -> float:
        """Of the squares of the change, at most 1; NaN where hardly anything changed."""
        if self._made <= LEAST_CHANGE**2 * self._num_values:
            return math.nan
        return max(0.0, 1 - self._missed / self._made)


def _window_means(planes: Tensor, radius: int) -> Tensor:
    """Mean of each plane [C, H, W] over the window of each pixel, which is cut off at the border.

    Sums of 1, 2, 4, ... neighbours are added up, plane by plane: as exact as a sum of all, in a
    time that grows with the logarithm of the radius.
    """
    import torch

    height, width = planes.shape[1:]
    count = _window_sums(torch.ones(height, 1, device=planes.device), radius, 0)
    count = count * _window_sums(torch.ones(1, width, device=planes.device), radius, 1)
    means = torch.empty_like(planes)
    for plane, mean in zip(planes, means, strict=True):
        mean.copy_(_window_sums(_window_sums(plane, radius, 0), radius, 1)).div_(count)
    return means


def _window_sums(plane: Tensor, radius: int, axis: int) -> Tensor:
    """Sum of [H, W] over the 2 radius + 1 neighbours along an axis; there is 0 beyond the edge."""
    from torch.nn.functional import pad

    length, rest = plane.shape[axis], 2 * radius + 1
    sides = (radius, radius)
    sums = pad(plane, (0, 0, *sides) if axis == 0 else (*sides, 0, 0))
    total, start, size = None, 0, 1  # `sums` holds those of `size` neighbours from each place on
    while rest:
        if rest & 1:
            part = sums.narrow(axis, start, length)
            total = part.clone() if total is None else total.add_(part)
            start += size
        rest >>= 1
        if rest:
            kept = sums.shape[axis] - size
            sums = sums.narrow(axis, 0, kept) + sums.narrow(axis, size, kept)
            size *= 2
    assert total is not None  # the number of neighbours is odd
    return total


def _scaled(planes: Tensor, height: int, width: int) -> Tensor:
    """Scale planes [C, H, W] to a width, bilinear; to the height as well where either shrinks."""
    from torch.nn.functional import interpolate

    rows, columns = planes.shape[1:]
    if height < rows or width < columns:
        size = (height, width)
        return interpolate(planes[None], size=size, mode="bilinear", antialias=True)[0]
    if width == columns:
        return planes
    return interpolate(planes[None], size=(rows, width), mode="bilinear")[0]


def _rows(count: int, height: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Between which two of `count` rows each of `height` lies, and how near to the second."""
    import torch

    places = (torch.arange(height, device=device) + 0.5) * (count / height) - 0.5
    places = places.clamp(0, count - 1)
    above = places.to(torch.int64)
    return above, (above + 1).clamp(max=count - 1), places - above
