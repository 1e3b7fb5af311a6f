"""Curves as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from cogedit.tools.report.contents import Curve, Plot

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 10, 40
_GAP = 7
"""Between a label of the y axis and the axis."""
_DIGIT = 7.5
"""At least as wide as a digit of a label, at the style sheet's 11 pixels."""


class _Axis:
    """Maps values to pixels.

    Args:
        values: What has to fit.
        start: Pixel of the lowest value.
        end: Pixel of the highest.
        is_logarithmic: Whether to count powers of ten; the values are positive then.
    """

    def __init__(
        self, values: Sequence[float], start: float, *, end: float, is_logarithmic: bool = False
    ) -> None:
        self._scale = math.log10 if is_logarithmic else float
        scaled = [self._scale(value) for value in values]
        low, high = min(scaled), max(scaled)
        if is_logarithmic:
            low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
            self.ticks = [10.0**power for power in range(int(low), int(high) + 1)]
        else:
            step = _step(high - low or abs(high) or 1.0)
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
            if low == high:
                high = low + step
            count = round((high - low) / step)
            self.ticks = [low + index * step for index in range(count + 1)]
        self._low, self._span = low, high - low
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self._start + (self._scale(value) - self._low) / self._span * self._length


def draw(plot: Plot, number: str) -> str:
    """Draw a plot as an SVG element with a description for those who do not see it.

    Args:
        plot: Finite values; positive ones where it is logarithmic.
        number: Makes the ids of the element unique on the page.
    """
    xs = [x for curve in plot.curves for x, _ in curve.points]
    ys = [y for curve in plot.curves for _, y in curve.points]
    bottom = float(_HEIGHT - _BOTTOM)
    y = _Axis(ys, bottom, end=float(_TOP), is_logarithmic=plot.is_logarithmic)
    longest = max(len(_label(tick)) for tick in y.ticks)
    left, right = max(_LEFT, _GAP + _DIGIT * longest), float(_WIDTH - _RIGHT)
    x = _Axis(xs, right if plot.is_falling else left, end=left if plot.is_falling else right)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="t{number} d{number}">',
        f'<title id="t{number}">{escape(plot.title)}</title>',
        f'<desc id="d{number}">{escape(_describe(plot))}</desc>',
    ]
    for tick in y.ticks:
        at = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.0f}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="y" x="{left - _GAP:.1f}" y="{at}">{_label(tick)}</text>')
    for tick in x.ticks:
        place = f'x="{x(tick):.1f}" y="{bottom + 18:.0f}"'
        parts.append(f'<text class="x" {place}>{_label(tick)}</text>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="x" x="{middle:.0f}" y="{_HEIGHT - 4}">{escape(plot.x_label)}</text>'
    )
    parts += [_line(curve, index, x, y=y) for index, curve in enumerate(plot.curves)]
    return "".join([*parts, "</svg>"])


def _label(tick: float) -> str:
    return f"{tick:.4g}"


def _line(curve: Curve, index: int, x: _Axis, *, y: _Axis) -> str:
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve.points)
    kind = "reference" if curve.is_reference else f"curve c{index}"
    return f'<polyline class="{kind}" points="{points}"/>'


def _describe(plot: Plot) -> str:
    """Say in words where each curve begins and ends."""
    said = []
    for curve in plot.curves:
        (x0, y0), (x1, y1) = curve.points[0], curve.points[-1]
        values = [value for _, value in curve.points]
        said.append(
            f"{curve.label}: from {y0:.3g} at {x0:.4g} to {y1:.3g} at {x1:.4g}, "
            f"between {min(values):.3g} and {max(values):.3g}."
        )
    return " ".join(said)


def _step(span: float) -> float:
    """Return a round distance of ticks, four or five to a span."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
