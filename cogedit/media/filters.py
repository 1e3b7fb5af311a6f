"""The filters of ffmpeg that make a decoded picture a frame: upright, square pixels, BT.709, RGB.

decord has none of them, so the probe sends a file that needs one to ffmpeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from PIL.ImageColor import getrgb

from cogedit.media.facts import VideoFacts
from cogedit.platforms import IS_WINDOWS

MAX_EXPRESSION = 20_000 if IS_WINDOWS else 100_000
"""Characters by which frames are chosen: of 32,767 in a command, or of 128 KiB in an argument."""

# HDR to BT.709: reference white, 203 nits in BT.2408, is 1.0; what SDR can show keeps its value and
# what is brighter is compressed.
_TONE_MAP = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,"
    "tonemap=mobius:desat=0,zscale=transfer=bt709:matrix=bt709:range=tv,format=yuv444p"
)
# A picture of the same shape, give or take the rounding of its size, fills the frame: no bars of a
# pixel. An odd size has chroma samples for every pixel first, or bars would cover its last row.
_FIT = (
    "scale=w='if({is_alike},{width},min({width},round({height}*iw/ih)))'"
    ":h='if({is_alike},{height},min({height},round({width}*ih/iw)))':eval=frame,"
    "{whole_chroma}pad={width}:{height}:-1:-1:eval=frame"
)
_WHOLE_CHROMA = "format=yuv444p|yuv444p10|yuva444p|yuva444p10|gbrp|gbrap|gbrp10,"
_IS_ALIKE = "lte(abs(iw*{height}-ih*{width}),{width}+{height})"
# In RGB and before anything is scaled: no color that is hidden under alpha reaches its neighbors.
_LAY_ON = (
    "format=gbrap,split[r][s];[r]format=gbrp,lutrgb=r={red}:g={green}:b={blue}[b];"
    "[b][s]overlay=format=gbrp"
)


@dataclass(frozen=True)
class Passed:
    """The pictures that come out of the filters.

    Attributes:
        indices: Their numbers among those that are decoded, ascending.
        filters: What lets them through, and no others.
    """

    indices: Sequence[int]
    filters: tuple[str, ...]


def passed_by_filters(indices: Sequence[int], first_pts: int | None = None) -> Passed:
    """Choose what is to come out of the filters, so that the pictures with the `indices` do.

    They are these, or where they are too many and too uneven to be written in a command, all from
    the first to the last: then the others are dropped when they have been read.

    Args:
        indices: Numbers of decoded pictures, ascending.
        first_pts: Timestamp of the first of them where decoding begins at another picture than the
            first, and what precedes it is dropped; None counts all pictures.
    """
    begin, last = (0 if first_pts is None else indices[0]), indices[-1]
    after = () if first_pts is None else (rf"select=gte(pts\,{first_pts})",)
    expression = _select_expression([index - begin for index in indices])
    if len(expression) > MAX_EXPRESSION:
        expression = rf"between(n\,{indices[0] - begin}\,{last - begin})"
        indices = range(indices[0], last + 1)
    return Passed(indices, (*after, f"select={expression}"))


def filter_chain(
    facts: VideoFacts,
    passed: Passed,
    *,
    width: int,
    height: int,
    scaling: Literal["bicubic", "bilinear"] = "bicubic",
) -> str:
    """The filters for some frames of a video, as ffmpeg's -vf takes them.

    Args:
        facts: What the probe found out about the video.
        passed: Which of its pictures come out.
        width: Of the frames that come out, in pixels.
        height: Likewise.
        scaling: How pixels are scaled.
    """
    # The scale filter changes nothing but the pixel format where the size is right already; it
    # makes pixels square, and keeps a stream that changes its size from shifting the bytes.
    last = [f"scale={width}:{height}:flags={scaling}", "format=rgb24"]
    return ",".join([*picture_filters(facts, passed), *last])


def picture_filters(facts: VideoFacts, passed: Passed | None = None) -> list[str]:
    """The filters before a frame is scaled and has its pixel format; `passed` None are all."""
    pictures = facts.pictures
    chain = [f"setparams={pictures.filled_tags}"] if pictures.filled_tags else []
    if pictures.size_changes:
        size = {"width": pictures.width, "height": pictures.height}
        whole = _WHOLE_CHROMA if any(number % 2 for number in size.values()) else ""
        alike = _IS_ALIKE.format(**size)
        chain.append(_FIT.format(is_alike=alike, whole_chroma=whole, **size))
    if facts.deinterlace and pictures.field_order:
        # What the container alone says, the filter would not know.
        fields = [] if pictures.has_flagged_fields else [f"setfield={pictures.field_order}"]
        # It looks at the frames before and after, so it comes before the choice.
        chain += [*fields, "bwdif=mode=send_frame:deint=interlaced"]
    if passed is not None:
        chain += passed.filters
    if pictures.is_hdr:
        chain.append(_beside_alpha(_TONE_MAP) if pictures.has_alpha else _TONE_MAP)
    if pictures.has_alpha:
        red, green, blue = getrgb(facts.background)[:3]
        chain.append(_LAY_ON.format(red=red, green=green, blue=blue))
    return chain


def input_options(facts: VideoFacts) -> list[str]:
    """Options of ffmpeg for its input that go with the filters."""
    decoder = facts.pictures.decoder
    # Several frames at once, as decoders do by default, ffmpeg 9 reads other pixels of Theora from
    # run to run.
    threads = ["-thread_type", "slice"] if facts.codec == "theora" else []
    # Filters made anew, where the pictures change, would count from 0 again.
    return [*threads, "-reinit_filter", "0", *(["-c:v", decoder] if decoder else [])]


def _beside_alpha(filters: str) -> str:
    """Filters that know no alpha, around it."""
    return f"split[p][q];[q]format=rgba,alphaextract[a];[p]{filters}[c];[c][a]alphamerge"


def _select_expression(indices: Sequence[int]) -> str:
    """The filter expression for "this frame is wanted"; commas escaped for the filter syntax.

    Frames of a steady rate lie at distances that repeat: those of 60 frames per second at 8 are 8
    and 7 in turns. So such a list is short at any length.
    """
    one_by_one = "+".join(rf"eq(n\,{index})" for index in indices)
    first, distances = indices[0], [after - before for before, after in pairwise(indices)]
    count = _shortest_period(distances)
    if count == len(distances):
        return one_by_one
    terms = "+".join(rf"eq(ld(0)\,{index - first})" for index in indices[:count])
    # The place in the period is kept for the terms, which are evaluated after it.
    place = rf"0*st(0\,mod(n-{first}\,{sum(distances[:count])}))"
    return min(one_by_one, rf"between(n\,{first}\,{indices[-1]})*({place}+{terms})", key=len)


def _shortest_period(values: Sequence[int]) -> int:
    """After how many values a list repeats, to its end; its length where it does not.

    By the longest beginning that is an end, too, for each prefix (Knuth, Morris and Pratt, 1977).
    """
    borders: list[int] = []
    for value in values:
        border = borders[-1] if borders else 0
        while border and value != values[border]:
            border = borders[border - 1]
        borders.append(border + 1 if borders and value == values[border] else 0)
    return len(values) - (borders[-1] if borders else 0)
