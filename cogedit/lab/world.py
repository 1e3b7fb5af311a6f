"""The shapes world: short clips of one coloured shape that moves over a textured background.

A clip is a pure function of a small frozen `ClipSpec`, so every edit has a right answer that can
be rendered: `counterfactual(spec, edit)` changes the captioned attribute that the edit names and
keeps everything else, above all what no caption mentions (place, size, speed, angle, texture and
the second, smaller object).

A clip has nine frames, as the embedded model was trained on, or more. In a longer clip the object
goes one way through all frames and stays inside the picture, so that the caption's direction holds
in each part; for that it is slower, from 33 frames on slower than in any clip of training.

Edges are one pixel wide. Coordinates are in pixels, x to the right and y downwards, and the centre
of the top left pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cogedit.errors import UsageError

HEIGHT = 64
WIDTH = 64
NUM_FRAMES = 9
"""Frames of a clip that is not asked to be longer: those of the embedded model's training."""
FPS = 8

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 230, 50),
    "green": (50, 180, 60),
    "cyan": (80, 225, 235),
    "blue": (45, 80, 240),
    "purple": (140, 45, 190),
    "pink": (255, 140, 200),
}
"""Colours of the objects, RGB in 0..255."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (24, 24, 28),
    "gray": (126, 126, 130),
    "white": (228, 228, 222),
    "brown": (112, 76, 44),
    "teal": (16, 98, 102),
}
"""Mean colours of the backgrounds, RGB in 0..255; the texture varies around them."""

SHAPES = ("circle", "square", "triangle", "star")
TEXTURES = ("plain", "gradient", "stripes", "checker", "dots")
MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
"""Unit vectors (x, y) of the movements."""

CaptionLength = Literal["full", "background", "motion", "short", "empty"]
CAPTION_LENGTHS: tuple[CaptionLength, ...] = get_args(CaptionLength)
Split = Literal["train", "held_out"]

# Different streams of the generator: no held-out clip can ever be a training clip.
_SPLIT_STREAM = {"train": 0x5EED_0001, "held_out": 0x5EED_0002}

# Extent of each shape in multiples of ClipSpec.radius: a change of shape is no change of size.
CIRCUMRADIUS = {"circle": 1.0, "square": 1.25, "triangle": 1.4, "star": 1.4}
STAR_INNER = 0.5
_REACH = 1.4
_MARGIN = 1.0
# The longest way through a picture, as a share of the room that the object has along it.
_LONGEST_WAY = 0.9

Frames = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Companion:
    """The second object of a clip: small, at rest, away from the first, named in no caption.

    `x` and `y` are its centre and `radius` its size, in pixels; `color` is a key of `COLORS`.
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Texture:
    """The variation of the background's lightness; no caption mentions it."""

    kind: str  # one of `TEXTURES`
    amplitude: float  # largest deviation from the background colour, in levels of 0..255
    period: float  # of one repetition, in pixels; without effect for plain and gradient
    phase: float  # shift along both axes, in radians
    angle: float  # direction, in radians


