"""Codecs: their containers, their quality settings, and the options of ffmpeg for each.

Every lossy codec gets BT.709 in limited range, converted here and tagged in the stream: the tag
alone leaves the colours of BT.601 under the label of BT.709. Lossless means RGB as it is, because
8 bits of YCbCr cannot hold all of 8 bits of RGB. Nothing here loads numpy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cogedit.errors import UsageError
from cogedit.media.timing import MAX_TERM
from cogedit.types import Codec

MAX_FPS = 1000
_MAX_GIF_FPS = 50


@dataclass(frozen=True)
class _Format:
    """Properties of a codec."""

    suffixes: tuple[str, ...]  # of its containers, the default one first; "" is a folder
    max_crf: int | None = None  # the worst; None where it has none
    default_crf: int | None = None  # visually lossless
    splice_crf: int | None = None  # likewise for what was coded before
    can_be_lossless: bool = False  # keeps RGB exactly, always or as an option
    multiple: tuple[int, int] = (1, 1)  # of which width and height must be multiples
    has_audio: bool = True  # whether its containers hold audio


_FORMATS: dict[Codec, _Format] = {
    "h264": _Format((".mp4", ".mov", ".mkv"), 51, 18, 15, can_be_lossless=True, multiple=(2, 2)),
    "h265": _Format((".mp4", ".mov", ".mkv"), 51, 20, 17, can_be_lossless=True, multiple=(2, 2)),
    "av1": _Format((".mp4", ".mkv"), 63, 18, 15, multiple=(2, 2)),
    "prores": _Format((".mov", ".mkv"), multiple=(2, 1)),
    "ffv1": _Format((".mkv",), can_be_lossless=True),
    "png": _Format(("",), can_be_lossless=True, has_audio=False),
    "gif": _Format((".gif",), has_audio=False),
}

SAMPLE_FORMATS = (
    *("yuv420p", "yuv422p", "yuv444p"),
    *("yuv420p10le", "yuv422p10le", "yuv444p10le"),
)
"""ffmpeg's names of the pixel formats in which a video is written again as it is stored."""

VIDEO_SUFFIXES = tuple(
    dict.fromkeys(suffix for form in _FORMATS.values() for suffix in form.suffixes if suffix)
)
"""Suffixes of a video that can be written."""

KNOWN_VIDEO_SUFFIXES = (
    *VIDEO_SUFFIXES,
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mpeg", ".mpg", ".mxf", ".nut", ".ogv", ".ts"),
    *(".webm", ".wmv"),
)
"""Those, and suffixes of further videos, which are read and not written."""

_TAGS = "setparams=range={range}:colorspace={space}:color_primaries=bt709:color_trc=bt709"
_YUV = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,format={format},"
    + _TAGS.format(range="tv", space="bt709")
)
_RGB = "format={format}," + _TAGS.format(range="pc", space="gbr")
PALETTE_SIDE = 16
"""Pixels to a side of the picture in which ffmpeg keeps the palette of a GIF."""


