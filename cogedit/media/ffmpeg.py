"""Finds the ffmpeg binary and runs it.

Every input is opened as `file:` plus an absolute path, so that a leading dash, a colon or a percent
sign is part of the name; with the file protocol alone; and with the containers of `CONTAINERS`
alone, so that a playlist under a video's name is never followed to other files.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

from cogedit.disk import FileState
from cogedit.errors import ConfigError, VideoError
from cogedit.media.files import file_state
from cogedit.media.pipe import ProcessPipe
from cogedit.one_at_a_time import OneAtATime
from cogedit.platforms import OWN_SESSION

RAW_STREAMS = ("h264", "hevc")
"""ffmpeg's names of streams without a container, and so without timestamps."""

# ffmpeg's names. The pure audio formats are there for the better error message only.
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "gif", "ogg", "ivf"),
    *("yuv4mpegpipe", "mxf", "nut", *RAW_STREAMS, "mp3", "wav", "flac"),
)
MAX_FRAME_PIXELS = 8192 * 4320
INPUT_NAME = "file:input"

_SLOWEST_BYTES_PER_SECOND = 10_000_000  # of a disk in another room
_DEFAULT_BINARY = "unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships"
_SURELY_WHOLE = 200  # bytes of a name that ffmpeg never cuts
_ERROR_LINE = re.compile(r"^(?:\[[^\]]* @ [^\]]*\] )*\[(?:error|fatal|panic)\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class FfmpegResult:
    """What a finished run of ffmpeg left."""

    returncode: int  # negative when a signal ended it
    stdout: bytes  # empty after a pipe, which has been read
    stderr: str  # its messages, each line with its level in brackets


def find_ffmpeg() -> str:
    """`IMAGEIO_FFMPEG_EXE`, or the binary that imageio-ffmpeg ships; `ConfigError` without one."""
    import imageio_ffmpeg

    try:
        executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ConfigError(
            "no ffmpeg binary was found",
            hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg binary",
        ) from error
    return executable


def examine_ffmpeg() -> str:
    """Version and path of the ffmpeg binary. Raises `ConfigError` unless it writes H.264."""
    path = find_ffmpeg()
    try:
        printed = run_ffmpeg(["-version"], timeout=30).stdout.decode(errors="replace")
        encoders = run_ffmpeg(["-encoders"], timeout=30).stdout.decode(errors="replace")
    except TimeoutError as error:
        raise ConfigError(f"the ffmpeg binary {path} does not end: {error}") from error
    version = re.search(r"ffmpeg version (\S+)", printed)
    if version is None:
        raise ConfigError(f"{path} is no ffmpeg: it prints no version", hint=_DEFAULT_BINARY)
    if "libx264" not in encoders:
        raise ConfigError(
            f"the ffmpeg binary {path} was built without libx264, which writes H.264",
            hint=_DEFAULT_BINARY,
        )
    return f"{version.group(1)}, {path}"


def file_url(path: Path) -> str:
    """`path` for ffmpeg, which then interprets nothing in its name."""
    return f"file:{path.absolute()}"


def input_args(path: Path) -> list[str]:
    """Arguments that open `path` as an input, safely."""
    # A small file can declare a frame of gigabytes; the decoder refuses it before it allocates.
    bounds = ["-max_pixels", str(MAX_FRAME_PIXELS)]
    whitelists = ["-protocol_whitelist", "file", "-format_whitelist", ",".join(CONTAINERS)]
    return [*whitelists, *bounds, "-i", file_url(path)]


def run_ffmpeg(args: Sequence[str], *, timeout: float, input: bytes | None = None) -> FfmpegResult:
    """Run ffmpeg to its end. A failing status is not an error here.

    Args:
        args: Arguments after the common ones (no banner, no question, messages with levels).
        timeout: Seconds after which it is killed, and `TimeoutError` raised.
        input: Bytes for its stdin; None gives it an empty one.

    Raises:
        ConfigError: There is no binary, or it cannot be run.
    """
    command = _command(args)
    try:
        done = subprocess.run(
            command,
            input=b"" if input is None else input,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=_environment(),
            **OWN_SESSION,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"ffmpeg ran past {timeout:.0f} seconds") from error
    except OSError as error:
        raise _not_runnable(command[0], error) from error
    stderr = done.stderr.decode("utf-8", errors="replace")
    _check_version(command[0], stderr)
    return FfmpegResult(done.returncode, done.stdout, stderr)


def run_on_input(
    path: Path, args: Sequence[str], *, before: Sequence[str] = (), timeout: float | None = None
) -> FfmpegResult:
    """Run ffmpeg on a video, once per process while the file is unchanged.

    `args` come after the input, those `before` say how it is opened. In the messages, `INPUT_NAME`
    stands for the name of the file. Without a `timeout` it has the time to read all of the file.

    Raises:
        VideoError: It ran past `timeout` seconds, and was killed.
        StorageError: The file may not be read.
        ConfigError: There is no binary, or it cannot be run.
    """
    state = file_state(path)
    if timeout is None:
        *_, num_bytes, _ = state
        timeout = 60.0 + num_bytes / _SLOWEST_BYTES_PER_SECOND
    with _one_run.turn():  # a second thread finds what the first one asked for
        return _run_once(path, state, tuple(before), tuple(args), timeout, find_ffmpeg())


_one_run = OneAtATime()


def find_messages(
    path: Path,
    args: Sequence[str],
    pattern: re.Pattern[bytes],
    *,
    before: Sequence[str] = (),
    timeout: float = 60.0,
) -> frozenset[tuple[bytes, ...]] | None:
    """Find what a pattern's groups match in what ffmpeg prints, line by line: it may be gigabytes.

    None where ffmpeg failed. Arguments and errors are those of `run_on_input`, and so is that it
    runs once.
    """
    command = _command([*before, *input_args(path), *args])
    return _find_once(path, file_state(path), tuple(command), pattern, timeout)


@lru_cache(maxsize=64)
def _find_once(
    path: Path,
    state: FileState,
    command: tuple[str, ...],
    pattern: re.Pattern[bytes],
    timeout: float,
) -> frozenset[tuple[bytes, ...]] | None:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
            **OWN_SESSION,
        )
    except OSError as error:
        raise _not_runnable(command[0], error) from error
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(timeout, end)
    timer.start()
    with process:
        try:
            lines = cast(IO[bytes], process.stderr)
            found = frozenset(match.groups() for match in map(pattern.search, lines) if match)
            process.wait()
        finally:
            timer.cancel()
            process.kill()
    # A killed process has the status 1 on Windows, as one that failed.
    if process.returncode < 0 or (process.returncode and is_late.is_set()):
        raise _too_slow(path, timeout)
    return None if process.returncode else found


