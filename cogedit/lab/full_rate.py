"""Every frame from a few: how near frames between edited ones come to a known change of hue.

Sampled frames are degraded as a VAE would, the source's and the right answer's alike, and every
frame is shown by `cogedit.media.between`. Beside a video there are clips made to be hard: a fast
pan, an object that enters, light that flickers, a cut.

    python -m cogedit.lab.full_rate VIDEO
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from cogedit.lab.tables import make_table, print_report
from cogedit.media.between import LeaveOneOut, blend_changes, decibels, plan_blends
from cogedit.media.clip import plan_resize
from cogedit.media.cuts import find_cuts
from cogedit.media.edges import Moments, measure_moments
from cogedit.media.metrics import psnr
from cogedit.media.probe import probe_facts
from cogedit.media.reader import iterate_frames, resize_frame
from cogedit.media.stand_in import PICTURE
from cogedit.types import LoadSettings

Frame = npt.NDArray[np.uint8]
Clip = Sequence[Frame]

RADIUS = 8
STEPS = (3, 6, 12, 24)
WIDTH, HEIGHT = 360, 240  # half of CogVideoX-5B's, and half of the radius of `recolor`
_BLUR, _NOISE = 1.0, 5.0  # of the stand-in for a VAE: pixels, and levels of noise 2 pixels wide
HEADS = (
    *("clip", "one frame of", "degraded", "sampled", "between", "as foretold"),
    *("apart", "as foretold"),
)
LEGEND = (
    "degraded: sampled frames as edited, to the right answer; sampled, between: frames as shown, "
    "likewise; apart: the frames between, to what they would be had they been sampled; "
    "as foretold: what leaving sampled frames out says of the column before, knowing nothing else "
    "(of the first, how good the sampled frames are)."
)
_TURN, _WIDTH_OF_HUE = 2.0, 0.6  # radians by which a hue is turned, and how far that reaches


@dataclass(frozen=True)
class Row:
    """What one clip, sampled at one step, came to; all in dB."""

    clip: str
    step: int
    degraded: float  # sampled frames before they are aligned, to the right answer
    sampled: float  # frames that were sampled, to the right answer
    between: float  # the others, likewise
    apart: float  # the others, to what they would be had they been sampled
    told: float  # what the leave-one-out says that is, without knowing

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table, as in `HEADS`."""
        figures = (self.degraded, self.sampled, self.between, self.foretold, self.apart, self.told)
        return (self.clip, str(self.step), *(f"{figure:.1f}" for figure in figures))

    @property
    def foretold(self) -> float:
        """PSNR of the frames between by what the leave-one-out says."""
        return decibels(_error(self.sampled) + _error(self.told))


def turn_hue(frame: Frame, hue: float) -> Frame:
    """Turn the hues near one, in radians, and leave the others: a change of some colours alone."""
    colors = frame.astype(np.float32)
    gray = colors.mean(axis=-1, keepdims=True)
    across = np.array([[2, -1, -1], [0, math.sqrt(3), -math.sqrt(3)]], np.float32) / 3
    plane = (colors - gray) @ across.T
    angle = np.arctan2(plane[..., 1], plane[..., 0]) - hue
    off = np.angle(np.exp(1j * angle))
    turn = _TURN * np.exp(-((off / _WIDTH_OF_HUE) ** 2)).astype(np.float32)
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.stack(
        [
            cos * plane[..., 0] - sin * plane[..., 1],
            sin * plane[..., 0] + cos * plane[..., 1],
        ],
        axis=-1,
    )
    back = np.array([[1, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]], np.float32)
    return np.asarray(np.rint((gray + turned @ back.T).clip(0, 255)), np.uint8)


