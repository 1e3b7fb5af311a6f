"""What ffmpeg's messages say about an input: ffprobe, which answers in JSON, is not shipped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_CONTAINER_LINE = re.compile(r"^\[info\] Input #0, (\S+), from ", re.MULTILINE)
_MAPPING_LINE = re.compile(r"^\[info\]   Stream #0:(\d+) -> #0:0 ", re.MULTILINE)
_STREAM_LINE = re.compile(
    r"^\[info\]   Stream #0:(?P<index>\d+)[^:\n]*: (?P<kind>Video|Audio): (?P<codec>\w+)"
    r"(?P<rest>.*)$",
    re.MULTILINE,
)
# "(High) (avc1 / 0x31637661), yuv420p(tv, bt2020nc/bt2020/smpte2084, top first), 160x96 ..."
_PIXEL_FORMAT = re.compile(r", ([a-z][a-z0-9]+)(?:\((.*?)\))?, \d+x\d+")
_HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG
_ROTATION = re.compile(r"Display Matrix: rotation of (-?[\d.]+) degrees")


@dataclass(frozen=True)
class InputHeader:
    """The header that ffmpeg prints for its first input.

    Attributes:
        container: First of the container's names ("mov" for mp4); empty if none was opened.
        pixel_format: Of the video stream that was mapped; empty if there is none.
        is_hdr: Whether its transfer function is PQ or HLG.
        is_interlaced: Whether its frames are said to hold two fields each.
        printed_rates: Frame rates with two decimals: the average, then the guessed one.
        has_display_matrix: Whether the container asks to turn or mirror the picture.
        clockwise: By how many degrees it asks to turn it, 0 to 360.
        num_video_streams: How many there are, cover pictures included.
        audio_codec: Codec of the first sound stream; None without sound.
    """

    container: str
    pixel_format: str
    is_hdr: bool
    is_interlaced: bool
    printed_rates: tuple[Fraction, ...]
    has_display_matrix: bool
    clockwise: float
    num_video_streams: int
    audio_codec: str | None


def parse_header(stderr: str) -> InputHeader:
    """Read ffmpeg's messages, printed at level "info" with levels in brackets."""
    header = stderr.partition("\n[info] Output #0")[0]
    streams = list(_STREAM_LINE.finditer(header))
    videos = [stream for stream in streams if stream.group("kind") == "Video"]
    audios = [stream for stream in streams if stream.group("kind") == "Audio"]
    chosen = _first_group(_MAPPING_LINE, stderr)
    line, side_data = "", ""
    for video in videos:
        if video.group("index") == chosen:
            line = video.group("rest")
            side_data = header[video.end() :].partition("\n[info]   Stream #")[0]
    layout = _PIXEL_FORMAT.search(line)
    colour = (layout.group(2) or "") if layout else ""
    # ffmpeg counts counter-clockwise, phones and players clockwise.
    counter_clockwise = float(_first_group(_ROTATION, side_data) or 0.0)
    return InputHeader(
        container=_first_group(_CONTAINER_LINE, header).split(",")[0],
        pixel_format=_first_group(_PIXEL_FORMAT, line),
        is_hdr=any(name in colour for name in _HDR_TRANSFERS),
        is_interlaced=" first" in f" {colour}",
        printed_rates=_printed_rates(line),
        has_display_matrix="Display Matrix" in side_data,
        clockwise=-counter_clockwise % 360.0,
        num_video_streams=len(videos),
        audio_codec=audios[0].group("codec") if audios else None,
    )


def _first_group(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def _printed_rates(line: str) -> tuple[Fraction, ...]:
    rates = []
    for unit in ("fps", "tbr"):
        match = re.search(rf"(\d+(?:\.\d+)?)(k?) {unit}\b", line)
        if match:
            rates.append(Fraction(match.group(1)) * (1000 if match.group(2) else 1))
    return tuple(rates)
