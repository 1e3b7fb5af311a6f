"""Times in a video as people write them, and the rate at which frames are taken. Text only.

A setting holds the canonical text, so that one time is written in one way: `1:02.50` is `62.5`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

RATE_WORDS = ("model", "source", "spread", "sparse")

# Digits are bounded: Fraction("1e999999999") would take the machine down.
_SECONDS = re.compile(r"(?:(?:(\d{1,6}):)?(\d{1,9}):)?(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})")
_FRAME = re.compile(r"(\d{1,9})f")
_RATE = re.compile(r"\d{1,9}(\.\d{1,9}|/0*[1-9]\d{0,8})?")
_MAX_RATE = 1000


@dataclass(frozen=True)
class ClipTime:
    """A time in a video: seconds after its first frame, or the number of a frame of it."""

    seconds: Fraction | None = None
    frame: int | None = None

    def __str__(self) -> str:
        """The time as a setting holds it: decimal seconds, or `300f`."""
        if self.frame is not None:
            return f"{self.frame}f"
        return _decimal(self.seconds or Fraction(0), digits=9)

    @property
    def shown(self) -> str:
        """The time for people, exactly: `1:02.5`, or `300f`."""
        return str(self) if self.seconds is None else show_time(self.seconds, digits=9)

    def at(self, rate: Fraction) -> Fraction:
        """The time in seconds, in a video of `rate` frames per second."""
        if self.frame is not None:
            return self.frame / rate
        return self.seconds or Fraction(0)


def parse_time(value: object) -> ClipTime:
    """Read `12.5`, `1:02.5`, `00:01:02.500` or `300f`. Raises `ValueError` for anything else."""
    text = _text_of(value)
    frame = _FRAME.fullmatch(text)
    if frame is not None:
        return ClipTime(frame=int(frame[1]))
    parts = _SECONDS.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text} is no time")
    hours, minutes, seconds = (Fraction(part or 0) for part in parts.groups())
    # Only the first of the numbers may be larger than a clock shows.
    if (parts[1] and minutes >= 60) or (parts[2] and seconds >= 60):
        raise ValueError(f"{text} is no time")
    return ClipTime(seconds=3600 * hours + 60 * minutes + seconds)


def time_text(value: object) -> str:
    """The canonical text of a time. Raises `ValueError`."""
    return str(parse_time(value))


def rate_text(value: object) -> str:
    """The canonical text of a rate: a word of `RATE_WORDS`, or a number. Raises `ValueError`."""
    text = _text_of(value)
    if text in RATE_WORDS:
        return text
    if not _RATE.fullmatch(text) or not 0 < Fraction(text) <= _MAX_RATE:
        raise ValueError(f"{text} is no rate")
    return str(Fraction(text))


def resampling_rate(frame_rate: str) -> Fraction | None:
    """The rate that a setting asks frames to be taken at; None where it is a word."""
    return None if frame_rate in RATE_WORDS else Fraction(rate_text(frame_rate))


def show_time(seconds: Fraction, *, digits: int = 3) -> str:
    """A time for people, to the millisecond or to more `digits`: `0:06.12`, `1:02:03`."""
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(minutes, 60)
    text = _decimal(rest, digits=digits)
    padded = f"0{text}" if rest < 10 else text
    return f"{hours}:{minutes:02}:{padded}" if hours else f"{minutes}:{padded}"


def _decimal(value: Fraction, *, digits: int) -> str:
    whole, rest = divmod(round(value * 10**digits), 10**digits)
    return f"{whole}.{rest:0{digits}}".rstrip("0").rstrip(".")


def _text_of(value: object) -> str:
    # No bool: `true` is no time.
    if isinstance(value, str | float | Fraction) or type(value) is int:
        return str(value).strip()
    raise ValueError(f"{value!r} is no text or number")
