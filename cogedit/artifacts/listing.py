"""What a workspace contains: artifacts, unfinished runs, and leftovers of killed ones."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cogedit.artifacts.atomic import show, temporary_files
from cogedit.artifacts.leases import HOLDER_NAME, are_held, file_system_time, is_lease
from cogedit.artifacts.locks import unused
from cogedit.artifacts.records import EditRecord, Record, frames_record
from cogedit.artifacts.steps import newest_step
from cogedit.artifacts.store import SUFFIX, is_artifact_file, read_record, verify_artifact
from cogedit.artifacts.unfinished import UNFINISHED_SUFFIX, Unfinished
from cogedit.artifacts.workspace import FOLDER_SUFFIX
from cogedit.clip_times import show_time
from cogedit.disk import FRAME_NAME, is_regular, remove_folder
from cogedit.errors import ArtifactError, ArtifactNewer, CogeditError, StorageError
from cogedit.types import ArtifactKind

State = Literal[
    "whole",
    "damaged",
    "newer",  # made by a newer cogedit
    "foreign",  # of another program
    "unreadable",  # the system refuses to read it
    "unfinished",  # the same command resumes it
    "leftover",  # of no use
]

_NOT_OURS: tuple[State, ...] = ("newer", "foreign", "unreadable")
"""What is never removed, whatever is wanted."""

IDLE_SECONDS = 3600.0
"""Without working locks, what changed within this time counts as in use."""

_EXPORT = re.compile(r"\.cogedit-[0-9a-f]{16}(\.[a-z0-9]+)?", re.IGNORECASE)
"""A video, or a folder of images, that is being written (`cogedit.media`)."""

_MAKING = re.compile(rf"(frames|latents|trajectory|edits?)-[0-9a-f]{{12}}\{UNFINISHED_SUFFIX}")

_KINDS: dict[str, ArtifactKind] = {"trajectory": "trajectory", "edit": "edit", "edits": "edit"}
"""Kind of an unfinished artifact by the first word of its folder's name."""


@dataclass(frozen=True)
class Entry:
    """One file or folder of a workspace."""

    path: Path
    state: State
    size: int  # bytes
    modified: float  # when it was last written, in seconds since the epoch
    kind: ArtifactKind | None  # also of an unfinished artifact; None for a temporary file
    about: str  # a few words: the prompt, the progress, or what is wrong


@dataclass(frozen=True)
class Pruned:
    """What was removed from some workspaces."""

    removed: tuple[Entry, ...]  # what was removed, or would be
    in_use: tuple[Path, ...]  # workspaces left alone because a process works in them
    recent: tuple[Entry, ...]  # left alone: too new on a file system without locks


def workspaces_in(directory: Path) -> list[Path]:
    """The workspaces of a directory, by name."""
    return sorted(path for path in directory.glob(f"*{FOLDER_SUFFIX}") if path.is_dir())


