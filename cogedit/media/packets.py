"""The packets and the decoded frames of a video stream, as ffmpeg lists them."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from cogedit.errors import VideoError
from cogedit.media.ffmpeg import INPUT_NAME, FfmpegResult, first_error, has_error, run_on_input
from cogedit.media.ffmpeg_output import PacketTable, parse_framecrc, parse_header
from cogedit.sources import MAX_FRAMES

_COUNT_TIMEOUT = 600.0
_READABLE = "mp4, mov, mkv, webm, avi, ts, mpg, mxf, nut, flv, wmv, gif, ogv, y4m, animated WebP "
_READABLE += "or PNG, or a folder of pictures"

_TO_STDOUT = ("-f", "framecrc", "-")


def list_packets(path: Path) -> PacketTable:
    """The packets of the first video stream of `path`. Raises `VideoError` as `probe_facts`."""
    result = run_packet_list(path, "0:V:0")
    if result.returncode != 0 or has_error(result.stderr):
        raise unreadable(path, result)
    return parse_packets(path, result)


def run_packet_list(path: Path, stream: str) -> FfmpegResult:
    """Let ffmpeg list the packets of a stream, decoding nothing; a failing status is no error."""
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


def unreadable(path: Path, result: FfmpegResult) -> VideoError:
    """Why ffmpeg could not read a file, from its messages."""
    if "matches no streams" in result.stderr:
        streams = "audio but no video" if parse_header(result.stderr).audio_tracks else "no video"
        return VideoError(f"{path} holds {streams} stream", hint="name a file with a video stream")
    size = re.search(r"Picture size (\d+x\d+) is invalid", result.stderr)
    if size:
        return too_large(path, size.group(1))
    if "not on whitelist" in result.stderr:
        return VideoError(f"{path} is not a video: expected {_READABLE}", hint="convert it to mp4")
    reason = first_error(result.stderr).replace(INPUT_NAME, path.name)
    return VideoError(
        f"{path} is not a video that can be read: expected {_READABLE}, ffmpeg says: {reason}",
        hint="check that the file is complete",
    )


def too_large(path: Path, size: str) -> VideoError:
    """What is said of frames that are not read for their size."""
    return VideoError(
        f"{path} has frames of {size}, at most 8192x4320 pixels are read",
        hint="scale it down first",
    )


def parse_packets(path: Path, result: FfmpegResult) -> PacketTable:
    """Parse what `run_packet_list` printed. Raises `VideoError` where it is no list of frames."""
    try:
        packets = parse_framecrc(result.stdout.decode("utf-8", errors="replace"))
    except (ValueError, ZeroDivisionError) as error:
        raise VideoError(f"{path} has a video stream that ffmpeg cannot describe") from error
    if not packets.timestamps:
        raise VideoError(
            f"{path} has a video stream without a frame", hint="check that it is complete"
        )
    return packets


def list_frames(path: Path, stream: str) -> PacketTable:
    """The frames that ffmpeg delivers, with their timestamps, by decoding all of them.

    Raises `VideoError` where none can be decoded.
    """
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
