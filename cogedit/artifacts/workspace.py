"""A folder of artifacts named by content key, so that what exists already is found and reused."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts.atomic import show, storage_error
from cogedit.artifacts.known_files import KnownFile
from cogedit.artifacts.records import Record, RecordT, chain_of, content_key, earlier_record
from cogedit.artifacts.store import SUFFIX, read_record, removal_hint, verify_artifact
from cogedit.artifacts.unfinished import Unfinished, made_together
from cogedit.errors import ArtifactDamaged, ArtifactError, ArtifactMismatch, StorageError
from cogedit.types import ArtifactKind

FOLDER_SUFFIX = ".cogedit"

_MAX_STEM_BYTES = 60 if os.name == "nt" else 150  # Windows takes paths of 259 characters


def default_workspace(video: Path) -> Path:
    """The workspace of a video: `<video stem>.cogedit`, in the current directory."""
    return Path(f"{short_stem(video)}{FOLDER_SUFFIX}")


def short_stem(file: Path) -> str:
    """The name of a file without its suffix, short enough for something to be added to it.

    File systems take names of 255 bytes. Two long names may share a short one: artifacts in a
    workspace are told apart by content key.
    """
    name = os.fsencode(file.stem)
    if len(name) <= _MAX_STEM_BYTES:
        return file.stem
    return name[:_MAX_STEM_BYTES].decode(errors="ignore")


@dataclass(frozen=True)
class Workspace:
    """A folder of artifacts, which need not exist yet."""

    root: Path

    def create(self) -> None:
        """Make the folder and its parents. Raises `StorageError` where the system refuses."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.root, error, "write") from error

    def path_for(self, record: Record) -> Path:
        """The file for the artifact of a record, named by kind and content key."""
        return self.root / f"{record.kind}-{content_key(record)[:12]}{SUFFIX}"

    def find(self, record: Record) -> Path | None:
        """The artifact of a record, verified; None if there is none. Its `tensors` are ignored.

        Raises:
            ArtifactDamaged: The file is altered, truncated or no artifact.
            ArtifactMismatch: The file is sound, but made from another record.
            StorageError: The system refuses to read it.
        """
        path = self.path_for(record)
        # --force would not recompute it where it belongs to an earlier stage.
        hint = removal_hint(path, by="the same command")
        if not path.exists():
            return None
        try:
            key = content_key(verify_artifact(path))
        except ArtifactError as error:
            if not path.exists():  # removed since that line
                return None
            raise ArtifactDamaged(error.message, hint=hint) from error
        if key != content_key(record):
            message = (
                f"{show(path)} has content key {key[:12]}, expected {content_key(record)[:12]}"
            )
            raise ArtifactMismatch(message, hint=hint)
        return path

    def as_kept(self, record: RecordT, *, output: Path | None = None) -> RecordT:
        """The record as cogedit 0.1.0 wrote it, where its artifact or its steps are kept so.

        They lie at another content key, and are used as they are. `output` is the artifact's file
        where it has no place in the workspace.
        """
        earlier = earlier_record(record)
        if earlier == record:
            return record
        key, place = content_key(earlier), output or self.path_for(earlier)
        exists = self.holds(earlier, output=output)
        alone = Unfinished.of(place.parent, record.kind, [key])
        together = made_together(place.parent, record.kind)
        is_kept = exists or alone.root.is_dir() or any(key in made.makes for made in together)
        return earlier if is_kept else record

    def holds(self, record: Record, *, output: Path | None = None) -> bool:
        """Whether the artifact of a record is in its place or at `output`, without a look into it.

        At `output` the record is read: anything may lie there.
        """
        if output is None:
            return self.path_for(record).exists()
        return _key_of(output) == content_key(record)

    def recall(self, record: Record, output: Path | None = None) -> list[Record]:
        """The record as later artifacts carry it, with the digests that its own file had.

        Those in the workspace and that at `output` are asked. There are several where it was made
        more than once and the results differ, on two devices for example.
        """
        keys = {content_key(record), content_key(earlier_record(record))}
        found: dict[Record, None] = {}
        if output is not None:
            found |= dict.fromkeys(link for link in _carried([output]) if content_key(link) in keys)
        with contextlib.suppress(OSError):
            changed = self.root.stat().st_mtime_ns
            for key in keys:
                found |= dict.fromkeys(_carried_in(self.root.absolute(), changed).get(key, ()))
        return [*found]


@functools.lru_cache(maxsize=64)
def _carried_in(root: Path, changed: int) -> Mapping[str, Sequence[Record]]:
    """The records that the artifacts in a folder carry of earlier ones, by their content keys.

    They are read once while no file comes or goes there, which `changed` tells: every edit of a
    list asks for them.
    """
    found: dict[str, list[Record]] = {}
    for link in _carried(sorted(root.glob(f"*{SUFFIX}"))):
        found.setdefault(content_key(link), []).append(link)
    return found


def _carried(paths: Iterable[Path]) -> Iterable[Record]:
    """The records that artifacts carry of earlier ones, each once."""
    links: dict[Record, None] = {}
    for path in paths:
        with contextlib.suppress(ArtifactError, StorageError, OSError):
            file = KnownFile.of(path, path.stat())
            links |= _known_links(file) if file.is_settled else _links(path)
    return links


def _links(path: Path) -> Mapping[Record, None]:
    """The earlier records that an artifact carries."""
    return dict.fromkeys(chain_of(read_record(path))[:-1])


@functools.lru_cache(maxsize=2**15)
def _known_links(file: KnownFile) -> Mapping[Record, None]:
    """The same, read once while the file stays as it is.

    Files come with every clip of a list: to open all of them each time would take the longer, the
    more of the list is done.
    """
    return _links(file.path)


def _key_of(path: Path) -> str | None:
    """The content key of an artifact; None of anything else."""
    with contextlib.suppress(ArtifactError, StorageError):
        return content_key(read_record(path))
    return None


def newest_artifact(folders: Iterable[Path], kind: ArtifactKind) -> Path | None:
    """The artifact of this kind that was written last in some workspaces, or None.

    Files that cannot be read are passed over: one bad file must not hide the good ones.
    """
    dated: list[tuple[int, Path]] = []
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in folder.glob(f"{kind}-*{SUFFIX}"):
                with contextlib.suppress(OSError):  # removed since it was listed
                    dated.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(dated, reverse=True):
        with contextlib.suppress(ArtifactError, StorageError):
            if read_record(path).kind == kind:
                return path
    return None
