"""The condition of image-to-video models, against diffusers' own pipeline."""

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from pipelines import TRANSFORMER, VAE
from schedules import forward_scheduler

from cogedit.models.first_frame import encode_first_frame, make_condition


def stock_pipeline(*, invert_scale_latents, patch_size_t):
    """diffusers' pipeline of a tiny model, whose VAE has next to no variance to draw from."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        vae = AutoencoderKLCogVideoX(**VAE, invert_scale_latents=invert_scale_latents)
        config = TRANSFORMER | {"in_channels": 32, "patch_size_t": patch_size_t}
        transformer = CogVideoXTransformer3DModel(**config, use_rotary_positional_embeddings=True)
    spread = vae.encoder.conv_out.conv
    with torch.no_grad():
        spread.weight[16:] = 0
        spread.bias[16:] = -30
    return CogVideoXImageToVideoPipeline(None, None, vae, transformer, forward_scheduler(1.0))


@pytest.mark.parametrize(
    ("invert_scale_latents", "patch_size_t", "num_latent_frames", "num_pad_frames"),
    [(False, None, 3, 0), (True, 2, 3, 1), (True, 2, 4, 0)],
)
def test_the_condition_is_that_of_diffusers(
    invert_scale_latents, patch_size_t, num_latent_frames, num_pad_frames
):
    pipeline = stock_pipeline(invert_scale_latents=invert_scale_latents, patch_size_t=patch_size_t)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=generator)
    image = pipeline.video_processor.preprocess(pixels.permute(0, 3, 1, 2) / 255.0, 64, 96)
    length = num_latent_frames + num_pad_frames  # `__call__` counts the pad frames in
    with torch.no_grad():
        latents, expected = pipeline.prepare_latents(
            image, 1, 16, 4 * (length - 1) + 1, 64, 96, torch.float32, image.device, generator
        )
    first = encode_first_frame(pipeline.vae, pixels)
    condition = make_condition(
        first, num_latent_frames=num_latent_frames, num_pad_frames=num_pad_frames
    )
    assert condition.dtype == torch.float32
    assert condition.shape == expected.shape == latents.shape
    assert float((condition - expected).abs().max()) < 1e-5
    assert float(expected[:, 0].std()) > 1e-3
    assert not condition[:, 1:].any()


def test_clips_may_have_a_condition_each():
    first = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    condition = make_condition(first, num_latent_frames=3, num_pad_frames=0)
    assert condition.shape == (2, 3, 4, 2, 2)
    assert torch.equal(condition[:, :1], first)
