"""Read the text files that a user names, whatever else lies under their names."""

from __future__ import annotations

import stat
from pathlib import Path

from cogedit.errors import ConfigError

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


def toml_problem(error: Exception) -> str:
    """Return why a text is not TOML, for the end of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "int_max_str_digits" in str(error):
        return "a number in it has thousands of digits"
    return str(error)
