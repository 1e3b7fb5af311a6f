"""Frames to a video file, or to a folder of images: at the exact rate, all or nothing.

A file is written under another name beside its place, reopened and counted, and only then renamed.
A process that is killed outright can leave that other file (`.cogedit-*`) behind; everything else
cleans up.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.disk import (
    Over,
)
from cogedit.errors import StorageError, UsageError, VideoError
from cogedit.media.encoding import PALETTE_SIDE, Encoding, plan_encoding
from cogedit.media.ffmpeg import FfmpegPipe, FfmpegResult, file_url, first_error, input_args
from cogedit.media.ffmpeg_output import PacketTable
from cogedit.media.packets import list_packets
from cogedit.media.png import beside, check_image_folder, finish, storage_errors, write_images
from cogedit.media.recipe_comment import add_gif_comment
from cogedit.media.stream import FrameFile, FrameStream
from cogedit.media.timing import explains
from cogedit.platforms import IS_WINDOWS

# What each container takes as it is; another codec is converted to AAC.
_COPIED_AUDIO: dict[str, frozenset[str]] = {
    ".mp4": frozenset({"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}),
    ".mov": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le"}),
    # Those that came out of a file as they went in; ffmpeg has no name in Matroska for others, such
    # as those of DVDs, of Blu-rays and of some QuickTime files.
    ".mkv": frozenset(
        {
            *("aac", "ac3", "alac", "dts", "eac3", "flac", "mlp", "mp2", "mp3", "opus", "truehd"),
            *("tta", "vorbis", "wavpack", "wmav1", "wmav2", "adpcm_ima_wav", "adpcm_ms"),
            *("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_s16be", "pcm_s24be", "pcm_s32be"),
            *("pcm_u8", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw"),
        }
    ),
}

_FILE_SIZE_SIGNAL = getattr(signal, "SIGXFSZ", 0)  # Windows has none, and no such limit
_MAX_COMMENT_BYTES = 15_000 if IS_WINDOWS else 100_000  # of 32 KiB for all, or 128 KiB for one
STALL_TIMEOUT = 120.0
"""Seconds, beside those for the number of pixels, that ffmpeg may be silent: AV1 codes most of a
clip after its last frame has arrived, and a busy machine is slow at it."""

_SLOWEST_PIXELS_PER_SECOND = 100_000
_H264 = Encoding()


@dataclass(frozen=True)
class AudioSource:
    """The audio that goes with a clip."""

    path: Path
    start: Fraction  # where the clip starts in it, in seconds; before 0 there is no sound
    duration: Fraction  # how long the clip plays, in seconds
    codec: str | None  # ffmpeg's name of it; None where the file has no audio
    track: int = 0  # which of its audio tracks, from 0
    can_seek: bool = True  # False: it is decoded from the beginning of the file

    @property
    def window(self) -> tuple[float, float]:
        """Begin and end in the file, in seconds. Raises `UsageError` where it holds nothing."""
        end = self.start + self.duration
        if end <= 0 or self.duration <= 0:
            raise UsageError(f"no audio lies at {self.start} s for {self.duration} s")
        return float(max(Fraction(0), self.start)), float(end)

    def cut(self) -> tuple[list[str], list[str]]:
        """Options of ffmpeg that open the window, and a filter for what is decoded."""
        begin, end = self.window
        if self.can_seek:
            # Bounded by its own duration and not by -shortest, which would cut the video where the
            # source's audio ends first.
            return ["-ss", f"{begin:.6f}", "-t", f"{end - begin:.6f}"], []
        trim = f"atrim={begin:.6f}:{end:.6f},asetpts=PTS-{begin:.6f}/TB"
        return ["-t", f"{end:.6f}"], ["-af", trim]


def write_video(
    frames: NDArray[np.uint8] | FrameStream,
    path: Path,
    *,
    fps: Fraction,
    encoding: Encoding = _H264,
    comment: str | None = None,
    audio: AudioSource | None = None,
    over: Over = "anything",
) -> None:
    """Write frames as a video; an existing file is replaced once the new one is complete.

    Args:
        frames: uint8 RGB, [F, H, W, 3], or a stream of them. H.264 and its like take an even width
            and height, because 4:2:0 halves the colour planes. A GIF reads them twice, those of a
            generator from a file without a name in the folder of `path`.
        path: The file to write; its suffix names the container. Under the codec png, the folder.
        fps: Frames per second, exact.
        encoding: Codec and quality.
        comment: Text for the file's metadata, at most 100,000 bytes, on Windows 15,000.
        audio: Audio to add: copied where the container takes its codec, AAC otherwise. It is not
            stretched: pass it only where the frames play as long as they did in its file.
        over: What the new file may replace; a folder only ever replaces images written here.

    Raises:
        UsageError: The suffix, size, rate, codec, comment or audio window cannot be written; or
            something lies at `path` that may not be replaced, caused by a `FileExistsError`.
        StorageError: The folder is missing or may not be written, or the disk is full. Nothing is
            left behind.
        VideoError: A stream for a GIF has not as many frames as it says.
    """
    stream = _as_stream(frames)
    plan_encoding(path, encoding.codec, lossless=encoding.lossless, crf=encoding.crf)
    encoding.check_frames(stream.width, stream.height, fps=fps)
    check_place(path, is_folder=encoding.codec == "png")
    if encoding.codec == "png":
        _check_comment(comment)
        check_image_folder(path)
        write_images(stream.frames, path, comment=comment, over=over)
        return
    coding = [*encoding.args(fps), *metadata_args(comment)]

    def complete(temporary: Path) -> None:
        if comment is not None and encoding.codec == "gif":
            add_gif_comment(temporary, comment)
        packets = read_back(temporary, path, num_frames=stream.num_frames)
        if not explains(fps, packets.timestamps, packets.time_base):
            raise StorageError(f"cannot write {path}: its timestamps do not make {fps} fps")

    def write(stream: FrameStream, options: Sequence[str]) -> None:
        args = [*_video_input(stream, fps), *options]
        size = _num_pixels(stream)
        encode(_chunks(stream), path, args=args, num_pixels=size, complete=complete, over=over)

    if encoding.codec == "gif":
        stream = _as_often_as_wanted(stream, path.parent)
        with _palette(stream, path, fps=fps) as palette_input:
            write(stream, [*palette_input, *coding])
        return
    audio_input, audio_output = _audio_args(audio, path)
    write(stream, [*audio_input, "-map", "0:v:0", *audio_output, *coding])


@contextmanager
def _palette(stream: FrameStream, path: Path, *, fps: Fraction) -> Iterator[list[str]]:
    """Find one palette for all frames: one per frame would change colours from frame to frame.

    Its own pass, because a filter that finds and uses it holds all frames until it has seen the
    last. Yields the options of ffmpeg that open it as a further input.
    """
    size = f"{PALETTE_SIDE}x{PALETTE_SIDE}"
    with beside(path.with_suffix(".palette")) as palette:
        raw = ["-vf", "palettegen", "-f", "rawvideo", "-pix_fmt", "bgra", "-n", file_url(palette)]
        args = [*_video_input(stream, fps), *raw]
        _run_encoder(_chunks(stream), path, args=args, num_pixels=_num_pixels(stream))
        pixels = ["-f", "rawvideo", "-pixel_format", "bgra", "-video_size", size]
        yield [*pixels, "-framerate", _rate(fps), "-i", file_url(palette)]


def _as_often_as_wanted(stream: FrameStream, folder: Path) -> FrameStream:
    """The frames of a stream that may be read more than once, from a file where it has to be."""
    if isinstance(stream.frames, Sequence | np.ndarray):
        return stream
    return FrameFile(stream, folder).stream


def _chunks(stream: FrameStream) -> Iterator[memoryview]:
    return (np.ascontiguousarray(frame).data for frame in stream.frames)


def _num_pixels(stream: FrameStream) -> int:
    return stream.num_frames * stream.height * stream.width


def encode(
    chunks: Iterable[memoryview | bytes],
    path: Path,
    *,
    args: Sequence[str],
    num_pixels: int,
    complete: Callable[[Path], None],
    over: Over,
) -> None:
    """Let ffmpeg write a file, which has its name once it is whole.

    Args:
        chunks: What ffmpeg reads at its input `pipe:0`.
        path: The file, whose suffix names the container.
        args: Options of ffmpeg, without the name of the file.
        num_pixels: In all frames, by which ffmpeg may be slow.
        complete: Checks the finished file, under another name.
        over: What it may replace.

    Raises:
        UsageError: Something lies at `path` that may not be replaced.
        StorageError: As `write_video`, or what `complete` raises.
    """
    # ffmpeg chooses the container by the suffix, which the other name keeps.
    with beside(path) as temporary:
        args = [*args, "-n", file_url(temporary)]
        _run_encoder(chunks, path, args=args, num_pixels=num_pixels)
        with storage_errors(path):
            complete(temporary)
            finish(temporary, path, over=over)


def _as_stream(frames: NDArray[np.uint8] | FrameStream) -> FrameStream:
    if isinstance(frames, FrameStream):
        return frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise UsageError(
            f"frames must be uint8 [F, H, W, 3] with at least one frame, not {frames.dtype} "
            f"{list(frames.shape)}"
        )
    num_frames, height, width, _ = frames.shape
    return FrameStream(frames, num_frames, height, width)


def check_place(path: Path, *, is_folder: bool = False) -> None:
    """Raise `StorageError` where a file, or a folder of images, has no place."""
    if not path.parent.is_dir():
        raise StorageError(
            f"cannot write {path}: the folder {path.parent} does not exist",
            hint=f"mkdir -p {shlex.quote(str(path.parent))}",
        )
    if path.is_dir() and not is_folder:
        raise StorageError(f"cannot write {path}: it is a folder", hint="name a file in it")


def metadata_args(comment: str | None) -> list[str]:
    """Options of ffmpeg for the file's metadata. Raises `UsageError` for what is no comment."""
    _check_comment(comment)
    # The source's own metadata (title, place, camera) is not the edit's.
    stripped = ["-map_metadata", "-1", "-map_chapters", "-1"]
    return stripped if comment is None else [*stripped, "-metadata", f"comment={comment}"]


