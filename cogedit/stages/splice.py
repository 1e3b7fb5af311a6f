"""A clip back in the video that it was taken from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from cogedit.artifacts import FramesRecord, frames_record
from cogedit.clip_times import resampling_rate
from cogedit.disk import Over
from cogedit.errors import UsageError, VideoError
from cogedit.media.encoding import Encoding
from cogedit.media.probe import probe_stored
from cogedit.media.samples import layout_for
from cogedit.media.sound import WholeAudio, choose_whole_audio
from cogedit.media.splice import write_splice
from cogedit.media.stream import Frame, FrameStream
from cogedit.progress import ShowStep
from cogedit.stages.full_rate import frame_numbers
from cogedit.stages.recipe import Recipe
from cogedit.stages.run import Run
from cogedit.stages.source import FoundSource
from cogedit.types import ExportSettings
from cogedit.wording import count_of, show_rate


def spliced(recipe: Recipe, options: ExportSettings) -> Recipe:
    """Make the recipe of a clip that of its whole source with the clip in it.

    Raises `UsageError` where the clip cannot be put back.
    """
    frames = frames_record(recipe.record)
    source = frames.source
    if source.is_untimed or source.reader == "pillow":
        raise UsageError(
            f"--splice puts a clip back at the times of its source, and {source.place} is no video",
            hint="leave --splice out (--no-splice)",
        )
    if options.fps not in (None, source.fps):
        raise UsageError(
            f"--splice keeps the source's {show_rate(source.fps)}, and --fps is {options.fps}",
            hint="leave one out",
        )
    if not recipe.every_frame:
        _check_rate(frames)
    return replace(recipe, splice=True, crossfade=options.crossfade, size="source", fps=source.fps)


def _check_rate(frames: FramesRecord) -> None:
    """Refuse a clip that leaves out frames of its source."""
    source, indices = frames.source, frames.shown_indices
    if source.is_resampled and resampling_rate(frames.settings.frame_rate) is not None:
        found = f"it was taken at {show_rate(source.fps)}, whatever the source has"
    elif any(after != before + 1 for before, after in pairwise(indices)):
        found = f"it has {float(frames.fps):.6g} of its {float(source.fps):.6g} fps"
    else:
        return
    raise UsageError(
        f"--splice needs a clip with every frame of {source.name}: {found}",
        hint="--frame-rate source takes every frame for the clip; for colors and light, --config "
        "recolor edits some frames and shows the edit on all of them",
    )


def check_source(source: FoundSource, encoding: Encoding, options: ExportSettings) -> None:
    """Raise `UsageError` or `VideoError` for a source that cannot be written again as it is."""
    _check_size(source)
    facts = source.facts
    layout_for(replace(facts, grid=None), encoding)
    wanted = options.audio_track
    if options.sound and wanted is not None and facts.audio_tracks:
        choose_whole_audio(source.path, facts.audio_tracks, wanted=wanted, suffix=".mkv")


def _check_size(source: FoundSource) -> None:
    """Refuse a video that changes its size where the clip is not: only there it was looked at."""
    if not source.facts.is_sampled:
        return
    whole = probe_stored(source.path, thorough=True)
    if whole.first_resized is not None:
        raise VideoError(
            f"{source.path} changes its size at frame {whole.first_resized}, outside of the clip, "
            "and --splice writes the whole video",
            hint="re-encode it at one size first, or export the clip alone",
        )


def with_whole_frames(source: FoundSource) -> FoundSource:
    """The same source, deinterlaced where it is interlaced.

    What is written is no longer marked as interlaced: players would show both fields at once.
    """
    facts, pictures = source.facts, source.facts.pictures
    if facts.is_sampled and not pictures.field_order:  # fields may come later
        seen = probe_stored(source.path, thorough=True).pictures
        pictures = replace(
            pictures, field_order=seen.field_order, has_flagged_fields=seen.has_flagged_fields
        )
    if not pictures.field_order:
        return source
    settings = replace(source.frames.settings, deinterlace=True)
    return replace(source, facts=replace(facts, pictures=pictures).read_with(settings))


def write_whole(
    shown: FrameStream,
    path: Path,
    *,
    recipe: Recipe,
    source: FoundSource,
    over: Over,
    run: Run,
) -> str:
    """Write a source video with a clip in its place.

    Args:
        shown: The frames of the clip, at the size of the source.
        path: The file to write.
        recipe: How; of `spliced`.
        source: The source video; of `with_whole_frames`.
        over: What the new file may replace.
        run: How to run.

    Returns:
        What was written, in words.

    Raises:
        CogeditError: As `write_splice`.
    """
    _check_size(source)
    facts = replace(source.facts, grid=None)
    numbers = stored_numbers(source, every_frame=recipe.every_frame)
    if facts.pictures.is_hdr:
        run.notify(f"{source.path} is HDR: the whole video is written tone mapped to BT.709")
    if facts.pictures.field_order:
        run.notify(f"{source.path} is interlaced: the whole video is written deinterlaced")
    total, num_clip = len(facts.timing.timestamps), numbers[-1] + 1 - numbers[0]
    num_between = num_clip - len(set(numbers))
    if num_between:
        run.notify(
            f"{count_of(num_between, 'frame')} of {source.path} faster than its "
            f"{show_rate(facts.fps)}: there the edit of the frame before is shown"
        )
    audio, lost = _audio(source, recipe, path)
    if lost:
        run.notify(f"left out: {lost}")
    with run.counting("writing", total) as done:
        write_splice(
            FrameStream(_for_stored(shown, numbers), num_clip, shown.height, shown.width),
            path,
            source=source.path,
            facts=facts,
            first=numbers[0],
            encoding=recipe.encoding,
            crossfade=recipe.crossfade,
            comment=recipe.comment(),
            audio=audio,
            over=over,
            on_frame=done,
        )
    clip = f"the clip in frames {numbers[0]} to {numbers[-1]}, all coded again"
    return f"{count_of(total, 'frame')} at {show_rate(facts.fps)}, {clip}"


def stored_numbers(source: FoundSource, *, every_frame: bool = False) -> Sequence[int]:
    """The stored frame that each frame of a clip is of; one that is held may come repeatedly.

    With `every_frame`, those between the clip's own are among them.
    """
    frames, facts = source.frames, source.facts
    indices = frame_numbers(frames) if every_frame else frames.shown_indices
    if facts.grid is None:
        return indices
    stored = facts.timing.shown(facts.grid)
    return [stored[index] for index in indices]


def _for_stored(shown: FrameStream, numbers: Sequence[int]) -> Iterator[Frame]:
    """A frame for each stored one: the last of several for it, or the one before if none is."""
    for frame, (number, after) in zip(
        shown.frames, pairwise([*numbers, numbers[-1] + 1]), strict=True
    ):
        for _ in range(number, after):
            yield frame


def _audio(source: FoundSource, recipe: Recipe, path: Path) -> tuple[WholeAudio | None, str]:
    tracks = source.facts.audio_tracks
    if not recipe.sound or not tracks:
        return None, ""
    return choose_whole_audio(source.path, tracks, wanted=recipe.audio_track, suffix=path.suffix)


def one_bar(run: Run) -> Run:
    """A run that shows one loop at a time: the outer one of two."""
    depth = 0

    @contextmanager
    def progress(doing: str, total: int) -> Iterator[ShowStep]:
        nonlocal depth
        with (Run() if depth else run).progress(doing, total) as on_step:
            depth += 1
            try:
                yield on_step
            finally:
                depth -= 1

    return replace(run, progress=progress)
