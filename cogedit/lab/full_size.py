"""What the jobs cost at the size of CogVideoX-5B: counted, on no device at all.

The transformer's part follows from the formulas of `cogedit.models.cost`. The VAE and T5 are built
on torch's meta device, where tensors have shapes and no numbers, and their operations are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from cogedit.lab.jobs import Job, job_work
from cogedit.lab.measure import count_flops
from cogedit.lab.models import SIZES

_FRAMES, _HEIGHT, _WIDTH = 49, 480, 720


@dataclass(frozen=True)
class Ends:
    """Operations of what comes before and after the transformer.

    Attributes:
        encode: The VAE's, on a clip.
        decode: The VAE's, on the latents of a clip.
        embed: T5's, on a prompt.
    """

    encode: int
    decode: int
    embed: int


@cache
def count_ends() -> Ends:
    """Count the VAE of CogVideoX and T5 v1.1 XXL at 49 frames of 480x720 and 226 tokens."""
    from diffusers import AutoencoderKLCogVideoX
    from transformers import T5Config, T5EncoderModel

    size = SIZES["5b"]
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
            latent_channels=16,
            layers_per_block=3,
        )
        config = T5Config(
            d_model=size.text_embed_dim,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        t5 = T5EncoderModel(config)
        frames = torch.empty(1, 3, _FRAMES, _HEIGHT, _WIDTH)
        num_latent_frames, height, width = size.latent_shape
        latents = torch.empty(1, 16, num_latent_frames, height, width)
        tokens = torch.zeros(1, size.num_text_tokens, dtype=torch.long)
        _, encode = count_flops(lambda: vae.encode(frames))
        _, decode = count_flops(lambda: vae.decode(latents))
        _, embed = count_flops(lambda: t5(tokens))
    return Ends(encode, decode, embed)


def job_flops(job: Job, num_prompts: int) -> float:
    """Count a whole job on CogVideoX-5B, from the clip's frames to those of N edits.

    As written, every prompt encodes the clip again and embeds four texts: the inversion's and the
    edit's, each with the empty one.
    """
    size, ends = SIZES["5b"], count_ends()
    work = job_work(job, num_prompts, size.sizes, size.latent_shape).flops.total
    if job.as_written:
        return work + num_prompts * (ends.encode + ends.decode + 4 * ends.embed)
    return work + ends.encode + num_prompts * ends.decode + (num_prompts + 1) * ends.embed
