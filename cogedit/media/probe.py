"""What a video file is, found out before any frame of it is decoded into memory.

The packets are listed by ffmpeg as a process of its own that can be killed; nothing here loads
torch or decord. The probe also chooses the reader. decord is taken only where it was found to
return the same frames as ffmpeg, bit for bit; on clips with an edit list, odd sizes, mirrored
display matrices or other pixel formats it does not, and on some files it hangs.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from cogedit.errors import VideoError
from cogedit.media.ffmpeg import (
    INPUT_NAME,
    MAX_FRAME_PIXELS,
    FfmpegResult,
    find_ffmpeg,
    first_error,
    has_error,
    input_args,
    run_ffmpeg,
    without_name,
)
from cogedit.media.files import FileState, check_file, file_digest, file_state
from cogedit.media.header import InputHeader, parse_header
from cogedit.media.timing import PacketTable, find_frame_rate, parse_framecrc, snap_rate
from cogedit.types import Reader, SourceVideo

MAX_FRAMES = 1_000_000

_PROBE_TIMEOUT = 60.0
_COUNT_TIMEOUT = 600.0
_READABLE = "mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, gif, ogv or y4m"

# "V" and not "v": a cover picture in a sound file is no video.
_LIST_PACKETS = ("-map", "0:V:0", "-c", "copy")
_TO_STDOUT = ("-f", "framecrc", "-")

# One packet is one frame for these codecs in these containers. Elsewhere (VP8's hidden frames, AVI
# with packed B-frames, a transport stream cut mid-picture) only decoding tells.
_COUNTED_BY_PACKETS = {"h264", "hevc", "vp9", "av1", "mpeg4"}
_INDEXED_CONTAINERS = {"mov", "matroska"}
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}
_DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class VideoFacts:
    """All that the probe knows about a video file; `SourceVideo` is the part that is recorded.

    Attributes:
        container: ffmpeg's first name of the container ("mov" for mp4, "matroska" for webm).
        codec: ffmpeg's name of the video codec.
        pixel_format: ffmpeg's name of the pixel format.
        audio_codec: ffmpeg's name of the first sound stream's codec; None without sound.
        width: Displayed width in pixels, after rotation and with square pixels.
        height: Displayed height in pixels.
        sample_aspect_ratio: Width over height of a stored pixel, before rotation.
        rotation: Clockwise rotation that the container asks for: 0, 90, 180 or 270 degrees.
        fps: Frames per second; the average where it varies.
        start: Time of the first frame in the file, in seconds: sound may begin before it.
        variable_frame_rate: Whether no constant rate explains the timestamps.
        num_frames: Number of frames that the reader delivers.
        is_hdr: Whether its transfer function is PQ or HLG, which the reader maps to BT.709.
        is_interlaced: Whether its frames are said to hold two fields each.
        is_damaged: Whether ffmpeg complained while it listed the packets.
        reader: Which decoder is right for this file.
    """

    container: str
    codec: str
    pixel_format: str
    audio_codec: str | None
    width: int
    height: int
    sample_aspect_ratio: Fraction
    rotation: int
    fps: Fraction
    start: Fraction
    variable_frame_rate: bool
    num_frames: int
    is_hdr: bool
    is_interlaced: bool
    is_damaged: bool
    reader: Reader

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the file is read, one sentence each."""
        notes = []
        if self.variable_frame_rate:
            notes.append(
                "the frame rate varies: frames are taken by number and play at the average, "
                f"{float(self.fps):.2f} fps"
            )
        if self.is_damaged:
            notes.append(f"the file is damaged or cut short: {self.num_frames} frames are readable")
        if self.sample_aspect_ratio != 1:
            notes.append(f"pixels are not square: shown as {self.width}x{self.height}")
        if self.is_hdr:
            notes.append("the video is HDR: tone mapped to BT.709, with white at 203 nits")
        if self.is_interlaced:
            notes.append(
                "the video is interlaced: each frame is read with its two fields as they are; "
                "deinterlacing it first gives cleaner edits"
            )
        return tuple(notes)


def probe_video(path: Path) -> SourceVideo:
    """Find out what a video file is, and which reader is right for it.

    Args:
        path: The video file.

    Returns:
        Facts about the video, with the digest of the file.

    Raises:
        VideoError: The file is missing, empty, not a video, without a picture, a playlist, or
            beyond the bounds on size and frames.
        StorageError: The file may not be read.
    """
    return identify(path, probe_facts(path))


