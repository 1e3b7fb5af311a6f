"""A quick image of latents without the VAE, for the preview of an edit while it forms.

A VAE's latents are nearly linear in the colours of their pixels. Of the source both are known, so a
least-squares fit of one to the other serves any model without a table made for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cogedit.diffusion.schedule import Schedule


def fit_colors(latents: Tensor, frames: Iterable[Tensor]) -> Tensor:
    """Fit colours to latents: colour = [latent, 1] A, in the least-squares sense.

    Args:
        latents: [F', C, H', W'] float32.
        frames: The same clip, F frames [H, W, 3] uint8, with F = 1 + (F' - 1) x the VAE's temporal
            compression and H, W multiples of H', W'. Each latent stands for the mean of its pixels.

    Returns:
        A, [C + 1, 3] float32, for colours of 0 to 1.
    """
    num_latents, _, height, width = latents.shape
    pooled = torch.cat(
        [
            adaptive_avg_pool2d(frame[None].permute(0, 3, 1, 2).float() / 255, (height, width))
            for frame in frames
        ]
    )
    # Latent frame 0 is frame 0 alone; the others stand for equally many frames each.
    each = (len(pooled) - 1) // max(1, num_latents - 1)
    rest = pooled[1:].reshape(num_latents - 1, each, 3, height, width).mean(dim=1)
    colors = torch.cat([pooled[:1], rest]).permute(0, 2, 3, 1).reshape(-1, 3)
    fitted: Tensor = torch.linalg.lstsq(_with_one(latents), colors).solution
    return fitted


def paint(latents: Tensor, fitted: Tensor) -> Tensor:
    """Paint latents [F', C, H', W'] in the colours of `fit_colors`, as [F', H', W', 3] uint8."""
    num_frames, _, height, width = latents.shape
    colors = (_with_one(latents) @ fitted).clamp(0, 1) * 255
    return colors.round().to(torch.uint8).reshape(num_frames, height, width, 3)


def clean_sample(x_t: Tensor, x_s: Tensor, *, schedule: Schedule, t: int, s: int) -> Tensor:
    """Return the clean sample that a DDIM step from x_t down to x_s assumed.

    Both ends are made of the same z0 and eps, x = z0 cos(theta) + eps sin(theta), so

        z0 = (x_s sin(theta_t) - x_t sin(theta_s)) / sin(theta_t - theta_s)
    """
    sin_t, sin_s = (math.sin(schedule.angle(timestep)) for timestep in (t, s))
    _, sin_step = schedule.rotation(t, s)
    return (x_s * sin_t - x_t * sin_s) / sin_step


def _with_one(latents: Tensor) -> Tensor:
    """Return a row [latent, 1] for each position, [F' H' W', C + 1]."""
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