@dataclass(frozen=True)
class ClipSpec:
    """Everything that decides a clip. The first four attributes are what captions can name."""

    shape: str  # one of `SHAPES`
    color: str  # a key of `COLORS`
    background: str  # a key of `BACKGROUNDS`
    motion: str  # a key of `MOTIONS`
    x: float  # centre in the middle frame, in pixels from the left edge
    y: float  # likewise from the top edge
    radius: float  # of the circle, or of a circle of about the same area, in pixels
    speed: float  # pixels per frame along the motion
    angle: float  # rotation of the shape, in radians
    texture: Texture
    companion: Companion | None = None
    num_frames: int = NUM_FRAMES  # with another number, the frames around the middle one

    def __post_init__(self) -> None:
        for value, known, name in (
            (self.shape, SHAPES, "shape"),
            (self.color, COLORS, "color"),
            (self.background, BACKGROUNDS, "background"),
            (self.motion, MOTIONS, "motion"),
            (self.texture.kind, TEXTURES, "texture"),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")


@dataclass(frozen=True)
class Edit:
    """A change of captioned attributes or of the texture; what is None stays as it is.

    A new background keeps the texture, and a new motion the speed and the centre in the middle
    frame.
    """

    shape: str | None = None
    color: str | None = None
    background: str | None = None
    motion: str | None = None
    texture: Texture | None = None


def sample_spec(seed: int, split: Split = "train", *, num_frames: int = NUM_FRAMES) -> ClipSpec:
    """Draw a clip at random; the whole way of its object lies inside the picture.

    Args:
        seed: Number of the clip within its split, at least 0. Equal seeds give equal specs.
        split: The splits are separate random streams: held-out clips are never trained on.
        num_frames: At least `NUM_FRAMES`. A longer clip of the same seed differs in its object's
            place and, where the way would not fit, in its speed; its companion has another place,
            or none.

    Raises:
        UsageError: The split is unknown, the seed is negative or the number of frames too small.
    """
    if split not in _SPLIT_STREAM:
        raise UsageError(f"unknown split {split!r}: expected train or held_out")
    if seed < 0:
        raise UsageError(f"the seed must not be negative, got {seed}")
    if num_frames < NUM_FRAMES:
        raise UsageError(f"a clip has at least {NUM_FRAMES} frames, got {num_frames}")
    rng = np.random.default_rng((_SPLIT_STREAM[split], seed))

    def choose(names: Collection[str]) -> str:
        return tuple(names)[int(rng.integers(0, len(names)))]

    radius = rng.uniform(8.5, 12.0)
    reach = _REACH * radius + _MARGIN
    longest_way = _LONGEST_WAY * (min(WIDTH, HEIGHT) - 2 * reach)
    speed = min(rng.uniform(12.0, 22.0) / (NUM_FRAMES - 1), longest_way / (num_frames - 1))
    motion = choose(MOTIONS)
    way = speed * (num_frames - 1) / 2
    room_x = reach + (way if MOTIONS[motion][0] else 0.0)
    room_y = reach + (way if MOTIONS[motion][1] else 0.0)
    spec = ClipSpec(
        shape=choose(SHAPES),
        color=choose(COLORS),
        background=choose(BACKGROUNDS),
        motion=motion,
        x=rng.uniform(room_x, WIDTH - room_x),
        y=rng.uniform(room_y, HEIGHT - room_y),
        radius=radius,
        speed=speed,
        angle=rng.uniform(-0.5, 0.5),
        texture=Texture(
            kind=choose(TEXTURES),
            amplitude=rng.uniform(10.0, 22.0),
            period=rng.uniform(14.0, 28.0),
            phase=rng.uniform(0.0, 2 * math.pi),
            angle=rng.uniform(0.0, math.pi),
        ),
        num_frames=num_frames,
    )
    if rng.uniform() < 0.35:
        spec = replace(spec, companion=_sample_companion(spec, rng))
    return spec


def _sample_companion(spec: ClipSpec, rng: np.random.Generator) -> Companion | None:
    """Draw a companion that the object never touches; None if eight tries find no place."""
    track = np.asarray(object_track(spec))
    others = [color for color in COLORS if color != spec.color]
    for _ in range(8):
        radius = rng.uniform(3.5, 4.5)
        x, y = rng.uniform(radius + 3.0, WIDTH - radius - 3.0, size=2)
        gap = np.hypot(track[:, 0] - x, track[:, 1] - y).min()
        if gap > _REACH * (spec.radius + radius) + 2.0:
            return Companion(
                shape=str(rng.choice(("circle", "square"))),
                color=str(rng.choice(others)),
                x=float(x),
                y=float(y),
                radius=radius,
            )
    return None


def caption(spec: ClipSpec, length: CaptionLength = "full") -> str:
    """Describe a clip in words, such as "a red circle moving right on a gray background".

    `background` and `motion` leave the other one out; `short` names shape and colour; `empty` is
    the empty string. Raises `UsageError` for another length.
    """
    if length not in CAPTION_LENGTHS:
        raise UsageError(
            f"unknown caption length {length!r}: expected one of {', '.join(CAPTION_LENGTHS)}"
        )
    if length == "empty":
        return ""
    article = "an" if spec.color[0] in "aeiou" else "a"
    words = f"{article} {spec.color} {spec.shape}"
    if length in ("full", "motion"):
        words += f" moving {spec.motion}"
    if length in ("full", "background"):
        words += f" on a {spec.background} background"
    return words


def counterfactual(spec: ClipSpec, edit: Edit) -> ClipSpec:
    """Return the spec of the right answer to an edit: `render` it for the frames.

    What the edit does not name stays, the uncaptioned attributes included. A new motion may carry
    the object over the frame's edge; the other edits never do. Raises `UsageError` if the edit
    names something that the world does not have.
    """
    return replace(
        spec,
        shape=edit.shape or spec.shape,
        color=edit.color or spec.color,
        background=edit.background or spec.background,
        motion=edit.motion or spec.motion,
        texture=edit.texture or spec.texture,
    )


def object_track(spec: ClipSpec) -> npt.NDArray[np.float64]:
    """Return the object's centre in every frame: [F, 2] float64, (x, y) in pixels."""
    steps = np.arange(spec.num_frames) - (spec.num_frames - 1) / 2
    direction = np.asarray(MOTIONS[spec.motion], dtype=np.float64)
    return np.asarray([spec.x, spec.y]) + spec.speed * steps[:, None] * direction


def shape_coverage(shape: str, center: npt.ArrayLike, *, radius: float, angle: float) -> Mask:
    """Draw a shape of `SHAPES` without colour, as often as there are centres.

    Args:
        shape: Its name; another one is a `UsageError`.
        center: [N, 2], (x, y) in pixels.
        radius: Size, in pixels, as in `ClipSpec.radius`.
        angle: Rotation, in radians.

    Returns:
        [N, H, W] float32 in 0..1: the share of each pixel that the shape covers.
    """
    if shape not in SHAPES:
        raise UsageError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    centers = np.asarray(center, dtype=np.float32)
    x = (np.arange(WIDTH, dtype=np.float32) + 0.5)[None, None, :] - centers[:, 0, None, None]
    y = (np.arange(HEIGHT, dtype=np.float32) + 0.5)[None, :, None] - centers[:, 1, None, None]
    distance = _signed_distance(shape, x, y, radius=radius, angle=angle)
    cover: Mask = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
    return cover


def _signed_distance(shape: str, x: Mask, y: Mask, *, radius: float, angle: float) -> Mask:
    """Distance to the shape's edge in pixels, negative inside; x, y relative to the centre."""
    if shape == "circle":
        return np.sqrt(x * x + y * y) - np.float32(radius)
    size = np.float32(CIRCUMRADIUS[shape] * radius)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - size * np.float32(math.sqrt(0.5))
    if shape == "triangle":
        side = np.float32(math.sqrt(0.75)) * np.abs(u) - np.float32(0.5) * v
        return np.maximum(side, v) - size / 2
    # A five-pointed star is a union of mirror images: fold the plane into one tenth of it, where
    # the edge is one line from the tip to the inner corner.
    fold = 2 * math.pi / 5
    direction = np.arctan2(u, -v)
    direction = np.abs(direction - np.float32(fold) * np.round(direction / np.float32(fold)))
    distance = np.sqrt(u * u + v * v)
    along, across = distance * np.cos(direction), distance * np.sin(direction)
    inner_x = STAR_INNER * size * math.cos(fold / 2)
    inner_y = STAR_INNER * size * math.sin(fold / 2)
    normal = np.asarray([inner_y, float(size) - inner_x])
    normal /= np.linalg.norm(normal)
    star: Mask = np.float32(normal[0]) * (along - size) + np.float32(normal[1]) * across
    return star


def _render_background(spec: ClipSpec) -> Mask:
    """Return the background without objects: [H, W, 3] float32 in levels of 0..255."""
    texture = spec.texture
    x = np.arange(WIDTH, dtype=np.float32)[None, :] + np.float32(0.5)
    y = np.arange(HEIGHT, dtype=np.float32)[:, None] + np.float32(0.5)
    cos, sin = np.float32(math.cos(texture.angle)), np.float32(math.sin(texture.angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    wave = np.float32(2 * math.pi / texture.period)
    phase = np.float32(texture.phase)
    if texture.kind == "plain":
        pattern = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    elif texture.kind == "gradient":
        pattern = (u - (cos * WIDTH + sin * HEIGHT) / 2) / np.float32(WIDTH / 2)
    elif texture.kind == "stripes":
        pattern = np.sin(wave * u + phase)
    elif texture.kind == "checker":
        pattern = np.tanh(2 * np.sin(wave * u + phase) * np.sin(wave * v + phase))
    else:
        product = (1 + np.sin(wave * u + phase)) * (1 + np.sin(wave * v + phase)) / 4
        pattern = 2 * product - 1
    base = np.asarray(BACKGROUNDS[spec.background], dtype=np.float32)
    image = base + np.float32(texture.amplitude) * pattern[..., None]
    return np.clip(image, 0.0, 255.0).astype(np.float32)


def render_mask(spec: ClipSpec) -> Mask:
    """Return where the object is: [F, H, W] float32, the covered share of each pixel in 0..1."""
    return shape_coverage(spec.shape, object_track(spec), radius=spec.radius, angle=spec.angle)


def render(spec: ClipSpec) -> Frames:
    """Render a clip: [F, H, W, 3] uint8 RGB of `HEIGHT` and `WIDTH`. Deterministic."""
    image = _render_background(spec)
    if spec.companion is not None:
        other = spec.companion
        cover = shape_coverage(other.shape, [(other.x, other.y)], radius=other.radius, angle=0.0)
        color = np.asarray(COLORS[other.color], dtype=np.float32)
        image = image + cover[0, ..., None] * (color - image)
    cover = render_mask(spec)[..., None]
    color = np.asarray(COLORS[spec.color], dtype=np.float32)
    frames = image + cover * (color - image)
    return np.asarray(np.rint(frames), dtype=np.uint8)
