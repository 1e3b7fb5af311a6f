"""Animated WebP and APNG: Pillow puts their frames together, disposal and blending included."""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cogedit.disk import FileState
from cogedit.errors import VideoError
from cogedit.media.files import file_state, read_start
from cogedit.media.images import is_transparent, open_image, to_rgb

_HEADS = re.compile(rb"\x89PNG\r\n|RIFF....WEBP", re.DOTALL)
_MAX_CLOCK = 1_000_000  # ticks per second: APNG gives each frame a fraction of its own
_MAX_DENOMINATOR = 65535  # of such a fraction


@dataclass(frozen=True)
class Animation:
    """What an animated picture is, and when its frames are shown."""

    codec: str  # "webp" or "apng"
    width: int  # in pixels
    height: int
    has_alpha: bool  # some pixel is transparent
    timestamps: tuple[int, ...]  # of the frames in ticks, from 0 on
    time_base: Fraction  # seconds per tick
    last_duration: int  # ticks for which the last frame is shown


def is_animation(path: Path) -> bool:
    """Whether a file is an animated WebP or PNG. Raises what `open_image` does."""
    if not _HEADS.match(read_start(path, 16)):
        return False
    with open_image(path) as image:
        return _num_frames(image) > 1


def find_animation(path: Path) -> Animation | None:
    """Look at an animated WebP or PNG; None for a file that is neither.

    Raises:
        VideoError: It is a single picture, or cannot be read.
        StorageError: It may not be read.
    """
    return _find(path, file_state(path)) if _HEADS.match(read_start(path, 16)) else None


@lru_cache(maxsize=64)
def _find(path: Path, state: FileState) -> Animation:
    with open_image(path) as image:
        if _num_frames(image) < 2:
            raise VideoError(
                f"{path} is a single picture, expected a video",
                hint="name a video, or a folder of pictures",
            )
        durations, has_alpha = [], False
        for _ in _frames(image):
            image.load()  # WebP knows how long a frame is shown once it is decoded
            has_alpha = has_alpha or is_transparent(image)
            seconds = Fraction(float(image.info.get("duration", 0))) / 1000
            durations.append(seconds.limit_denominator(_MAX_DENOMINATOR))
        clock = min(_MAX_CLOCK, math.lcm(*(duration.denominator for duration in durations)))
        ends = [round(end * clock) for end in accumulate(durations)]
        return Animation(
            "webp" if image.format == "WEBP" else "apng",
            *image.size,
            has_alpha=has_alpha,
            timestamps=(0, *ends[:-1]),
            time_base=Fraction(1, clock),
            last_duration=ends[-1] - ([0, *ends][-2]),
        )


def iterate_animation(
    path: Path, numbers: Sequence[int], background: tuple[int, int, int]
) -> Generator[NDArray[np.uint8], None, None]:
    """Read some frames, in ascending order: uint8 RGB [height, width, 3], laid on `background`.

    Raises what `open_image` does.
    """
    wanted = {*numbers}
    with open_image(path) as image, closing(_frames(image)) as frames:
        for number in frames:
            if number in wanted:
                yield to_rgb(image, background)
            elif number > numbers[-1]:
                return


def _num_frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) - _num_hidden(image)


def _num_hidden(image: Image.Image) -> int:
    """How many images come first that are no frames: what is shown where APNG is not known."""
    return int(bool(image.info.get("default_image")))


def _frames(image: Image.Image) -> Generator[int, None, None]:
    """Go from frame to frame, and yield the number of each."""
    first = _num_hidden(image)
    for number in range(_num_frames(image)):
        image.seek(first + number)
        yield number
