"""The source of an edit, found again: its video, and its frames and latents in the workspace."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    Record,
    Slices,
    TrajectoryRecord,
    Workspace,
    frames_record,
    num_pad_frames,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactError, ArtifactMismatch, UsageError, VideoError
from cogedit.media.clip import ResizePlan
from cogedit.media.facts import VideoFacts
from cogedit.media.files import check_file
from cogedit.media.images import are_images, check_unchanged, digest_of
from cogedit.media.probe import probe_as_recorded
from cogedit.media.reader import iterate_frames
from cogedit.media.sound import choose_audio
from cogedit.media.writer import AudioSource
from cogedit.sources import SourceVideo
from cogedit.stages.again import encode_again, load_again
from cogedit.stages.run import workspace_for
from cogedit.types import ExportSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FoundSource:
    """A source video that is the recorded one, and the record of the clip."""

    path: Path
    facts: VideoFacts
    frames: FramesRecord

    def read(
        self, indices: Sequence[int], *, size: tuple[int, int] | None = None
    ) -> Generator[NDArray[np.uint8], None, None]:
        """`iterate_frames` of the video, and `VideoError` where it changed before the last one."""
        last = len(indices) - 1
        with closing(iterate_frames(self.path, self.facts, indices=indices, size=size)) as frames:
            for number, frame in enumerate(frames):
                if number == last:  # not after it: who has all frames may ask for no other
                    check_unchanged(self.path, self.frames.source.sha256)
                yield frame

    def audio(
        self, export: ExportSettings, suffix: str, *, duration: Fraction | None = None
    ) -> AudioSource | str:
        """The audio of the clip for a file of this suffix, or why there is none.

        It lasts as long as the clip, or another `duration` in seconds.
        """
        frames = self.frames
        # Audio and video of a file need not begin together.
        start = self.facts.timing.start + frames.frame_indices[0] / frames.source.fps
        if not self.facts.audio_tracks:
            return f"{self.path} has no audio track"
        return choose_audio(
            self.path,
            self.facts.audio_tracks,
            wanted=export.audio_track,
            suffix=suffix,
            start=start,
            duration=duration or frames.num_frames / frames.fps,
        )


def find_source(
    frames: FramesRecord, artifact: Path, given: Path | None = None
) -> FoundSource | str:
    """Find the video of a clip by the name and digest of its record, or say why it was not found.

    It may lie in the folder of an artifact of the clip, in the one above, where a workspace is made
    beside its video, or in the current directory. UsageError if the `given` one is another video.
    """
    source = frames.source
    if given is not None:
        if not are_images(given):
            check_file(given)
        digest = digest_of(given)
        if digest != source.sha256:
            raise UsageError(
                f"--source {given} is not the video that the clip was taken from: its sha256 is "
                f"{digest[:12]}..., expected {source.sha256[:12]}... of {source.name}"
            )
        return _found(given, frames)
    candidates = _candidates(source, artifact)
    for candidate in candidates:
        with suppress(VideoError):  # a folder of that name with other pictures in it
            if digest_of(candidate) == source.sha256:
                return _found(candidate, frames)
    if candidates:
        return f"{candidates[0]} is not the {source.place} that the clip was taken from"
    beside = f"beside {artifact.parent}" if artifact.parent.name else "in the folder above"
    return f"{source.place} is neither here nor {beside}"


def require_source(found: FoundSource | str, frames: FramesRecord, flag: str) -> FoundSource:
    """Raise `VideoError` if the source video was not found, for the reason in its place."""
    if isinstance(found, str):
        raise VideoError(
            f"{flag} needs frames of {frames.source.name} itself, and {found}",
            hint="name it with --source VIDEO",
        )
    return found


def _candidates(source: SourceVideo, artifact: Path) -> list[Path]:
    """The files, or the folders of pictures, that have the name of a source."""
    name = Path(source.name).name
    found = []
    above = Path(os.path.normpath(artifact.parent / ".."))  # the parent of "." would be "."
    for folder in dict.fromkeys((Path(), artifact.parent, above)):
        if source.reader != "pillow" or not source.is_untimed:
            found += [folder / name] if (folder / name).is_file() else []
            continue
        named = [folder / name, *([folder] if folder.resolve().name == name else [])]
        found += [place / (source.pattern or "") for place in named if place.is_dir()]
    return found


def _found(path: Path, frames: FramesRecord) -> FoundSource | str:
    source, facts = frames.source, probe_as_recorded(path, frames.source, frames.settings)
    if (facts.width, facts.height) != (source.width, source.height):
        return (
            f"{path} is now shown at {facts.width}x{facts.height}, and the clip was taken at "
            f"{source.width}x{source.height}"
        )
    return FoundSource(path, facts, frames)


def resize_plan(frames: FramesRecord) -> ResizePlan:
    """How frames of the source became frames of the clip, from its record."""
    source, size = frames.source, frames.settings
    return ResizePlan(source.width, source.height, frames.box, size.width, size.height)


def keeps_time(frames: FramesRecord) -> bool:
    """Whether a clip's frames are evenly spaced in the source and play as long as there."""
    indices = frames.shown_indices
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    even = all(after - before == step for before, after in pairwise(indices))
    return even and frames.fps == frames.source.fps / step


