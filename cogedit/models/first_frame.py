"""The first frame that an image-to-video model takes, as channels beside those of its clip.

Where the clip's own latents have F' frames, the condition has the latents of frame 0, encoded as a
clip of one frame, and zeros after them. The model was trained so with the real first frame of every
clip, and what it makes begins with that frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.models.vae import encode_pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX


def encode_first_frame(vae: AutoencoderKLCogVideoX, pixels: Tensor) -> Tensor:
    """Encode a frame, uint8 [1, H, W, 3], to the mode of its posterior, [1, 1, C, H', W'] float32.

    It is scaled as a clip's latents are, but for a VAE with `invert_scale_latents` (CogVideoX 1.5):
    there it is divided by the scaling factor, and they are multiplied.

    Source: `CogVideoXImageToVideoPipeline.prepare_latents` of diffusers, whose pipeline the weights
    are published for. CogVideo's own `sat/sample_video.py` neither multiplies nor divides it.
    """
    latents = encode_pixels(vae, pixels)
    if vae.config.invert_scale_latents:
        latents = latents / float(vae.config.scaling_factor) ** 2
    return latents


def with_condition(samples: Tensor, condition: Tensor | None) -> Tensor:
    """Put conditions, [1 or B, F, C, H, W], below samples [B, F, C, H, W]: [B, F, 2 C, H, W].

    None is of a model that takes no first frame, whose samples stay as they are.
    """
    if condition is None:
        return samples
    return torch.cat([samples, condition.to(samples).expand_as(samples)], dim=2)


def make_condition(first: Tensor, *, num_latent_frames: int, num_pad_frames: int) -> Tensor:
    """Make the condition of a clip, [B, pad + F', C, H', W'], of its first frame's latents.

    They come before everything else, also before pad frames, where a padded clip begins; all other
    latent frames are zeros, its real first one too.

    Args:
        first: Of each clip, [B, 1, C, H', W'], from `encode_first_frame`.
        num_latent_frames: Of the clip, F'.
        num_pad_frames: Added in front of them for the temporal patch (`Geometry.num_pad_frames`).
    """
    batch, _, *image = first.shape
    zeros = first.new_zeros(batch, num_pad_frames + num_latent_frames - 1, *image)
    return torch.cat([first, zeros], dim=1)
