"""Properties of a video file, determined before any frame of it is decoded into memory.

The packets are listed by ffmpeg as a process of its own that can be killed; nothing here loads
torch or decord. The probe also chooses the reader. decord is taken only where it was measured to
return the same frames as ffmpeg, bit for bit; on clips with an edit list, odd sizes, mirrored
display matrices or other pixel formats it does not, and on some files it hangs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import mode

from cogedit.errors import UsageError, VideoError
from cogedit.media.ffmpeg import (
    INPUT_NAME,
    MAX_FRAME_PIXELS,
    RAW_STREAMS,
    FfmpegResult,
    find_ffmpeg,
    first_error,
    has_error,
    run_on_input,
)
from cogedit.media.ffmpeg_output import (
    AudioTrack,
    InputHeader,
    PacketTable,
    parse_framecrc,
    parse_header,
)
from cogedit.media.files import FileState, check_file, file_state
from cogedit.media.images import are_images, digest_of, folder_of
from cogedit.media.pictures import Pictures, look_at_pictures
from cogedit.media.timing import Timing, even_timing, find_timing, snap_rate
from cogedit.types import LoadSettings, Reader, SourceVideo

MAX_FRAMES = 1_000_000

_COUNT_TIMEOUT = 600.0
_READABLE = "mp4, mov, mkv, webm, avi, ts, mpg, mxf, nut, flv, wmv, gif, ogv, y4m, animated WebP "
_READABLE += "or PNG, or a folder of pictures"

_TO_STDOUT = ("-f", "framecrc", "-")

# One packet is one frame for these codecs in these containers. Elsewhere (VP8's hidden frames, AVI
# with packed B-frames, a transport stream cut mid-picture) only decoding tells.
_COUNTED_BY_PACKETS = {"h264", "hevc", "vp9", "av1", "mpeg4"}
_INDEXED_CONTAINERS = {"mov", "matroska"}
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}
_DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}


@dataclass(frozen=True)
class VideoFacts:
    """Everything that the probe finds out; `SourceVideo` is the part that is recorded."""

    codec: str  # ffmpeg's name, as for the next two
    pixel_format: str
    stream: str  # ffmpeg's name of the video stream to read
    audio_tracks: tuple[AudioTrack, ...]
    width: int  # in pixels as displayed, after rotation and with square pixels
    height: int
    sample_aspect_ratio: Fraction  # width over height of a stored pixel, before rotation
    rotation: int  # clockwise, as the container asks for: 0, 90, 180 or 270 degrees
    timing: Timing  # of the stored frames
    num_lost: int  # pictures at the start that refer to others from before it
    pictures: Pictures  # how they are stored
    first_resized: int | None  # number of the first frame of another size; None: all have one
    is_damaged: bool  # ffmpeg complained while it listed the packets
    reader: Reader  # the decoder that is right for this file
    background: str = "black"  # what is laid under transparent frames
    deinterlace: bool = False  # whether frames of two fields are made whole
    grid: Fraction | None = None  # frames are taken at this even rate; None takes those stored
    is_untimed: bool = False  # its frames carry no times, and its rate may be chosen
    is_assumed: bool = False  # ... and nobody has
    own_notes: tuple[str, ...] = ()  # about the files of pictures

    @property
    def fps(self) -> Fraction:
        """Frames per second that the reader delivers."""
        return self.timing.rate if self.grid is None else self.grid

    @property
    def num_frames(self) -> int:
        """How many frames the reader delivers."""
        if self.grid is None:
            return len(self.timing.timestamps)
        return self.timing.num_shown(self.grid)

    @property
    def audio_codec(self) -> str | None:
        """The codec of the first audio track, by ffmpeg's name; None without audio."""
        return self.audio_tracks[0].codec if self.audio_tracks else None

    @property
    def start(self) -> Fraction:
        """Time of the first frame in seconds: audio may begin before it."""
        return self.timing.start

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about how the file is read, one sentence each."""
        notes = [*self.own_notes]
        if self.is_assumed:
            notes.append(
                f"its frames carry no times: {float(self.fps):.6g} fps are assumed "
                "(--fps N chooses)"
            )
        if self.grid is not None:
            reason = "" if self.timing.is_constant else "the frame rate varies: "
            notes.append(
                f"{reason}frames are taken at an even {float(self.grid):.6g} fps, as a player "
                "shows them (--frame-rate chooses another rate)"
            )
        if self.num_lost:
            notes.append(
                f"the file begins in the middle of a group of pictures: {self.num_lost} at its "
                f"start cannot be decoded, {len(self.timing.timestamps)} frames can"
            )
        if self.is_damaged:
            notes.append(f"the file is damaged or cut short: {self.num_frames} frames are readable")
        if self.sample_aspect_ratio != 1:
            notes.append(f"pixels are not square: shown as {self.width}x{self.height}")
        return (*notes, *self._picture_notes())

    def _picture_notes(self) -> Iterator[str]:
        pictures = self.pictures
        if self.first_resized is not None:
            other = pictures.size_changes[0]
            yield (
                f"the video changes its size at frame {self.first_resized}, from "
                f"{pictures.width}x{pictures.height} to {other.width}x{other.height}: later frames "
                "are fitted into the first size, with bars"
            )
        if pictures.has_alpha:
            yield f"the video is transparent: laid on {self.background} (--background)"
        if pictures.is_hdr:
            filled = "" if not pictures.filled_tags else ", missing color tags filled in"
            yield f"the video is HDR: tone mapped to BT.709, with white at 203 nits{filled}"
        elif "bt709" in pictures.filled_tags:
            yield "the pictures name no color matrix: read as BT.709, as HD is"
        if pictures.field_order and self.deinterlace:
            yield "the video is interlaced: its frames are deinterlaced"
        elif pictures.field_order:
            yield (
                "the video is interlaced: each frame is read with its two fields as they are; "
                "--deinterlace gives cleaner edits"
            )
        elif self.deinterlace:
            yield "--deinterlace changes nothing: the video is not interlaced"

    def read_with(self, settings: LoadSettings) -> VideoFacts:
        """The facts under what a clip's settings say about reading."""
        by_ffmpeg = settings.deinterlace and self.reader == "decord"
        return replace(
            self,
            reader="ffmpeg" if by_ffmpeg else self.reader,
            background=settings.background,
            deinterlace=settings.deinterlace,
        )

    def read_as(self, source: SourceVideo, settings: LoadSettings) -> VideoFacts:
        """The facts under which a recorded clip was read.

        Versions before took no account of what its record lacks: its frames are read that way.
        """
        pictures = self.pictures
        if source.filled_tags != pictures.filled_tags:
            pictures = replace(pictures, filled_tags="")
        if not source.has_alpha:
            pictures = replace(pictures, has_alpha=False, decoder="")
        if not source.changes_size:
            pictures = replace(pictures, size_changes=())
        return replace(self, pictures=pictures).read_with(settings)


