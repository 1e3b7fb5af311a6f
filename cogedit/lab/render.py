"""Clips of the shapes world in batches, in torch: `world.render` on any device.

The formulas are those of `cogedit.lab.world`; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.world import ClipSpec, Companion

# Stands in for a companion where a clip has none: it covers no pixel.
_NOWHERE = Companion("circle", "red", x=-100.0, y=-100.0, radius=1.0)

Columns = Mapping[str, Tensor]
"""What decides a clip, one row per clip: numbers [B, 1, 1, 1], colours [B, 3, 1, 1, 1], kinds [B]
as indices."""


class ClipTable:
    """The numbers behind many clips on a device, which renders any of them without Python's help.

    Args:
        specs: The clips, of one number of frames.
        device: Where.

    Raises:
        UsageError: Their numbers of frames differ.
    """

    def __init__(self, specs: Sequence[ClipSpec], device: torch.device | str = "cpu") -> None:
        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float32, device=device).view(-1, 1, 1, 1)

        def color(values: Iterable[tuple[int, int, int]]) -> Tensor:
            rows = torch.tensor(list(values), dtype=torch.float32, device=device)
            return rows.view(-1, 3, 1, 1, 1)

        def kind(values: Iterable[str], names: Sequence[str]) -> Tensor:
            return torch.tensor([names.index(value) for value in values], device=device)

        textures = [spec.texture for spec in specs]
        others = [spec.companion or _NOWHERE for spec in specs]
        self._length = len(specs)
        lengths = {spec.num_frames for spec in specs}
        if len(lengths) > 1:
            raise UsageError(f"clips of one length are rendered together, got {sorted(lengths)}")
        self._num_frames = max(lengths, default=world.NUM_FRAMES)
        self._columns: Columns = {
            "background": color(world.BACKGROUNDS[spec.background] for spec in specs),
            "texture": kind((texture.kind for texture in textures), world.TEXTURES),
            "amplitude": column(texture.amplitude for texture in textures),
            "wave": column(2 * math.pi / texture.period for texture in textures),
            "phase": column(texture.phase for texture in textures),
            "texture_angle": column(texture.angle for texture in textures),
            "shape": kind((spec.shape for spec in specs), world.SHAPES),
            "color": color(world.COLORS[spec.color] for spec in specs),
            "x": column(spec.x for spec in specs),
            "y": column(spec.y for spec in specs),
            "speed_x": column(spec.speed * world.MOTIONS[spec.motion][0] for spec in specs),
            "speed_y": column(spec.speed * world.MOTIONS[spec.motion][1] for spec in specs),
            "radius": column(spec.radius for spec in specs),
            "angle": column(spec.angle for spec in specs),
            "other_shape": kind((other.shape for other in others), world.SHAPES),
            "other_color": color(world.COLORS[other.color] for other in others),
            "other_x": column(other.x for other in others),
            "other_y": column(other.y for other in others),
            "other_radius": column(other.radius for other in others),
        }

    def __len__(self) -> int:
        return self._length

    @property
    def device(self) -> torch.device:
        """Where the clips are rendered."""
        return self._columns["x"].device

    def centers(self, rows: Tensor) -> Tensor:
        """Return the objects' centres in the middle frame, [B, 2] (x, y) in pixels."""
        return torch.stack([self._columns[axis][rows].flatten() for axis in "xy"], dim=1)

    def pixels(
        self, rows: Tensor | slice, *, corner: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Render clips, or square parts of them.

        Args:
            rows: Which clips: indices [B] on the table's device, or a slice.
            corner: The parts' top left pixels, [B, 2] integers (x, y); None starts at (0, 0).
            size: Side of the parts in pixels; None renders whole clips.

        Returns:
            [B, 3, F, H, W] float32 in -1..1, rounded to the 256 levels of a video.
        """
        clip = {name: values[rows] for name, values in self._columns.items()}
        count = len(clip["x"])
        corner = torch.zeros(count, 2, device=self.device) if corner is None else corner
        left, top = corner.view(count, 2, 1, 1, 1).unbind(1)
        x = left + torch.arange(size or world.WIDTH, device=self.device).view(1, 1, 1, -1) + 0.5
        y = top + torch.arange(size or world.HEIGHT, device=self.device).view(1, 1, -1, 1) + 0.5
        frames = (clip["background"] + _texture(clip, x, y).unsqueeze(1)).clamp(0, 255)
        cover = _coverage(
            clip["other_shape"],
            x - clip["other_x"],
            y - clip["other_y"],
            radius=clip["other_radius"],
            angle=torch.zeros_like(clip["angle"]),
        )
        frames = frames.lerp(clip["other_color"], cover)
        steps = torch.arange(self._num_frames, device=self.device).view(1, -1, 1, 1)
        steps = steps - (self._num_frames - 1) / 2
        cover = _coverage(
            clip["shape"],
            x - (clip["x"] + clip["speed_x"] * steps),
            y - (clip["y"] + clip["speed_y"] * steps),
            radius=clip["radius"],
            angle=clip["angle"],
        )
        return frames.lerp(clip["color"], cover).round().div(127.5).sub(1)


def render_pixels(specs: Sequence[ClipSpec], device: torch.device | str = "cpu") -> Tensor:
    """Render clips on a device: [B, 3, F, H, W], as `ClipTable.pixels` returns them."""
    return ClipTable(specs, device).pixels(slice(None))


def _turn(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates in axes that are turned by an angle."""
    return angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x


def _texture(clip: Columns, x: Tensor, y: Tensor) -> Tensor:
    """Return the backgrounds' deviation from their colour in levels, [B, 1, H, W]."""
    angle, wave, phase = clip["texture_angle"], clip["wave"], clip["phase"]
    u, v = _turn(x, y, angle)
    middle = (angle.cos() * world.WIDTH + angle.sin() * world.HEIGHT) / 2
    along, across = (wave * u + phase).sin(), (wave * v + phase).sin()
    patterns = {
        "plain": torch.zeros_like(u),
        "gradient": (u - middle) / (world.WIDTH / 2),
        "stripes": along,
        "checker": (2 * along * across).tanh(),
        "dots": (1 + along) * (1 + across) / 2 - 1,
    }
    return clip["amplitude"] * _select(clip["texture"], [patterns[k] for k in world.TEXTURES])


def _coverage(shape: Tensor, x: Tensor, y: Tensor, *, radius: Tensor, angle: Tensor) -> Tensor:
    """Return the share of each pixel that the shapes cover, [B, 1, F, H, W].

    Args:
        shape: Indices into `world.SHAPES`, [B].
        x: Distance from the shapes' centres, [B, F or 1, 1, W].
        y: Likewise, [B, F or 1, H, 1].
        radius: [B, 1, 1, 1].
        angle: [B, 1, 1, 1].
    """
    u, v = _turn(x, y, angle)
    distance = (u * u + v * v).sqrt()
    scale = radius.new_tensor([world.CIRCUMRADIUS[name] for name in world.SHAPES])
    size = scale[shape].view(-1, 1, 1, 1) * radius
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
    chosen = _select(shape, [distances[name] for name in world.SHAPES])
    return (0.5 - chosen).clamp(0, 1).unsqueeze(1)


def _select(kind: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Take of each clip the value of its own kind: `kind` [B], values [B, ...] for every kind."""
    return torch.stack(list(values))[kind, torch.arange(len(kind), device=kind.device)]
