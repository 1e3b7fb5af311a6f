"""The stages' computations on several clips of the world at once, in memory.

A small model spends most of its time on the way into each operation, so that 16 clips in one batch
cost little more than one. What is computed is what `encode`, `invert`, `reconstruct` and `export`
compute, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cogedit.diffusion.latent_mask import pool_mask, unpool_mask
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import UsageError
from cogedit.lab.configurations import Inversion
from cogedit.models.auto_mask import find_masks
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.loading import alphas_cumprod, load_text_encoder, load_transformer, load_vae
from cogedit.models.prompts import embed_prompts
from cogedit.models.sampling import Embeds, edit_latents, invert_latents
from cogedit.models.vae import decode_latents, encode_frames, to_model_range
from cogedit.shapes import world
from cogedit.shapes.edit_metrics import Levels
from cogedit.types import ReconstructSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel


class BatchPipeline:
    """Encodes, inverts, edits and decodes clips of the world, N at a time.

    Args:
        checkpoint: The model; one made for clips of the world's size.
        device: Where it runs.
        dtype: Number format of the model; latents stay in float32.

    Raises:
        UsageError: The model is made for other clips.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        made_for = checkpoint.geometry
        found = made_for.num_frames, made_for.height, made_for.width
        expected = world.NUM_FRAMES, world.HEIGHT, world.WIDTH
        latent_frames = made_for.num_latent_frames(world.NUM_FRAMES)
        if found != expected or made_for.num_pad_frames(latent_frames):
            raise UsageError(
                f"{checkpoint.id} is made for clips of {found} (frames, height, width); the shapes "
                f"world has {expected}",
                hint="--model shapes, or a folder that cogedit.lab.train wrote",
            )
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self._embeds: dict[str, Tensor] = {}

    def encode(self, clips: Sequence[world.Frames]) -> Tensor:
        """Encode clips, [F, H, W, 3] uint8 each: latents [N, F', C, H', W'] float32 on the CPU."""
        return torch.cat(
            [encode_frames(self._vae, to_model_range(torch.from_numpy(c))).cpu() for c in clips]
        )

    def decode(self, latents: Tensor) -> list[Levels]:
        """Decode latents [N, F', C, H', W']: one [F, H, W, 3] of levels in 0..255 per clip."""
        decoded: list[Levels] = []
        for one in latents:
            frames = decode_latents(self._vae, one.unsqueeze(0)).clamp(-1, 1).permute(0, 2, 3, 1)
            decoded.append(np.asarray(((frames + 1) * 127.5).cpu().numpy(), dtype=np.float32))
        return decoded

    def invert(self, latents: Tensor, inversion: Inversion, captions: Sequence[str]) -> Trajectory:
        """Invert clips as the stage does.

        Args:
            latents: Clean latents, [N, F', C, H', W'] float32.
            inversion: How.
            captions: The clips' own captions, in case the inversion is to see them.

        Returns:
            Their trajectories in one, on the CPU.

        Raises:
            NumericalError: NaN or Inf appeared.
        """
        prompts = inversion.prompts(captions)
        inverted = invert_latents(
            self._transformer,
            latents.to(self.device),
            [replace(inversion.settings, prompt=prompt) for prompt in prompts],
            alphas_cumprod=self._alphas_cumprod,
            embeds=self._embed(["", *prompts]),
        )
        return Trajectory(inverted.samples.cpu(), inverted.latents.cpu(), inverted.timesteps)

    def resample(
        self, trajectory: Trajectory, inversion: Inversion, captions: Sequence[str]
    ) -> Tensor:
        """Sample from the trajectories' last entry under the inversion's prompt at guidance 1.

        Args:
            trajectory: What `invert` returned.
            inversion: How it was inverted.
            captions: As for `invert`.

        Returns:
            Latents [N, F', C, H', W'] float32 on the CPU.
        """
        plain = ReconstructSettings(
            prompt="", guidance_scale=1.0, start="inverted", injection_strength=0.0
        )
        prompts = inversion.prompts(captions)
        return self.edit(
            trajectory,
            plain,
            prompts=prompts,
            inversion_prompts=prompts,
            seeds=[plain.seed] * len(prompts),
        )

    def edit(
        self,
        trajectory: Trajectory,
        settings: ReconstructSettings,
        *,
        prompts: Sequence[str],
        inversion_prompts: Sequence[str],
        seeds: Sequence[int],
        masks: Tensor | None = None,
    ) -> Tensor:
        """Edit clips as the stage does.

        Args:
            trajectory: The clips' trajectories in one.
            settings: How; its prompt and its seed do not count.
            prompts: What each edit shows.
            inversion_prompts: What each clip was inverted under.
            seeds: Seed of each clip's start noise.
            masks: Pixels of each clip that may change, [N, F, H, W] uint8; those of `find_masks`
                where `settings.auto_mask` is set.

        Returns:
            Latents [N, F', C, H', W'] float32 on the CPU.

        Raises:
            NumericalError: NaN or Inf appeared.
        """
        own = [
            replace(settings, prompt=prompt, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        # What was found has been dilated as it was found.
        dilation = 0 if settings.auto_mask else settings.dilation
        samples = edit_latents(
            self._transformer,
            trajectory,
            own,
            inversion_prompts=inversion_prompts,
            alphas_cumprod=self._alphas_cumprod,
            embeds=self._embed([*prompts, *inversion_prompts, settings.negative_prompt]),
            mask=None if masks is None else self._pool(masks, dilation),
        )
        return samples[-1].cpu()

    def find_masks(
        self,
        trajectory: Trajectory,
        settings: ReconstructSettings,
        *,
        prompts: Sequence[str],
        inversion_prompts: Sequence[str],
    ) -> Tensor:
        """Find the mask of each edit as the stage does with `auto_mask`.

        Args:
            trajectory: The clips' trajectories in one.
            settings: Threshold and dilation.
            prompts: What each edit shows.
            inversion_prompts: What each clip was inverted under.

        Returns:
            [N, F, H, W] uint8, 1 where the edit may change the source.
        """
        found = find_masks(
            self._transformer,
            trajectory,
            [replace(settings, prompt=prompt) for prompt in prompts],
            inversion_prompts=inversion_prompts,
            embeds=self._embed([*prompts, *inversion_prompts]),
        )
        made_for = self.checkpoint.geometry
        spatial, temporal = made_for.spatial_compression, made_for.temporal_compression
        return torch.stack([unpool_mask(one, spatial=spatial, temporal=temporal) for one in found])

    def _pool(self, masks: Tensor, dilation: int) -> Tensor:
        """Turn masks [N, F, H, W] of pixels into masks [N, F', 1, H', W'] of latents."""
        made_for = self.checkpoint.geometry
        spatial, temporal = made_for.spatial_compression, made_for.temporal_compression
        pooled = [
            pool_mask(one, spatial=spatial, temporal=temporal, dilation=dilation) for one in masks
        ]
        return torch.stack(pooled)

    def _embed(self, texts: Sequence[str]) -> Embeds:
        """Embed texts; every text once per run."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._embeds]
        if missing:
            tokenizer, encoder = self._text_encoder
            length = self.checkpoint.geometry.max_text_seq_length
            embedded = embed_prompts(missing, tokenizer, encoder, max_text_seq_length=length)
            self._embeds |= dict(zip(missing, embedded.embeds, strict=True))
        return self._embeds

    @cached_property
    def _alphas_cumprod(self) -> Tensor:
        return alphas_cumprod(self.checkpoint)

    @cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        return load_vae(self.checkpoint, device=self.device, dtype=self.dtype)

    @cached_property
    def _transformer(self) -> CogVideoXTransformer3DModel:
        return load_transformer(self.checkpoint, device=self.device, dtype=self.dtype)

    @cached_property
    def _text_encoder(self) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
        return load_text_encoder(self.checkpoint, device=self.device, dtype=self.dtype)


def noise_std(trajectory: Trajectory) -> list[float]:
    """Return the standard deviation of each clip's last latent; 1 is right."""
    return [float(one.std()) for one in trajectory.noise]
