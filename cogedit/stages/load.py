"""load: video -> frames."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import FramesRecord, Pieces
from cogedit.clip_times import rate_text, resampling_rate, time_text
from cogedit.config import Settings, check_settings, preset_for_model
from cogedit.errors import ModelError
from cogedit.media.ahead import read_ahead
from cogedit.media.clip import ClipPlan, ResizePlan, check_times, plan_clip, plan_resize
from cogedit.media.facts import VideoFacts
from cogedit.media.images import check_unchanged
from cogedit.media.probe import UNREAD, changes_size_within, identify, probe_facts
from cogedit.media.reader import DecordFailed, read_clip
from cogedit.media.timing import Timing
from cogedit.models.checkpoint import NotCachedError
from cogedit.models.geometry import TRAINED_FPS, TRAINED_FPS_15
from cogedit.sources import SourceVideo
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.artifact_output import check_artifact
from cogedit.stages.claim import claim
from cogedit.stages.model import checkpoint_for, takes_first_frame
from cogedit.stages.run import Run, Written, find_or_make, workspace_for
from cogedit.stages.trained import (
    Trained,
    length_note,
    longer_hint,
    resize_notes,
    trained_on,
)
from cogedit.types import LoadSettings
from cogedit.wording import count_of, show_rate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """A clip that was chosen: its record, and how its frames are read."""

    record: FramesRecord
    facts: VideoFacts
    resize: ResizePlan
    notes: tuple[str, ...]  # for the user, one sentence each


def load(
    video: str | Path,
    settings: Settings,
    *,
    output: str | Path | None = None,
    run: Run | None = None,
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
    video, output, run = source_of(video, settings), as_path(output), run or Run()
    check_artifact(output, inputs=[video, *settings.read_files], run=run)

    def make(clip: Clip, *, fall_back: bool) -> Written[FramesRecord]:
        indices, resize = clip.record.frame_indices, clip.resize

        def frames() -> Iterator[Tensor]:
            import torch

            read = read_clip(video, clip.facts, indices=indices, resize=resize, fall_back=fall_back)
            with run.wait("reading the frames"), closing(read):
                for frame in read:
                    yield torch.tensor(frame)
            check_unchanged(video, clip.record.source.sha256)  # under which they will lie

        shape = (len(indices), resize.height, resize.width, 3)

        def make_frames() -> Mapping[str, Pieces]:
            return {"frames": Pieces("uint8", shape, frames)}

        workspace = workspace_for(video, settings)
        with claim(output, run) as claimed:
            return find_or_make(
                clip.record, make_frames, output=output, workspace=workspace, run=claimed
            )

    def start_torch() -> None:
        place = workspace_for(video, settings).root if output is None else output
        if run.force or not (any(place.glob("frames-*")) if output is None else place.exists()):
            import torch  # noqa: F401  (it will be needed)

    try:
        # The record names the reader: where decord fails, the clip is chosen again for ffmpeg.
        clip = choose_clip(video, settings, run=run, meanwhile=start_torch)
        return make(clip, fall_back=False)
    except DecordFailed as error:
        run.notify(f"decord cannot read all of it, so ffmpeg reads it ({error.message})")
        clip = choose_clip(video, settings, run=run, with_decord=False)
        return make(clip, fall_back=True)


def choose_clip(
    video: Path,
    settings: Settings,
    *,
    run: Run,
    with_decord: bool = True,
    meanwhile: Callable[[], None] = lambda: None,
) -> Clip:
    """Choose frames and size of a clip, and say which; errors are those of `load`.

    `meanwhile` is called where a large file is read for seconds, in threads of their own.
    """
    with run.wait(f"looking at {video.name}"), read_ahead(video) as takes_seconds:
        if takes_seconds:
            meanwhile()
        clip = find_clip(video, settings, with_decord=with_decord)
    for note in clip.notes:
        run.notify(note)
    return clip


def find_clip(
    video: Path,
    settings: Settings,
    *,
    with_decord: bool = True,
    thorough: bool = False,
    read_whole: bool = True,
) -> Clip:
    """`choose_clip` without a word; `thorough` is that of `probe_facts`.

    Where the file need not be `read_whole`, the record has `UNREAD` in place of its digest: it is
    there for checks alone.
    """
    wanted = check_settings(settings.load)
    check_times(wanted)
    rate = resampling_rate(wanted.frame_rate)
    facts = probe_facts(
        video, frame_rate=rate, fps=wanted.fps, with_decord=with_decord, thorough=thorough
    )
    facts = facts.read_with(wanted)
    source = identify(video, facts, sha256=None if read_whole else UNREAD)
    # Of a rate that is only assumed, no frame is left out.
    by_model = wanted.frame_rate == "model" and not facts.is_assumed
    model_rate = rate_of(settings) if by_model else None
    takes_longer, shows_all = not takes_first_frame(settings), settings.export.every_frame
    trained = trained_on(settings)
    at_own_rate = partial(_at_own_rate, video, wanted, facts, source, with_decord=with_decord)
    known = source, wanted, model_rate, facts.is_sampled, takes_longer, shows_all, trained
    found = _clips.get(known)  # another thread may clear them
    if found is None:
        clip = plan_clip(
            source,
            wanted,
            timing=facts.timing,
            model_rate=model_rate,
            takes_longer=takes_longer,
            shows_all=shows_all,
        )
        if changes_size_within(video, facts, clip.indices):
            return find_clip(
                video, settings, with_decord=with_decord, thorough=True, read_whole=read_whole
            )
        if len(_clips) >= _MOST_CLIPS:
            _clips.clear()
        found = _clips[known] = _describe(source, wanted, facts, clip, trained, at_own_rate)
    _check_clip(settings, found, at_own_rate)
    return found


def _at_own_rate(
    video: Path, wanted: LoadSettings, facts: VideoFacts, source: SourceVideo, *, with_decord: bool
) -> tuple[SourceVideo, Timing]:
    """The video as it is stored, also where frames are taken at another rate."""
    if resampling_rate(wanted.frame_rate) is not None:
        facts = probe_facts(video, frame_rate=None, fps=wanted.fps, with_decord=with_decord)
        facts = facts.read_with(wanted)
    return identify(video, facts, sha256=source.sha256), facts.timing


_clips: dict[Hashable, Clip] = {}
"""Clips that this process has chosen: each edit of a list asks three times."""

_MOST_CLIPS = 512


def _describe(
    source: SourceVideo,
    wanted: LoadSettings,
    facts: VideoFacts,
    clip: ClipPlan,
    trained: Trained | None,
    at_own_rate: Callable[[], tuple[SourceVideo, Timing]],
) -> Clip:
    """Describe a clip that was chosen, for a model that was trained on some."""
    resize = plan_resize(source.width, source.height, settings=wanted)
    notes = [
        f"{source.name}: {count_of(source.num_frames, 'frame')} of {source.width}x{source.height} "
        f"at {show_rate(source.fps)}, read by {source.reader}; the clip is "
        f"{wanted.width}x{wanted.height}"
    ]
    if wanted.fps is not None and not facts.is_untimed:
        notes.append(f"--fps changes nothing: {source.name} says how fast it plays")
    record = FramesRecord(
        source=source,
        settings=_recorded(wanted),
        frame_indices=clip.indices,
        fps=clip.fps,
        box=resize.box,
        num_extra_frames=clip.num_extra,
        end_frame=clip.end,
    )
    notes += [*facts.notes, *clip.notes, *resize_notes(resize, source, wanted, trained)]
    if trained is not None and (size_note := trained.size_note(source, wanted)) is not None:
        notes.append(size_note)
    if trained is not None and 2 * record.num_frames < trained.num_frames:
        own, timing = at_own_rate()
        notes.append(length_note(trained, record.num_frames, own, wanted, timing=timing))
    return Clip(record, facts, resize, tuple(notes))


def _recorded(settings: LoadSettings) -> LoadSettings:
    """The settings as a record has them; `fps` is the source's there."""

    def text(time: str | None) -> str | None:
        return None if time is None else time_text(time)

    return replace(
        settings,
        fps=None,
        frame_rate=rate_text(settings.frame_rate),
        start=text(settings.start),
        end=text(settings.end),
        duration=text(settings.duration),
    )


