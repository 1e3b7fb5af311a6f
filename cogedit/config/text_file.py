"""Read the text files that a user names, whatever else lies under their names."""

from __future__ import annotations

import codecs
import stat
import tomllib
from pathlib import Path

from cogedit.errors import ConfigError

BACKSLASHES = "a backslash begins an escape: write / in its place"

_MAX_BYTES = 100_000_000


def read_file(path: Path, name: str) -> bytes:
    """Read a small regular file.

    Raises:
        ConfigError: It is missing, a folder, a pipe, a device or too large, or may not be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            # A pipe would be waited for, and a device such as /dev/zero has no end.
            raise ConfigError(f"{name} is not a regular file")
        if status.st_size > _MAX_BYTES:
            raise ConfigError(f"{name} has {status.st_size} bytes; expected {_MAX_BYTES} at most")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:  # of a name that no file can have
        raise ConfigError(f"cannot read {name}: no file has such a name") from error


def decode(data: bytes, name: str) -> str:
    """Return a file's text: UTF-8, or UTF-16 with a byte order mark, as PowerShell writes it.

    Raises:
        ConfigError: It is in another encoding.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding, known_as = ("utf-16", "UTF-16") if is_utf16 else ("utf-8-sig", "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not {known_as}", hint="save it as UTF-8") from error
    if "\0" in text:
        raise ConfigError(
            f"{name} holds NUL characters, as UTF-32, and UTF-16 without a mark, do",
            hint="save it as UTF-8",
        )
    return text


def parse_toml(text: str, name: str) -> dict[str, object]:
    """Return the values of a TOML file. Raises `ConfigError` where it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        hint = f"in double quotes {BACKSLASHES}" if "\\" in text else None
        raise ConfigError(f"{name} is not valid TOML: {_problem(error)}", hint=hint) from error


def _problem(error: Exception) -> str:
    """Return why a text is not TOML, for the end of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "int_max_str_digits" in str(error):
        return "a number in it has thousands of digits"
    return str(error)