def identify(path: Path, facts: VideoFacts) -> SourceVideo:
    """Add name and digest of the file to what its probe found. Raises `StorageError`."""
    return SourceVideo(
        name=folder_of(path).name if are_images(path) else path.name,
        sha256=digest_of(path),
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
) -> VideoFacts:
    """Determine the properties of a video file, and how its frames are taken.

    Args:
        path: The video file.
        frame_rate: Frames per second to take it at; None is its own rate.
        fps: Frames per second of a source whose frames carry no times; others keep their own.
        with_decord: Whether decord may read it where it is exact.

    Raises:
        VideoError: The file is missing, empty, not a video, without images, a playlist, or beyond
            the bounds on size and frames.
        UsageError: `frame_rate` is given for frames without times.
        StorageError: The file may not be read.
    """
    facts = probe_stored(path, fps=fps, with_decord=with_decord)
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
    facts = probe_stored(path, fps=source.fps).read_as(source, settings)
    return _on_grid(path, facts, source.fps) if source.is_resampled else facts


def _on_grid(path: Path, facts: VideoFacts, rate: Fraction) -> VideoFacts:
    """The same video with its frames taken at an even rate, by ffmpeg."""
    if facts.timing.is_constant and rate == facts.timing.rate:
        return facts
    if facts.timing.num_shown(rate) > MAX_FRAMES:
        raise VideoError(
            f"{path} has more than {MAX_FRAMES} frames at {float(rate):.6g} fps, which is the "
            "bound",
            hint="give a lower --frame-rate, or cut it first",
        )
    reader: Reader = "ffmpeg" if facts.reader == "decord" else facts.reader
    return replace(facts, grid=rate, reader=reader)


def probe_stored(
    path: Path, *, fps: Fraction | None = None, with_decord: bool = True
) -> VideoFacts:
    """`probe_facts` with the frames taken as they are stored, one by one. Raises the same.

    A file is probed once per process while it is unchanged.
    """
    from cogedit.media.image_facts import facts_of_images  # in the terms of this module

    if not are_images(path):
        check_file(path)
    facts = facts_of_images(path)
    facts = facts or _facts(path, file_state(path), find_ffmpeg(), with_decord)
    if fps is None or not facts.is_untimed:
        return facts
    return replace(facts, timing=even_timing(facts.num_frames, fps), is_assumed=False)


