"""What the command lines of the benchmarks share."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cogedit.errors import CogeditError, StorageError

Say = Callable[[str], None]
"""Told what is being done, for people."""


class Benchmark(Protocol):
    """Runs as the options say."""

    def __call__(self, options: Namespace, /, *, say: Say) -> None:
        """Run, and tell people."""


def run_command(benchmark: Benchmark, options: Namespace) -> int:
    """Run a benchmark; what it tells goes to stderr.

    Returns:
        0, or the exit code of what went wrong, which is said on stderr.
    """
    try:
        benchmark(options, say=_say)
    except CogeditError as error:
        _say(f"error: {error}")
        return error.exit_code
    return 0


def make_folder(folder: Path) -> None:
    """Make the folder of the results where it is missing.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror or error}") from error


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