def degrade(frame: Frame, rng: np.random.Generator) -> Frame:
    """Blur a frame and add soft noise, as a VAE loses fine detail."""
    blurred = np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(_BLUR)))
    height, width, _ = frame.shape
    noise = rng.normal(0, _NOISE, (-(-height // 2), -(-width // 2), 3))
    wide = noise.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.asarray(np.rint((blurred + wide).clip(0, 255)), np.uint8)


def measure(
    name: str,
    source: Clip,
    *,
    steps: Sequence[int] = STEPS,
    radius: int = RADIUS,
    hue: float = 0.0,
    seed: int = 0,
) -> Iterator[Row]:
    """Sample a clip at some steps, and measure the frames between.

    `radius` is that of the filter's windows, in pixels; `hue` the one that changes, in radians.
    """
    rng = np.random.default_rng(seed)
    right = [turn_hue(frame, hue) for frame in source]
    edited = [degrade(frame, rng) for frame in right]
    round_trip = [degrade(frame, rng) for frame in source]

    def moments(frames: Sequence[int]) -> Iterator[Moments]:
        clips = ([clip[frame] for frame in frames] for clip in (edited, round_trip, source))
        return measure_moments(*clips, radius=radius)

    own = [
        one.fit().on(frame) for one, frame in zip(moments(range(len(source))), source, strict=True)
    ]
    pictures = [small(frame) for frame in source]
    cuts = find_cuts(pictures)
    relative = radius / source[0].shape[1]
    for step in steps:
        sampled = range(0, len(source), step)
        left_out = LeaveOneOut(sampled, pictures, radius=relative, cuts=cuts)
        blends = plan_blends(sampled, sampled[-1] + 1, cuts)
        watched = left_out.watch(moments(sampled), [source[frame] for frame in sampled])
        shown = {
            blend.frame: change.on(source[blend.frame])
            for blend, change in zip(blends, blend_changes(blends, watched), strict=True)
        }
        between = [frame for frame in shown if frame % step]

        def figure(clip: Mapping[int, Frame] | Clip, right: Clip, frames: Sequence[int]) -> float:
            return psnr([clip[frame] for frame in frames], [right[frame] for frame in frames])

        yield Row(
            name,
            step,
            degraded=figure(edited, right, sampled),
            sampled=figure(shown, right, sampled),
            between=figure(shown, right, between),
            apart=figure(shown, own, between),
            told=decibels(left_out.expected(blends)),
        )


def small(frame: Frame) -> Frame:
    """A frame as `LeaveOneOut` takes it."""
    return np.asarray(Image.fromarray(frame).resize(PICTURE, Image.Resampling.BILINEAR))


def read(video: Path) -> list[Frame]:
    """Read all frames of a video at the size of a clip."""
    facts = probe_facts(video)
    resize = plan_resize(facts.width, facts.height, settings=LoadSettings(WIDTH, HEIGHT))
    frames = iterate_frames(video, facts, indices=range(facts.num_frames))
    return [resize_frame(frame, resize) for frame in frames]


def scene(seed: int, width: int, height: int) -> Frame:
    """Draw a picture: patches of colour in all sizes, shaded, with grain."""
    rng = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = rng.uniform(60, 200, 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for size in np.geomspace(height / 2, height / 40, 60):
        center_x, center_y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 3)
        u = (x - center_x) * math.cos(angle) + (y - center_y) * math.sin(angle)
        v = (y - center_y) * math.cos(angle) - (x - center_x) * math.sin(angle)
        inside = np.abs(u) ** 3 + np.abs(v * rng.uniform(1, 2.5)) ** 3 < size**3
        shade = 1 + 0.25 * np.sin(u / size * rng.uniform(1, 3))
        picture[inside] = (rng.uniform(20, 235, 3) * shade[..., None])[inside]
    picture += rng.normal(0, 4, picture.shape)
    return np.asarray(np.rint(picture.clip(0, 255)), np.uint8)


def hard_clips(seed: int, num_frames: int = 73) -> Iterator[tuple[str, list[Frame]]]:
    """Make the clips on which frames between may be far from those that were sampled."""
    width, height, size = WIDTH, HEIGHT, HEIGHT // 2
    wide = scene(seed, width + 7 * num_frames, height)
    yield (
        "fast pan, 7 pixels a frame",
        [wide[:, 7 * n : 7 * n + width] for n in range(num_frames)],
    )

    ground, thing = scene(seed + 1, width, height), scene(seed + 2, size, size)
    y, x = np.mgrid[0:size, 0:size]
    cover = (np.hypot(y - size / 2, x - size / 2) < 0.47 * size)[..., None]
    entering = []
    for n in range(num_frames):
        frame = np.pad(ground, ((0, 0), (size, size), (0, 0)), mode="edge")
        left = min(width + size, 7 * max(0, n - 8))
        part = frame[size // 2 :][:size, left : left + size]
        part[:] = np.where(cover, thing, part)
        entering.append(frame[:, size:-size])
    yield "an object enters, 7 pixels a frame", entering

    slow = scene(seed + 3, width + num_frames, height)
    gains = np.random.default_rng(seed).uniform(0.7, 1.2, num_frames)
    lit = [slow[:, n : n + width] * gain for n, gain in enumerate(gains)]
    yield (
        "flicker, 0.7 to 1.2 times the light",
        [np.asarray(np.rint(frame.clip(0, 255)), np.uint8) for frame in lit],
    )

    scenes = [scene(seed + number, width + num_frames, height) for number in (4, 5)]
    yield (
        "a cut, 1 pixel a frame",
        [scenes[n > num_frames * 0.55][:, n : n + width] for n in range(num_frames)],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a video at all steps and the hard clips at every 12th frame; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0, help="of the clips that are made")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    if options.video is not None:
        rows += measure(options.video.name, read(options.video))
    for name, clip in hard_clips(options.seed):
        rows += measure(name, clip, steps=(12,))
    title = "Full rate: a known change of hue, PSNR in dB"
    print_report([make_table(title, HEADS, [row.cells for row in rows])], legend=LEGEND, paths=[])


def _error(decibel: float) -> float:
    return float(255**2 / 10 ** (decibel / 10))


if __name__ == "__main__":
    main()
