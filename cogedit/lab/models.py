"""Transformers with random weights, in memory, at the sizes that the speed benchmark runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cogedit.lab.jobs import Inputs
from cogedit.models.cost import LatentShape, TransformerSizes

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


@dataclass(frozen=True)
class Size:
    """A model and a clip.

    Attributes:
        name: What people call it.
        num_layers: Blocks.
        num_attention_heads: Heads, of 64 each.
        text_embed_dim: Width of a prompt embedding.
        num_text_tokens: Its length.
        time_embed_dim: Width of the time embedding.
        latent_shape: Latent frames, height and width of the clip.
    """

    name: str
    num_layers: int
    num_attention_heads: int
    text_embed_dim: int
    num_text_tokens: int
    time_embed_dim: int
    latent_shape: LatentShape

    @property
    def config(self) -> dict[str, int | bool]:
        """Arguments of `CogVideoXTransformer3DModel`, as CogVideoX-5B has them but for the size."""
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


SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        # Linear layers and attention take about the same, as in 5B, so that ratios carry over.
        Size("cpu", 3, 2, 128, 16, 64, (5, 24, 24)),
        Size("5b", 42, 48, 4096, 226, 512, (13, 60, 90)),
    )
}


def random_transformer(
    size: Size, *, device: torch.device, dtype: torch.dtype
) -> CogVideoXTransformer3DModel:
    """Build a transformer on a device, its weights drawn there.

    Normal weights and never zeros: a device that multiplies zeros draws less power, clocks higher
    and looks faster than it is.
    """
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(**size.config)
    # Not diffusers' own `to`, which warns of weights that were loaded in another format.
    torch.nn.Module.to(transformer, dtype)
    transformer = transformer.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        weight.normal_(std=size.sizes.width**-0.5, generator=generator)
        if weight.dim() == 1 and "norm" in name and name.endswith("weight"):
            weight.add_(1)
    return transformer


def random_inputs(
    transformer: CogVideoXTransformer3DModel, size: Size, *, num_prompts: int
) -> Inputs:
    """Draw a clip and prompts for a transformer, the same for every device."""
    from diffusers import CogVideoXDDIMScheduler

    generator = torch.Generator().manual_seed(1)
    scheduler = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
    )
    frames, height, width = size.latent_shape
    prompts = tuple(f"prompt {number}" for number in range(num_prompts))
    return Inputs(
        transformer=transformer,
        alphas_cumprod=scheduler.alphas_cumprod,
        latents=torch.randn((1, frames, 16, height, width), generator=generator).to(
            transformer.device
        ),
        embeds={
            text: torch.randn((1, size.num_text_tokens, size.text_embed_dim), generator=generator)
            for text in ("", *prompts)
        },
        prompts=prompts,
    )
