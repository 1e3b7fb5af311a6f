"""Which artifacts of a workspace belong together, read from their records alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    Record,
    TrajectoryRecord,
    content_key,
    frames_record,
    read_record,
)
from cogedit.errors import CogeditError


@dataclass(frozen=True)
class ClipFiles:
    """The artifacts of one clip.

    Attributes:
        frames: How the clip was loaded.
        files: Every artifact of the clip that is there, by content key.
        inversions: Trajectories that are there or that an edit was made from.
        edits: Edits with their files, in the order in which they were written.
    """

    frames: FramesRecord
    files: dict[str, Path]
    inversions: tuple[TrajectoryRecord, ...]
    edits: tuple[tuple[Path, EditRecord], ...]

    def find(self, record: Record) -> Path | None:
        """Return the file of a record, if it is there."""
        return self.files.get(content_key(record))


def read_workspace(root: Path) -> tuple[list[ClipFiles], dict[str, str]]:
    """Sort the artifacts of a folder by clip.

    Returns:
        The clips, and by file name why an artifact cannot be read.
    """
    left_out: dict[str, str] = {}
    found: list[tuple[Path, Record]] = []
    paths = sorted(root.glob("*.safetensors"), key=lambda path: (path.stat().st_mtime_ns, path))
    for path in paths:
        try:
            found.append((path, read_record(path)))
        except CogeditError as error:
            left_out[path.name] = error.message
    by_clip: dict[str, list[tuple[Path, Record]]] = {}
    for path, record in found:
        by_clip.setdefault(content_key(frames_record(record)), []).append((path, record))
    return [_clip(members) for members in by_clip.values()], left_out


def _clip(members: list[tuple[Path, Record]]) -> ClipFiles:
    edits = [(path, record) for path, record in members if isinstance(record, EditRecord)]
    records = [record for _, record in members if isinstance(record, TrajectoryRecord)]
    inversions = {content_key(one): one for one in [*records, *(e.trajectory for _, e in edits)]}
    return ClipFiles(
        frames=frames_record(members[0][1]),
        files={content_key(record): path for path, record in members},
        inversions=tuple(inversions.values()),
        edits=tuple(edits),
    )
