"""Which audio track of a video goes with a clip of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from cogedit.errors import UsageError, VideoError
from cogedit.media.ffmpeg import FfmpegResult, input_args, run_ffmpeg, run_on_input
from cogedit.media.ffmpeg_output import AudioTrack, parse_header
from cogedit.media.writer import AudioSource, can_copy_audio
from cogedit.wording import count_of


@dataclass(frozen=True)
class WholeAudio:
    """Audio tracks of a video from beginning to end, beside its pictures."""

    path: Path
    tracks: tuple[int, ...]  # numbers from 0
    copied: tuple[bool, ...]  # of each, whether the new file takes it as it is; AAC otherwise
    delays: tuple[Fraction, ...]  # of each, seconds to add to its times

    def args(self) -> tuple[list[str], list[str]]:
        """Options of ffmpeg that open the tracks after one other input, and that write them."""
        opened: list[str] = []
        written: list[str] = []
        for place, (number, is_copied, delay) in enumerate(
            zip(self.tracks, self.copied, self.delays, strict=True)
        ):
            offset = ["-itsoffset", f"{float(delay):.6f}"] if delay else []
            opened += [*offset, *input_args(self.path)]
            written += ["-map", f"{place + 1}:a:{number}"]
            written += [f"-c:a:{place}", "copy" if is_copied else "aac"]
            written += [f"-map_metadata:s:a:{place}", f"{place + 1}:s:a:{number}"]  # its language
        return opened, written


_COUNTED_BY_STREAM = {"mpegts", "mpeg"}
"""Containers whose time ffmpeg counts from the first packet of the streams that it reads."""


def choose_audio(
    path: Path,
    tracks: Sequence[AudioTrack],
    *,
    wanted: int | None,
    suffix: str,
    start: Fraction,
    duration: Fraction,
) -> AudioSource | str:
    """Choose the audio of a clip, or say why there is none.

    Args:
        path: The video.
        tracks: Its audio tracks; at least one.
        wanted: Number of the track, from 1; None is the one that players take if this ffmpeg can
            decode it, and else the first that it can.
        suffix: Of the file to write, which takes some codecs as they are.
        start: Where the clip begins in the file, in seconds.
        duration: How long it plays, in seconds.

    Raises:
        UsageError: There is no track of this number.
    """
    order = sorted(range(len(tracks)), key=lambda number: not tracks[number].is_default)
    if wanted is not None:
        order = [_number_of(wanted, path, tracks)]
    decodable = [number for number in order if _can_decode(path, number)]
    # Last, for an ffmpeg that was built without the decoder.
    copied = [number for number in order if can_copy_audio(tracks[number].codec, suffix)]
    for number in decodable or copied:
        begin = start + _difference_of_zeros(path, number)
        if begin + duration <= 0:  # the clip ends before the track begins
            continue
        audio = AudioSource(path, begin, duration, tracks[number].codec, number)
        # Some containers cannot be sought in, such as FLV without an index.
        for way in (audio, replace(audio, can_seek=False)):
            if _reaches(way):
                return way
    if decodable:
        return f"no audio of {path} lies where the clip is"
    codecs = ", ".join(tracks[number].codec for number in order)
    return f"no audio track of {path} can be decoded ({codecs})"


def choose_whole_audio(
    path: Path, tracks: Sequence[AudioTrack], *, wanted: int | None, suffix: str
) -> tuple[WholeAudio, str]:
    """Choose the audio of a whole video: all of its tracks, or the `wanted` one, from 1.

    Arguments and errors are those of `choose_audio`. Returns it, and what is left out and why, in
    words that are empty where nothing is.
    """
    numbers = range(len(tracks))
    if wanted is not None:
        numbers = range(number := _number_of(wanted, path, tracks), number + 1)
    copied = {number: can_copy_audio(tracks[number].codec, suffix) for number in numbers}
    kept = [number for number in numbers if copied[number] or _can_decode(path, number)]
    lost = [f"{number + 1} ({tracks[number].codec})" for number in numbers if number not in kept]
    audio = WholeAudio(
        path,
        tuple(kept),
        tuple(copied[number] for number in kept),
        tuple(-_difference_of_zeros(path, number) for number in kept),
    )
    words = "cannot be decoded, and is no audio that the file takes as it is"
    return audio, f"audio track {', '.join(lost)} of {path} {words}" if lost else ""


def _number_of(wanted: int, path: Path, tracks: Sequence[AudioTrack]) -> int:
    """The number from 0 of a track that was asked for."""
    if wanted > len(tracks):
        raise UsageError(
            f"{path} has {count_of(len(tracks), 'audio track')}, and --audio-track is {wanted}",
            hint="leave it out, or choose one of them, counted from 1",
        )
    return wanted - 1


def _decoded(path: Path, number: int) -> FfmpegResult:
    """Decode the beginning of an audio track."""
    return run_on_input(path, ["-map", f"0:a:{number}", "-frames:a", "8", "-f", "framecrc", "-"])


def _can_decode(path: Path, number: int) -> bool:
    try:
        result = _decoded(path, number)
    except VideoError:  # it took too long
        return False
    return result.returncode == 0 and _lists_packets(result)


def _reaches(audio: AudioSource) -> bool:
    """Whether audio lies in the window that is to be taken."""
    window, trim = audio.cut()
    how = trim or ["-c", "copy", "-copypriorss:a", "0"]
    output = ["-map", f"0:a:{audio.track}", *how, "-frames:a", "1", "-f", "framecrc", "-"]
    try:
        result = run_ffmpeg([*window, *input_args(audio.path), *output], timeout=60.0)
    except TimeoutError:
        return False
    return _lists_packets(result)


def _lists_packets(result: FfmpegResult) -> bool:
    """Whether a listing has a line besides its header."""
    return any(not line.startswith(b"#") for line in result.stdout.splitlines())


def _difference_of_zeros(path: Path, number: int) -> Fraction:
    """What to add to a time of the video for the same time of an audio track, in seconds.

    Each is read by itself, and in `_COUNTED_BY_STREAM` each then begins near 0.
    """
    with suppress(VideoError):  # it took too long: both begin together, as far as one can tell
        if parse_header(_decoded(path, number).stderr).container in _COUNTED_BY_STREAM:
            together = _first_times(path, "0:V:0", f"0:a:{number}")
            video, audio = _first_times(path, "0:V:0"), _first_times(path, f"0:a:{number}")
            if len(together) == 2:
                return (together[0] - video[0]) - (together[1] - audio[0])
    return Fraction(0)


def _first_times(path: Path, *streams: str) -> list[Fraction]:
    """The time of the first packet of each stream in seconds, where it has one."""
    mapped = [word for stream in streams for word in ("-map", stream)]
    # Of several streams ffmpeg would end with the first that has its one packet.
    bound = ["-frames:v", "1", "-frames:a", "1"] if len(streams) == 1 else []
    listing = [*mapped, "-c", "copy", "-copyinkf:v", *bound, "-f", "framecrc", "-"]
    result = run_on_input(path, listing)
    ticks: dict[int, Fraction] = {}
    first: dict[int, Fraction] = {}
    for line in result.stdout.decode("utf-8", errors="replace").splitlines():
        if line.startswith("#tb "):
            index, _, time_base = line[4:].partition(":")
            ticks[int(index)] = Fraction(time_base.strip())
        elif not line.startswith("#"):
            index, _, pts = line.split(",")[:3]
            first.setdefault(int(index), int(pts) * ticks[int(index)])
    return [first[index] for index in sorted(first)]
