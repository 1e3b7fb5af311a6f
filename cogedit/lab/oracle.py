"""The oracle: what a clip of the shapes world shows, read from its pixels alone.

`read_clip` finds the object without knowing how the clip was made. `object_color` and
`background_color` read an edited clip at the known place of its right answer.

A pixel belongs to the background if it is closer to the background colour, made lighter or darker
by the texture, than to any colour of the objects. Which shape an object has is read from its
outline, whose corners may be round: how round is as free as size and angle are. (The overlap with
templates of sharp corners takes a square with round corners for a circle, which no person would.)
Everything is numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from cogedit.lab import world
from cogedit.lab.world import Frames, Mask

# The texture moves the background at most this many levels from its mean (a diagonal gradient).
_TEXTURE_RANGE = 32.0
# Fewer pixels per frame than this are no object: the smallest has about 190.
_MIN_AREA = 60.0
# Area of each shape of radius 1, to guess the size from the mask.
_AREA = {"circle": math.pi, "square": 3.125, "triangle": 2.546, "star": 2.880}
_NUM_RAYS = 72
_RAY = np.arange(0.25, 32.0, 0.5)
# An outline leaves the circle by its shape's corners times a number in here: 1 is sharp corners.
_SHARPNESS = (0.5, 1.3)
_ANGLES = np.linspace(-0.6, 0.6, 13)
_SCALES = (0.93, 1.0, 1.07)
# Frames whose shape is compared with templates, as shares of the clip.
_SHAPE_FRAMES = (0.125, 0.5, 0.875)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClipReading:
    """What a clip shows. Without an object, what would be said of it is None."""

    color: str | None  # of the object, a key of `world.COLORS`
    shape: str | None  # by its outline, one of `world.SHAPES`
    overlap_shape: str | None  # by the overlap with templates, likewise
    background: str  # the nearest key of `world.BACKGROUNDS`
    motion: str | None  # where the object goes, as `track_motion` names it
    mask: Mask  # [F, H, W] float32 in 0..1, the share of each pixel that the object covers
    track: Array  # [F, 2] float64, the object's centre (x, y) in pixels; NaN where it is not seen
    shape_iou: float  # overlap of the mask with the best-fitting template, 0..1


def background_color(frames: Frames, mask: Mask | None = None) -> str:
    """Name the background: the key of `world.BACKGROUNDS` nearest to the median colour.

    Args:
        frames: [F, H, W, 3] uint8.
        mask: [F, H, W] coverage of the object, which is left out; None if it is not known.
    """
    pixels = frames.reshape(-1, 3) if mask is None else frames[mask < 0.01]
    return _nearest(np.median(pixels, axis=0), world.BACKGROUNDS)


def object_color(frames: Frames, mask: Mask) -> str:
    """Name the colour inside a mask: the key of `world.COLORS` nearest to the median colour.

    Args:
        frames: [F, H, W, 3] uint8.
        mask: [F, H, W] coverage in 0..1; pixels at its edge are left out.
    """
    inside = mask > 0.99
    pixels = frames[inside] if inside.any() else frames.reshape(-1, 3)
    return _nearest(np.median(pixels, axis=0), world.COLORS)


def object_mask(frames: Frames, *, color: str, background: str) -> Mask:
    """Find the object of a known colour in frames [F, H, W, 3] uint8 on a known background.

    Returns:
        [F, H, W] float32 in 0..1, the share of each pixel that the largest connected area of this
        colour covers; all zero in frames where there is none.
    """
    labels = _classify(frames, background)
    wanted = np.stack([_largest_area(area) for area in labels == list(world.COLORS).index(color)])
    # The colour of an edge pixel lies between both colours: its place there is its coverage.
    base = np.median(frames[labels < 0], axis=0) if (labels < 0).any() else np.zeros(3)
    direction = np.asarray(world.COLORS[color], dtype=np.float64) - base
    cover = (frames - base) @ direction / (direction @ direction)
    near = _grow(wanted, 2)
    return np.where(near, np.clip(cover, 0.0, 1.0), 0.0).astype(np.float32)


def mask_track(mask: Mask) -> Array:
    """Return the centre of a mask in every frame: [F, 2] float64 (x, y); NaN where it is empty."""
    area = mask.sum(axis=(1, 2), dtype=np.float64)
    x = np.arange(mask.shape[2]) + 0.5
    y = np.arange(mask.shape[1]) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        centers = np.stack([mask.sum(axis=1) @ x / area, mask.sum(axis=2) @ y / area], axis=1)
    return np.where(area[:, None] >= _MIN_AREA, centers, np.nan)


def track_motion(track: npt.ArrayLike) -> str | None:
    """Name the direction of a track [F, 2]: a key of `world.MOTIONS`.

    None if it is shorter than four pixels or not known in the first or the last frame.
    """
    centers = np.asarray(track, dtype=np.float64)
    way = centers[-1] - centers[0]
    if np.isnan(way).any() or np.abs(way).max() < 4.0:
        return None
    if abs(way[0]) >= abs(way[1]):
        return "right" if way[0] > 0 else "left"
    return "down" if way[1] > 0 else "up"


def read_clip(frames: Frames) -> ClipReading:
    """Say what a clip [F, H, W, 3] uint8 shows, knowing nothing but its pixels.

    The object is the colour that covers most pixels; a companion is smaller.
    """
    background = background_color(frames)
    labels = _classify(frames, background)
    counts = np.asarray([(labels == index).sum() for index in range(len(world.COLORS))])
    color = list(world.COLORS)[int(counts.argmax())]
    mask = object_mask(frames, color=color, background=background)
    track = mask_track(mask)
    if np.isnan(track).all():
        return ClipReading(None, None, None, background, None, mask, track, 0.0)
    overlap_shape, iou = _fit_shape(mask, track)
    shape, motion = outline_shape(mask, track), track_motion(track)
    return ClipReading(color, shape, overlap_shape, background, motion, mask, track, iou)


def overlap(mask: Mask, expected: Mask) -> float:
    """Return the intersection over union of two coverages [F, H, W] in 0..1; 1 of empty ones."""
    union = float(np.maximum(mask, expected).sum())
    return float(np.minimum(mask, expected).sum()) / union if union else 1.0


def outline_shape(mask: Mask, track: Array) -> str:
    """Name the shape of an outline, whatever its size, its angle and the roundness of its corners.

    The outline is the distance from the centre to the edge by direction, as a share of its mean.
    That of a circle is 1; what a shape's outline leaves it by is turned and scaled to fit. `mask`
    [F, H, W] is the object's coverage in 0..1, `track` [F, 2] its centres, not all of them NaN.
    """
    seen = ~np.isnan(track[:, 0])
    outlines = [_outline(*frame) for frame in zip(mask[seen], track[seen], strict=True)]
    corners = np.mean(outlines, axis=0)
    left = {shape: _fit_corners(corners, shape) for shape in world.SHAPES}
    return min(left, key=left.__getitem__)


def _outline(mask: Mask, center: Array) -> Array:
    """Return by how much the distance to the edge differs from its mean, by direction."""
    angles = np.arange(_NUM_RAYS)[:, None] * (2 * math.pi / _NUM_RAYS)
    x = center[0] - 0.5 + _RAY * np.cos(angles)
    y = center[1] - 0.5 + _RAY * np.sin(angles)
    # Coverage along each ray, between pixels linearly; the area around the clip is empty.
    padded = np.pad(mask.astype(np.float64), 1)
    x, y = (
        np.clip(value + 1, 0, size - 1.001)
        for value, size in ((x, padded.shape[1]), (y, padded.shape[0]))
    )
    left, top = x.astype(np.intp), y.astype(np.intp)
    right_part, lower_part = x - left, y - top
    upper = padded[top, left] * (1 - right_part) + padded[top, left + 1] * right_part
    lower = padded[top + 1, left] * (1 - right_part) + padded[top + 1, left + 1] * right_part
    distances = (upper * (1 - lower_part) + lower * lower_part).sum(axis=1)
    return np.asarray(distances / distances.mean() - 1)


@cache
def _corners_of(shape: str) -> Array:
    """The outline of a shape at every angle, [rays, rays]; of a circle one that never leaves 0."""
    if shape == "circle":
        return np.zeros((1, _NUM_RAYS))
    mask = world.shape_coverage(shape, [[32.0, 32.0]], radius=12.0, angle=0.0)
    outline = _outline(mask[0], mask_track(mask)[0])
    return np.stack([np.roll(outline, turn) for turn in range(_NUM_RAYS)])


def _fit_corners(seen: Array, shape: str) -> float:
    """Return the mean square that is left of an outline at the best angle and sharpness."""
    corners = _corners_of(shape)
    power = np.maximum((corners**2).sum(axis=1), 1e-12)
    sharpness = np.clip(corners @ seen / power, *_SHARPNESS)
    return float(((seen - sharpness[:, None] * corners) ** 2).mean(axis=1).min())


def _nearest(color: npt.ArrayLike, names: dict[str, tuple[int, int, int]]) -> str:
    """Return the name whose colour is nearest in RGB."""
    distances = np.linalg.norm(np.asarray(list(names.values())) - np.asarray(color), axis=1)
    return list(names)[int(distances.argmin())]


def _classify(frames: Frames, background: str) -> npt.NDArray[np.intp]:
    """Label each pixel with the index of its colour in `world.COLORS`, or -1 for the background."""
    pixels = frames.astype(np.float32)
    colors = np.asarray(list(world.COLORS.values()), dtype=np.float32)
    distances = np.stack([((pixels - color) ** 2).sum(axis=-1) for color in colors])
    difference = pixels - np.asarray(world.BACKGROUNDS[background], dtype=np.float32)
    lighter = np.clip(difference.mean(axis=-1, keepdims=True), -_TEXTURE_RANGE, _TEXTURE_RANGE)
    to_background = ((difference - lighter) ** 2).sum(axis=-1)
    return np.where(distances.min(axis=0) < to_background, distances.argmin(axis=0), -1)


def _grow(areas: npt.NDArray[np.bool_], pixels: int) -> npt.NDArray[np.bool_]:
    """Grow areas [..., H, W] by some pixels to the four sides."""
    for _ in range(pixels):
        grown = areas.copy()
        grown[..., 1:, :] |= areas[..., :-1, :]
        grown[..., :-1, :] |= areas[..., 1:, :]
        grown[..., :, 1:] |= areas[..., :, :-1]
        grown[..., :, :-1] |= areas[..., :, 1:]
        areas = grown
    return areas


def _largest_area(area: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the largest connected part of an area [H, W]."""
    best = np.zeros_like(area)
    rest = area.copy()
    while rest.sum() > best.sum():
        part = np.zeros_like(area)
        part.flat[int(rest.argmax())] = True
        while True:
            grown = _grow(part, 1) & rest
            if (grown == part).all():
                break
            part = grown
        rest &= ~part
        if part.sum() > best.sum():
            best = part
    return best


def _fit_shape(mask: Mask, track: Array) -> tuple[str, float]:
    """Return the shape that fits best at any angle and size near the mask's, and its overlap."""
    chosen = [round(share * (len(track) - 1)) for share in _SHAPE_FRAMES]
    seen = [index for index in chosen if not np.isnan(track[index]).any()]
    if not seen:
        seen = [int(np.flatnonzero(~np.isnan(track[:, 0]))[0])]
    masks, centers = mask[seen], track[seen]
    area = float(np.median(masks.sum(axis=(1, 2))))
    best = ("", -1.0)
    for shape in world.SHAPES:
        for scale in _SCALES:
            radius = scale * math.sqrt(area / _AREA[shape])
            for angle in _ANGLES if shape != "circle" else (0.0,):
                template = world.shape_coverage(shape, centers, radius=radius, angle=float(angle))
                iou = overlap(masks, template)
                if iou > best[1]:
                    best = (shape, iou)
    return best