def _check_comment(comment: str | None) -> None:
    if comment is not None:
        if "\0" in comment:
            raise UsageError("the comment holds a NUL character")
        if len(comment.encode("utf-8", errors="surrogatepass")) > _MAX_COMMENT_BYTES:
            raise UsageError(f"the comment is longer than {_MAX_COMMENT_BYTES} bytes")


def _video_input(stream: FrameStream, fps: Fraction) -> list[str]:
    size = f"{stream.width}x{stream.height}"
    pixels = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", size]
    return [*pixels, "-framerate", _rate(fps), "-i", "pipe:0"]


def _rate(fps: Fraction) -> str:
    return f"{fps.numerator}/{fps.denominator}"


def _audio_args(audio: AudioSource | None, path: Path) -> tuple[list[str], list[str]]:
    """Options that open the audio, and options that write it."""
    if audio is None or audio.codec is None:
        return [], []
    window, trim = audio.cut()
    if audio.start < 0:
        window += ["-itsoffset", f"{float(-audio.start):.6f}"]
    track = ["-map", f"1:a:{audio.track}"]
    output = [*track, *trim, "-c:a", "aac"]
    if audio.can_seek and can_copy_audio(audio.codec, path.suffix):
        # Packets before the start would be copied too. mp4 hides them by an edit list; Matroska has
        # none, and the audio would lag by up to half a second.
        output = [*track, "-c:a", "copy", "-copypriorss:a", "0"]
    return [*window, *input_args(audio.path)], output


