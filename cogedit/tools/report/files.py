"""What a report is made of: the artifacts of a workspace by clip, and the model of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    content_key,
    frames_record,
    read_record,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactMismatch, CogeditError, ModelError
from cogedit.models.checkpoint import looked_up_once
from cogedit.stages.model import check_same_model, checkpoint_for
from cogedit.stages.settings import settings_as_made


@dataclass(frozen=True)
class ClipFiles:
    """The artifacts of one clip: the existing files by content key, and what they record."""

    frames: FramesRecord
    files: dict[str, Path] = field(default_factory=dict)
    inversions: list[TrajectoryRecord] = field(default_factory=list)  # also of files that are gone
    edits: list[tuple[Path, EditRecord]] = field(default_factory=list)
    made: dict[Path, LatentsRecord | TrajectoryRecord | EditRecord] = field(default_factory=dict)

    def find(self, record: Record) -> Path | None:
        """Return the file of a record, if it exists."""
        return self.files.get(content_key(record))


def read_workspace(root: Path) -> tuple[list[ClipFiles], dict[str, str]]:
    """Sort the artifacts of a folder by clip.

    Returns:
        The clips, and by file name why an artifact cannot be read.
    """
    left_out: dict[str, str] = {}
    by_clip: dict[str, ClipFiles] = {}
    for path in sorted(root.glob("*.safetensors"), key=lambda path: (_modified(path), path)):
        try:
            record = read_record(path)
        except CogeditError as error:
            left_out[path.name] = error.message
            continue
        frames = frames_record(record)
        clip = by_clip.setdefault(content_key(frames), ClipFiles(frames))
        clip.files[content_key(record)] = path
        if not isinstance(record, FramesRecord):
            clip.made[path] = record
        inversion = record.trajectory if isinstance(record, EditRecord) else record
        if isinstance(record, EditRecord):
            clip.edits.append((path, record))
        known = {content_key(other) for other in clip.inversions}
        if isinstance(inversion, TrajectoryRecord) and content_key(inversion) not in known:
            clip.inversions.append(inversion)
    return list(by_clip.values()), left_out


@looked_up_once()  # also a model that a network is asked for in vain
def find_models(
    clips: Sequence[ClipFiles], settings: Settings, left_out: dict[str, str]
) -> Mapping[Path, Settings]:
    """Find the model of every file that one made, and add those without one to `left_out`.

    It is the one that `settings` name, and the files of others are left out; where they name none,
    each file's own, in its dtype. Of these only what is on this machine counts: many gigabytes are
    too much for a page.

    Returns:
        By file the settings that decode it, equal for the files of one model.

    Raises:
        ModelError: The model that was named is not here, or none of those that the files name.
    """
    found: dict[Path, Settings] = {}
    missing: list[ModelError] = []
    made = [(path, record) for clip in clips for path, record in clip.made.items()]
    for path, record in made:
        try:
            own = settings_as_made(path, record.model, settings)
        except ModelError as error:  # made with a file that it does not know
            missing.append(error)
            left_out[path.name] = str(error)
            continue
        own = replace(own, weights=None)  # of the transformer, which nothing here runs
        try:
            checkpoint = checkpoint_for(own, download=settings.model != "auto")
            check_same_model(path.name, record, checkpoint)
        except ArtifactMismatch as error:
            left_out[path.name] = error.message
        except ModelError as error:
            if settings.model != "auto":
                raise
            missing.append(error)
            left_out[path.name] = str(error)
        else:
            found[path] = own
    if missing and not found:
        raise missing[0]
    return found


def _modified(path: Path) -> int:
    """When a file was written, in ns; a link to nothing comes first."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
