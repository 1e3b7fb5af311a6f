"""What ffmpeg prints about an input: its header, in messages, and its list of packets.

ffprobe, which answers in JSON, is not shipped by imageio-ffmpeg.
"""

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
_ROTATION = re.compile(r"Display Matrix: rotation of (-?[\d.]+) degrees")
_HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG

_NO_TIMESTAMP = -(2**63)
_FLAG_DISCARD = 0x4


@dataclass(frozen=True)
class InputHeader:
    """The header that ffmpeg prints for its first input, and for the mapped video stream."""

    container: str  # first of its names ("mov" for mp4); empty if none was opened
    pixel_format: str  # empty if there is no video stream
    is_hdr: bool  # the transfer function is PQ or HLG
    is_interlaced: bool  # frames are declared to hold two fields each
    printed_rates: tuple[Fraction, ...]  # with two decimals: the average, then the guessed one
    has_display_matrix: bool  # the container asks to turn or mirror the image
    clockwise: float  # by how many degrees it asks to turn it, 0 to 360
    num_video_streams: int  # cover images included
    audio_codec: str | None  # of the first audio stream; None without audio


@dataclass(frozen=True)
class PacketTable:
    """The packets of one video stream, as ffmpeg's framecrc muxer lists them."""

    codec: str  # ffmpeg's name of it
    width: int  # coded size in pixels, before rotation
    height: int
    sample_aspect_ratio: Fraction  # width of a pixel over its height; 1 where it is not given
    time_base: Fraction  # seconds per tick
    timestamps: tuple[int, ...]  # presentation times of the shown packets in ticks, ascending
    num_discarded: int  # packets that an edit list takes out of the presentation


def parse_header(stderr: str) -> InputHeader:
    """Parse ffmpeg's messages, printed at level "info" with levels in brackets."""
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
        pixel_format=layout.group(1) if layout else "",
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
    matches = [re.search(rf"(\d+(?:\.\d+)?)(k?) {unit}\b", line) for unit in ("fps", "tbr")]
    return tuple(Fraction(m.group(1)) * (1000 if m.group(2) else 1) for m in matches if m)


def parse_framecrc(text: str) -> PacketTable:
    """Parse what `ffmpeg -c copy -f framecrc` prints. Raises `ValueError` for anything else."""
    header: dict[str, str] = {}
    presentation: list[int] = []
    decoding: list[int] = []
    num_discarded = 0
    for line in text.splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            header[name.removesuffix(" 0")] = value.strip()
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 6:
            continue
        flags = next((int(field[2:], 16) for field in fields[6:] if field.startswith("F=")), 0)
        if flags & _FLAG_DISCARD:
            num_discarded += 1
            continue
        decoding.append(int(fields[1]))
        presentation.append(int(fields[2]))
    missing = {"tb", "codec_id", "dimensions"} - header.keys()
    if missing:
        raise ValueError(f"framecrc named no {', '.join(sorted(missing))}")
    # AVI has no presentation times; its decoding times are as evenly spaced.
    timestamps = decoding if _NO_TIMESTAMP in presentation else presentation
    width, height = header["dimensions"].split("x")
    aspect_width, aspect_height = map(int, header.get("sar", "0/1").split("/"))
    known_aspect = aspect_width > 0 and aspect_height > 0
    return PacketTable(
        codec=header["codec_id"],
        width=int(width),
        height=int(height),
        sample_aspect_ratio=Fraction(aspect_width, aspect_height) if known_aspect else Fraction(1),
        time_base=Fraction(header["tb"]),
        timestamps=tuple(sorted(timestamps)),
        num_discarded=num_discarded,
    )