def rate_of(settings: Settings) -> Fraction:
    """Frames per second at which the model was trained.

    Raises:
        ModelError: It is a Hub model that is not here and that no preset describes.
    """
    try:
        return checkpoint_for(settings, download=False).geometry.fps
    except NotCachedError as error:
        preset = preset_for_model(settings.model)
        if preset is not None:
            return TRAINED_FPS_15 if "1.5" in preset else TRAINED_FPS
        raise ModelError(
            f"{error.message}, and at which rate it takes frames is not known without it",
            hint=f"{error.hint}, or give --frame-rate source or --frame-sample-step",
        ) from error


def _check_clip(
    settings: Settings, clip: Clip, at_own_rate: Callable[[], tuple[SourceVideo, Timing]]
) -> None:
    """Check a clip against the model, if its files are here; `encode` checks in any case."""
    try:
        geometry = checkpoint_for(settings, download=False).geometry
    except NotCachedError:
        return
    wanted, num_frames, longer = settings.load, len(clip.record.frame_indices), None
    if geometry.has_fixed_size and num_frames < geometry.num_frames:
        own, timing = at_own_rate()
        longer = longer_hint(geometry.num_frames, own, wanted, timing=timing)
    geometry.check_clip(wanted.width, wanted.height, num_frames, longer=longer)
