"""What both benchmarks share: their command lines' errors, their folder, their JSON."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from cogedit.errors import CogeditError, StorageError, UsageError


def notify(text: str) -> None:
    """Write a line of progress to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def run_command(benchmark: Callable[[Namespace], None], options: Namespace) -> int:
    """Run a benchmark; an error becomes a sentence on stderr and its exit code."""
    try:
        benchmark(options)
    except CogeditError as error:
        notify(f"error: {error}")
        return error.exit_code
    return 0


def make_folder(folder: Path) -> None:
    """Create the folder of the results if it is missing.

    Raises:
        StorageError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {folder}: {error.strerror or error}") from error


def write_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a record; NaN, which JSON does not have, becomes null.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        path.write_text(json.dumps(_without_nan(record), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _without_nan(value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


Quality = Mapping[str, Mapping[str, tuple[float, float]]]
"""By row, then by kind of edit: the share of clips in which the edit is seen, and dB of PSNR
against the right answer."""


def read_quality(path: Path, rows: Mapping[str, str]) -> Quality:
    """Read what the quality benchmark measured for some rows of another table.

    Args:
        path: A `quality.json`.
        rows: For each row of the other table, its row in that file. One that was not run for every
            kind of edit is left out.

    Raises:
        UsageError: The file cannot be read, is of another kind, or has none of the rows.
    """
    hint = "`python -m cogedit.lab.quality` writes one"
    try:
        edits = json.loads(path.read_text(encoding="utf-8"))["edits"]
        edits.pop("same", None)  # asks for nothing that could be seen
        quality = {
            row: {
                kind: (of[name]["target_seen"]["mean"], of[name]["counterfactual_psnr"]["mean"])
                for kind, of in edits.items()
            }
            for row, name in rows.items()
            if all(name in of for of in edits.values())
        }
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} has no quality of edits: {error!r}", hint=hint) from error
    if not edits:
        raise UsageError(f"{path} has no edits that ask for a change", hint=hint)
    if not quality:
        raise UsageError(f"{path} has none of {', '.join(rows.values())}", hint=hint)
    return quality
