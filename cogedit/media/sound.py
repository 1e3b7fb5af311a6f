"""Which audio track of a video goes with a clip of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from cogedit.errors import UsageError, VideoError
from cogedit.media.ffmpeg import input_args, run_ffmpeg, run_on_input
from cogedit.media.ffmpeg_output import AudioTrack
from cogedit.media.writer import AudioSource, can_copy_audio


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
        if wanted > len(tracks):
            raise UsageError(
                f"{path} has {len(tracks)} audio tracks, and --audio-track is {wanted}: expected "
                f"1 to {len(tracks)}"
            )
        order = [wanted - 1]
    decodable = [number for number in order if _can_decode(path, number)]
    # Last, for an ffmpeg that was built without the decoder.
    copied = [number for number in order if can_copy_audio(tracks[number].codec, suffix)]
    for number in decodable or copied:
        audio = AudioSource(path, start, duration, tracks[number].codec, number)
        # Some containers cannot be sought in, such as FLV without an index.
        for way in (audio, replace(audio, can_seek=False)):
            if _reaches(way):
                return way
    if decodable:
        return f"no audio of {path} lies where the clip is"
    codecs = ", ".join(tracks[number].codec for number in order)
    return f"no audio track of {path} can be decoded ({codecs})"


def _can_decode(path: Path, number: int) -> bool:
    """Whether the beginning of an audio track can be decoded."""
    options = ["-map", f"0:a:{number}", "-frames:a", "8", "-f", "framecrc", "-"]
    try:
        result = run_on_input(path, options)
    except VideoError:  # it took too long
        return False
    lines = result.stdout.splitlines()
    return result.returncode == 0 and any(not line.startswith(b"#") for line in lines)


def _reaches(audio: AudioSource) -> bool:
    """Whether audio lies in the window that is to be taken."""
    window, trim = audio.cut()
    how = trim or ["-c", "copy", "-copypriorss:a", "0"]
    output = ["-map", f"0:a:{audio.track}", *how, "-frames:a", "1", "-f", "framecrc", "-"]
    try:
        result = run_ffmpeg([*window, *input_args(audio.path), *output], timeout=60.0)
    except TimeoutError:
        return False
    return any(not line.startswith(b"#") for line in result.stdout.splitlines())