def survey(folder: Path, *, verify: bool = False) -> list[Entry]:
    """List the contents of a workspace, artifacts first.

    `verify` checks every byte of the artifacts instead of headers and sizes only.
    """
    artifacts = (
        path
        for path in folder.glob(f"*{SUFFIX}")
        if not path.name.startswith(".") and not path.is_dir()
    )
    unfinished = (
        path
        for path in folder.glob(f"*{UNFINISHED_SUFFIX}")
        if _MAKING.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
    temporary = [*temporary_files(folder), *_exports(folder)]
    entries = [
        *(_artifact(path, verify=verify) for path in sorted(artifacts)),
        *(_unfinished(path) for path in sorted(unfinished)),
        *(_temporary(path) for path in sorted(temporary)),
    ]
    return [entry for entry in entries if entry is not None]


def prune(
    folders: Sequence[Path],
    *,
    wanted: Callable[[Entry], bool],
    verify: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Remove the wanted entries from workspaces in which no process works.

    Only what cogedit wrote is ever removed: no file of another program, no link.
    `verify` is that of `survey`; `dry_run` removes nothing. Raises `StorageError` where the system
    refuses.
    """
    removed: list[Entry] = []
    recent: list[Entry] = []
    in_use: list[Path] = []
    for folder in folders:
        with unused(folder) as free:
            if free is False or are_held(_leases(folder)):
                in_use.append(folder)
                continue
            for entry in filter(wanted, survey(folder, verify=verify)):
                if entry.state in _NOT_OURS or entry.path.is_symlink():
                    continue
                if free is None and _is_recent(entry, folder):
                    recent.append(entry)
                elif dry_run or _remove(entry.path):
                    removed.append(entry)
    return Pruned(tuple(removed), tuple(in_use), tuple(recent))


def _is_recent(entry: Entry, folder: Path) -> bool:
    try:
        return file_system_time(folder) - entry.modified < IDLE_SECONDS
    except OSError:  # nothing can be removed there either
        return True


def _remove(path: Path) -> bool:
    """Remove an entry; False if it is gone already, or a process works in it."""
    if path.name.endswith(UNFINISHED_SUFFIX):
        return Unfinished(path, ()).clear()
    try:
        if path.is_dir():
            remove_folder(path, HOLDER_NAME if is_lease(path) else FRAME_NAME)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot remove {show(path)}: {error.strerror}") from error
    return True


def _artifact(path: Path, *, verify: bool) -> Entry | None:
    status = _size_and_time([path])
    if status is None:
        return None
    try:
        record = verify_artifact(path) if verify else read_record(path)
    except (ArtifactError, StorageError) as error:
        if not os.path.lexists(path):  # removed since it was listed
            return None
        return Entry(path, _state_of(path, error), *status, None, error.message)
    return Entry(path, "whole", *status, record.kind, _about(record))


def _state_of(path: Path, error: CogeditError) -> State:
    """Tell damage from files that are not to be judged here."""
    try:
        is_ours = is_artifact_file(path)
    except FileNotFoundError:  # a link to nothing
        return "foreign"
    except OSError:
        return "unreadable"
    if not is_ours:
        return "foreign"
    if isinstance(error, StorageError):
        return "unreadable"
    return "newer" if isinstance(error, ArtifactNewer) else "damaged"


def _unfinished(path: Path) -> Entry | None:
    step = newest_step(path)
    try:
        files = [file for file in path.iterdir() if file.is_file()]
        size, modified = _size_and_time(files) or (0, path.stat().st_mtime)
        has_others = Unfinished(path, ()).holds_other_files()
    except FileNotFoundError:  # its run has just finished
        return None
    kind = _KINDS.get(path.name.removesuffix(UNFINISHED_SUFFIX).partition("-")[0])
    if has_others:
        about = "holds files that are not cogedit's; nothing in it is removed"
        return Entry(path, "foreign", size, modified, None, about)
    if step is None:
        return Entry(path, "leftover", size, modified, kind, "no step is done")
    if all(path.with_name(f"{kind}-{key[:12]}{SUFFIX}").exists() for key in step.makes):
        return Entry(path, "leftover", size, modified, kind, "finished since")
    about = f"step {step.info.index + 1} of {step.info.total}; the same command resumes it"
    return Entry(path, "unfinished", size, modified, kind, about)


def _temporary(path: Path) -> Entry | None:
    files = [path]
    if path.is_dir():
        with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
            files += path.iterdir()
    status = _size_and_time(files)
    return None if status is None else Entry(path, "leftover", *status, None, "half written")


def _exports(folder: Path) -> list[Path]:
    """What writes to a folder left there: videos, folders of nothing but images, and leases."""
    found = [path for path in folder.glob(".cogedit-*") if _EXPORT.fullmatch(path.name)]
    return [p for p in found if is_regular(p) or is_lease(p) or _is_image_folder(p)]


def _leases(folder: Path) -> list[Path]:
    """Where leases are in a folder: of artifacts in the making, and of outputs."""
    return [*folder.glob(f"*{UNFINISHED_SUFFIX}/lease"), *folder.glob(".cogedit-*.lease")]


def _is_image_folder(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
        return all(
            FRAME_NAME.fullmatch(image.name) and is_regular(image) for image in path.iterdir()
        )
    return False


def _size_and_time(files: Iterable[Path]) -> tuple[int, float] | None:
    """Total size of some files and the time of the newest; None if none exists."""
    statuses: list[os.stat_result] = []
    for file in files:
        with contextlib.suppress(OSError):
            statuses.append(file.lstat())
    if not statuses:
        return None
    size = sum(status.st_size for status in statuses if not stat.S_ISDIR(status.st_mode))
    return size, max(status.st_mtime for status in statuses)


def _about(record: Record) -> str:
    if isinstance(record, EditRecord):
        return record.title
    tensor = next(tensor for tensor in record.tensors if tensor.name == record.kind)
    frames = frames_record(record)
    first, end = map(show_time, frames.span)
    shape = f"{tensor.name} {list(tensor.shape)} {tensor.dtype}"
    return f"{shape}, {first} to {end} of {frames.source.name}"
