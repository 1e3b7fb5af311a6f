"""Every frame of a source, shown with the edit of some of them: for colour and light."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np

from cogedit.artifacts import EditRecord, FramesRecord, Record, frames_record, read_artifact
from cogedit.clip_times import resampling_rate, show_time
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.media.between import Blend, LeaveOneOut, blend_changes, decibels, plan_blends
from cogedit.media.clip import ResizePlan
from cogedit.media.cuts import find_cuts
from cogedit.media.edges import Change, Moments
from cogedit.media.reader import resize_frame
from cogedit.media.restore import restore_frames
from cogedit.media.stand_in import PICTURE
from cogedit.media.stream import Frame, FrameFile, FrameStream
from cogedit.stages.decode import Clip, Mask, decode_moments, lay_over
from cogedit.stages.mask import mask_weight
from cogedit.stages.recipe import Recipe
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.stages.source import FoundSource, FramesOnDisk, resize_plan
from cogedit.types import ExportSettings
from cogedit.wording import count_of

_WEAK = 36.0
"""dB to an edit of the frame itself; below, the difference can be seen."""

_MOST_TOLD = 3


def frame_numbers(frames: FramesRecord) -> range:
    """The frames of the source that a clip's time holds: up to the end of its last one.

    Where the clip was to end before that (`--end`), none lies beyond.
    """
    shown = frames.shown_indices
    step = math.ceil(frames.source.fps / frames.fps)
    ends = [frames.source.num_frames, shown[-1] + step]
    return range(shown[0], min(ends if frames.end_frame is None else [*ends, frames.end_frame]))


def own_rate(frames: FramesRecord, *, every_frame: bool) -> Fraction:
    """Frames per second of a video that plays as fast as its source."""
    return frames.source.fps if every_frame else frames.fps


def takes_every_frame(record: Record, export: ExportSettings, *, for_edit: bool = False) -> bool:
    """Whether an export shows frames of the source that are none of the clip's.

    `for_edit` asks for an edit that is still to be made of the artifact's clip. Raises `UsageError`
    where they are wanted and cannot be shown.
    """
    frames = frames_record(record)
    if not export.every_frame or not isinstance(record, EditRecord | FramesRecord):
        return False
    asked = frames.settings.frame_rate
    if resampling_rate(asked) is not None:
        raise UsageError(
            f"the clip was taken at {asked} fps as a player shows it (--frame-rate {asked}), and "
            "--every-frame needs one of every n-th frame",
            hint="take it with --frame-rate sparse or --frame-sample-step N, or show the clip's "
            "frames alone (--no-every-frame)",
        )
    if frames.fps >= frames.source.fps:
        return False
    if not export.align_edges and (for_edit or isinstance(record, EditRecord)):
        raise UsageError(
            "--every-frame fits changes of color and light to frames that were not edited, and "
            "edges are not aligned",
            hint="add --align-edges 16, or leave it out (--no-every-frame)",
        )
    return True


def show_every_frame(
    artifact: Path,
    recipe: Recipe,
    settings: Settings,
    *,
    source: FoundSource,
    session: Session,
    run: Run,
) -> FrameStream:
    """Compute the frames of a source from the first to the last of a clip, as its recipe says.

    At the end it says how well the frames between edited ones could be predicted. Arguments and
    errors are those of `show`; the numbers of the frames are `frame_numbers`.
    """
    frames = source.frames
    size = frames.source if recipe.size == "source" else frames.settings
    numbers = frame_numbers(frames)
    if isinstance(recipe.record, FramesRecord):
        clip = _own_frames(source, recipe, numbers)
    else:
        decoded = decode_moments(artifact, settings, session=session, run=run)
        clip = _edited_frames(artifact, recipe, source, decoded, run=run)
    return FrameStream(clip, len(numbers), size.height, size.width)


def _own_frames(source: FoundSource, recipe: Recipe, numbers: range) -> Iterator[Frame]:
    """The source's frames themselves, at the size of the export."""
    resize = resize_plan(source.frames)
    with closing(source.read(numbers)) as own:
        for frame in own:
            yield frame if recipe.size == "source" else resize_frame(frame, resize)


