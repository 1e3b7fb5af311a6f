"""What decoding shows of a video's pictures, and no header says for sure.

Its keyframes are decoded before anything is read: they tell the size that is shown, the colours,
the fields, and where the size changes. A codec that may change its size between keyframes says so
in the headers of its frames, which are listed without decoding; a video that does is decoded whole.
So is one that can be transparent, because only that tells whether a pixel of it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cogedit.errors import VideoError
from cogedit.media.ffmpeg import FfmpegResult, find_messages, run_on_input
from cogedit.media.ffmpeg_output import ColourTags, InputHeader

_DECODE_TIMEOUT = 600.0
_HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG

# The first picture, the first of another size (where ffmpeg builds the filters anew), and the first
# with two fields; without the side data, which can be long.
_SHOW = (
    r"sidedata=mode=delete,select=eq(n\,0)+if(ld(0)\,0\,if(interlace_type\,st(0\,1)\,0)),"
    "showinfo=checksum=0"
)
_SHOWN = re.compile(
    r"^\[Parsed_showinfo_\d+ @ \w+\] \[info\] n: *\d+ pts: *\S+ pts_time: *(?P<time>\S+) .*?"
    r"fmt:(?P<format>\w+) .*?s:(?P<width>\d+)x(?P<height>\d+) i:(?P<field>\w)",
    re.MULTILINE,
)
_SHOWN_COLOURS = re.compile(
    r"color_range:(?P<range>\S+) color_space:(?P<matrix>\S+) color_primaries:(?P<primaries>\S+) "
    r"color_trc:(?P<transfer>\S+)"
)
_FIELD_ORDERS = {"T": "tff", "B": "bff"}

# An alpha channel, or a palette that may have one.
_HAS_ALPHA = re.compile(r"yuva|gbrap|rgba|bgra|argb|abgr|ya\d|ayuv|vuya|uyva|pal8")
_IS_YUV = re.compile(r"yuv[aj]?\d|nv\d|p[024]1|uyvy|yuyv|yvyu|y2\d\d|xv\d|v30x|vuy|vyu|ayuv|uyva")
# VP8 and VP9 keep their alpha beside the picture, where ffmpeg's own decoders do not look.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# A frame of theirs that is no keyframe may have a size of its own. Where it gives none, it has that
# of an earlier frame, or of the sequence.
_SIZED_BY_FRAME = ("vp9", "av1")
_GIVEN_SIZE = re.compile(rb" (?:max_)?frame_(width|height)_minus_1 .*= (\d+)")


@dataclass(frozen=True)
class SizeChange:
    """A picture of another size than the one before it."""

    seconds: float  # its time
    width: int  # in pixels, upright
    height: int


@dataclass(frozen=True)
class Pictures:
    """How the pictures of a video are stored, as far as it matters to who reads them."""

    width: int  # in stored pixels, cropped as the container asks, and upright
    height: int
    pixel_format: str  # ffmpeg's name of it
    tags: ColourTags  # of the pictures or else of the container
    filled_tags: str  # what the pictures lack of their tags, as ffmpeg's setparams takes it
    field_order: str  # "tff" or "bff" where a picture holds two fields, otherwise empty
    has_flagged_fields: bool  # the pictures say so, not the container alone
    has_alpha: bool  # some pixel is transparent
    decoder: str  # of ffmpeg, where its own choice leaves the alpha out; otherwise empty
    size_changes: tuple[SizeChange, ...]

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer function is PQ or HLG."""
        return self.tags.transfer in _HDR_TRANSFERS

    @property
    def is_yuv(self) -> bool:
        """Whether the pictures are YCbCr, and not RGB, gray or of a palette."""
        return _IS_YUV.match(self.pixel_format.replace("yuvj", "yuv")) is not None

    @property
    def is_plain(self) -> bool:
        """Whether a decoder that knows nothing of all this shows them right."""
        return not (self.filled_tags or self.has_alpha or self.size_changes or self.is_hdr)


