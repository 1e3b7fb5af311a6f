"""The one place that finds the ffmpeg binary and runs it.

Every input is opened as `file:` plus an absolute path, so that a name with a leading dash, a colon
or a percent sign is a name and nothing else; with the file protocol alone; and with the containers
of `CONTAINERS` alone, so that a playlist under a video's name is never followed to other files.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cogedit.errors import ConfigError

# Names of ffmpeg's demuxers. The pure sound formats are there for the better error message only.
CONTAINERS = (
    "mov",
    "matroska",
    "avi",
    "mpegts",
    "mpeg",
    "flv",
    "asf",
    "gif",
    "ogg",
    "ivf",
    "yuv4mpegpipe",
    "mp3",
    "wav",
    "flac",
)
MAX_FRAME_PIXELS = 8192 * 4320

_STDERR_KEPT = 64 * 1024
_ERROR_LINE = re.compile(r"^(?:\[[^\]]* @ [^\]]*\] )*\[(?:error|fatal|panic)\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class FfmpegResult:
    """What one finished run of ffmpeg left.

    Attributes:
        returncode: Its exit status; negative when a signal ended it.
        stdout: What it wrote to stdout.
        stderr: Its messages, each line with its level in brackets.
    """

    returncode: int
    stdout: bytes
    stderr: str


def find_ffmpeg() -> str:
    """The ffmpeg binary: `IMAGEIO_FFMPEG_EXE`, or the one that imageio-ffmpeg ships.

    Raises:
        ConfigError: None was found.
    """
    import imageio_ffmpeg

    try:
        executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ConfigError(
            "no ffmpeg binary was found",
            hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg binary",
        ) from error
    return executable


def file_url(path: Path) -> str:
    """`path` as ffmpeg takes it without reading anything into its name."""
    return f"file:{path.absolute()}"


def input_args(path: Path) -> list[str]:
    """Arguments that open `path` as an input, safely."""
    return [
        "-protocol_whitelist",
        "file",
        "-format_whitelist",
        ",".join(CONTAINERS),
        # A small file can declare a frame of gigabytes; the decoder refuses it before it allocates.
        "-max_pixels",
        str(MAX_FRAME_PIXELS),
        "-i",
        file_url(path),
    ]


def run_ffmpeg(args: Sequence[str], *, timeout: float, input: bytes | None = None) -> FfmpegResult:
    """Run ffmpeg to its end.

    Args:
        args: Arguments after the common ones (no banner, no question, messages with levels).
        timeout: Seconds after which it is killed.
        input: Bytes for its stdin; None gives it an empty one.

    Returns:
        Exit status, stdout and messages. A failing status is not an error here.

    Raises:
        TimeoutError: It ran past `timeout` and was killed.
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
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"ffmpeg ran past {timeout:.0f} seconds") from error
    except OSError as error:
        raise _not_runnable(command[0], error) from error
    stderr = done.stderr.decode("utf-8", errors="replace")
    _check_version(command[0], stderr)
    return FfmpegResult(done.returncode, done.stdout, stderr)


def has_error(stderr: str) -> bool:
    """Whether ffmpeg reported an error, which it also does in runs that end well."""
    return _ERROR_LINE.search(stderr) is not None


def first_error(stderr: str) -> str:
    """The first error that ffmpeg reported: later ones tend to be its consequences."""
    match = _ERROR_LINE.search(stderr)
    return match.group(1).strip() if match else "no message"


class FfmpegPipe:
    """A running ffmpeg whose stdin or stdout carries frames. Use it in a `with` statement.

    Leaving the block kills a process that still runs. A call that blocks for longer than
    `stall_timeout` seconds kills it too, which the call then sees as the end of the stream.

    Args:
        args: Arguments after the common ones.
        stall_timeout: Seconds that one read or write may take.

    Raises:
        ConfigError: There is no binary, or it cannot be run.
    """

    def __init__(self, args: Sequence[str], stall_timeout: float = 120.0) -> None:
        command = _command(args)
        self._executable = command[0]
        self._stall_timeout = stall_timeout
        self._deadline: float | None = None
        self._closed = threading.Event()
        self._stderr = bytearray()
        self.timed_out = False
        try:
            # A session of its own: Ctrl-C reaches us and not ffmpeg, which must not finish a
            # file that we are about to throw away.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise _not_runnable(command[0], error) from error
        self._threads = [
            threading.Thread(target=self._drain_stderr, daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._closed.set()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # bytes for a process that is gone
                    stream.close()

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with bytes from stdout; returns how many came before the stream ended."""
        stdout = self._process.stdout
        if stdout is None:
            raise ValueError("this ffmpeg has no stdout")
        filled = 0
        self._deadline = time.monotonic() + self._stall_timeout
        try:
            while filled < len(buffer):
                count = stdout.readinto(buffer[filled:])  # type: ignore[attr-defined]
                if not count:
                    break
                filled += count
        finally:
            self._deadline = None
        return filled

    def write(self, data: memoryview) -> None:
        """Send bytes to stdin.

        Raises:
            BrokenPipeError: ffmpeg has ended; `finish` says why.
        """
        stdin = self._process.stdin
        if stdin is None:
            raise ValueError("this ffmpeg has no stdin")
        self._deadline = time.monotonic() + self._stall_timeout
        try:
            stdin.write(data)
        finally:
            self._deadline = None

    def finish(self) -> FfmpegResult:
        """Close its stdin, wait for its end and return status and messages (stdout stays empty)."""
        self._deadline = time.monotonic() + self._stall_timeout
        try:
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # the status says why it is gone
                    self._process.stdin.close()
            returncode = self._process.wait()
        finally:
            self._deadline = None
        self._threads[0].join()
        stderr = self._stderr.decode("utf-8", errors="replace")
        _check_version(self._executable, stderr)
        return FfmpegResult(returncode, b"", stderr)

    def _drain_stderr(self) -> None:
        # A pipe that nobody empties stops ffmpeg after 64 kB of messages.
        stderr = self._process.stderr
        if stderr is None:
            return
        while chunk := stderr.read1(4096):  # type: ignore[attr-defined]
            if len(self._stderr) < _STDERR_KEPT:
                self._stderr += chunk

    def _watch(self) -> None:
        while not self._closed.wait(0.2):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self.timed_out = True
                self._process.kill()
                return


def _command(args: Sequence[str]) -> list[str]:
    return [
        find_ffmpeg(),
        "-hide_banner",
        "-nostdin",
        "-nostats",
        "-loglevel",
        "level+info",
        *args,
    ]


def _environment() -> dict[str, str]:
    # Colours would be read as part of the messages, and FFREPORT writes files.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("AV_LOG_FORCE_COLOR", "FFREPORT")
    }
    environment["AV_LOG_FORCE_NOCOLOR"] = "1"
    return environment


def _not_runnable(executable: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"the ffmpeg binary {executable} cannot be run: {error.strerror or error}",
        hint="unset IMAGEIO_FFMPEG_EXE, or point it at an ffmpeg of version 5.1 or newer",
    )


def _check_version(executable: str, stderr: str) -> None:
    if "Unrecognized option 'fps_mode'" in stderr:
        raise ConfigError(
            f"the ffmpeg binary {executable} is too old: version 5.1 or newer is needed",
            hint="unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships",
        )