def _edited_frames(
    artifact: Path,
    recipe: Recipe,
    source: FoundSource,
    decoded: tuple[Clip, Iterator[Moments]],
    *,
    run: Run,
) -> Iterator[Frame]:
    """Prepare what can fail before the first frame, and return the frames."""
    numbers = frame_numbers(source.frames)
    edited = source.frames.shown_indices
    clip, moments = decoded
    with run.wait("looking for cuts"):
        pictures = _pictures(source, numbers, artifact.parent)
        cuts = tuple(numbers[0] + cut for cut in find_cuts(pictures))
    radius = recipe.align_edges / source.frames.settings.width
    left_out = LeaveOneOut(edited, pictures, radius=radius, cuts=cuts)
    blends = plan_blends(edited, numbers.stop, cuts)
    watched = left_out.watch(moments, clip)
    changes = blend_changes(blends, watched)
    masks: FramesOnDisk | None = None
    if recipe.composite == "source":
        masks = FramesOnDisk(read_artifact(artifact, "edit").tensors.slices("mask"))

    def frames() -> Iterator[Frame]:
        own = source.read(numbers)
        resize = resize_plan(source.frames)
        with closing(own):
            for blend, change, frame in zip(blends, changes, own, strict=True):
                mask: Mask | None = None
                if masks is not None:  # between two edited frames, what the mask of either shows
                    mask = np.maximum(masks[blend.before], masks[blend.after])
                yield _shown(change, frame, resize, recipe=recipe, mask=mask)
        for note in _notes(source.frames.source.fps, blends, left_out):
            run.notify(note)

    return frames()


def _pictures(source: FoundSource, numbers: range, folder: Path) -> FrameFile:
    """Small pictures of frames, on the disk: 10 MB a minute at 25 fps."""
    width, height = PICTURE
    small = source.read(numbers, size=PICTURE)
    with closing(small):
        return FrameFile(FrameStream(small, len(numbers), height, width), folder)


def _shown(
    change: Change, own: Frame, resize: ResizePlan, *, recipe: Recipe, mask: Mask | None
) -> Frame:
    """One frame of the source with the change of its own, outside the mask without."""
    if recipe.size == "source":
        weights = None if mask is None else [mask_weight(mask, recipe.feather)]
        [shown] = restore_frames([change], resize, own=[own], weights=weights)
        return shown
    small = resize_frame(own, resize)
    shown = change.on(small)
    if mask is not None:
        [shown] = lay_over([shown], [small], [mask], feather=recipe.feather)
    return shown


def _notes(fps: Fraction, blends: Sequence[Blend], left_out: LeaveOneOut) -> Iterator[str]:
    """What is said about the frames between, once all were shown; what says little first."""

    def time(frame: int) -> str:
        return show_time(frame / fps)

    if cuts := left_out.cuts:
        yield (
            f"{count_of(len(cuts), 'cut')} found, at {', '.join(map(time, cuts[:10]))}"
            f"{' and later' if len(cuts) > 10 else ''}: no frame is fitted across one"
        )
    error = left_out.expected(blends)
    if math.isnan(error):
        yield "too few frames were edited to say how good those between are"
        return
    yield (
        f"the frames between reach {decibels(error):.1f} dB to what they would be, had they "
        "been edited themselves: each edited frame was left out and predicted from those "
        "beside it"
    )
    if weak := sorted(_weak_parts(blends, left_out)):
        parts = [
            f"from {time(first)} to {time(end)} ({decibels(error):.1f} dB)"
            for error, first, end in sorted(weak[-_MOST_TOLD:], key=lambda part: part[1])
        ]
        yield (
            f"weak {', '.join(parts)}: fast motion, a thing that enters, or light that "
            "changes; more frames help there: --frame-rate model with --start and --end, "
            "or --frame-sample-step N"
        )


def _weak_parts(blends: Sequence[Blend], left_out: LeaveOneOut) -> Iterator[tuple[float, int, int]]:
    """The error of each weak part, its first frame and the first after it."""
    # By the edited frame before each, whatever it is shown by.
    by_gap = groupby(blends, key=lambda blend: bisect_right(left_out.edited, blend.frame))
    gaps = [[*gap] for _, gap in by_gap]
    marked = [(gap, left_out.expected(gap)) for gap in gaps]
    for is_weak, part in groupby(marked, key=lambda pair: decibels(pair[1]) < _WEAK):
        together = [blend for gap, _ in part for blend in gap]
        if is_weak:
            error = left_out.expected(together)
            yield error, together[0].frame, together[-1].frame + 1