@dataclass(frozen=True)
class Encoding:
    """How frames are coded; `plan_encoding` makes one that is possible.

    Attributes:
        codec: The codec.
        crf: Quality, 0 (best) to 51 or 63; None for a codec without one, and without loss.
        lossless: Whether every pixel comes back as it was.
    """

    codec: Codec = "h264"
    crf: int | None = 18
    lossless: bool = False

    @property
    def has_audio(self) -> bool:
        """Whether its containers hold audio."""
        return _FORMATS[self.codec].has_audio

    @property
    def suffix(self) -> str:
        """The suffix of a file under this codec, unless one is named; "" is a folder."""
        return _FORMATS[self.codec].suffixes[0]

    def check_frames(self, width: int, height: int, *, fps: Fraction) -> None:
        """Raise `UsageError` for a size or rate that the codec cannot have."""
        across, down = _FORMATS[self.codec].multiple
        # RGB has no planes of half the size; but x265 takes no odd sizes in any form.
        if self.codec == "h264" and self.lossless:
            across = down = 1
        if width % across or height % down:
            need = "an even width" if down == 1 else "an even width and height"
            planes = "4:2:2" if down == 1 else "4:2:0"
            raise UsageError(
                f"frames of {width}x{height} cannot be written: {self.codec} {planes} needs {need}",
                hint="--codec ffv1 or png takes any size",
            )
        if not 0 < fps <= MAX_FPS or max(fps.numerator, fps.denominator) > MAX_TERM:
            raise UsageError(
                f"{fps} frames per second cannot be written: give 0 < fps <= {MAX_FPS}"
            )
        if self.codec == "gif" and fps > _MAX_GIF_FPS:
            raise UsageError(
                f"{float(fps):.6g} frames per second cannot be written: a GIF plays {_MAX_GIF_FPS} "
                "at most",
                hint="give a lower --fps, or another --codec",
            )

    def args(self, fps: Fraction) -> list[str]:
        """Options of ffmpeg that encode the frames; those of a GIF by the palette of input 1."""
        clock = ["-fps_mode", "passthrough"]
        if self.codec == "gif":
            use = "[0:v][1:v]paletteuse=dither=sierra2_4a"
            return ["-filter_complex", use, *clock, "-loop", "0"]
        encoder, filters = self._encoder()
        return ["-c:v", *encoder, "-vf", filters, *clock, *_muxer(fps.numerator)]

    def sample_format(self, own: str) -> str:
        """The pixel format in which frames of a video, stored in its `own`, are written again.

        Raises `UsageError` where they cannot be written without loss.
        """
        own = {"nv12": "yuv420p"}.get(own, own.replace("yuvj", "yuv"))
        if self.lossless:
            if own not in SAMPLE_FORMATS:
                raise UsageError(
                    f"pixels of the format {own} are not written back without loss, expected "
                    f"{', '.join(SAMPLE_FORMATS)}",
                    hint="leave --lossless or --codec ffv1 out",
                )
            return own
        if self.codec == "prores":
            return "yuv422p10le"
        is_deep = re.search(r"(9|1[0246])(le|be)?$", own) is not None
        return "yuv420p10le" if is_deep and self.codec in ("h265", "av1") else "yuv420p"

    def sample_args(self, filters: str, time_base: Fraction, *, is_odd: bool) -> list[str]:
        """Options of ffmpeg that encode samples as they are, at the times that they carry.

        Args:
            filters: What is to be done to the samples.
            time_base: Seconds per tick of their times.
            is_odd: Whether width or height is odd.
        """
        encoder = self._encoder()[0]
        if self.codec == "h264" and self.lossless:  # in YCbCr, which other exports are not
            encoder = ["libx264", "-qp", "0"]
        elif self.codec == "ffv1" and is_odd:
            # ffmpeg 7.0 loses the last column of chroma to slices, and 9 refuses them.
            encoder = ["ffv1", "-level", "1", "-g", "1"]
        clock = ["-fps_mode", "passthrough", "-enc_time_base", str(time_base)]
        return ["-c:v", *encoder, "-vf", filters, *clock, *_muxer(time_base.denominator)]

    def _encoder(self) -> tuple[list[str], str]:
        """The encoder with its options, and the filter that makes its pixels."""
        crf = [] if self.crf is None else ["-crf", str(self.crf)]
        match self.codec:
            case "h264":
                if self.lossless:
                    return ["libx264rgb", "-qp", "0"], _RGB.format(format="rgb24")
                return ["libx264", *crf], _YUV.format(format="yuv420p")
            case "h265":
                # QuickTime plays no other tag; the library has messages of its own.
                quiet, tag = "log-level=error", ["-tag:v", "hvc1"]
                if self.lossless:
                    params = ["-x265-params", f"lossless=1:{quiet}"]
                    return ["libx265", *params, *tag], _RGB.format(format="gbrp")
                params = ["-x265-params", quiet]
                return ["libx265", *crf, *params, *tag], _YUV.format(format="yuv420p")
            case "av1":
                speed = ["-b:v", "0", "-cpu-used", "6", "-row-mt", "1"]
                return ["libaom-av1", *crf, *speed], _YUV.format(format="yuv420p")
            case "prores":
                profile = ["-profile:v", "3", "-vendor", "apl0"]
                return ["prores_ks", *profile], _YUV.format(format="yuv422p10le")
            case "ffv1":
                options = ["-level", "3", "-g", "1", "-slices", "4", "-slicecrc", "1"]
                return ["ffv1", *options], _RGB.format(format="bgr0")
        raise UsageError(f"{self.codec} is not written by ffmpeg")