@lru_cache(maxsize=512)
def _facts(path: Path, state: FileState, executable: str, with_decord: bool) -> VideoFacts:
    result = _list_packets(path, "0:V:0")
    header = parse_header(result.stderr)
    if result.returncode == 0 and header.stream != "0:V:0":
        result = _list_packets(path, header.stream)
        header = parse_header(result.stderr)
    if result.returncode != 0:
        raise unreadable(path, result)
    packets = _parse_packets(path, result)
    _check_bounds(path, packets)
    rotation = _rotation(path, header)
    pictures = _look(path, header, packets)
    is_damaged = has_error(result.stderr)
    frames, num_packets = packets, len(packets.timestamps)
    is_whole = _is_whole(header, packets) and not is_damaged
    if not (is_whole and with_decord and packets.codec in _COUNTED_BY_PACKETS):
        frames = _list_frames(path, header.stream)
    num_frames = len(frames.timestamps)
    if num_frames == num_packets:
        frames = packets
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
    is_exact = is_whole and num_frames == num_packets and _is_utf8(path) and with_decord
    if is_exact and _decord_is_exact(header, packets, pictures):
        reader = "decord"
    width, height = _displayed_size(pictures, packets.sample_aspect_ratio, rotation)
    return VideoFacts(
        codec=packets.codec,
        pixel_format=pictures.pixel_format,
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
    )


def _is_whole(header: InputHeader, packets: PacketTable) -> bool:
    """Whether the container says where each frame is, and each can be decoded."""
    return (
        header.container in _INDEXED_CONTAINERS
        and header.has_duration
        and packets.num_discarded == 0
        and packets.num_unanchored == 0
    )


def list_packets(path: Path) -> PacketTable:
    """The packets of the first video stream of `path`. Raises `VideoError` as `probe_facts`."""
    result = _list_packets(path, "0:V:0")
    if result.returncode != 0 or has_error(result.stderr):
        raise unreadable(path, result)
    return _parse_packets(path, result)


def _list_packets(path: Path, stream: str) -> FfmpegResult:
    bound = ["-frames:v", str(MAX_FRAMES + 1)]
    # ffmpeg leaves out what precedes the first keyframe unless told otherwise.
    copy = ["-map", stream, "-c", "copy", "-copyinkf:v", *bound]
    result = run_on_input(path, [*copy, *_TO_STDOUT])
    if "Invalid DTS" in result.stderr or "Non-monotonic DTS" in result.stderr:
        # It moved presentation times where decoding times are not in order: these are.
        result = run_on_input(
            path, [*copy, "-bsf:v", "setts=pts=PTS:dts=N-1000000000", *_TO_STDOUT]
        )
    return result


def count_frames(path: Path, stream: str) -> int:
    """Number of frames that ffmpeg delivers, by decoding all. Raises `VideoError` without one."""
    return len(_list_frames(path, stream).timestamps)


def decord_version() -> str | None:
    """Version of decord; None where it is not installed, and ffmpeg reads every file."""
    try:
        return importlib.metadata.version("decord")
    except importlib.metadata.PackageNotFoundError:
        return None


def unreadable(path: Path, result: FfmpegResult) -> VideoError:
    """Why ffmpeg could not read a file, from its messages."""
    if "matches no streams" in result.stderr:
        streams = "audio but no video" if parse_header(result.stderr).audio_tracks else "no video"
        return VideoError(f"{path} holds {streams} stream", hint="name a file with a video stream")
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
            f"{path} has a video stream without a frame", hint="check that it is complete"
        )
    return packets


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
        raise _too_large(path, f"{width}x{packets.height}")
    if len(packets.timestamps) > MAX_FRAMES:
        raise VideoError(
            f"{path} has more than {MAX_FRAMES} frames, which is the bound", hint="cut it first"
        )


def _look(path: Path, header: InputHeader, packets: PacketTable) -> Pictures:
    """Look at the pictures, and refuse what is not read right."""
    if header.has_alpha_stream:
        raise VideoError(
            f"{path} keeps its transparency in a stream of its own, which is not read",
            hint="convert it to a video without transparency, or to PNG images",
        )
    size = (packets.width, packets.height)
    upright = size if header.clockwise % 180 == 0 else (size[1], size[0])
    pictures = look_at_pictures(path, header, codec=packets.codec, size=upright)
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


def _list_frames(path: Path, stream: str) -> PacketTable:
    """The frames that ffmpeg delivers, with their timestamps, by decoding all of them."""
    # On the stream's own clock, under its name up to ffmpeg 6.0 and from 6.1 on.
    for clock in ("demux", "-1"):
        decode = ["-map", stream, "-fps_mode", "passthrough", "-enc_time_base", clock]
        decode += ["-frames:v", str(MAX_FRAMES)]
        result = run_on_input(path, [*decode, *_TO_STDOUT], timeout=_COUNT_TIMEOUT)
        if "Invalid time base" not in result.stderr:
            break
    with suppress(ValueError, ZeroDivisionError):
        frames = parse_framecrc(result.stdout.decode("utf-8", errors="replace"))
        if frames.timestamps:
            return frames
    raise VideoError(
        f"no frame of {path} can be decoded, ffmpeg says: {first_error(result.stderr)}",
        hint="check that the file is complete",
    )


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
        and importlib.util.find_spec("decord") is not None
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
