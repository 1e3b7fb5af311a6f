"""Where a video cuts to another scene, found in small pictures of its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogedit.media.metrics import luma

SIZE = (32, 18)
"""Width and height of the pictures, in pixels."""

# A picture is brought to mean 0 and deviation 1, so that light that flickers is no cut. Of two
# pictures that have nothing to do with each other, pixels then differ by about 1.
_UNLIKE = 0.5
_TIMES_MOTION = 2.0  # by how much more than the frames around it, which move
_AROUND = 6  # frames to each side
_BESIDE = 3  # frames to each side of a cut, all of which must differ: after a flash they do not
_FAINT = 4.0  # gray levels: contrast below this counts for less


_Plane = NDArray[np.float32]


def find_cuts(pictures: Iterable[NDArray[np.uint8]]) -> tuple[int, ...]:
    """Find the frames at which another scene begins.

    Args:
        pictures: uint8 RGB of every frame, all of one size, which are made as small as `SIZE`.

    Returns:
        Numbers of the first frame of each scene but the first, ascending.
    """
    changes: list[float] = []  # from each frame to the next
    least: list[float] = []  # the smallest between frames just before and just after
    held: deque[tuple[int, _Plane]] = deque(maxlen=2 * _BESIDE)
    for number, picture in enumerate(pictures):
        reduced = Image.fromarray(picture).resize(SIZE, Image.Resampling.BOX)
        held.append((number, _normal(luma(np.asarray(reduced)))))
        if number > 0:
            changes.append(_distance(held[-2][1], held[-1][1]))
        if number >= _BESIDE:
            least.append(_least(held, number - _BESIDE + 1))
    least += [_least(held, number) for number in range(len(least) + 1, len(changes) + 1)]
    return tuple(
        number
        for number, distance in enumerate(least, 1)
        if distance >= max(_UNLIKE, _TIMES_MOTION * _motion(changes, number))
    )


def _least(planes: Iterable[tuple[int, _Plane]], first: int) -> float:
    """The smallest distance between planes before number `first` and those from it on."""
    befores = [plane for number, plane in planes if first - _BESIDE <= number < first]
    afters = [plane for number, plane in planes if number >= first]
    return min(_distance(before, after) for before in befores for after in afters)


def _motion(changes: list[float], number: int) -> float:
    """How much frames change around frame `number`, itself left out."""
    around = changes[max(0, number - 1 - _AROUND) : number - 1] + changes[number : number + _AROUND]
    return float(np.median(around)) if around else 0.0


def _normal(plane: _Plane) -> _Plane:
    level = plane - plane.mean()
    return np.asarray(level / (level.std() + _FAINT), dtype=np.float32)


def _distance(plane: _Plane, other: _Plane) -> float:
    return float(np.abs(plane - other).mean())
