"""How good is an edit whose right answer is known? Figures per clip, and their mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cogedit.lab import oracle, world
from cogedit.lab.cases import EditCase, edits_background
from cogedit.media.metrics import psnr

Levels = npt.NDArray[np.float32]
"""Pixels in levels of 0..255, not rounded, so that a decoder's output is not compared in steps."""


@dataclass(frozen=True)
class Answer:
    """An edit, and source and right answer as the VAE returns them, [F, H, W, 3] levels each."""

    case: EditCase
    source_round_trip: Levels
    right_round_trip: Levels


@dataclass(frozen=True)
class EditFigures:
    """The figures of one edited clip; NaN where a clip has no such figure.

    Attributes:
        target_seen: 1 if the oracle reads the attribute that the edit asked for, 0 if not; NaN for
            the kind "same", which asks for none. A texture is seen if the background of the last
            frame is closer to the right answer's than to the source's.
        others_kept: 1 if every other attribute is still the source's (of colour, shape, background
            and motion), 0 if not.
        color_right: 1 if the oracle reads the right answer's colour, 0 if not.
        shape_right: The same of the shape.
        background_right: The same of the background's colour.
        motion_right: The same of the direction.
        counterfactual_psnr: Against the right answer, dB.
        last_frame_psnr: The last frame against the right answer's, dB: what a first frame leads to.
        round_trip_psnr: Against the right answer's VAE round trip, dB: the codec's own error does
            not count.
        background_psnr: Outside the object, dB: over the pixels that neither the source's nor the
            right answer's object touches, against the source clip. Where the background is to
            change, against the right answer.
        background_round_trip_psnr: The same pixels against the VAE round trip of that clip, dB.
        motion_distance: Mean distance of the object's centre from the source's track, in pixels,
            over the frames in which it is seen; NaN if that is none.
        mask_overlap: Intersection over union of the object that is seen with the right answer's,
            0..1.
        border_ratio: How much more the picture changes from frame to frame where windows meet than
            elsewhere, by the same ratio of the right answer's VAE round trip; NaN without windows.
    """

    target_seen: float
    others_kept: float
    color_right: float
    shape_right: float
    background_right: float
    motion_right: float
    counterfactual_psnr: float
    last_frame_psnr: float
    round_trip_psnr: float
    background_psnr: float
    background_round_trip_psnr: float
    motion_distance: float
    mask_overlap: float
    border_ratio: float


@dataclass(frozen=True)
class InversionFigures:
    """The figures of one inverted clip.

    Attributes:
        psnr: Inverted, then sampled again under the inversion's prompt at guidance 1, against the
            VAE round trip, dB.
        noise_std: Standard deviation of the last latent; 1 is right.
    """

    psnr: float
    noise_std: float


@dataclass(frozen=True)
class Interval:
    """A mean of the clips that have a value (NaN if none), and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int


def to_frames(clip: Levels) -> world.Frames:
    """Round levels [F, H, W, 3] to uint8, as the export does."""
    return np.asarray(np.rint(np.clip(clip, 0.0, 255.0)), dtype=np.uint8)


def measure(clip: Levels, answer: Answer, *, borders: Collection[int] = ()) -> EditFigures:
    """Measure an edited clip, [F, H, W, 3] in levels of 0..255 as the decoder gave them.

    `borders` are the frames that lie in other windows than the frame before.

    The oracle looks for the colours where the right answer has object and background, and for the
    shape, the outline and the track wherever the object is.
    """
    case = answer.case
    frames, right = to_frames(clip), world.render(case.right)
    mask = world.render_mask(case.right)
    reading = oracle.read_clip(frames)
    named = {
        "color": oracle.object_color(frames, mask),
        "shape": reading.shape,
        "background": oracle.background_color(frames, mask),
        "motion": reading.motion,
    }
    hits = {name: value == getattr(case.right, name) for name, value in named.items()}
    others = [hit for name, hit in hits.items() if name != case.kind]
    source = world.render(case.source)
    outside = (mask == 0) & (world.render_mask(case.source) == 0)
    if case.kind == "texture":
        to_right, to_source = (
            psnr(frames[-1], clip[-1], where=outside[-1]) for clip in (right, source)
        )
        hits["texture"] = to_right > to_source
    on_background = edits_background(case.kind)
    kept = right if on_background else source
    decoded = answer.right_round_trip if on_background else answer.source_round_trip
    return EditFigures(
        target_seen=math.nan if case.kind == "same" else float(hits[case.kind]),
        others_kept=float(all(others)),
        color_right=float(hits["color"]),
        shape_right=float(hits["shape"]),
        background_right=float(hits["background"]),
        motion_right=float(hits["motion"]),
        counterfactual_psnr=psnr(frames, right),
        last_frame_psnr=psnr(frames[-1], right[-1]),
        round_trip_psnr=psnr(clip, answer.right_round_trip),
        background_psnr=psnr(frames, kept, where=outside),
        background_round_trip_psnr=psnr(clip, decoded, where=outside),
        motion_distance=track_distance(reading.track, world.object_track(case.source)),
        mask_overlap=oracle.overlap(reading.mask, mask),
        border_ratio=border_ratio(clip, answer.right_round_trip, borders),
    )


def border_ratio(clip: Levels, right: Levels, borders: Collection[int]) -> float:
    """Compare the mean change into some frames with that into all others; 1 is as it should be.

    The right answer's own ratio is divided out: its motion is even, but a VAE that joins frames
    changes more between those that it joins than between others. NaN where there are no such
    frames, or no others.
    """
    is_border = np.isin(np.arange(1, len(clip)), list(borders))
    if is_border.all() or not is_border.any():
        return math.nan
    changes = (np.abs(np.diff(one, axis=0)).mean(axis=(1, 2, 3)) for one in (clip, right))
    of_clip, of_right = (one[is_border].mean() / one[~is_border].mean() for one in changes)
    return float(of_clip / of_right)


def track_distance(track: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Return the mean distance in pixels of two tracks, [F, 2] centres (x, y) each.

    Frames without the object, whose centre is NaN, do not count; NaN if none has it.
    """
    difference = np.asarray(track, dtype=np.float64) - np.asarray(expected, dtype=np.float64)
    distances = np.hypot(difference[:, 0], difference[:, 1])
    seen = distances[~np.isnan(distances)]
    return float(seen.mean()) if seen.size else math.nan


def bootstrap_interval(
    values: Sequence[float], *, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean and its 95 % percentile bootstrap interval (Efron 1979).

    NaN values are left out. `seed` is that of the draws: equal values give equal intervals.
    """
    known = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not known.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(known.size, size=(num_resamples, known.size))
    low, high = np.quantile(known[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(float(known.mean()), float(low), float(high), int(known.size))


def summarize(figures: Sequence[EditFigures] | Sequence[InversionFigures]) -> dict[str, Interval]:
    """Return the interval of every figure over some clips, by the figure's name."""
    names = [item.name for item in fields(figures[0])] if figures else []
    return {
        name: bootstrap_interval([float(getattr(clip, name)) for clip in figures]) for name in names
    }
