"""The change of an edit on the frames between those that were edited.

A frame between two edited ones is shown with one fit over the windows of both, weighted by its
distance in time to each; at an edited frame that is its own fit. Frames are never fitted across a
cut: they take the fit of the edited frame on their side.

How well that holds is measured on the edited frames themselves: each is left out and predicted from
those beside it, which are twice as far apart as they are for the frames between. The source itself
tells by how much less the frames between differ from those beside them, and the error is taken to
grow by a power of that, which frames left out with their neighbours tell.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cogedit.media.edges import Change, Moments
from cogedit.media.metrics import MAX_PSNR
from cogedit.media.reader import Frames

# How the error of a frame that was not edited grows with the unlikeness of the source there.
_USUAL_POWER, _POWERS = 1.5, (0.5, 2.0)
_LEAN = 0.3  # how much the usual power counts against what edited frames tell
_FAINT = 0.1  # squares of levels: less is no difference


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


@dataclass
class LeaveOneOut:
    """Edited frames, each predicted from those beside it.

    Attributes:
        edited: As for `plan_blends`.
        pictures: Of every frame from the first edited one on, small, uint8 RGB.
        cuts: As for `plan_blends`.
        near: Place of a frame -> its mean squared error, in levels of 0 to 255, and by how much the
            source differs there from the frames that it was predicted from (`_unlikeness`).
        far: The same with the neighbours left out too.
    """

    edited: Sequence[int]
    pictures: Sequence[Frames]
    cuts: Sequence[int] = ()
    near: dict[int, tuple[float, float]] = field(default_factory=dict)
    far: dict[int, tuple[float, float]] = field(default_factory=dict)

    def watch(self, moments: Iterable[Moments], own: Iterable[Frames]) -> Iterator[Moments]:
        """Pass moments on, and predict each frame as soon as its neighbours have passed.

        `own` are the source's frames of the clip, at its size.
        """
        held: deque[tuple[int, Moments, Frames]] = deque(maxlen=5)
        for place, (measured, frame) in enumerate(zip(moments, own, strict=True)):
            held.append((place, measured, frame))
            self._predict(place - 1, 1, self.near, held)
            self._predict(place - 2, 2, self.far, held)
            yield measured

    def _predict(
        self,
        place: int,
        step: int,
        errors: dict[int, tuple[float, float]],
        held: Iterable[tuple[int, Moments, Frames]],
    ) -> None:
        """Predict the frame at a place from those `step` places before and after it.

        Next to a cut it is predicted from one side, as the frames between are there.
        """
        moments = {number: measured for number, measured, _ in held}
        if not {place - step, place, place + step} <= moments.keys():
            return
        beside = [
            other
            for other in (place - step, place + step)
            if not _between(self.cuts, *sorted((self.edited[place], self.edited[other])))
        ]
        if not beside:
            return
        blend = _blend(self.edited, self.edited[place], beside[0], beside[-1])
        predicted = moments[blend.before].toward(moments[blend.after], blend.share)
        [frame] = [own for number, _, own in held if number == place]
        shown = (measured.fit().on(frame) for measured in (predicted, moments[place]))
        error = np.square(np.subtract(*shown, dtype=np.float32)).mean()
        errors[place] = float(error), self._unlikeness(blend)

    def _unlikeness(self, blend: Blend) -> float:
        """By how much a frame of the source differs from those that it is shown by.

        Mean squared, of small pictures, in which a pixel is about as large as a window.
        """
        first = self.edited[0]
        frame, before, after = (
            self.pictures[number - first].astype(np.float32)
            for number in (blend.frame, self.edited[blend.before], self.edited[blend.after])
        )
        return float(np.square(frame - before - np.float32(blend.share) * (after - before)).mean())

    def _power(self) -> float:
        """By which power of the unlikeness the error grows: a line through their logarithms.

        Its slope leans to the usual one, the more so the less the unlikenesses differ.
        """
        known = [*self.near.values(), *self.far.values()]
        errors, unlike = np.log(np.maximum(np.array(known), _FAINT)).T
        errors, unlike = errors - errors.mean(), unlike - unlike.mean()
        slope = (unlike @ errors + _LEAN * _USUAL_POWER) / (unlike @ unlike + _LEAN)
        return float(np.clip(slope, *_POWERS))

    def expected(self, blends: Iterable[Blend]) -> float:
        """The mean squared error that frames are expected to have, against being edited themselves.

        NaN where no edited frame was predicted, or none of the frames lies between two.
        """
        if not self.near:
            return math.nan
        power = self._power()

        def grown(unlike: float) -> float:
            return math.pow(max(unlike, _FAINT), power)

        def rate(places: Iterable[int]) -> float:
            errors = [self.near[place] for place in places]
            return sum(error for error, _ in errors) / sum(grown(unlike) for _, unlike in errors)

        errors = []
        for blend in blends:
            if blend.frame in (self.edited[blend.before], self.edited[blend.after]):
                continue
            beside = {blend.before, blend.after} & self.near.keys()
            errors.append(rate(beside or self.near) * grown(self._unlikeness(blend)))
        return sum(errors) / len(errors) if errors else math.nan


def decibels(error: float) -> float:
    """A mean squared error in levels of 0 to 255 as PSNR."""
    if not error > 0:
        return math.nan if math.isnan(error) else MAX_PSNR
    return min(MAX_PSNR, 10 * math.log10(255**2 / error))
