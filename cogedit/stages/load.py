"""load: video -> frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import FramesRecord, Pieces
from cogedit.config import Settings, check_settings
from cogedit.media.clip import ResizePlan, check_size, plan_clip, plan_resize
from cogedit.media.facts import VideoFacts
from cogedit.media.probe import identify, probe_facts
from cogedit.media.reader import DecordFailed, read_clip
from cogedit.models.checkpoint import NotCachedError, find_checkpoint
from cogedit.stages.run import Run, Written, check_output, claim, find_or_make, workspace_for

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """A clip that was chosen: its record, and how its frames are read."""

    record: FramesRecord
    facts: VideoFacts
    resize: ResizePlan


def load(
    video: str | Path, settings: Settings, *, output: Path | None = None, run: Run | None = None
) -> Written[FramesRecord]:
    """Read a clip of a video and store its frames.

    Args:
        video: The video file.
        settings: `load` says which frames and which size; the size must suit `model`.
        output: The artifact; None is its place in the workspace.
        run: How to run; None is silent.

    Raises:
        VideoError: The video cannot be read.
        UsageError: The size does not suit the model, or a setting is out of range.
        StorageError: The artifact cannot be written.
    """
    video, run = Path(video), run or Run()
    check_output(output, inputs=[video], run=run)

    def make(clip: Clip, *, fall_back: bool) -> Written[FramesRecord]:
        indices, resize = clip.record.frame_indices, clip.resize

        def frames() -> Iterator[Tensor]:
            import torch

            read = read_clip(video, clip.facts, indices=indices, resize=resize, fall_back=fall_back)
            with run.wait("reading the frames"), closing(read):
                for frame in read:
                    yield torch.tensor(frame)

        shape = (len(indices), resize.height, resize.width, 3)

        def make_frames() -> Mapping[str, Pieces]:
            return {"frames": Pieces("uint8", shape, frames)}

        workspace = workspace_for(video, settings)
        with claim(output, run) as claimed:
            return find_or_make(
                clip.record, make_frames, output=output, workspace=workspace, run=claimed
            )

    try:
        # The record names the reader: where decord fails, the clip is chosen again for ffmpeg.
        return make(choose_clip(video, settings, run=run), fall_back=False)
    except DecordFailed as error:
        run.notify(f"decord cannot read all of it, so ffmpeg reads it ({error.message})")
        clip = choose_clip(video, settings, run=run, with_decord=False)
        return make(clip, fall_back=True)


def choose_clip(video: Path, settings: Settings, *, run: Run, with_decord: bool = True) -> Clip:
    """Choose frames and size of a clip, and say which; errors are those of `load`."""
    check_settings(settings.load)
    rate = settings.load.frame_rate
    with run.wait(f"looking at {video.name}"):
        facts = probe_facts(
            video, frame_rate=rate, fps=settings.load.fps, with_decord=with_decord
        ).read_with(settings.load)
        check_size_of_clip(settings)
        source = identify(video, facts)
    clip = plan_clip(source, settings.load)
    resize = plan_resize(source.width, source.height, settings=settings.load)
    run.notify(
        f"{source.name}: {source.num_frames} frames of {source.width}x{source.height} at "
        f"{float(source.fps):.6g} fps, read by {source.reader}; clip: {len(clip.indices)} frames "
        f"of {settings.load.width}x{settings.load.height} at {float(clip.fps):.6g} fps"
    )
    if settings.load.fps is not None and not facts.is_untimed:
        run.notify(f"--fps changes nothing: {source.name} says how fast it plays")
    for note in (*facts.notes, *clip.notes, *resize.notes):
        run.notify(note)
    record = FramesRecord(
        source=source,
        settings=replace(settings.load, fps=None),  # it is the source's
        frame_indices=clip.indices,
        fps=clip.fps,
        box=resize.box,
    )
    return Clip(record, facts, resize)


def check_size_of_clip(settings: Settings) -> None:
    """Check the size against the model, if its files are here; `encode` checks in any case."""
    try:
        checkpoint = find_checkpoint(settings.model, settings.revision, download=False)
    except NotCachedError:
        return
    multiple = checkpoint.geometry.size_multiple
    check_size(settings.load.width, settings.load.height, multiple=multiple)
