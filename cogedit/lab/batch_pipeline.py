"""The stages' computations on several clips of the world at once, in memory.

A small model spends most of its time on the overhead of each operation, so that 16 clips in one
batch cost little more than one. The results are those of `encode`, `invert`, `reconstruct` and
`export`, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogedit.diffusion.latent_mask import composite, pool_mask, unpool_mask
from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.codec import decode_clip, encode_clip
from cogedit.lab.configurations import Inversion
from cogedit.lab.edit_metrics import Answer, Levels, to_frames
from cogedit.media import edges
from cogedit.models.auto_mask import find_masks
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.first_frame import encode_first_frame, make_condition
from cogedit.models.loading import alphas_cumprod, load_text_encoder, load_transformer, load_vae
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.prompts import embed_prompts
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.types import ReconstructSettings


class BatchPipeline:
    """Encodes, inverts, edits and decodes clips of the world, N at a time.

    Args:
        checkpoint: The model; one made for clips of the world's size.
        device: Where it runs.
        dtype: Number format of the model; latents stay in float32.

    Raises:
        UsageError: The model is made for clips of another size.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        geometry = checkpoint.geometry
        found = geometry.num_frames, geometry.height, geometry.width
        expected = world.NUM_FRAMES, world.HEIGHT, world.WIDTH
        latent_frames = geometry.num_latent_frames(world.NUM_FRAMES)
        if found != expected or geometry.num_pad_frames(latent_frames):
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
        return torch.cat([encode_clip(self._vae, clip) for clip in clips])

    def decode(self, latents: Tensor) -> list[Levels]:
        """Decode latents [N, F', C, H', W']: one [F, H, W, 3] of levels in 0..255 per clip."""
        return [decode_clip(self._vae, clip) for clip in latents.unsqueeze(1)]

    def condition(self, clips: Sequence[world.Frames]) -> Tensor | None:
        """Encode the first frame of each clip: [N, F', C, H', W'] on the CPU.

        None for a model that takes none.
        """
        geometry = self.checkpoint.geometry
        if not geometry.takes_first_frame:
            return None
        pixels = [torch.from_numpy(clip[:1]) for clip in clips]
        return make_condition(
            torch.cat([encode_first_frame(self._vae, frame).cpu() for frame in pixels]),
            num_latent_frames=geometry.num_latent_frames(world.NUM_FRAMES),
            num_pad_frames=0,
        )

    def invert(
        self,
        latents: Tensor,
        inversion: Inversion,
        captions: Sequence[str],
        *,
        condition: Tensor | None = None,
    ) -> InvertedClips:
        """Invert clean latents [N, F', C, H', W'] as the stage does; one trajectory on the CPU."""
        prompts = inversion.prompts(captions)
        trajectory = invert_latents(
            self._predictor(["", *prompts]),
            latents.to(self.device),
            [replace(inversion.settings, prompt=prompt) for prompt in prompts],
            condition=condition,
            windows=inversion.windows,
        )
        return InvertedClips(trajectory, tuple(prompts), condition)

    def resample(self, inverted: InvertedClips, inversion: Inversion) -> Tensor:
        """Sample from the inverted noise under the inversion's prompts, at guidance 1."""
        plain, prompts = inversion.settings.resampling, inverted.prompts
        return self.edit(inverted, plain, prompts=prompts, seeds=[plain.seed] * len(prompts))

    def edit(
        self,
        inverted: InvertedClips,
        settings: ReconstructSettings,
        *,
        prompts: Sequence[str],
        seeds: Sequence[int],
        condition: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Edit clips as the stage does.

        Args:
            inverted: The clips.
            settings: Of all edits, except for prompt and seed.
            prompts: One per edit.
            seeds: Of each clip's start noise.
            condition: First frames of the edits, from `condition`; None is those of the clips.
            masks: Pixels of each clip that may change, [N, F, H, W] uint8; those of `find_masks`
                where `settings.auto_mask` is set.

        Returns:
            Latents [N, F', C, H', W'] float32 on the CPU.
        """
        edits = [
            replace(settings, prompt=prompt, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        # Masks that were found are dilated already.
        dilation = 0 if settings.auto_mask else settings.dilation
        samples = edit_latents(
            self._predictor([*prompts, *inverted.prompts, settings.negative_prompt]),
            inverted,
            edits,
            condition=condition,
            mask=None if masks is None else self._pool(masks, dilation),
        )
        return samples[-1].cpu()

    def find_masks(
        self,
        inverted: InvertedClips,
        settings: ReconstructSettings,
        *,
        prompts: Sequence[str],
        condition: Tensor | None = None,
    ) -> Tensor:
        """Find the mask of each edit as the stage does: [N, F, H, W] uint8, 1 is to change."""
        found = find_masks(
            self._predictor([*prompts, *inverted.prompts]),
            inverted,
            [replace(settings, prompt=prompt) for prompt in prompts],
            condition=condition,
        )
        geometry = self.checkpoint.geometry
        spatial, temporal = geometry.spatial_compression, geometry.temporal_compression
        return torch.stack([unpool_mask(m, spatial=spatial, temporal=temporal) for m in found])

    def _pool(self, masks: Tensor, dilation: int) -> Tensor:
        """Turn masks [N, F, H, W] of pixels into masks [N, F', 1, H', W'] of latents."""
        geometry = self.checkpoint.geometry
        spatial, temporal = geometry.spatial_compression, geometry.temporal_compression
        return torch.stack(
            [pool_mask(m, spatial=spatial, temporal=temporal, dilation=dilation) for m in masks]
        )

    def _predictor(self, prompts: Sequence[str]) -> Predictor:
        """Return the model with some prompts, each of which is embedded once per run."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeds]
        if missing:
            tokenizer, encoder = self._text_encoder
            length = self.checkpoint.geometry.max_text_seq_length
            embedded = embed_prompts(missing, tokenizer, encoder, max_text_seq_length=length)
            self._embeds |= dict(zip(missing, embedded.embeds, strict=True))
        return Predictor(self._transformer, alphas_cumprod(self.checkpoint), self._embeds)

    @cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        return load_vae(self.checkpoint, device=self.device, dtype=self.dtype)

    @cached_property
    def _transformer(self) -> CogVideoXTransformer3DModel:
        return load_transformer(self.checkpoint, device=self.device, dtype=self.dtype)

    @cached_property
    def _text_encoder(self) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
        return load_text_encoder(self.checkpoint, device=self.device, dtype=self.dtype)


def as_exported(
    clips: Sequence[Levels],
    answers: Sequence[Answer],
    *,
    masks: Tensor | None = None,
    align_edges: int = 0,
) -> list[Levels]:
    """Turn decoded edits into what the export shows.

    Args:
        clips: The edits, [F, H, W, 3] levels each.
        answers: Their right answers, for the source clips.
        masks: Pixels of each clip that may change, [N, F, H, W]. Outside, the source's round trip
            is put back; with aligned edges, the source's own frames.
        align_edges: Radius in pixels within which edges follow the source's own frames; 0 is off.
    """
    exported = []
    for index, (clip, answer) in enumerate(zip(clips, answers, strict=True)):
        shown, below = clip, answer.source_round_trip
        if align_edges:
            source = world.render(answer.case.source)
            moments = edges.measure_moments(
                to_frames(clip), to_frames(below), source, radius=align_edges
            )
            pairs = zip(moments, source, strict=True)
            fitted = [torch.from_numpy(one.fit().on(own)) for one, own in pairs]
            shown = torch.stack(fitted).numpy().astype("f4")
            below = source.astype("f4")
        if masks is not None:
            mask = masks[index]
            shown = composite(torch.from_numpy(shown), torch.from_numpy(below), mask).numpy()
        exported.append(shown)
    return exported
