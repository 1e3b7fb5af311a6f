"""Frames to latents and back, through the 3D causal VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX


def encode_frames(vae: AutoencoderKLCogVideoX, frames: Tensor) -> Tensor:
    """Encode a clip to the mode of the posterior, so that equal clips give equal latents.

    Args:
        vae: The checkpoint's VAE; with tiling enabled the numbers differ.
        frames: [F, C, H, W] in [-1, 1], F = 8n + 1: other counts do not come back from the VAE
            with their own length.

    Returns:
        Latents [1, F', C', H', W'] float32, times the VAE's scaling factor.
    """
    video = frames.movedim(0, 1).unsqueeze(0).to(vae.device, vae.dtype)
    with torch.no_grad():
        latents: Tensor = vae.encode(video).latent_dist.mode()
    return latents.movedim(2, 1).float() * float(vae.config.scaling_factor)


def decode_latents(vae: AutoencoderKLCogVideoX, latents: Tensor) -> Tensor:
    """Decode latents to a clip.

    Args:
        vae: The checkpoint's VAE.
        latents: [1, F', C', H', W'] float32, scaled.

    Returns:
        Frames [F, C, H, W] float32, about [-1, 1].
    """
    unscaled = latents.movedim(1, 2) / float(vae.config.scaling_factor)
    with torch.no_grad():
        video: Tensor = vae.decode(unscaled.to(vae.device, vae.dtype)).sample
    return video[0].movedim(1, 0).float()


def to_model_range(frames: Tensor) -> Tensor:
    """Turn uint8 [F, H, W, C] into float32 [F, C, H, W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(frames: Tensor) -> Tensor:
    """Turn float [F, C, H, W], clamped to [-1, 1], into uint8 [F, H, W, C]."""
    levels = ((frames.clamp(-1, 1) + 1) * 127.5).round()
    return levels.permute(0, 2, 3, 1).to(torch.uint8)