def look_at_pictures(
    path: Path,
    header: InputHeader,
    *,
    codec: str,
    size: tuple[int, int],
    only_first: bool = False,
) -> Pictures:
    """Decode the keyframes of a video and see what they are.

    Args:
        path: The video.
        header: What ffmpeg prints of it.
        codec: ffmpeg's name of it.
        size: Width and height, upright, to assume where nothing can be decoded.
        only_first: Decode one; `keeps_size` looks at some of the others.

    Raises:
        VideoError: It changes its size and is turned or mirrored, its alpha needs a decoder that
            this ffmpeg does not have, or it takes too long.
    """
    decoder = _ALPHA_DECODERS.get(codec, "") if header.has_alpha_beside else ""
    before = ["-c:v", decoder] if decoder else []
    count = 1 if only_first else None
    is_sized_alike = only_first or keeps_given_size(path, header.stream, codec)
    keyframes = ["-skip_frame", "nokey"] if is_sized_alike else []
    result = _decode(path, [*keyframes, *before], header.stream, _SHOW, count=count)
    if _SHOWN.search(result.stderr) is None:
        # Not every file that can be read has a keyframe.
        result = _decode(path, before, header.stream, _SHOW, count=1)
    if decoder and "Unknown decoder" in result.stderr:
        raise VideoError(
            f"{path} is transparent, and this ffmpeg has no {decoder} to read that with",
            hint="unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships",
        )
    shown = list(_SHOWN.finditer(result.stderr))
    pixel_format = header.pixel_format
    seen = ColourTags()
    if shown:
        pixel_format = shown[0]["format"]
        size = (int(shown[0]["width"]), int(shown[0]["height"]))
        seen = _colours(result.stderr[shown[0].end() :])
    fields = [match["field"] for match in shown if match["field"] in _FIELD_ORDERS]
    may_have_alpha = _HAS_ALPHA.match(pixel_format) is not None
    has_alpha = may_have_alpha and _is_transparent(path, before, header.stream)
    tags = seen.or_else(header.tags)
    stored = size if header.clockwise % 180 == 0 else size[::-1]
    return Pictures(
        width=size[0],
        height=size[1],
        pixel_format=pixel_format,
        tags=tags,
        filled_tags=_fill_tags(seen, tags, pixel_format, codec=codec, size=stored),
        field_order=_FIELD_ORDERS[fields[0]] if fields else header.field_order,
        has_flagged_fields=bool(fields),
        has_alpha=has_alpha,
        decoder=decoder if has_alpha else "",
        size_changes=_size_changes(shown),
    )


def keeps_size(
    path: Path,
    pictures: Pictures,
    stream: str,
    *,
    before: Sequence[str],
    first_pts: int,
    count: int,
) -> bool:
    """Whether some keyframes are of the size of the pictures that were looked at.

    Args:
        path: The video.
        pictures: What is known of it.
        stream: ffmpeg's name of its stream.
        before: Options of ffmpeg that begin at the first of the keyframes, or at an earlier one.
        first_pts: Its timestamp.
        count: How many there are.
    """
    show = rf"sidedata=mode=delete,select=gte(pts\,{first_pts}),showinfo=checksum=0"
    result = _decode(path, ["-skip_frame", "nokey", *before], stream, show, count=count)
    size = str(pictures.width), str(pictures.height)
    return all((m["width"], m["height"]) == size for m in _SHOWN.finditer(result.stderr))


def keeps_given_size(
    path: Path, stream: str, codec: str, *, before: Sequence[str] = (), count: int | None = None
) -> bool:
    """Whether the frames that give a size of their own all give the same; keyframes aside.

    Args:
        path: The video.
        stream: ffmpeg's name of its stream.
        codec: ffmpeg's name of it. Most have such frames for keyframes alone.
        before: Options of ffmpeg that begin elsewhere than at the first packet.
        count: How many packets to look at; None are all.
    """
    if codec not in _SIZED_BY_FRAME:
        return True
    bound = [] if count is None else ["-frames:v", str(count)]
    args = ["-map", stream, "-c", "copy", "-bsf:v", "trace_headers", *bound, "-f", "null", "-"]
    sizes = find_messages(path, args, _GIVEN_SIZE, before=before, timeout=_DECODE_TIMEOUT)
    return sizes is not None and len(sizes) <= 2  # a width and a height