class FramesOnDisk(Sequence[NDArray[np.uint8]]):
    """The frames of a clip, or of its mask, each uint8 [H, W, ...] and read when it is needed.

    `count` leaves out those after it: the extra ones, that no video shows.
    """

    def __init__(self, frames: Slices, count: int | None = None) -> None:
        self._frames, self._count = frames, len(frames) if count is None else count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        frame: NDArray[np.uint8] = self._frames[range(len(self))[index]].numpy()
        return frame


def source_frames(
    artifact: Path,
    record: Record,
    settings: Settings,
    *,
    otherwise: str,
    with_extra: bool = False,
) -> FramesOnDisk:
    """Open the clip that an artifact was made of, uint8 [H, W, 3] each, in its workspace.

    The extra frames, which the VAE wants and nobody is shown, are there on demand.

    ArtifactError if it does not exist, or differs from what the artifact was made of; the hint says
    what would do otherwise.
    """
    path = artifact
    if sniff_kind(artifact) != "frames":
        path = _find_frames(workspace_for(artifact, settings), record, otherwise=otherwise)
    count = None if with_extra else frames_record(record).num_frames
    return FramesOnDisk(read_artifact(path, "frames").tensors.slices("frames"), count)


def source_latents(artifact: Path, record: EditRecord, settings: Settings) -> Tensor:
    """Read the clean latents of an edit's source, [1, F', C, H', W'] without pad frames.

    They may be in the trajectory; errors are those of `source_frames`.
    """
    path = _find_latents(artifact, record.trajectory, settings)
    source = read_artifact(path, ("latents", "trajectory"))
    return source.tensors["latents"][:, num_pad_frames(source.record) :]


def otherwise_use(export: ExportSettings) -> str:
    """Name, for a hint, the options under which an export needs nothing of the source's."""
    words = ["--align-edges 0"] if export.align_edges else []
    if export.composite == "source":
        words.append("--composite decode")
    return f"or use {' '.join(words)}"


def source_needed(
    export: ExportSettings, *, has_mask: bool, with_source: bool = False
) -> tuple[bool, bool]:
    """Return whether the export of an edit takes the frames and the latents of its source.

    The frames are needed where it aligns edges or shows them, the latents where it aligns edges and
    the edit has no mask: with one it carries the source's latents.
    """
    # At the source's size they are taken from the video itself.
    is_shown = export.size == "clip" and (with_source or export.composite == "source")
    return export.align_edges > 0 or is_shown, export.align_edges > 0 and not has_mask


def check_source_artifacts(artifact: Path, settings: Settings, *, has_mask: bool) -> None:
    """Refuse, before anything is computed, to start from an artifact whose clip is gone."""
    export = settings.export
    needs_frames, needs_latents = source_needed(export, has_mask=has_mask)
    if not needs_frames:
        return
    record = read_record(artifact)
    workspace = workspace_for(artifact, settings)
    _find_frames(workspace, record, otherwise=otherwise_use(export))
    # Of an earlier artifact the latents will still be made, in the workspace.
    if needs_latents and isinstance(record, TrajectoryRecord):
        _find_latents(artifact, record, settings)


def _find_frames(workspace: Workspace, record: Record, *, otherwise: str) -> Path:
    frames = frames_record(record)
    hint = f"make it with {load_again(frames, workspace)}, {otherwise}"
    path = _find(workspace, frames, hint=hint)
    if path is None:
        raise ArtifactError(
            f"the source's frames, {workspace.path_for(frames).name}, are not in {workspace.root}",
            hint=hint,
        )
    if read_record(path).tensors != frames.tensors:
        raise ArtifactMismatch(
            f"{path} holds other pixels than the artifact was made of", hint=hint
        )
    return path


def _find_latents(artifact: Path, trajectory: TrajectoryRecord, settings: Settings) -> Path:
    workspace, otherwise = workspace_for(artifact, settings), otherwise_use(settings.export)
    hint = f"make them with {encode_again(trajectory.latents, workspace, settings)}, {otherwise}"
    for record in (trajectory.latents, trajectory):
        path = _find(workspace, record, hint=hint)
        if path is not None:
            return path
    name = workspace.path_for(trajectory.latents).name
    raise ArtifactError(f"the source's latents, {name}, are not in {workspace.root}", hint=hint)


def _find(workspace: Workspace, record: Record, *, hint: str) -> Path | None:
    """Find an artifact that an export reads and does not make, whatever became of it."""
    try:
        return workspace.find(record)
    except ArtifactError as error:
        unfit = shlex.quote(str(workspace.path_for(record)))
        raise type(error)(error.message, hint=f"rm {unfit}, then {hint}") from error
