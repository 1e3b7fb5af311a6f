"""What an export shows of an artifact: its frames in turn, at the clip's size or its source's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cogedit.artifacts import FramesRecord, frames_record
from cogedit.config import Settings
from cogedit.media.edges import Change
from cogedit.media.restore import restore_frames
from cogedit.media.stream import Frame, FrameStream
from cogedit.stages.decode import decode, decode_moments
from cogedit.stages.full_rate import show_every_frame
from cogedit.stages.mask import mask_weights
from cogedit.stages.recipe import Recipe
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.stages.source import FoundSource, resize_plan, source_frames


def show(
    artifact: Path,
    recipe: Recipe,
    settings: Settings,
    *,
    source: FoundSource | None,
    session: Session,
    run: Run,
) -> FrameStream:
    """Compute the frames of an artifact as its recipe says, while they are taken.

    `source` is there where its own frames are needed. Errors are those of `decode` and
    `FoundSource.read`.
    """
    if recipe.every_frame and source is not None:
        return show_every_frame(artifact, recipe, settings, source=source, session=session, run=run)
    if isinstance(recipe.record, FramesRecord):
        return _counted(_show_source(artifact, recipe, settings, source), run)
    if recipe.size == "clip":
        return decode(artifact, settings, session=session, run=run)
    # At the source's size the composite is made of the source's own pixels.
    weights = None
    if recipe.composite == "source":
        weights = mask_weights(artifact, recipe.feather)
        settings = replace(settings, export=replace(settings.export, composite="none"))
    shown: Iterable[Frame | Change]
    if recipe.align_edges:
        _, moments = decode_moments(artifact, settings, session=session, run=run)
        shown = (one.fit() for one in moments)
    else:
        shown = decode(artifact, settings, session=session, run=run).frames
    frames = frames_record(recipe.record)
    own = None if source is None else _own_frames(source)
    restored = restore_frames(shown, resize_plan(frames), own=own, weights=weights)
    return _at_source_size(frames, restored)


def _show_source(
    artifact: Path, recipe: Recipe, settings: Settings, source: FoundSource | None
) -> FrameStream:
    """Show the source clip: its frames as they were loaded, or the video's own."""
    frames = frames_record(recipe.record)
    if recipe.size == "source" and source is not None:
        return _at_source_size(frames, _own_frames(source))
    clip = source_frames(artifact, frames, settings, otherwise="or name another --size")
    size = frames.settings
    return FrameStream(clip, len(clip), size.height, size.width)


def _own_frames(source: FoundSource) -> Iterator[Frame]:
    return source.read(source.frames.shown_indices)


def _at_source_size(frames: FramesRecord, made: Iterable[Frame]) -> FrameStream:
    size = frames.source
    return FrameStream(made, frames.num_frames, size.height, size.width)


def _counted(shown: FrameStream, run: Run) -> FrameStream:
    """Show how many frames are written, where no model says how far it is."""

    def frames() -> Iterator[Frame]:
        with run.counting("writing", shown.num_frames) as done:
            for frame in shown.frames:
                yield frame
                done()

    return replace(shown, frames=frames())