def _decode(
    path: Path, before: Sequence[str], stream: str, filters: str, *, count: int | None = None
) -> FfmpegResult:
    """Decode a video through filters and list what comes out."""
    bound = [] if count is None else ["-frames:v", str(count)]
    after = ["-map", stream, "-vf", filters, "-fps_mode", "passthrough", *bound]
    return run_on_input(
        path, [*after, "-f", "framecrc", "-"], before=before, timeout=_DECODE_TIMEOUT
    )


def _colours(text: str) -> ColourTags:
    """The first tags that the filter prints."""
    match = _SHOWN_COLOURS.search(text)
    if match is None:
        return ColourTags()
    named = {name: value for name, value in match.groupdict().items() if value != "unknown"}
    return ColourTags(**named)


def _fill_tags(
    seen: ColourTags, tags: ColourTags, pixel_format: str, *, codec: str, size: tuple[int, int]
) -> str:
    """What to tell ffmpeg of the colours: what only the container says, or else what is usual.

    HDR is BT.2020. YCbCr of HD size is BT.709, as players take it; ffmpeg takes it for BT.601, as
    it does smaller pictures and JPEG's, which are.
    """
    is_yuv = _IS_YUV.match(pixel_format) is not None
    if tags.transfer in _HDR_TRANSFERS:
        wanted = tags.or_else(ColourTags(matrix="bt2020nc" if is_yuv else "", primaries="bt2020"))
    elif is_yuv and codec != "mjpeg" and (size[0] >= 1280 or size[1] >= 720):
        wanted = ColourTags(matrix=tags.matrix or "bt709", range=tags.range)
    else:
        # What else a tag says of SDR is not used.
        wanted = ColourTags(matrix=tags.matrix, range=tags.range)
    missing = {
        "colorspace": "" if seen.matrix else wanted.matrix,
        "color_primaries": "" if seen.primaries else wanted.primaries,
        "color_trc": "" if seen.transfer else wanted.transfer,
        # Limited is what ffmpeg takes YCbCr for that says nothing.
        "range": "pc" if wanted.range == "pc" and not seen.range else "",
    }
    return ":".join(f"{name}={value}" for name, value in missing.items() if value)


def _size_changes(shown: Sequence[re.Match[str]]) -> tuple[SizeChange, ...]:
    changes = []
    size = (shown[0]["width"], shown[0]["height"]) if shown else None
    for match in shown:
        if (match["width"], match["height"]) != size:
            size = (match["width"], match["height"])
            changes.append(SizeChange(float(match["time"]), *map(int, size)))
    return tuple(changes)


def _is_transparent(path: Path, before: Sequence[str], stream: str) -> bool:
    """Whether a pixel of a video with an alpha channel is transparent.

    One that is clear everywhere is not: its channel is not used, as in 32 bit AVI files.
    """
    result = _decode(path, before, stream, "format=rgba,alphaextract")
    lines = [
        line for line in result.stdout.decode(errors="replace").splitlines() if line[:1] == "0"
    ]
    sums = {(int(size), int(crc, 16)) for *_, size, crc in (line.split(",") for line in lines)}
    is_opaque = all(crc == _checksum(255, size) for size, crc in sums)
    return not is_opaque and any(crc != _checksum(0, size) for size, crc in sums)


@lru_cache(maxsize=4)
def _checksum(level: int, count: int) -> int:
    """What ffmpeg's framecrc prints for `count` bytes of one value."""
    return zlib.adler32(bytes([level]) * count, 0)
