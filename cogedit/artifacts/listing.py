"""What lies in a workspace: artifacts, runs that did not finish, and leftovers of killed ones."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cogedit.artifacts.atomic import TEMPORARY_SUFFIX
from cogedit.artifacts.locks import unused
from cogedit.artifacts.records import EditRecord, Record
from cogedit.artifacts.steps import newest_step
from cogedit.artifacts.store import SUFFIX, read_record, verify_artifact
from cogedit.artifacts.unfinished import UNFINISHED_SUFFIX, Unfinished
from cogedit.artifacts.workspace import FOLDER_SUFFIX
from cogedit.errors import ArtifactError, StorageError
from cogedit.types import ArtifactKind

State = Literal["whole", "damaged", "unfinished", "leftover"]

IDLE_SECONDS = 3600.0
"""How long nothing may have changed before it is removed where locks cannot tell who uses it."""

_TEMPORARY_EXPORT = ".cogedit-*"
"""What a video, or a folder of pictures, is written to until it is whole (`cogedit.media`)."""


@dataclass(frozen=True)
class Entry:
    """One file or folder of a workspace.

    Attributes:
        path: Where it is.
        state: "whole" and "damaged" artifacts; "unfinished" steps that a run goes on from; a
            "leftover" is of no use to anybody.
        size: Bytes.
        modified: When it was last written, in seconds since the epoch.
        kind: Kind of the artifact, also of an unfinished one; None of a temporary file.
        about: A few words: the prompt, how far it is, or what is wrong.
    """

    path: Path
    state: State
    size: int
    modified: float
    kind: ArtifactKind | None
    about: str


@dataclass(frozen=True)
class Pruned:
    """What a pruning did.

    Attributes:
        removed: What is gone, or would be.
        in_use: Folders that were left alone because a process works in them.
        recent: What was left alone because it is too new to be sure that nobody uses it.
    """

    removed: tuple[Entry, ...]
    in_use: tuple[Path, ...]
    recent: tuple[Entry, ...]


def workspaces_in(directory: Path) -> list[Path]:
    """The workspaces of a directory, by name."""
    return sorted(path for path in directory.glob(f"*{FOLDER_SUFFIX}") if path.is_dir())


def survey(folder: Path, *, verify: bool = False) -> list[Entry]:
    """List what lies in a workspace, artifacts first.

    Args:
        folder: The workspace.
        verify: Check every byte of the artifacts; else their headers and sizes.
    """
    artifacts = sorted(
        path
        for path in folder.glob(f"*{SUFFIX}")
        if not path.name.startswith(".") and not path.is_dir()
    )
    unfinished = sorted(folder.glob(f"*{UNFINISHED_SUFFIX}"))
    temporary = sorted([*folder.glob(f".*{TEMPORARY_SUFFIX}"), *folder.glob(_TEMPORARY_EXPORT)])
    entries = [
        *(_artifact(path, verify=verify) for path in artifacts),
        *(_unfinished(path) for path in unfinished if path.is_dir()),
        *(_temporary(path) for path in temporary),
    ]
    return [entry for entry in entries if entry is not None]


def prune(
    folders: Sequence[Path],
    *,
    wanted: Callable[[Entry], bool],
    verify: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Remove things from workspaces in which no process works.

    Args:
        folders: The workspaces.
        wanted: Says of an entry whether it is to go.
        verify: As for `survey`: whether an artifact counts as damaged for any byte.
        dry_run: Remove nothing.

    Raises:
        StorageError: The system refuses.
    """
    removed: list[Entry] = []
    recent: list[Entry] = []
    in_use: list[Path] = []
    for folder in folders:
        with unused(folder) as free:
            if free is False:
                in_use.append(folder)
                continue
            for entry in survey(folder, verify=verify):
                if not wanted(entry):
                    continue
                if free is None and time.time() - entry.modified < IDLE_SECONDS:
                    recent.append(entry)
                elif dry_run or _remove(entry):
                    removed.append(entry)
    return Pruned(tuple(removed), tuple(in_use), tuple(recent))


def _remove(entry: Entry) -> bool:
    """Remove an entry; False if it is gone already, or a process is in it."""
    if entry.path.name.endswith(UNFINISHED_SUFFIX):
        return Unfinished(entry.path, ()).clear()
    try:
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot remove {entry.path}: {error.strerror}") from error
    return True


def _artifact(path: Path, *, verify: bool) -> Entry | None:
    facts = _facts([path])
    if facts is None:
        return None
    try:
        record = verify_artifact(path) if verify else read_record(path)
    except (ArtifactError, StorageError) as error:
        return Entry(path, "damaged", *facts, None, error.message)
    return Entry(path, "whole", *facts, record.kind, _about(record))


def _unfinished(path: Path) -> Entry | None:
    try:
        files = [file for file in path.iterdir() if file.is_file()]
        size, modified = _facts(files) or (0, path.stat().st_mtime)
    except FileNotFoundError:  # its run has finished
        return None
    step = newest_step(path)
    name = path.name.removesuffix(UNFINISHED_SUFFIX)
    kinds: dict[str, ArtifactKind] = {"trajectory": "trajectory", "edit": "edit", "edits": "edit"}
    kind = kinds.get(name.partition("-")[0])
    if step is None:
        return Entry(path, "leftover", size, modified, kind, "no step is done")
    made = [path.with_name(f"{kind}-{key[:12]}{SUFFIX}") for key in step.makes]
    if all(one.exists() for one in made):
        return Entry(path, "leftover", size, modified, kind, "finished since")
    about = f"step {step.info.index + 1} of {step.info.total}; the same command goes on from it"
    return Entry(path, "unfinished", size, modified, kind, about)


def _temporary(path: Path) -> Entry | None:
    files = [path]
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # it has its name now, or is thrown away
            files += path.iterdir()
    facts = _facts(files)
    return None if facts is None else Entry(path, "leftover", *facts, None, "half written")


def _facts(files: Sequence[Path]) -> tuple[int, float] | None:
    """Size of some files together and the time of the newest; None if none is there."""
    found: list[os.stat_result] = []
    for file in files:
        with contextlib.suppress(OSError):
            found.append(file.lstat())
    if not found:
        return None
    size = sum(status.st_size for status in found if not stat.S_ISDIR(status.st_mode))
    return size, max(status.st_mtime for status in found)


def _about(record: Record) -> str:
    if isinstance(record, EditRecord):
        return record.settings.prompt
    [tensor] = [tensor for tensor in record.tensors if tensor.name == record.kind]
    return f"{tensor.name} {list(tensor.shape)} {tensor.dtype}"
