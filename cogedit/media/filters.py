"""The filters of ffmpeg that make a decoded picture a frame: upright, square pixels, BT.709, RGB.

decord has none of them, so the probe sends a file that needs one to ffmpeg.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cogedit.media.probe import VideoFacts

# HDR to BT.709: reference white, 203 nits in BT.2408, is 1.0; what SDR can show keeps its value and
# what is brighter is compressed.
_TONE_MAP = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,"
    "tonemap=mobius:desat=0,zscale=transfer=bt709:matrix=bt709:range=tv,format=yuv444p"
)


def filter_chain(
    facts: VideoFacts,
    indices: Sequence[int],
    *,
    width: int,
    height: int,
    scaling: Literal["bicubic", "bilinear"] = "bicubic",
) -> str:
    """The filters for some frames of a video, as ffmpeg's -vf takes them.

    Args:
        facts: What the probe found out about the video.
        indices: Numbers of the decoded pictures to let through, ascending.
        width: Of the frames that come out, in pixels.
        height: Likewise.
        scaling: How pixels are scaled.
    """
    tone_map = [_TONE_MAP] if facts.is_hdr else []
    # The scale filter changes nothing but the pixel format where the size is right already; it
    # makes pixels square, and keeps a stream that changes its size from shifting the bytes.
    scale = f"scale={width}:{height}:flags={scaling}"
    return ",".join([f"select={_select_expression(indices)}", *tone_map, scale, "format=rgb24"])


def _select_expression(indices: Sequence[int]) -> str:
    """The filter expression for "this frame is wanted"; commas escaped for the filter syntax."""
    first, last = indices[0], indices[-1]
    step = indices[1] - first if len(indices) > 1 else 1
    if tuple(indices) == tuple(range(first, last + 1, step)):
        return rf"between(n\,{first}\,{last})*not(mod(n-{first}\,{step}))"
    return "+".join(rf"eq(n\,{index})" for index in indices)
