"""Frozen records of what a clip, its mask and its first frame come from, as artifacts keep them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from msgspec import Meta

from cogedit.schema import Count, Positive, later
from cogedit.types import ResizeMode

Reader = Literal["decord", "ffmpeg", "ffmpeg-tonemap", "pillow"]
MAX_FRAMES = 1_000_000
"""The most of a video: what is kept of each frame must fit into memory."""

MaskKind = Literal["box", "picture", "video"]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True)
class SourceVideo:
    """What is known about a video file. Sizes are as displayed, after rotation."""

    name: str  # without its folder
    sha256: Digest  # of the whole file
    width: Positive  # in pixels
    height: Positive
    rotation: Annotated[int, Meta(ge=0, le=270, multiple_of=90)]  # clockwise, in degrees
    fps: Fraction  # frames per second, exact
    num_frames: Annotated[int, Meta(ge=1, le=MAX_FRAMES)]  # that the reader delivers
    reader: Reader  # the decoder that is right for it; "ffmpeg-tonemap" maps HDR to BT.709
    has_audio: bool
    # Colour tags that its frames lack, as ffmpeg's setparams filter takes them.
    filled_tags: str = later("")
    has_alpha: bool = later(False)  # some pixel is transparent: laid on the background
    changes_size: bool = later(False)  # frames of another size are fitted into the first, with bars
    is_resampled: bool = later(False)  # frames were taken at an even `fps`, not as they are stored
    is_untimed: bool = later(False)  # its frames carry no times: the rate was given, or assumed
    pattern: str | None = later(None)  # of pictures in the folder `name`; None for all, or a file

    @property
    def place(self) -> str:
        """The path of it, from the folder that it is in."""
        return self.name if self.pattern is None else f"{self.name}/{self.pattern}"


@dataclass(frozen=True)
class ResizeBox:
    """How source pixels became clip pixels, so that an export can undo it. All are in pixels.

    The source is scaled to `scaled_width` x `scaled_height` first. "crop" then keeps the clip-sized
    window whose upper left corner is at (left, top) of the scaled source; "pad" places the scaled
    source at (left, top) of the clip; "stretch" has left = top = 0.
    """

    scaled_width: Positive
    scaled_height: Positive
    left: Count
    top: Count
    mode: ResizeMode


@dataclass(frozen=True)
class MaskSource:
    """Where a given mask comes from, without its place on a disk."""

    kind: MaskKind  # a "box", one "picture" for all frames, or a "video" with a mask per frame
    name: str  # file name without its folder; of a box its text, "x0,y0,x1,y1@FIRST:LAST"
    sha256: Digest | None = None  # of the whole file; None for a box
    has_alpha: bool = later(False)  # some pixel is transparent, which is black


@dataclass(frozen=True)
class PictureSource:
    """Where a given first frame comes from, without its place on a disk."""

    name: str  # file name without its folder: provenance, and in no content key
    sha256: Digest  # of its pixels, RGB in rows from the top, at the size of the clip