@lru_cache(maxsize=64)
def _run_once(
    path: Path,
    state: FileState,
    before: tuple[str, ...],
    args: tuple[str, ...],
    timeout: float,
    executable: str,
) -> FfmpegResult:
    try:
        result = run_ffmpeg([*before, *input_args(path), *args], timeout=timeout)
    except TimeoutError as error:
        raise _too_slow(path, timeout) from error
    return replace(result, stderr=_without_name(result.stderr, path))


def has_error(stderr: str) -> bool:
    """Whether ffmpeg reported an error, which it also does in runs that end well."""
    return _ERROR_LINE.search(stderr) is not None


def first_error(stderr: str) -> str:
    """The first error that ffmpeg reported: later ones tend to be its consequences."""
    match = _ERROR_LINE.search(stderr)
    return match.group(1).strip() if match else "no message"


class FfmpegPipe(ProcessPipe):
    """A running ffmpeg whose stdin or stdout carries frames. Use it in a `with` statement.

    A read or write may take `stall_timeout` seconds. Raises `ConfigError` as `run_ffmpeg` does.
    """

    def __init__(self, args: Sequence[str], stall_timeout: float = 120.0) -> None:
        command = _command(args)
        self._executable = command[0]
        try:
            super().__init__(command, stall_timeout=stall_timeout, environment=_environment())
        except OSError as error:
            raise _not_runnable(command[0], error) from error

    def finish(self) -> FfmpegResult:
        """Close its stdin, wait for its end and return status and messages."""
        returncode, stderr = self.wait()
        _check_version(self._executable, stderr)
        return FfmpegResult(returncode, b"", stderr)


def _without_name(stderr: str, path: Path) -> str:
    """Take the name of the input out of ffmpeg's messages.

    ffmpeg prints names as they are, and a name may hold line ends and what looks like a message. It
    cuts a message at 1023 bytes, and with it a long name: what agrees with the name is the name.
    """
    url = os.fsencode(file_url(path)).decode("utf-8", errors="replace")
    first, *others = stderr.split(url[:_SURELY_WHOLE])
    rest = url[_SURELY_WHOLE:]
    agreeing = [os.path.commonprefix([rest, other]) for other in others]  # noqa: RUF071
    kept = [other[len(part) :] for other, part in zip(others, agreeing, strict=True)]
    return INPUT_NAME.join([first, *kept])


def _command(args: Sequence[str]) -> list[str]:
    common = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info"]
    return [find_ffmpeg(), *common, *args]


def _environment() -> dict[str, str]:
    # Colours would be read as part of the messages, and FFREPORT writes files.
    unwanted = ("AV_LOG_FORCE_COLOR", "FFREPORT")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"AV_LOG_FORCE_NOCOLOR": "1"}


def _too_slow(path: Path, timeout: float) -> VideoError:
    return VideoError(
        f"{path} could not be read within {timeout:.0f} seconds",
        hint="copy it to a local disk, or shorten it",
    )


def _not_runnable(executable: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"the ffmpeg binary {executable} cannot be run: {error.strerror or error}",
        hint="unset IMAGEIO_FFMPEG_EXE, or point it at an ffmpeg of version 5.1 or newer",
    )


def _check_version(executable: str, stderr: str) -> None:
    if "Unrecognized option 'fps_mode'" in stderr:
        raise ConfigError(
            f"the ffmpeg binary {executable} is too old: version 5.1 or newer is needed",
            hint=_DEFAULT_BINARY,
        )