def _muxer(ticks: int) -> list[str]:
    """Options of ffmpeg for a file with a clock of `ticks` per second, or a multiple of them."""
    # Fine enough for the audio beside it. Both options belong to the mp4 and mov muxer; Matroska
    # has its own clock.
    timescale = ticks * -(-10_000 // ticks)
    return ["-video_track_timescale", str(timescale), "-movflags", "+faststart"]


def plan_encoding(
    path: Path | None = None,
    codec: Codec | None = None,
    *,
    crf: int | None = None,
    lossless: bool = False,
    for_splice: bool = False,
) -> Encoding:
    """Choose how frames are coded.

    Args:
        path: The file, whose suffix names the container, or the folder of images; None is a file
            with the codec's own suffix.
        codec: None is a GIF for the suffix .gif, otherwise H.264.
        crf: None is the codec's default.
        lossless: Whether every pixel must come back as it was.
        for_splice: Whether a whole video is coded again.

    Raises:
        UsageError: The codec does not go into this container, or does not have this quality.
    """
    suffix = None if path is None else path.suffix.lower()
    if codec is None:
        if suffix not in (None, "", *VIDEO_SUFFIXES):
            raise UsageError(
                f"cannot write {path}: no video that is written ends in {suffix}, expected "
                f"{list_suffixes(VIDEO_SUFFIXES)}",
                hint=_IMAGES if suffix == ".png" else None,
            )
        codec = "gif" if suffix == ".gif" else "h264"
    form = _FORMATS[codec]
    if suffix is not None and suffix not in form.suffixes:
        raise _wrong_container(codec, suffix, path)
    if lossless and not form.can_be_lossless:
        able = ", ".join(name for name, other in _FORMATS.items() if other.can_be_lossless)
        raise UsageError(
            f"{codec} is never lossless", hint=f"--codec is one of {able}, or --no-lossless"
        )
    if crf is not None:
        if form.max_crf is None:
            raise UsageError(
                f"{codec} has no crf; found {crf}", hint="leave --crf out (--crf auto)"
            )
        if not 0 <= crf <= form.max_crf:
            raise UsageError(f"crf is {crf}, it must lie in 0 to {form.max_crf} for {codec}")
        if lossless:
            raise UsageError(
                f"crf is {crf}, and a lossless video has none",
                hint="leave one out (--crf auto or --no-lossless)",
            )
    if for_splice and not form.has_audio:
        able = ", ".join(name for name, other in _FORMATS.items() if other.has_audio)
        raise UsageError(
            f"--splice writes a whole video, which {codec} is not", hint=f"--codec is one of {able}"
        )
    if crf is None:
        crf = form.splice_crf if for_splice else form.default_crf
    exact = lossless or codec in ("ffv1", "png")
    return Encoding(codec, None if exact else crf, exact)


_IMAGES = "--codec png writes images into the folder that -o names"


def _wrong_container(codec: Codec, suffix: str, path: Path | None) -> UsageError:
    suffixes = _FORMATS[codec].suffixes
    if codec == "png":
        return UsageError(
            f"cannot write {path}: png writes a folder of images, and a folder has no suffix",
            hint="name a folder with -o",
        )
    takers = [name for name, form in _FORMATS.items() if suffix in form.suffixes]
    hint = f"{suffix} takes --codec {' or '.join(takers)}" if takers and suffix else None
    if suffix == ".png":
        hint = _IMAGES
    return UsageError(
        f"cannot write {path}: the suffix {suffix or '(none)'} does not go with {codec}, "
        f"expected {list_suffixes(suffixes)}",
        hint=hint,
    )


def list_suffixes(suffixes: Sequence[str]) -> str:
    """Return suffixes as a sentence has them: `.mp4, .mov or .mkv`."""
    *others, last = suffixes
    return f"{', '.join(others)} or {last}" if others else last
