"""Frames of a video as samples: as they are stored, YCbCr as a rule, and not turned into RGB.

What is written again without an edit keeps every sample that way, those beyond the range of RGB and
those of more than 8 bits too, and the colour tags of its video go on saying what they are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cogedit.errors import UsageError, VideoError
from cogedit.media.encoding import Encoding
from cogedit.media.facts import VideoFacts
from cogedit.media.ffmpeg import FfmpegPipe, first_error, input_args, run_ffmpeg
from cogedit.media.ffmpeg_output import ColourTags
from cogedit.media.filters import input_options, picture_filters
from cogedit.wording import count_of

Samples = NDArray[np.uint8] | NDArray[np.uint16]
"""The samples of one frame, plane after plane, [N]."""

# As in AVI files, by which ffmpeg knows them in any container: and samples per pixel.
_FOURCC = {
    "yuv420p": b"I420",
    "yuv422p": b"Y42B",
    "yuv444p": b"444P",
    "yuv420p10le": b"Y3\x0b\x0a",
    "yuv422p10le": b"Y3\x0a\x0a",
    "yuv444p10le": b"Y3\x00\x0a",
}
# ffmpeg's scaler has other names than its tags, and takes BT.601 for what it does not know.
_MATRICES = {"bt709": "bt709", "fcc": "fcc", "smpte240m": "smpte240m", "bt2020nc": "bt2020"}
_BT709 = ColourTags("tv", "bt709", "bt709", "bt709")
_SCALER = "flags=bicubic+accurate_rnd+full_chroma_int"
_BATCH_BYTES = 32_000_000
_CONVERT_TIMEOUT = 120.0


@dataclass(frozen=True)
class SampleLayout:
    """How the frames of a video are laid out as samples.

    Attributes:
        pixel_format: ffmpeg's name of it.
        width: In pixels, as displayed.
        height: Likewise.
        tags: What the samples mean; empty where the video does not say.
        matrix: That of YCbCr by the name that ffmpeg's scaler has for it; what it takes for one
            that is not tagged.
    """

    pixel_format: str
    width: int
    height: int
    tags: ColourTags
    matrix: str

    @property
    def fourcc(self) -> bytes:
        """The four bytes by which raw video of this format is known."""
        return _FOURCC[self.pixel_format]

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Type of a sample."""
        return np.dtype("<u2") if self.pixel_format.endswith("10le") else np.dtype("u1")

    @property
    def num_samples(self) -> int:
        """How many samples a frame has."""
        across, down = {"0": (2, 2), "2": (2, 1), "4": (1, 1)}[self.pixel_format[5]]
        chroma = -(-self.width // across) * -(-self.height // down)
        return self.width * self.height + 2 * chroma

    @property
    def is_odd(self) -> bool:
        """Whether width or height is odd."""
        return self.width % 2 == 1 or self.height % 2 == 1

    @property
    def tag_filter(self) -> str:
        """The filter of ffmpeg that tags frames as what they are."""
        tags = self.tags
        named = {"range": tags.range, "colorspace": tags.matrix}
        named |= {"color_primaries": tags.primaries, "color_trc": tags.transfer}
        given = ":".join(f"{name}={value}" for name, value in named.items() if value)
        return f"setparams={given}" if given else "null"

    @property
    def colours(self) -> str:
        """Options of ffmpeg's scaler for what comes out of it."""
        return f"out_color_matrix={self.matrix}:out_range={self.tags.range or 'tv'}:{_SCALER}"


def layout_for(facts: VideoFacts, encoding: Encoding) -> SampleLayout:
    """Choose the samples in which a video is written again: its own, if the codec takes them.

    Raises `UsageError` where the codec does not.
    """
    pictures = facts.pictures
    pixel_format = encoding.sample_format(pictures.pixel_format)
    if pixel_format.startswith("yuv420p") and encoding.codec != "ffv1":
        # As lossless RGB the codec may take a size that it does not take in these samples.
        encoding = Encoding(encoding.codec, None)
    encoding.check_frames(facts.width, facts.height, fps=facts.fps)
    keeps_colours = pictures.is_yuv and not pictures.is_hdr
    tags = pictures.tags if keeps_colours else _BT709
    if tags.range == "pc" and encoding.codec == "ffv1":
        raise UsageError(
            "the video has full range, which ffv1 does not keep",
            hint="--codec h264 --lossless does",
        )
    if encoding.codec == "prores" and tags.range:  # it knows no other
        tags = replace(tags, range="tv")
    # What the video does not say of its matrix is filled in as by a player, and not written.
    filled = dict(item.split("=") for item in pictures.filled_tags.split(":") if item)
    matrix = _MATRICES.get(tags.matrix or filled.get("colorspace", ""), "bt601")
    return SampleLayout(pixel_format, facts.width, facts.height, tags, matrix)


def read_samples(
    path: Path, facts: VideoFacts, layout: SampleLayout
) -> Generator[Samples, None, None]:
    """Read all stored frames of a video, one at a time.

    Samples keep their values wherever size and pixel format are the layout's already. Raises
    `VideoError` where the file does not deliver the frames that the probe counted.
    """
    count = len(facts.timing.timestamps)
    args = [
        *input_options(facts),
        *input_args(path),
        *("-map", facts.stream, "-vf", _filters(facts, layout), "-fps_mode", "passthrough"),
        *("-frames:v", str(count), "-f", "rawvideo", "-"),
    ]
    with FfmpegPipe(args) as ffmpeg:
        for number in range(count):
            frame = np.empty(layout.num_samples, dtype=layout.dtype)
            if ffmpeg.read_into(frame.data.cast("B")) != frame.nbytes:
                result = ffmpeg.finish()
                reason = "no answer in time" if ffmpeg.timed_out else first_error(result.stderr)
                raise VideoError(
                    f"{path} ends or breaks at frame {number}, expected "
                    f"{count_of(count, 'frame')} ({reason})",
                    hint="check that the file is complete, or re-encode it",
                )
            yield frame


def _filters(facts: VideoFacts, layout: SampleLayout) -> str:
    pictures = facts.pictures
    filters = picture_filters(facts)
    stored = (pictures.width, pictures.height, pictures.pixel_format.replace("yuvj", "yuv"))
    is_stored_so = (
        stored == (layout.width, layout.height, layout.pixel_format)
        and (pictures.tags.range or "tv") == (layout.tags.range or "tv")
        and not (pictures.is_hdr or pictures.has_alpha)
    )
    if not is_stored_so:
        filters.append(f"scale={layout.width}:{layout.height}:{layout.colours}")
        filters.append(f"format={layout.pixel_format}")
    return ",".join(filters) or "null"


def to_samples(frames: Iterable[NDArray[np.uint8]], layout: SampleLayout) -> Iterator[Samples]:
    """Turn frames [H, W, 3], uint8 RGB, into samples: what reading them as RGB did, undone."""
    pixels = layout.width * layout.height
    size = f"{layout.width}x{layout.height}"
    args = [
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", size, "-i", "pipe:0"),
        *("-vf", f"scale={layout.colours},format={layout.pixel_format}"),
        *("-fps_mode", "passthrough", "-f", "rawvideo", "-"),
    ]
    left = iter(frames)
    # A process per frame would take longer to start than to convert it.
    while batch := list(islice(left, max(1, _BATCH_BYTES // (3 * pixels)))):
        content = b"".join(np.ascontiguousarray(frame).tobytes() for frame in batch)
        result = run_ffmpeg(args, timeout=_CONVERT_TIMEOUT, input=content)
        samples = np.frombuffer(result.stdout, dtype=layout.dtype)
        if samples.size != len(batch) * layout.num_samples:
            raise VideoError(f"frames cannot be converted: {first_error(result.stderr)}")
        yield from cast(Sequence[Samples], samples.reshape(len(batch), layout.num_samples))


def raw_header(layout: SampleLayout, time_base: Fraction) -> bytes:
    """The header of an IVF stream of raw frames, the simplest of containers with times.

    32 bytes: signature, version and length, codec, size, clock, number of frames (not known).
    """
    size = [number.to_bytes(2, "little") for number in (0, 32)]
    size += [layout.fourcc]
    size += [number.to_bytes(2, "little") for number in (layout.width, layout.height)]
    clock = (time_base.denominator, time_base.numerator, 0, 0)
    return b"DKIF" + b"".join([*size, *(number.to_bytes(4, "little") for number in clock)])


def raw_frame_header(frame: Samples, timestamp: int) -> bytes:
    """What precedes a frame in an IVF stream: its length, and its time in ticks."""
    return frame.nbytes.to_bytes(4, "little") + timestamp.to_bytes(8, "little")