def identify(path: Path, facts: VideoFacts) -> SourceVideo:
    """Add name and digest of the file to what its probe found.

    Raises:
        StorageError: The file may not be read.
    """
    return SourceVideo(
        name=path.name,
        sha256=file_digest(path),
        width=facts.width,
        height=facts.height,
        rotation=facts.rotation,
        fps=facts.fps,
        num_frames=facts.num_frames,
        reader=facts.reader,
        has_audio=facts.audio_codec is not None,
    )


def probe_facts(path: Path) -> VideoFacts:
    """`probe_video` without the digest and with all facts. Raises the same."""
    check_file(path)
    result = _run(path, [*_LIST_PACKETS, "-frames:v", str(MAX_FRAMES + 1), *_TO_STDOUT])
    if result.returncode != 0:
        raise _unreadable(path, result)
    packets = _parse_packets(path, result)
    _check_bounds(path, packets)
    header = parse_header(result.stderr)
    rotation = _rotation(path, header)
    is_damaged = has_error(result.stderr)
    num_frames = len(packets.timestamps)
    if not _counted_by_packets(header, packets, is_damaged=is_damaged):
        num_frames = _count_frames(path)
    fps, is_variable = find_frame_rate(
        packets.timestamps, packets.time_base, printed=header.printed_rates
    )
    if is_damaged and is_variable and header.printed_rates:
        # The end is missing, and with it frames between the last ones: believe the header.
        fps, is_variable = snap_rate(header.printed_rates[0]), False
    is_safe = not is_damaged and num_frames == len(packets.timestamps) and _is_utf8(path)
    width, height = _displayed_size(packets, rotation)
    return VideoFacts(
        container=header.container,
        codec=packets.codec,
        pixel_format=header.pixel_format,
        audio_codec=header.audio_codec,
        width=width,
        height=height,
        sample_aspect_ratio=packets.sample_aspect_ratio,
        rotation=rotation,
        fps=fps,
        start=packets.timestamps[0] * packets.time_base,
        variable_frame_rate=is_variable,
        num_frames=num_frames,
        is_hdr=header.is_hdr,
        is_interlaced=header.is_interlaced,
        is_damaged=is_damaged,
        reader=_choose_reader(header, packets, is_safe=is_safe),
    )


def list_packets(path: Path) -> PacketTable:
    """The packets of the first video stream of `path`. Raises `VideoError` as `probe_video`."""
    result = _run(path, [*_LIST_PACKETS, *_TO_STDOUT])
    if result.returncode != 0 or has_error(result.stderr):
        raise _unreadable(path, result)
    return _parse_packets(path, result)


def find_audio_codec(path: Path) -> str | None:
    """The codec of the first sound stream, as ffmpeg names it; None where there is no sound.

    Raises:
        VideoError: The file is missing or of no known container.
    """
    check_file(path)
    # Without an output ffmpeg prints what the input holds and exits with 1.
    result = _run(path, [])
    header = parse_header(result.stderr)
    if not header.container:
        raise _unreadable(path, result)
    return header.audio_codec


def read_comment(path: Path) -> str | None:
    """The comment in a video's metadata, where exported videos keep their recipe; None if none.

    Raises:
        VideoError: The file is missing or of no known container.
    """
    check_file(path)
    result = _run(path, ["-f", "ffmetadata", "-"])
    if result.returncode != 0:
        raise _unreadable(path, result)
    text = result.stdout.decode("utf-8", errors="replace")
    match = re.search(
        r"^comment=((?:[^\\\n]|\\.)*)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE
    )
    return re.sub(r"\\(.)", r"\1", match.group(1), flags=re.DOTALL) if match else None


def _run(path: Path, args: list[str], *, timeout: float = _PROBE_TIMEOUT) -> FfmpegResult:
    return _answer(path, file_state(path), tuple(args), timeout, find_ffmpeg())


@lru_cache(maxsize=64)
def _answer(
    path: Path, state: FileState, args: tuple[str, ...], timeout: float, ffmpeg: str
) -> FfmpegResult:
    """Ask ffmpeg about a file, once per process while the file is unchanged."""
    try:
        result = run_ffmpeg([*input_args(path), *args], timeout=timeout)
        return replace(result, stderr=without_name(result.stderr, path))
    except TimeoutError as error:
        raise VideoError(
            f"{path} could not be read within {timeout:.0f} seconds",
            hint="copy it to a local disk, or shorten it",
        ) from error


