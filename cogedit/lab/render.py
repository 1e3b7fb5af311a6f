"""Clips of the shapes world in batches, in torch: `world.render` on any device.

The formulas are those of `cogedit.lab.world`; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cogedit.lab import world
from cogedit.lab.world import ClipSpec, Companion

# Stands in for a companion where a clip has none: it covers no pixel.
_NOWHERE = Companion("circle", "red", x=-100.0, y=-100.0, radius=1.0)

Column = Callable[[Sequence[float]], Tensor]
"""Puts one number per clip into a tensor [B, 1, 1, 1]."""


def render_pixels(specs: Sequence[ClipSpec], device: torch.device | str = "cpu") -> Tensor:
    """Render clips.

    Args:
        specs: The clips.
        device: Where.

    Returns:
        [B, 3, F, H, W] float32 in -1..1, rounded to the 256 levels of a video.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1, 1)

    def color(values: Sequence[tuple[int, int, int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 3, 1, 1, 1)

    base = color([world.BACKGROUNDS[spec.background] for spec in specs])
    frames = (base + _texture(specs, column).unsqueeze(1)).clamp(0, 255)
    companions = [spec.companion or _NOWHERE for spec in specs]
    cover = _coverage(
        [other.shape for other in companions],
        column([other.x for other in companions]),
        column([other.y for other in companions]),
        radius=column([other.radius for other in companions]),
        angle=column([0.0] * len(specs)),
    )
    frames = frames.lerp(color([world.COLORS[other.color] for other in companions]), cover)
    steps = torch.arange(world.NUM_FRAMES, device=device).view(1, -1, 1, 1)
    way = column([spec.speed for spec in specs]) * (steps - (world.NUM_FRAMES - 1) / 2)
    cover = _coverage(
        [spec.shape for spec in specs],
        column([s.x for s in specs]) + column([world.MOTIONS[s.motion][0] for s in specs]) * way,
        column([s.y for s in specs]) + column([world.MOTIONS[s.motion][1] for s in specs]) * way,
        radius=column([spec.radius for spec in specs]),
        angle=column([spec.angle for spec in specs]),
    )
    frames = frames.lerp(color([world.COLORS[spec.color] for spec in specs]), cover)
    return frames.round().div(127.5).sub(1)


def _grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pixels' centres: x [1, 1, 1, W] and y [1, 1, H, 1]."""
    x = torch.arange(world.WIDTH, device=device).view(1, 1, 1, -1) + 0.5
    y = torch.arange(world.HEIGHT, device=device).view(1, 1, -1, 1) + 0.5
    return x, y


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates in axes that are turned by an angle."""
    return angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x


def _texture(specs: Sequence[ClipSpec], column: Column) -> Tensor:
    """Return the backgrounds' deviation from their colour in levels, [B, 1, H, W]."""
    textures = [spec.texture for spec in specs]
    angle, phase = column([t.angle for t in textures]), column([t.phase for t in textures])
    u, v = _turn(*_grid(angle.device), angle)
    middle = (angle.cos() * world.WIDTH + angle.sin() * world.HEIGHT) / 2
    wave = column([2 * math.pi / texture.period for texture in textures])
    along, across = (wave * u + phase).sin(), (wave * v + phase).sin()
    patterns = {
        "plain": torch.zeros_like(u),
        "gradient": (u - middle) / (world.WIDTH / 2),
        "stripes": along,
        "checker": (2 * along * across).tanh(),
        "dots": (1 + along) * (1 + across) / 2 - 1,
    }
    pattern = _select([texture.kind for texture in textures], patterns)
    return column([texture.amplitude for texture in textures]) * pattern


def _coverage(
    shapes: Sequence[str], x: Tensor, y: Tensor, *, radius: Tensor, angle: Tensor
) -> Tensor:
    """Return the share of each pixel that the shapes cover, [B, 1, F, H, W].

    Args:
        shapes: One per clip.
        x: Their centres, [B, F or 1, 1, 1].
        y: Likewise.
        radius: [B, 1, 1, 1].
        angle: [B, 1, 1, 1].
    """
    pixel_x, pixel_y = _grid(x.device)
    u, v = _turn(pixel_x - x, pixel_y - y, angle)
    distance = (u * u + v * v).sqrt()
    scale = radius.new_tensor([world.CIRCUMRADIUS[shape] for shape in shapes])
    size = scale.view(-1, 1, 1, 1) * radius
    # The edge of a star: see `cogedit.lab.world`.
    fold = 2 * math.pi / 5
    direction = torch.atan2(u, -v)
    direction = (direction - fold * (direction / fold).round()).abs()
    inner_x, inner_y = (world.STAR_INNER * f(fold / 2) for f in (math.cos, math.sin))
    length = math.hypot(inner_y, 1 - inner_x)
    star = inner_y * (distance * direction.cos() - size)
    star = (star + (1 - inner_x) * distance * direction.sin()) / length
    distances = {
        "circle": distance - radius,
        "square": torch.maximum(u.abs(), v.abs()) - size * math.sqrt(0.5),
        "triangle": torch.maximum(math.sqrt(0.75) * u.abs() - 0.5 * v, v) - size / 2,
        "star": star,
    }
    return (0.5 - _select(shapes, distances)).clamp(0, 1).unsqueeze(1)


def _select(kinds: Sequence[str], values: dict[str, Tensor]) -> Tensor:
    """Take of each clip the value of its own kind."""
    return torch.stack([values[kind][clip] for clip, kind in enumerate(kinds)])
