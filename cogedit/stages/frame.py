"""frame: a frame of a video as a picture, as the model will see it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import (
    FramesRecord,
    frames_record,
    keeping_in_use,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.clip_times import show_time
from cogedit.config import Settings, all_settings
from cogedit.errors import ArtifactError, UsageError, shown
from cogedit.media.clip import find_span
from cogedit.media.png import save_png
from cogedit.media.reader import DecordFailed, read_clip
from cogedit.stages.arguments import source_of
from cogedit.stages.claim import claim
from cogedit.stages.load import find_clip
from cogedit.stages.run import Run, check_absent, check_output, workspace_for
from cogedit.stages.source import FoundSource, find_source, resize_plan
from cogedit.stages.trained import resize_notes, trained_on
from cogedit.types import LoadSettings


def save_frame(
    source: str | Path,
    settings: Settings,
    *,
    output: str | Path,
    at: str | None = None,
    run: Run | None = None,
) -> Path:
    """Write the first frame of a clip as a PNG: exactly the pixels that the model will see.

    Args:
        source: A video, or a frames, latents or trajectory artifact of it.
        settings: `load` chooses the clip and its size; an artifact has its own.
        output: The picture, ending in .png.
        at: The frame at another time in the video, such as "12.5", "1:02.5" or "300f".
        run: How to run; None is silent.

    Raises:
        UsageError: `at` is no time, or `output` is no PNG or exists.
        VideoError: The video cannot be read, or has no frame then.
        ArtifactError: Neither the artifact's frames nor its video are here.
    """
    source, output, run = source_of(source, settings), Path(output), run or Run()
    if output.suffix.lower() != ".png":
        raise UsageError(f"a frame is written as PNG; found -o {output}", hint="end it in .png")
    check_output(output, inputs=[source], run=run)
    check_absent(output, run)
    time = None if at is None else _time(at)
    with keeping_in_use(), claim(output, run) as claimed:
        check_absent(output, run)  # again: it may have been waited for
        find = _of_video if sniff_kind(source) is None else _of_artifact
        pixels = find(source, settings, time, claimed)
        save_png(pixels, output, over="anything" if run.force else None)
    run.notify(f"wrote {output} ({pixels.shape[1]}x{pixels.shape[0]})")
    return output


def _time(at: str) -> str:
    try:
        return str(all_settings()["load.start"].read(at, is_text=True))
    except ValueError as error:
        raise UsageError(f"--at is {shown(at)}, expected {error}") from error


def _of_video(video: Path, settings: Settings, time: str | None, run: Run) -> NDArray[np.uint8]:
    """The frame of a video, read as `load` reads its clip."""
    try:
        return _read_from(video, settings, time, run, with_decord=True)
    except DecordFailed:
        return _read_from(video, settings, time, Run(), with_decord=False)


def _read_from(
    video: Path, settings: Settings, time: str | None, run: Run, *, with_decord: bool
) -> NDArray[np.uint8]:
    with run.wait(f"looking at {video.name}"):
        clip = find_clip(video, settings, with_decord=with_decord)
    found = FoundSource(video, clip.facts, clip.record)
    return _read(found, settings, settings.load, time, run, fall_back=not with_decord)


def _of_artifact(
    artifact: Path, settings: Settings, time: str | None, run: Run
) -> NDArray[np.uint8]:
    """The frame of an artifact's clip: from its frames, or from the video."""
    frames = frames_record(read_record(artifact, ("frames", "latents", "trajectory")))
    path = artifact
    if sniff_kind(artifact) != "frames":
        path = workspace_for(artifact, settings).path_for(frames)
    if time is None and path.exists():
        pixels = read_artifact(path, "frames").tensors.slices("frames")[0]
        run.notify(_note(frames, frames.frame_indices[0]))
        first: NDArray[np.uint8] = pixels.numpy()
        return first
    found = find_source(frames, artifact)
    if isinstance(found, str):
        raise ArtifactError(
            f"the frame is in no artifact beside {artifact}, and {found}",
            hint="go to the folder of the video, or name the video in place of the artifact",
        )
    return _read(found, settings, frames.settings, time, run)


def _read(
    source: FoundSource,
    settings: Settings,
    wanted: LoadSettings,
    time: str | None,
    run: Run,
    *,
    fall_back: bool = True,
) -> NDArray[np.uint8]:
    """The first frame of a clip, or the one on the screen at a time, at the clip's size."""
    frames, index = source.frames, source.frames.frame_indices[0]
    if time is not None:
        begun = replace(
            wanted, start=time, end=None, duration=None, skip_frames_start=0, skip_frames_end=0
        )
        [index, *_] = find_span(frames.source, begun, timing=source.facts.timing)
    resize = resize_plan(frames)
    resized = resize_notes(resize, frames.source, wanted, trained_on(settings))
    for note in (_note(frames, index), *source.facts.notes, *resized):
        run.notify(note)
    indices = (index,)
    read = read_clip(source.path, source.facts, indices=indices, resize=resize, fall_back=fall_back)
    with closing(read):
        return next(read)


def _note(frames: FramesRecord, index: int) -> str:
    source = frames.source
    return (
        f"{source.name}: frame {index} of {source.num_frames}, at {show_time(index / source.fps)}"
    )
