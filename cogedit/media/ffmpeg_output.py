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
# Older versions write "displaymatrix".
_DISPLAY_MATRIX = re.compile(r"display ?matrix", re.IGNORECASE)
_ROTATION = re.compile(r"display ?matrix: rotation of (-?[\d.]+) degrees", re.IGNORECASE)
_CROPPING = re.compile(r"^\[info\] +Frame Cropping: ", re.MULTILINE)
_ALPHA_BESIDE = re.compile(r"^\[info\] +alpha_mode +: 1$", re.MULTILINE | re.IGNORECASE)
_BRAND = re.compile(r"^\[info\]     major_brand     : (\w+)", re.MULTILINE)
# AVIF and HEIF: a still picture comes before the moving ones, and alpha is a stream of its own.
_PICTURE_BRANDS = ("avif", "avis", "msf1", "heic", "heis", "hevc")
_STILL = re.compile(r", 1 fps, 1 tbr, 1 tbn\b")
# Printed once where matrix, primaries and transfer have one name.
_COMMON_TAGS = ("bt709", "fcc", "bt470bg", "smpte170m", "smpte240m")

_NO_TIMESTAMP = -(2**63)
_FLAG_KEY = 0x1
_FLAG_DISCARD = 0x4


@dataclass(frozen=True)
class AudioTrack:
    """One audio stream of a file."""

    codec: str  # ffmpeg's name of it; "none" where ffmpeg does not know it
    is_default: bool  # the container says that players take this one


@dataclass(frozen=True)
class ColourTags:
    """Colour tags as ffmpeg names them; empty where there is none."""

    range: str = ""  # "tv" is limited, "pc" is full
    matrix: str = ""
    primaries: str = ""
    transfer: str = ""

    def or_else(self, other: ColourTags) -> ColourTags:
        """These tags, and those of `other` where there is none."""
        return ColourTags(
            self.range or other.range,
            self.matrix or other.matrix,
            self.primaries or other.primaries,
            self.transfer or other.transfer,
        )


@dataclass(frozen=True)
class InputHeader:
    """The header that ffmpeg prints for its first input, and for the mapped video stream."""

    container: str  # first of its names ("mov" for mp4); empty if none was opened
    has_duration: bool  # the container says how long it plays
    codec: str  # ffmpeg's name of the video codec; empty if there is no video stream
    pixel_format: str  # empty if there is no video stream
    stream: str  # ffmpeg's name of the stream to read: the first that is no still picture
    tags: ColourTags  # of the stream, or of the container
    field_order: str  # "tff" or "bff" where pictures are declared to hold two fields, else empty
    has_cropping: bool  # the container shows a part of the coded picture, and ffmpeg cuts it out
    has_alpha_beside: bool  # transparency is stored beside the pictures, as in VP8 and VP9
    has_alpha_stream: bool  # transparency is a stream of its own, as in AVIF
    printed_rates: tuple[Fraction, ...]  # with two decimals: the average, then the guessed one
    has_display_matrix: bool  # the container asks to turn or mirror the image
    clockwise: float  # by how many degrees it asks to turn it, 0 to 360
    num_video_streams: int  # cover images included
    audio_tracks: tuple[AudioTrack, ...]


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
    num_unanchored: int  # packets that precede the first keyframe, in the file or when shown
    last_duration: int  # ticks for which the last packet is shown; 0 where it is not known
    keyframes: tuple[int, ...]  # timestamps of those that are keyframes, ascending