def can_copy_audio(codec: str, suffix: str) -> bool:
    """Whether a file of this suffix takes audio of this codec as it is."""
    return codec in _COPIED_AUDIO[suffix.lower()]


def _run_encoder(
    chunks: Iterable[memoryview | bytes], path: Path, *, args: Sequence[str], num_pixels: int
) -> None:
    timeout = STALL_TIMEOUT + num_pixels / _SLOWEST_PIXELS_PER_SECOND
    with FfmpegPipe(args, stall_timeout=timeout) as ffmpeg:
        with suppress(BrokenPipeError):  # its status and message say why it has ended
            for chunk in chunks:
                ffmpeg.write(memoryview(chunk).cast("B"))
        result = ffmpeg.finish()
    if ffmpeg.timed_out:
        raise StorageError(f"cannot write {path}: ffmpeg gave no answer for {timeout:.0f} s")
    if result.returncode != 0:
        raise _failed(path, result)


def _failed(path: Path, result: FfmpegResult) -> StorageError:
    if result.returncode == -_FILE_SIZE_SIGNAL:
        return StorageError(
            f"cannot write {path}: it would be larger than this process may write",
            hint="raise the limit: ulimit -f",
        )
    for message in ("No space left on device", "File too large", "Disk quota exceeded"):
        if message in result.stderr:
            return StorageError(f"cannot write {path}: {message}", hint="free some space")
    for message in ("Permission denied", "Read-only file system"):
        if message in result.stderr:
            return StorageError(f"cannot write {path}: {message}", hint="choose another folder")
    ended = f"signal {-result.returncode}" if result.returncode < 0 else str(result.returncode)
    return StorageError(
        f"cannot write {path}: ffmpeg ended with {ended}: {first_error(result.stderr)}"
    )


def read_back(temporary: Path, path: Path, *, num_frames: int) -> PacketTable:
    """List the packets of a file that is to be `path`; StorageError if it lacks frames."""
    try:
        packets = list_packets(temporary)
    except (VideoError, StorageError) as error:
        raise StorageError(f"cannot write {path}: the written file does not read back") from error
    written = len(packets.timestamps)
    if written != num_frames or packets.num_discarded:
        raise StorageError(f"cannot write {path}: {written} of {num_frames} frames were written")
    return packets
