"""Which programs and libraries read and write videos here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from cogedit.errors import ConfigError
from cogedit.media.ffmpeg import find_ffmpeg, run_ffmpeg

_TIMEOUT = 30.0


@dataclass(frozen=True)
class Ffmpeg:
    """The ffmpeg binary that is used.

    Attributes:
        path: The binary.
        version: As it says itself, such as "7.0.2-static".
    """

    path: str
    version: str


def examine_ffmpeg() -> Ffmpeg:
    """Find the ffmpeg binary, run it, and make sure that it writes H.264.

    Raises:
        ConfigError: There is none, it does not run, or it has no H.264 encoder.
    """
    path = find_ffmpeg()
    try:
        said = run_ffmpeg(["-version"], timeout=_TIMEOUT).stdout.decode(errors="replace")
        encoders = run_ffmpeg(["-encoders"], timeout=_TIMEOUT).stdout.decode(errors="replace")
    except TimeoutError as error:
        raise ConfigError(f"the ffmpeg binary {path} does not end: {error}") from error
    found = re.search(r"ffmpeg version (\S+)", said)
    if found is None:
        raise ConfigError(
            f"{path} is no ffmpeg: it does not say its version",
            hint="unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships",
        )
    if "libx264" not in encoders:
        raise ConfigError(
            f"the ffmpeg binary {path} was built without libx264, which writes H.264",
            hint="unset IMAGEIO_FFMPEG_EXE to use the one that imageio-ffmpeg ships",
        )
    return Ffmpeg(path, found.group(1))


def decord_version() -> str | None:
    """Version of decord; None where it is not installed, and ffmpeg reads every file."""
    try:
        return version("decord")
    except PackageNotFoundError:
        return None