def parse_header(stderr: str) -> InputHeader:
    """Parse ffmpeg's messages, printed at level "info" with levels in brackets."""
    header = stderr.partition("\n[info] Output #0")[0]
    streams = list(_STREAM_LINE.finditer(header))
    videos = [stream for stream in streams if stream.group("kind") == "Video"]
    audios = [stream for stream in streams if stream.group("kind") == "Audio"]
    chosen = _first_group(_MAPPING_LINE, stderr)
    is_picture = _first_group(_BRAND, header) in _PICTURE_BRANDS
    moving = [video for video in videos if is_picture and not _STILL.search(video.group("rest"))]
    line, codec, side_data = "", "", ""
    for video in videos:
        if video.group("index") == chosen:
            line, codec = video.group("rest"), video.group("codec")
            side_data = header[video.end() :].partition("\n[info]   Stream #")[0]
    layout = _PIXEL_FORMAT.search(line)
    colour = (layout.group(2) or "") if layout else ""
    # ffmpeg counts counter-clockwise, phones and players clockwise.
    counter_clockwise = float(_first_group(_ROTATION, side_data) or 0.0)
    return InputHeader(
        container=_first_group(_CONTAINER_LINE, header).split(",")[0],
        has_duration="  Duration: N/A" not in header,
        codec=codec,
        pixel_format=layout.group(1) if layout else "",
        # "V" and not "v": a cover image in an audio file is no video.
        stream=f"0:{moving[0].group('index')}" if moving else "0:V:0",
        tags=_parse_tags(colour),
        field_order=_parse_field_order(colour),
        has_cropping=_CROPPING.search(side_data) is not None,
        has_alpha_beside=_ALPHA_BESIDE.search(side_data) is not None,
        has_alpha_stream=len(moving) > 1,
        printed_rates=_printed_rates(line),
        has_display_matrix=_DISPLAY_MATRIX.search(side_data) is not None,
        clockwise=-counter_clockwise % 360.0,
        num_video_streams=len(videos),
        audio_tracks=tuple(
            AudioTrack(audio.group("codec"), "(default)" in audio.group("rest")) for audio in audios
        ),
    )


def _first_group(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def _parse_tags(colour: str) -> ColourTags:
    """Parse the likes of "tv, bt2020nc/bt2020/smpte2084, top first"."""
    words = [word.strip() for word in colour.split(",")]
    names = next((word.split("/") for word in words if word.count("/") == 2), ["", "", ""])
    names = next(([word] * 3 for word in words if word in _COMMON_TAGS), names)
    known = ["" if name in ("unknown", "reserved") else name for name in names]
    return ColourTags(next((word for word in words if word in ("tv", "pc")), ""), *known)


def _parse_field_order(colour: str) -> str:
    """Which field is shown first: "bottom coded first (swapped)" shows the top one."""
    match = re.search(r"\b(top|bottom) (coded )?first", colour)
    if match is None:
        return ""
    return "tff" if (match[1] == "top") != bool(match[2]) else "bff"


def _printed_rates(line: str) -> tuple[Fraction, ...]:
    matches = [re.search(rf"(\d+(?:\.\d+)?)(k?) {unit}\b", line) for unit in ("fps", "tbr")]
    return tuple(Fraction(m.group(1)) * (1000 if m.group(2) else 1) for m in matches if m)


def parse_framecrc(text: str) -> PacketTable:
    """Parse what ffmpeg's framecrc muxer prints. Raises `ValueError` for anything else."""
    header: dict[str, str] = {}
    packets: list[tuple[int, ...]] = []  # decoding time, presentation time, duration, flags
    for line in text.splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            header[name.removesuffix(" 0")] = value.strip()
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= 6:
            # Flags are not printed where they say "a keyframe" and no more.
            flags = (field[2:] for field in fields[6:] if field.startswith("F="))
            packets.append((*map(int, fields[1:4]), int(next(flags, "1"), 16)))
    missing = {"tb", "codec_id", "dimensions"} - header.keys()
    if missing:
        raise ValueError(f"framecrc named no {', '.join(sorted(missing))}")
    shown = [packet for packet in packets if not packet[3] & _FLAG_DISCARD]
    # AVI has no presentation times; its decoding times are as evenly spaced.
    column = 0 if any(packet[1] == _NO_TIMESTAMP for packet in shown) else 1
    shown.sort(key=lambda packet: packet[column])
    width, height = header["dimensions"].split("x")
    aspect_width, aspect_height = map(int, header.get("sar", "0/1").split("/"))
    known_aspect = aspect_width > 0 and aspect_height > 0
    return PacketTable(
        codec=header["codec_id"],
        width=int(width),
        height=int(height),
        sample_aspect_ratio=Fraction(aspect_width, aspect_height) if known_aspect else Fraction(1),
        time_base=Fraction(header["tb"]),
        timestamps=tuple(packet[column] for packet in shown),
        num_discarded=len(packets) - len(shown),
        num_unanchored=_count_unanchored(packets, column),
        last_duration=shown[-1][2] if shown else 0,
        keyframes=tuple(packet[column] for packet in shown if packet[3] & _FLAG_KEY),
    )


def _count_unanchored(packets: list[tuple[int, ...]], column: int) -> int:
    """Number of packets that a decoder may not be able to show, for want of what they refer to."""
    for number, packet in enumerate(packets):
        if packet[3] & _FLAG_KEY:
            shown = sum(other[column] < packet[column] for other in packets[number + 1 :])
            return number + shown
    return len(packets)
