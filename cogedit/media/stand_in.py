"""A stand-in for an edit, known in every frame of its source: what the edit makes of a colour.

An edit is known at the edited frames alone. What it makes of a colour on average, a cubic function
that is learned there, can be done to any frame, in a small picture. So the source's own pixels tell
how much harder one frame is to predict than another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogedit.media.edges import Moments, measure_moments
from cogedit.media.reader import Frames

PICTURE = (64, 36)
"""Width and height of pictures that are large enough, in pixels."""

_POWERS = [(r, g, b) for r in range(4) for g in range(4 - r) for b in range(4 - r - g)]
_RIDGE = 1e-6  # of a few colours, many cubic functions are true


class StandIn:
    """What an edit makes of colours, and how well it is predicted in frames that were not edited.

    Args:
        pictures: Of every frame, small, uint8 RGB, all of one size.
        radius: Of the windows of a fit, as a part of the frame's width.
    """

    def __init__(self, pictures: Sequence[Frames], radius: float) -> None:
        self._pictures = pictures
        self._radius = max(1, round(radius * pictures[0].shape[1]))
        terms = len(_POWERS)
        self._products, self._changes = np.zeros((terms, terms)), np.zeros((terms, 3))
        self._held: dict[int, Moments] = {}

    def learn(self, source: Frames, edited: Frames) -> None:
        """Learn of a frame, uint8 RGB [H, W, 3] of any size, and of what was made of it."""
        own, shown = (
            np.asarray(Image.fromarray(frame).resize(PICTURE, Image.Resampling.BOX))
            for frame in (source, edited)
        )
        terms = _terms(own)
        self._products += terms.T @ terms
        self._changes += terms.T @ np.subtract(shown, own, dtype=np.float64).reshape(-1, 3)

    def _edit(self, picture: Frames) -> Frames:
        ridge = _RIDGE * self._products[0, 0] * np.eye(len(_POWERS))
        function = np.linalg.solve(self._products + ridge, self._changes)
        changed = picture + (_terms(picture) @ function).reshape(picture.shape)
        return np.asarray(np.rint(changed.clip(0, 255)), np.uint8)

    def _moments(self, number: int) -> Moments:
        """Of a picture; the last few are kept, since neighbours ask for the same."""
        if number not in self._held:
            picture = self._pictures[number]
            edited = self._edit(picture)
            [moments] = measure_moments([edited], [picture], [picture], radius=self._radius)
            self._held = {**dict([*self._held.items()][-3:]), number: moments}
        return self._held[number]

    def error(self, frame: int, before: int, after: int, share: float) -> float:
        """Mean squared error of a picture that is shown by two others' fit, against its own."""
        picture = self._pictures[frame]
        predicted = self._moments(before).toward(self._moments(after), share)
        shown = (moments.fit().on(picture) for moments in (predicted, self._moments(frame)))
        return float(np.square(np.subtract(*shown, dtype=np.float32)).mean())


def _terms(picture: Frames) -> NDArray[np.float64]:
    """All products of up to three colours, [pixels, 20]; the first is 1."""
    colors = picture.reshape(-1, 3) / 255 - 0.5
    powers = np.stack([np.ones_like(colors), colors, colors**2, colors**3])
    return np.stack([np.prod(powers[[*power], :, range(3)], axis=0) for power in _POWERS], axis=1)
