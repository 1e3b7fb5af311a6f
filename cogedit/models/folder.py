"""The files of a pipeline's folder: what changes when they do, and a digest over them. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cogedit.errors import ModelError
from cogedit.models.configs import Config
from cogedit.models.weights import WeightFile

FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")

FolderState = tuple[tuple[str, int, int, int], ...]

_READ_WHOLE = (".json", ".model")
_MAX_BYTES = 100_000_000
"""A vocabulary has 2 MB, the longest list of weights less."""


def state_of(folder: Path, name: str, *, mend: str) -> FolderState:
    """Path, size, time of change and inode of every file of a pipeline.

    Raises:
        ModelError: One of them is no file, or too large to be read whole.
    """
    state: list[tuple[str, int, int, int]] = []
    for part in ("", *FOLDERS):
        place = os.path.join(folder, part)  # noqa: PTH118  (a batch asks 10,000 times)
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            for entry in entries:
                if part or entry.name == "model_index.json":
                    with suppress(FileNotFoundError):  # a link to nothing
                        state.append(_file_state(entry, f"{part}/{entry.name}", name, mend))
    return tuple(sorted(state))


def _file_state(
    entry: os.DirEntry[str], file: str, name: str, mend: str
) -> tuple[str, int, int, int]:
    status = entry.stat()
    if stat.S_ISREG(status.st_mode):
        is_large = status.st_size > _MAX_BYTES and file.endswith(_READ_WHOLE)
        problem = f"has {status.st_size} bytes; expected {_MAX_BYTES} at most" if is_large else ""
    else:
        # A pipe would be waited for, and a device such as /dev/zero has no end.
        problem = "" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
    if problem:
        raise ModelError(f"{name} is damaged: {file.lstrip('/')} {problem}", hint=mend)
    return entry.path, status.st_size, status.st_mtime_ns, status.st_ino


def state_of_file(path: Path) -> tuple[str, int, int, int]:
    """The same of a single file; of one that is not there, zeros."""
    with suppress(OSError):
        status = path.stat()
        return str(path), status.st_size, status.st_mtime_ns, status.st_ino
    return str(path), 0, 0, 0


def digest_of(
    folder: Path, weights: list[WeightFile], others: Mapping[str, tuple[Config, WeightFile]]
) -> str:
    """Hash every configuration file whole, and a sample of every weight tensor.

    Args:
        folder: Of the pipeline.
        weights: Its weight files.
        others: By part, configuration and weights of what is not in its folder.
    """
    digest = hashlib.sha256()
    folders = [part for part in FOLDERS if part not in others]
    for path in (path for part in folders for path in sorted((folder / part).glob("*"))):
        if path.suffix in _READ_WHOLE and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    for weight_file in weights:
        digest.update(f"{weight_file.path.relative_to(folder).as_posix()}\n".encode())
        for sample in weight_file.sample():
            digest.update(sample)
    for part, (config, weight_file) in sorted(others.items()):
        digest.update(f"{part}\n{json.dumps(config, sort_keys=True)}\n".encode())
        for sample in weight_file.sample():
            digest.update(sample)
    return digest.hexdigest()
