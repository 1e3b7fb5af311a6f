"""The change of an edit on the frames between those that were edited.

A frame between two edited ones is shown with one fit over the windows of both, weighted by its
distance in time to each; at an edited frame that is its own fit. Frames are never fitted across a
cut: they take the fit of the edited frame on their side.

How well that holds is measured on the edited frames themselves: each is left out and predicted from
those beside it, which are twice as far apart as they are for the frames between. By how much easier
the frames between are to predict, a stand-in for the edit tells that is known in all of them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cogedit.media.edges import Change, Moments
from cogedit.media.metrics import MAX_PSNR
from cogedit.media.reader import Frames
from cogedit.media.stand_in import StandIn

_FAINT = 0.1  # squares of levels: errors that are smaller are noise
_MOST_OF_A_GAP = 12  # frames between two edited ones that the stand-in is asked about


@dataclass(frozen=True)
class Blend:
    """Which edited frames a frame of the source is shown by."""

    frame: int  # number in the source
    before: int  # place of an edited frame in the clip
    after: int  # of another one, or the same
    share: float  # of the weight, for `after`


def plan_blends(edited: Sequence[int], end: int, cuts: Sequence[int] = ()) -> tuple[Blend, ...]:
    """Plan the frames from the first edited one to `end`.

    Args:
        edited: Numbers of the edited frames in the source, ascending.
        end: Number of the first frame that is not shown.
        cuts: Numbers of the first frames of scenes, ascending.
    """
    blends = []
    for frame in range(edited[0], end):
        before = bisect_right(edited, frame) - 1
        after = min(before + 1, len(edited) - 1)
        within = _between(cuts, edited[before], edited[after])
        if within:
            nearest = before if 2 * frame < edited[before] + edited[after] else after
            if frame < within[0]:
                nearest = before
            elif frame >= within[-1]:
                nearest = after
            before = after = nearest
        blends.append(_blend(edited, frame, before, after))
    return tuple(blends)


def _blend(edited: Sequence[int], frame: int, before: int, after: int) -> Blend:
    past = frame - edited[before]
    if before == after or past == 0:
        return Blend(frame, before, before, 0.0)
    return Blend(frame, before, after, past / (edited[after] - edited[before]))


def _between(cuts: Sequence[int], first: int, last: int) -> Sequence[int]:
    """The cuts after `first`, up to `last`."""
    return cuts[bisect_right(cuts, first) : bisect_right(cuts, last)]


def blend_changes(blends: Sequence[Blend], moments: Iterable[Moments]) -> Iterator[Change]:
    """Fit the change of each planned frame; two frames' moments are held at a time."""
    held: dict[int, Moments] = {}
    arriving = enumerate(moments)
    shown: tuple[tuple[int, int, float], Change] | None = None
    for blend in blends:
        while blend.after not in held:
            place, arrived = next(arriving)
            held[place] = arrived
        for place in [place for place in held if place < blend.before]:
            del held[place]
        key = (blend.before, blend.after, blend.share)
        if shown is None or shown[0] != key:  # beside a cut, many frames have one fit
            shown = key, held[blend.before].toward(held[blend.after], blend.share).fit()
        yield shown[1]


class LeaveOneOut:
    """Edited frames, each predicted from those beside it.

    Args:
        edited: As for `plan_blends`.
        pictures: Of every frame from the first edited one on, small, uint8 RGB.
        radius: Of the windows of a fit, as a part of the frame's width.
        cuts: As for `plan_blends`.

    Attributes:
        errors: Place of a frame -> how it was predicted, and its mean squared error, in levels of
            0 to 255.
    """

    def __init__(
        self,
        edited: Sequence[int],
        pictures: Sequence[Frames],
        *,
        radius: float,
        cuts: Sequence[int] = (),
    ) -> None:
        self.edited, self.cuts = edited, cuts
        self.errors: dict[int, tuple[Blend, float]] = {}
        self._stand_in = StandIn(pictures, radius)
        self._known: dict[Blend, float] = {}

    def watch(self, moments: Iterable[Moments], own: Iterable[Frames]) -> Iterator[Moments]:
        """Pass moments on, and predict each frame as soon as its neighbours have passed.

        `own` are the source's frames of the clip, at its size.
        """
        held: deque[tuple[Moments, Frames, Frames]] = deque(maxlen=3)
        for place, (measured, frame) in enumerate(zip(moments, own, strict=True)):
            shown = measured.fit().on(frame)
            self._stand_in.learn(frame, shown)
            held.append((measured, frame, shown))
            if len(held) == 3:
                self._predict(place - 1, *held)
            yield measured

    def _predict(self, place: int, *held: tuple[Moments, Frames, Frames]) -> None:
        """Predict the frame at a place from the one before it and the one after it.

        Next to a cut it is predicted from one side, as the frames between are there.
        """
        beside = [
            other
            for other in (place - 1, place + 1)
            if not _between(self.cuts, *sorted((self.edited[place], self.edited[other])))
        ]
        if not beside:
            return
        blend = _blend(self.edited, self.edited[place], beside[0], beside[-1])
        before, after = (held[other - place + 1][0] for other in (blend.before, blend.after))
        _, frame, shown = held[1]
        predicted = before.toward(after, blend.share).fit().on(frame)
        error = np.square(np.subtract(predicted, shown, dtype=np.float32)).mean()
        self.errors[place] = blend, float(error)

    def expected(self, blends: Iterable[Blend]) -> float:
        """The mean squared error that frames are expected to have, against being edited themselves.

        NaN where no edited frame was predicted, or none of the frames lies between two.
        """
        if not self.errors:
            return math.nan

        def rate(places: Iterable[int]) -> float:
            predicted = [self.errors[place] for place in places]
            hardness = sum(self._hardness(blend) for blend, _ in predicted)
            return sum(error for _, error in predicted) / hardness

        total, count = 0.0, 0
        between = (
            b for b in blends if b.frame not in (self.edited[b.before], self.edited[b.after])
        )
        for (before, after), frames in groupby(between, lambda b: (b.before, b.after)):
            gap = [*frames]
            asked = gap[:: math.ceil(len(gap) / _MOST_OF_A_GAP)]
            beside = {before, after} & self.errors.keys()
            hardness = sum(map(self._hardness, asked)) / len(asked)
            total += len(gap) * rate(beside or self.errors) * hardness
            count += len(gap)
        return total / count if count else math.nan

    def _hardness(self, blend: Blend) -> float:
        """The error of the stand-in for the edit."""
        if blend not in self._known:
            first = self.edited[0]
            before, after = (self.edited[at] - first for at in (blend.before, blend.after))
            error = self._stand_in.error(blend.frame - first, before, after, blend.share)
            self._known[blend] = _FAINT + error
        return self._known[blend]


def decibels(error: float) -> float:
    """A mean squared error in levels of 0 to 255 as PSNR."""
    if not error > 0:
        return math.nan if math.isnan(error) else MAX_PSNR
    return min(MAX_PSNR, 10 * math.log10(255**2 / error))
