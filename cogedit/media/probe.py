"""Properties of a video file, determined before any frame of it is decoded into memory.

The packets are listed by ffmpeg as a process of its own that can be killed; nothing here loads
torch or decord. The probe also chooses the reader. decord is taken only where it was measured to
return the same frames as ffmpeg, bit for bit; on clips with an edit list, odd sizes, mirrored
display matrices or other pixel formats it does not, and on some files it hangs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import mode

from cogedit.disk import FileState
from cogedit.errors import UsageError, VideoError
from cogedit.media.facts import VideoFacts
from cogedit.media.ffmpeg import (
    MAX_FRAME_PIXELS,
    RAW_STREAMS,
    find_ffmpeg,
    has_error,
)
from cogedit.media.ffmpeg_output import (
    InputHeader,
    PacketTable,
    parse_header,
)
from cogedit.media.files import check_file, file_state
from cogedit.media.image_facts import facts_of_images
from cogedit.media.images import are_images, digest_of, folder_of
from cogedit.media.packets import (
    list_frames,
    parse_packets,
    run_packet_list,
    too_large,
    unreadable,
)
from cogedit.media.picture_format import (
    Pictures,
    keeps_given_size,
    keeps_size,
    look_at_pictures,
)
from cogedit.media.seek import CODECS, seek_options
from cogedit.media.timing import even_timing, find_timing, snap_rate
from cogedit.sources import MAX_FRAMES, Reader, SourceVideo
from cogedit.types import LoadSettings
from cogedit.wording import show_rate

# One packet is one frame for these codecs in these containers. Elsewhere (VP8's hidden frames, AVI
# with packed B-frames, a transport stream cut mid-picture) only decoding tells.
_COUNTED_BY_PACKETS = {"h264", "hevc", "vp9", "av1", "mpeg4"}
_INDEXED_CONTAINERS = {"mov", "matroska"}
MANY_KEYFRAMES = 32
"""A video with more is looked at where it is read: each takes a hundredth of a second."""

_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}
_DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


UNREAD = "0" * 64
"""In place of the digest of a file that was not read as a whole: no record has it."""


def identify(path: Path, facts: VideoFacts, *, sha256: str | None = None) -> SourceVideo:
    """Add name and digest of the file to what its probe found. Raises `StorageError`.

    Without a `sha256` the whole file is read for it, once while it is unchanged.
    """
    return SourceVideo(
        name=folder_of(path).name if are_images(path) else path.name,
        sha256=sha256 or digest_of(path),
        width=facts.width,
        height=facts.height,
        rotation=facts.rotation,
        fps=facts.fps,
        num_frames=facts.num_frames,
        reader=facts.reader,
        has_audio=bool(facts.audio_tracks),
        filled_tags=facts.pictures.filled_tags,
        has_alpha=facts.pictures.has_alpha,
        changes_size=facts.first_resized is not None,
        is_resampled=facts.grid is not None,
        is_untimed=facts.is_untimed,
        pattern=path.name if are_images(path) and not path.is_dir() else None,
    )


def probe_facts(
    path: Path,
    *,
    frame_rate: Fraction | None = None,
    fps: Fraction | None = None,
    with_decord: bool = True,
    thorough: bool = False,
) -> VideoFacts:
    """Determine the properties of a video file, and how its frames are taken.

    Args:
        path: The video file.
        frame_rate: Frames per second to take it at; None is its own rate.
        fps: Frames per second of a source whose frames carry no times; others keep their own.
        with_decord: Whether decord may read it where it is exact.
        thorough: Whether to look at all keyframes of a long video, and not at its first alone:
            `changes_size_within` says where that is needed.

    Raises:
        VideoError: The file is missing, empty, not a video, without images, a playlist, or beyond
            the bounds on size and frames.
        UsageError: `frame_rate` is given for frames without times.
        StorageError: The file may not be read.
    """
    facts = probe_stored(path, fps=fps, with_decord=with_decord, thorough=thorough)
    if facts.is_untimed and frame_rate not in (None, facts.fps):
        raise UsageError(
            f"--frame-rate takes frames by their times, and those of {path} carry none",
            hint="say how fast they play with --fps, or take every n-th with --frame-sample-step",
        )
    if frame_rate is None and facts.timing.is_constant:
        return facts
    return _on_grid(path, facts, frame_rate or facts.timing.rate)


def probe_as_recorded(path: Path, source: SourceVideo, settings: LoadSettings) -> VideoFacts:
    """`probe_facts`, with the frames taken as they were for a record. Raises the same."""
    facts = probe_stored(path, fps=source.fps, thorough=source.changes_size)
    facts = facts.read_as(source, settings)
    return _on_grid(path, facts, source.fps) if source.is_resampled else facts


def _on_grid(path: Path, facts: VideoFacts, rate: Fraction) -> VideoFacts:
    """The same video with its frames taken at an even rate, by ffmpeg."""
    if facts.timing.is_constant and rate == facts.timing.rate:
        return facts
    if facts.timing.num_shown(rate) > MAX_FRAMES:
        raise VideoError(
            f"{path} has more than {MAX_FRAMES} frames at {show_rate(rate)}, which is the bound",
            hint="give a lower --frame-rate, or cut it first",
        )
    reader: Reader = "ffmpeg" if facts.reader == "decord" else facts.reader
    return replace(facts, grid=rate, reader=reader)


def changes_size_within(path: Path, facts: VideoFacts, indices: Sequence[int]) -> bool:
    """Whether the pictures of a clip may be of another size than the first of a long video."""
    if not facts.is_sampled:
        return False
    if not facts.keyframes:
        return True
    shown = range(facts.num_frames) if facts.grid is None else facts.timing.shown(facts.grid)
    timestamps = facts.timing.timestamps
    wanted, last = shown[indices[0]], shown[indices[-1]]
    begin = max(0, bisect_right(facts.keyframes, timestamps[wanted]) - 1)
    first = facts.keyframes[begin]
    before = seek_options(first * facts.timing.time_base)
    num_packets = last + 1 - bisect_left(timestamps, first)
    if not keeps_given_size(path, facts.stream, facts.codec, before=before, count=num_packets):
        return True
    return not keeps_size(
        path,
        facts.pictures,
        facts.stream,
        before=before,
        first_pts=first,
        count=bisect_right(facts.keyframes, timestamps[last]) - begin,
    )


def probe_stored(
    path: Path,
    *,
    fps: Fraction | None = None,
    with_decord: bool = True,
    thorough: bool = False,
) -> VideoFacts:
    """`probe_facts` with the frames taken as they are stored, one by one. Raises the same.

    A file is probed once per process while it is unchanged.
    """
    if not are_images(path):
        check_file(path)
    facts, has_decord = facts_of_images(path), importlib.util.find_spec("decord") is not None
    facts = facts or _facts(
        path, file_state(path), find_ffmpeg(), with_decord, thorough, has_decord
    )
    if fps is None or not facts.is_untimed:
        return facts
    return replace(facts, timing=even_timing(facts.num_frames, fps), is_assumed=False)


@lru_cache(maxsize=512)
def _facts(
    path: Path,
    state: FileState,
    executable: str,
    with_decord: bool,
    thorough: bool,
    has_decord: bool,
) -> VideoFacts:
    result = run_packet_list(path, "0:V:0")
    header = parse_header(result.stderr)
    if result.returncode == 0 and header.stream != "0:V:0":
        result = run_packet_list(path, header.stream)
        header = parse_header(result.stderr)
    if result.returncode != 0:
        raise unreadable(path, result)
    packets = parse_packets(path, result)
    _check_bounds(path, packets)
    rotation = _rotation(path, header)
    is_damaged = has_error(result.stderr)
    frames, num_packets = packets, len(packets.timestamps)
    is_whole = _is_whole(header, packets) and not is_damaged
    if not (is_whole and with_decord and packets.codec in _COUNTED_BY_PACKETS):
        frames = list_frames(path, header.stream)
    num_frames = len(frames.timestamps)
    if num_frames == num_packets:
        frames = packets
    is_listed = is_whole and num_frames == num_packets
    can_seek = is_listed and packets.codec in CODECS
    is_sampled = can_seek and not thorough and len(packets.keyframes) > MANY_KEYFRAMES
    pictures = _look(path, header, packets, only_first=is_sampled)
    timing = find_timing(
        frames.timestamps,
        frames.time_base,
        printed=header.printed_rates,
        last_duration=frames.last_duration,
    )
    is_raw = header.container in RAW_STREAMS and num_packets > 1
    if is_raw:  # ffmpeg counts time by what the stream says of its rate, or else by 25
        steps = [after - before for before, after in pairwise(packets.timestamps)]
        timing = even_timing(num_frames, snap_rate(1 / (mode(steps) * packets.time_base)))
    reader: Reader = "ffmpeg-tonemap" if pictures.is_hdr else "ffmpeg"
    is_exact = is_listed and _is_utf8(path) and with_decord and has_decord
    if is_exact and _decord_is_exact(header, packets, pictures):
        reader = "decord"
    seekable = packets.keyframes if can_seek else ()
    width, height = _displayed_size(pictures, packets.sample_aspect_ratio, rotation)
    return VideoFacts(
        codec=packets.codec,
        stream=header.stream,
        audio_tracks=header.audio_tracks,
        width=width,
        height=height,
        sample_aspect_ratio=packets.sample_aspect_ratio,
        rotation=rotation,
        timing=timing,
        num_lost=min(packets.num_unanchored, max(0, num_packets - num_frames)),
        pictures=pictures,
        first_resized=_first_resized(pictures, packets),
        is_damaged=is_damaged,
        reader=reader,
        is_untimed=is_raw,
        is_assumed=is_raw,
        # A size that changes, and what lies under transparency, depend on what came before.
        keyframes=() if pictures.size_changes or pictures.has_alpha else seekable,
        is_sampled=is_sampled,
    )


def _is_whole(header: InputHeader, packets: PacketTable) -> bool:
    """Whether the container says where each frame is, and each can be decoded."""
    return (
        header.container in _INDEXED_CONTAINERS
        and header.has_duration
        and packets.num_discarded == 0
        and packets.num_unanchored == 0
    )


def decord_version() -> str | None:
    """Version of decord; None where it is not installed, and ffmpeg reads every file."""
    try:
        return importlib.metadata.version("decord")
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_bounds(path: Path, packets: PacketTable) -> None:
    if packets.width <= 0 or packets.height <= 0:
        # What ffmpeg prints for a size that it refuses to decode.
        raise VideoError(
            f"{path} has frames of unknown size: at most 8192x4320 pixels are read",
            hint="check that it is complete, or scale it down first",
        )
    # Also as displayed: a pixel can claim to be a thousand times as wide as high.
    width = max(packets.width, round(packets.width * packets.sample_aspect_ratio))
    if width * packets.height > MAX_FRAME_PIXELS:
        raise too_large(path, f"{width}x{packets.height}")
    if len(packets.timestamps) > MAX_FRAMES:
        raise VideoError(
            f"{path} has more than {MAX_FRAMES} frames, which is the bound", hint="cut it first"
        )


def _look(path: Path, header: InputHeader, packets: PacketTable, *, only_first: bool) -> Pictures:
    """Look at the pictures, and refuse what is not read right."""
    if header.has_alpha_stream:
        raise VideoError(
            f"{path} keeps its transparency in a stream of its own, which is not read",
            hint="convert it to a video without transparency, or to PNG images",
        )
    size = (packets.width, packets.height)
    upright = size if header.clockwise % 180 == 0 else (size[1], size[0])
    pictures = look_at_pictures(
        path, header, codec=packets.codec, size=upright, only_first=only_first
    )
    if pictures.size_changes and header.has_display_matrix:
        other = pictures.size_changes[0]
        raise VideoError(
            f"{path} is turned and changes its size at frame {_first_resized(pictures, packets)}, "
            f"from {pictures.width}x{pictures.height} to {other.width}x{other.height}",
            hint="re-encode it upright at one size first",
        )
    return pictures


def _first_resized(pictures: Pictures, packets: PacketTable) -> int | None:
    """The number of the first frame of another size."""
    if not pictures.size_changes:
        return None
    ticks = pictures.size_changes[0].seconds / packets.time_base
    # The time is printed with six digits.
    tolerance = max(1.0, float(ticks) * 1e-5)
    return sum(timestamp < ticks - tolerance for timestamp in packets.timestamps)


def _decord_is_exact(header: InputHeader, packets: PacketTable, pictures: Pictures) -> bool:
    """Whether decord returns the frames of ffmpeg, for a file that is whole and indexed."""
    return (
        packets.codec in _DECORD_CODECS
        and pictures.pixel_format in _DECORD_PIXEL_FORMATS
        and pictures.is_plain
        and header.num_video_streams == 1
        # decord ignores the aspect of the pixels, a clean aperture and a mirroring display matrix,
        # and its colours are off where the size is odd.
        and packets.sample_aspect_ratio == 1
        and not header.has_display_matrix
        and not header.has_cropping
        and packets.width % 2 == 0
        and packets.height % 2 == 0
    )


def _rotation(path: Path, header: InputHeader) -> int:
    if header.clockwise % 90.0 != 0.0:
        raise VideoError(
            f"{path} is rotated by {header.clockwise:g} degrees, expected 0, 90, 180 or 270",
            hint="re-encode it upright first",
        )
    return int(header.clockwise)


def _displayed_size(pictures: Pictures, aspect: Fraction, rotation: int) -> tuple[int, int]:
    if rotation % 180 == 0:
        return max(1, round(pictures.width * aspect)), pictures.height
    return pictures.width, max(1, round(pictures.height * aspect))


def _is_utf8(path: Path) -> bool:
    # decord takes the name as UTF-8 text, ffmpeg as the bytes that the file system has.
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