def _unreadable(path: Path, result: FfmpegResult) -> VideoError:
    if "matches no streams" in result.stderr:
        found = "sound but no" if parse_header(result.stderr).audio_codec else "no"
        return VideoError(
            f"{path} holds {found} video stream", hint="name a file with moving pictures"
        )
    size = re.search(r"Picture size (\d+x\d+) is invalid", result.stderr)
    if size:
        return _too_large(path, size.group(1))
    if "not on whitelist" in result.stderr:
        return VideoError(f"{path} is not a video: expected {_READABLE}", hint="convert it to mp4")
    reason = first_error(result.stderr).replace(INPUT_NAME, path.name)
    return VideoError(
        f"{path} is not a video that can be read: expected {_READABLE}, ffmpeg says: {reason}",
        hint="check that the file is complete",
    )


def _too_large(path: Path, size: str) -> VideoError:
    return VideoError(
        f"{path} has frames of {size}, at most 8192x4320 pixels are read",
        hint="scale it down first",
    )


def _parse_packets(path: Path, result: FfmpegResult) -> PacketTable:
    try:
        packets = parse_framecrc(result.stdout.decode("utf-8", errors="replace"))
    except (ValueError, ZeroDivisionError) as error:
        raise VideoError(f"{path} has a video stream that ffmpeg cannot describe") from error
    if not packets.timestamps:
        raise VideoError(
            f"{path} has a video stream without a single frame", hint="check that it is complete"
        )
    return packets


def _check_bounds(path: Path, packets: PacketTable) -> None:
    if packets.width <= 0 or packets.height <= 0:
        # What ffmpeg says of a size that it refuses to look into.
        raise VideoError(
            f"{path} has frames of unknown size: at most 8192x4320 pixels are read",
            hint="check that it is complete, or scale it down first",
        )
    # Also as displayed: a pixel can claim to be a thousand times as wide as high.
    width = max(packets.width, _displayed_size(packets, 0)[0])
    if width * packets.height > MAX_FRAME_PIXELS:
        raise _too_large(path, f"{width}x{packets.height}")
    if len(packets.timestamps) > MAX_FRAMES:
        raise VideoError(
            f"{path} has more than {MAX_FRAMES} frames, which is the bound", hint="cut it first"
        )


def _count_frames(path: Path) -> int:
    """Number of frames that ffmpeg delivers, by decoding all of them."""
    decode = ["-map", "0:V:0", "-fps_mode", "passthrough", "-frames:v", str(MAX_FRAMES)]
    result = _run(path, [*decode, *_TO_STDOUT], timeout=_COUNT_TIMEOUT)
    count = sum(1 for line in result.stdout.splitlines() if not line.startswith(b"#"))
    if count == 0:
        raise VideoError(
            f"no frame of {path} can be decoded, ffmpeg says: {first_error(result.stderr)}",
            hint="check that the file is complete",
        )
    return count


def _counted_by_packets(header: InputHeader, packets: PacketTable, *, is_damaged: bool) -> bool:
    return (
        packets.codec in _COUNTED_BY_PACKETS
        and header.container in _INDEXED_CONTAINERS
        and packets.num_discarded == 0
        and not is_damaged
    )


def _choose_reader(header: InputHeader, packets: PacketTable, *, is_safe: bool) -> Reader:
    if header.is_hdr:
        return "ffmpeg-tonemap"
    return "decord" if is_safe and _decord_is_right(header, packets) else "ffmpeg"


def _decord_is_right(header: InputHeader, packets: PacketTable) -> bool:
    return (
        packets.codec in _DECORD_CODECS
        and header.container in _INDEXED_CONTAINERS
        and header.pixel_format in _DECORD_PIXEL_FORMATS
        and header.num_video_streams == 1
        and packets.num_discarded == 0
        # decord ignores the aspect of the pixels and a mirroring display matrix, and its colours
        # are off where the size is odd.
        and packets.sample_aspect_ratio == 1
        and not header.has_display_matrix
        and packets.width % 2 == 0
        and packets.height % 2 == 0
        and importlib.util.find_spec("decord") is not None
    )


def _rotation(path: Path, header: InputHeader) -> int:
    if header.clockwise % 90.0 != 0.0:
        raise VideoError(
            f"{path} asks to be turned by {header.clockwise:g} degrees, expected 0, 90, 180 or 270",
            hint="re-encode it upright first",
        )
    return int(header.clockwise)


def _displayed_size(packets: PacketTable, rotation: int) -> tuple[int, int]:
    width = max(1, round(packets.width * packets.sample_aspect_ratio))
    size = (width, packets.height)
    return size if rotation in (0, 180) else (size[1], size[0])


def _is_utf8(path: Path) -> bool:
    # decord takes the name as UTF-8 text, ffmpeg as the bytes that the file system has.
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
