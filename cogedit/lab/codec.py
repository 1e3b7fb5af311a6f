"""Clips of the shapes world through a VAE, one at a time."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from cogedit.lab import world
from cogedit.lab.edit_metrics import Levels
from cogedit.models.vae import decode_pieces, encode_frames, to_levels, to_model_range


def encode_clip(vae: AutoencoderKLCogVideoX, frames: world.Frames) -> Tensor:
    """Encode [F, H, W, 3] uint8 to latents [1, F', C, H', W'] float32 on the CPU.

    A clip longer than those of the VAE's training is encoded as clips of that length.
    """
    return encode_frames(vae, to_model_range(torch.from_numpy(frames)), span=world.NUM_FRAMES).cpu()


def decode_clip(vae: AutoencoderKLCogVideoX, latents: Tensor) -> Levels:
    """Decode latents [1, F', C, H', W'] to [F, H, W, 3], levels of 0..255 without rounding."""
    frames = torch.cat([piece.cpu() for piece in decode_pieces(vae, latents)])
    return to_levels(frames).permute(0, 2, 3, 1).numpy()


def round_trip(vae: AutoencoderKLCogVideoX, frames: world.Frames) -> Levels:
    """Encode and decode a clip: the best that an edit of this VAE's latents can be."""
    return decode_clip(vae, encode_clip(vae, frames))
