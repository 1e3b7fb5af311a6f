"""A folder of artifacts named by content key: what is there already is not made again."""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.records import Record, content_key
from cogedit.artifacts.store import SUFFIX, read_record, verify_artifact
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch, StorageError
from cogedit.types import ArtifactKind

FOLDER_SUFFIX = ".cogedit"

_MAX_STEM_BYTES = 150


def default_workspace(video: Path) -> Path:
    """Where the artifacts of a video go: `<video stem>.cogedit`, in the current directory."""
    return Path(f"{short_stem(video)}{FOLDER_SUFFIX}")


def short_stem(file: Path) -> str:
    """The name of a file without its suffix, short enough for something to be added to it.

    File systems take names of 255 bytes. Two long names may have one short one: what lies in a
    workspace is told apart by content key.
    """
    name = os.fsencode(file.stem)
    if len(name) <= _MAX_STEM_BYTES:
        return file.stem
    return name[:_MAX_STEM_BYTES].decode(errors="ignore")


@dataclass(frozen=True)
class Workspace:
    """A folder of artifacts.

    Attributes:
        root: The folder; it need not exist yet.
    """

    root: Path

    def create(self) -> None:
        """Make the folder and those above it.

        Raises:
            StorageError: The system refuses.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.root, error, "write") from error

    def path_for(self, record: Record) -> Path:
        """Where the artifact of this record belongs: kind and content key make its name."""
        return self.root / f"{record.kind}-{content_key(record)[:12]}{SUFFIX}"

    def find(self, record: Record) -> Path | None:
        """The artifact of this record, if it was made before; its bytes are verified.

        Args:
            record: What is wanted; its tensors are ignored.

        Returns:
            The file, or None where there is none.

        Raises:
            ArtifactDamaged: The file is there and altered, truncated or none of ours.
            ArtifactMismatch: The file is there and sound, but made from another record.
            StorageError: The system refuses to read it.
        """
        path = self.path_for(record)
        # Of a stage before the one that was asked for, --force would not make it anew.
        hint = f"remove it, and the same command makes it anew: rm {shlex.quote(show(path))}"
        if not path.exists():
            return None
        try:
            found = verify_artifact(path)
        except ArtifactError as error:
            raise ArtifactDamaged(error.message, hint=hint) from error
        key, expected = content_key(found), content_key(record)
        if key != expected:
            message = f"{show(path)} has content key {key[:12]}, expected {expected[:12]}"
            raise ArtifactMismatch(message, hint=hint)
        return path

    def newest(self, kind: ArtifactKind) -> Path | None:
        """The artifact of this kind that was written last, or None.

        Files that cannot be read are passed over: one bad file must not hide the good ones.
        """
        return _newest([self.root], kind)


def newest_in_directory(directory: Path, kind: ArtifactKind) -> Path | None:
    """The artifact of this kind that was written last in any `*.cogedit` folder of a directory.

    Files and folders that cannot be read are passed over.
    """
    return _newest(list(directory.glob(f"*{FOLDER_SUFFIX}")), kind)


def _newest(folders: list[Path], kind: ArtifactKind) -> Path | None:
    dated: list[tuple[int, str, Path]] = []
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in folder.glob(f"{kind}-*{SUFFIX}"):
                with contextlib.suppress(OSError):  # gone since it was listed
                    dated.append((path.stat().st_mtime_ns, str(path), path))
    for _, _, path in sorted(dated, reverse=True):
        with contextlib.suppress(ArtifactError, StorageError):
            if read_record(path).kind == kind:
                return path
    return None
