"""Clips as arrays: frames that are in memory become a source, and those of a source an array."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import read_artifact, sniff_kind
from cogedit.config import all_settings
from cogedit.disk import Over
from cogedit.errors import UsageError, shown
from cogedit.media.encoding import plan_encoding
from cogedit.media.probe import probe_facts
from cogedit.media.reader import iterate_frames
from cogedit.media.writer import write_video
from cogedit.stages.arguments import path_given
from cogedit.stages.claim import claim
from cogedit.stages.run import Run, check_absent, check_output
from cogedit.wording import count_of

_LOSSLESS = (".mp4", ".mov", ".mkv")


def read_clip(source: str | Path) -> NDArray[np.uint8]:
    """Read all frames of a video, of a folder of pictures, or of a frames artifact.

    Of the latter, those that an export shows: not the ones that only fill it up to 8n + 1.

    Returns:
        [F, H, W, 3] uint8 RGB, in memory: a second of 1920x1080 at 25 fps takes 155 MB.

    Raises:
        VideoError: It cannot be read.
        ArtifactMismatch: It is an artifact of another kind, which `export` writes as a video.
    """
    path = path_given("the source", source)
    if sniff_kind(path) is not None:
        clip = read_artifact(path, "frames")
        pixels: NDArray[np.uint8] = clip.tensors["frames"].numpy()
        return pixels[: len(pixels) - clip.record.num_extra_frames]
    facts = probe_facts(path, thorough=True)
    return np.stack([*iterate_frames(path, facts, indices=range(facts.num_frames))])


def write_clip(
    frames: Iterable[object],
    path: str | Path,
    *,
    fps: float | str | Fraction,
    run: Run | None = None,
) -> Path:
    """Write frames that are in memory without loss, for any stage to start from.

    Args:
        frames: [F, H, W, 3] uint8 RGB, or as many pictures of Pillow, arrays or tensors [H, W, 3].
        path: A video (.mp4, .mov, .mkv), or without a suffix a folder of PNG files.
        fps: How fast they play, such as 8, 23.976 or "30000/1001".
        run: How to run; None is silent.

    Raises:
        UsageError: Frames of another kind or size, no rate, or `path` exists without `run.force`.
        StorageError: The file cannot be written.
    """
    path, run = path_given("the path", path), run or Run()
    try:
        rate = Fraction(str(all_settings()["export.fps"].read(fps, is_text=True)))
    except ValueError as error:
        raise UsageError(f"fps is {shown(fps)}, expected a number, above 0 to 1000") from error
    if path.suffix.lower() not in ("", *_LOSSLESS):
        known = ", ".join(_LOSSLESS)
        raise UsageError(f"frames go to {known} or a folder without a suffix; found {path}")
    encoding = plan_encoding(path, None if path.suffix else "png", lossless=True)
    check_output(path, inputs=(), run=run, is_folder=not path.suffix)
    with claim(path, run) as claimed:
        check_absent(path, claimed)
        arrays = [_frame(frame, number) for number, frame in enumerate(frames)]
        if len({array.shape for array in arrays}) != 1:
            raise UsageError("there are no frames" if not arrays else "frames have different sizes")
        pixels = np.stack(arrays)
        recorded = json.dumps({"export": {"fps": str(rate)}})  # where the codec has no times
        over: Over = "anything" if run.force else None
        write_video(pixels, path, fps=rate, encoding=encoding, comment=recorded, over=over)
    size = f"{pixels.shape[2]}x{pixels.shape[1]}"
    run.notify(f"wrote {path} ({count_of(len(pixels), 'frame')} of {size})")
    return path


def _frame(frame: object, number: int) -> NDArray[np.uint8]:
    """Return a frame as an array; one of a tensor on a device comes from there."""
    array = np.asarray(frame.cpu() if hasattr(frame, "cpu") else frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UsageError(
            f"frame {number} is {array.dtype} {[*array.shape]}, expected uint8 [H, W, 3]",
            hint="of floats in 0..1 take (frames * 255).round().astype('uint8'), of a picture "
            "picture.convert('RGB')",
        )
    return array
