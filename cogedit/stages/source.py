"""The video that a clip was taken from, found again: for its sound, its borders and its frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import FramesRecord
from cogedit.errors import UsageError
from cogedit.media.clip import ResizePlan
from cogedit.media.files import check_file, file_digest
from cogedit.media.probe import VideoFacts, probe_facts
from cogedit.types import SourceVideo

if TYPE_CHECKING:
    from cogedit.media.writer import AudioSource


@dataclass(frozen=True)
class FoundSource:
    """A source video that is the recorded one.

    Attributes:
        path: The file.
        facts: What its probe found.
        frames: The record of the clip.
    """

    path: Path
    facts: VideoFacts
    frames: FramesRecord

    @property
    def video(self) -> SourceVideo:
        """The source, to be read by the decoder that is right on this machine."""
        return replace(self.frames.source, reader=self.facts.reader)

    def audio(self) -> AudioSource:
        """The sound under the clip."""
        from cogedit.media.writer import AudioSource

        frames = self.frames
        # Sound and picture of a file need not begin together.
        start = self.facts.start + frames.frame_indices[0] / frames.source.fps
        return AudioSource(self.path, start, len(frames.frame_indices) / frames.fps)


def find_source(
    frames: FramesRecord, artifact: Path, given: Path | None = None
) -> FoundSource | str:
    """Find the video of a clip by the name and digest of its record.

    Args:
        frames: The clip.
        artifact: An artifact of it: the video may lie in its folder, in the one above, where a
            workspace is made beside its video, or in the current directory.
        given: The video, if the user named it.

    Returns:
        The video, or, in words, why it was not found.

    Raises:
        UsageError: `given` is another video.
        VideoError: `given` is missing, or the video cannot be read.
    """
    wanted = frames.source
    if given is not None:
        check_file(given)
        found = file_digest(given)
        if found != wanted.sha256:
            raise UsageError(
                f"--source {given} is not the video that the clip was taken from: its sha256 is "
                f"{found[:12]}..., expected {wanted.sha256[:12]}... of {wanted.name}"
            )
        return FoundSource(given, probe_facts(given), frames)
    name = Path(wanted.name).name
    folders = dict.fromkeys((Path(), artifact.parent, artifact.parent.parent))
    candidates = [folder / name for folder in folders if (folder / name).is_file()]
    for candidate in candidates:
        if file_digest(candidate) == wanted.sha256:
            return FoundSource(candidate, probe_facts(candidate), frames)
    if candidates:
        return f"{candidates[0]} is not the {name} that the clip was taken from"
    return f"{name} is neither here nor beside {artifact.parent}"


def resize_plan(frames: FramesRecord) -> ResizePlan:
    """How frames of the source became frames of the clip, from its record."""
    source, size = frames.source, frames.settings
    return ResizePlan(source.width, source.height, frames.box, size.width, size.height)


def keeps_time(frames: FramesRecord) -> bool:
    """Whether a clip's frames are evenly spaced in the source and play as long as there."""
    indices = frames.frame_indices
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    even = indices == tuple(range(indices[0], indices[-1] + 1, step))
    return even and frames.fps == frames.source.fps / step
