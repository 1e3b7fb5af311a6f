"""Transformers with random weights at the sizes of the speed benchmark, and their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from cogedit.lab.components import make_scheduler
from cogedit.lab.measure import count_flops
from cogedit.models.cost import LatentShape, TransformerSizes
from cogedit.models.predictor import Predictor
from cogedit.types import TransformerSettings


@dataclass(frozen=True)
class Size:
    """A model and a clip.

    Attributes:
        num_layers: Blocks.
        num_attention_heads: Heads, of 64 channels each.
        text_embed_dim: Width of a prompt embedding.
        num_text_tokens: Its length.
        time_embed_dim: Width of the time embedding.
        latent_shape: Latent frames, height and width of the clip.
    """

    num_layers: int
    num_attention_heads: int
    text_embed_dim: int
    num_text_tokens: int
    time_embed_dim: int
    latent_shape: LatentShape

    @property
    def config(self) -> dict[str, int | bool]:
        """Arguments of `CogVideoXTransformer3DModel`: those of CogVideoX-5B, at this size."""
        frames, height, width = self.latent_shape
        return {
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "attention_head_dim": 64,
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "text_embed_dim": self.text_embed_dim,
            "max_text_seq_length": self.num_text_tokens,
            "time_embed_dim": self.time_embed_dim,
            "sample_frames": 4 * (frames - 1) + 1,
            "sample_height": height,
            "sample_width": width,
            "use_rotary_positional_embeddings": True,
        }

    @property
    def sizes(self) -> TransformerSizes:
        """What its cost follows from."""
        return TransformerSizes.of(self.config)


SIZES: dict[str, Size] = {
    # Linear layers and attention take about the same time, as in 5B, so that ratios carry over.
    "cpu": Size(3, 2, 128, 16, 64, (5, 24, 24)),
    "5b": Size(42, 48, 4096, 226, 512, (13, 60, 90)),
}


@dataclass(frozen=True)
class Inputs:
    """What all rows of the table work on.

    Attributes:
        predictor: The model, with the prompts and the empty one. The row "upstream" leaves its
            options.
        latents: The clip, [1, F', C, H', W'] float32, on the model's device.
        prompts: Of the edits.
    """

    predictor: Predictor
    latents: Tensor
    prompts: tuple[str, ...]


def random_transformer(
    size: Size, *, device: torch.device, dtype: torch.dtype
) -> CogVideoXTransformer3DModel:
    """Build a transformer on a device, its weights drawn there.

    The weights are normal and never zero: a device that multiplies zeros draws less power, clocks
    higher and looks faster than it is.
    """
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**size.config)
    # Not diffusers' own `to`, which warns about weights that were loaded in another format.
    torch.nn.Module.to(transformer, dtype)
    transformer = transformer.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        weight.normal_(std=size.sizes.width**-0.5, generator=generator)
        if weight.dim() == 1 and "norm" in name and name.endswith("weight"):
            weight.add_(1)
    return transformer


def random_inputs(
    transformer: CogVideoXTransformer3DModel,
    size: Size,
    *,
    num_prompts: int,
    settings: TransformerSettings | None = None,
) -> Inputs:
    """Draw a clip and prompts for a transformer, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    frames, height, width = size.latent_shape
    latents = torch.randn((1, frames, 16, height, width), generator=generator)
    prompts = tuple(f"prompt {number}" for number in range(num_prompts))
    embed_shape = (1, size.num_text_tokens, size.text_embed_dim)
    embeds = {text: torch.randn(embed_shape, generator=generator) for text in ("", *prompts)}
    predictor = Predictor(transformer, make_scheduler().alphas_cumprod, embeds, settings)
    return Inputs(predictor, latents.to(transformer.device), prompts)


_T5 = T5Config(
    d_model=SIZES["5b"].text_embed_dim,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    feed_forward_proj="gated-gelu",
)


@cache
def count_weights() -> int:
    """Count the weights of CogVideoX-5B's transformer and T5, which every GPU loads."""
    with torch.device("meta"):
        models = (CogVideoXTransformer3DModel(**SIZES["5b"].config), T5EncoderModel(_T5))
    return sum(weight.numel() for model in models for weight in model.parameters())


@cache
def count_vae_and_t5() -> tuple[int, int, int]:
    """Count operations of CogVideoX-5B around its transformer, at 49 frames of 480x720.

    The models are built on torch's meta device, where tensors have shapes and no values.

    Returns:
        Of the VAE on a clip, of the VAE on its latents, and of T5 v1.1 XXL on a prompt.
    """
    size = SIZES["5b"]
    frames, height, width = size.latent_shape
    with torch.device("meta"), torch.no_grad():
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
            latent_channels=16,
            layers_per_block=3,
        )
        t5 = T5EncoderModel(_T5)
        clip = torch.empty(1, 3, 4 * (frames - 1) + 1, 8 * height, 8 * width)
        # All frames in one call: as many operations as in calls of a few, counted sooner.
        vae.num_sample_frames_batch_size, vae.num_latent_frames_batch_size = clip.shape[2], frames
        latents = torch.empty(1, 16, frames, height, width)
        tokens = torch.zeros(1, size.num_text_tokens, dtype=torch.long)
        _, encode = count_flops(lambda: vae.encode(clip))
        _, decode = count_flops(lambda: vae.decode(latents))
        _, embed = count_flops(lambda: t5(tokens))
    return encode, decode, embed
