"""The loss of the transformer's training: captions, noise and first frames of random clips."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import CogVideoXPipeline
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogedit.lab import world
from cogedit.lab.components import MAX_TEXT_SEQ_LENGTH, rotary_embeddings
from cogedit.lab.train_vae import sample_specs
from cogedit.lab.training import autocast

# How often a clip is shown with a caption of each length: the empty one is the drop of 12 % that
# guidance needs.
CAPTION_SHARES: dict[world.CaptionLength, float] = {
    "full": 0.60,
    "background": 0.10,
    "motion": 0.09,
    "short": 0.09,
    "empty": 0.12,
}
# Where the first frame is given, it says what the caption would; many edits come without a prompt.
CAPTION_SHARES_WITH_FRAME: dict[world.CaptionLength, float] = {
    "full": 0.35,
    "background": 0.10,
    "motion": 0.10,
    "short": 0.15,
    "empty": 0.30,
}


def tokenize_captions(pipeline: CogVideoXPipeline, num_clips: int, *, split: world.Split) -> Tensor:
    """Return the tokens of the clips' captions in every length.

    Returns:
        [N, lengths, `MAX_TEXT_SEQ_LENGTH`] int64, the lengths in the order of
        `world.CAPTION_LENGTHS`.
    """
    # Far fewer captions than clips: each is tokenized once.
    rows: dict[str, int] = {}
    order = [
        rows.setdefault(world.caption(spec, length), len(rows))
        for spec in sample_specs(num_clips, split)
        for length in world.CAPTION_LENGTHS
    ]
    tokens: Tensor = pipeline.tokenizer(
        list(rows),
        padding="max_length",
        max_length=MAX_TEXT_SEQ_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens[torch.tensor(order)].view(num_clips, len(world.CAPTION_LENGTHS), -1)


class TextToVelocity(nn.Module):
    """Text encoder and transformer as one module, so that they are saved and averaged together."""

    def __init__(self, pipeline: CogVideoXPipeline) -> None:
        super().__init__()
        self.text_encoder = pipeline.text_encoder
        self.transformer = pipeline.transformer

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        input_ids: Tensor,
        *,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the prediction of v, [B, F', C, H', W'].

        `latents` has as many channels, or twice as many: then the second half is the condition.
        """
        prompt_embeds = self.text_encoder(input_ids)[0]
        prediction: Tensor = self.transformer(
            hidden_states=latents,
            encoder_hidden_states=prompt_embeds,
            timestep=timesteps,
            image_rotary_emb=image_rotary_emb,
            return_dict=False,
        )[0]
        return prediction


class VelocityLoss:
    """The v-prediction loss on random clips, noise and timesteps.

    Args:
        pipeline: Its scheduler, tokenizer and rotary positions are used.
        latents: [N, F', C, H', W'] scaled latents of the clips of the seeds 0 to N - 1.
        split: Their split.
        timestep_shift: As in `TransformerTraining`.
        first_frames: [N, 1, C, H', W'] scaled latents of their first frames, encoded alone, for a
            transformer that takes them; None for one that does not.
    """

    def __init__(
        self,
        pipeline: CogVideoXPipeline,
        latents: Tensor,
        *,
        split: world.Split,
        timestep_shift: float,
        first_frames: Tensor | None = None,
    ) -> None:
        device = latents.device
        self._latents = latents
        self._first_frames = first_frames
        self._input_ids = tokenize_captions(pipeline, len(latents), split=split).to(device)
        self._shift = timestep_shift
        abar = pipeline.scheduler.alphas_cumprod.double()
        self._signal, self._sigma = (
            abar.sqrt().float().to(device),
            (1 - abar).sqrt().float().to(device),
        )
        self._rotary = rotary_embeddings(
            pipeline, num_latent_frames=latents.shape[1], device=device
        )
        shares = CAPTION_SHARES if first_frames is None else CAPTION_SHARES_WITH_FRAME
        self._shares = torch.tensor(
            [shares[length] for length in world.CAPTION_LENGTHS], device=device
        )

    def __call__(self, model: nn.Module, batch_size: int, *, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of one random batch, a scalar with gradients."""
        device, num_timesteps = self._latents.device, len(self._signal)
        rows = torch.randint(len(self._latents), (batch_size,), generator=generator, device=device)
        lengths = torch.multinomial(self._shares, batch_size, replacement=True, generator=generator)
        # Stratified: the batch's noise levels cover the range evenly, which calms the loss.
        part = torch.rand(batch_size, generator=generator, device=device)
        u = (torch.arange(batch_size, device=device) + part) / batch_size
        u = self._shift * u / (1 + (self._shift - 1) * u)
        timesteps = (u * num_timesteps).long().clamp_max(num_timesteps - 1)
        clean = self._latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        signal, sigma = (
            values[timesteps].view(-1, 1, 1, 1, 1) for values in (self._signal, self._sigma)
        )
        taken = signal * clean + sigma * noise
        if self._first_frames is not None:
            condition = torch.zeros_like(clean)
            condition[:, :1] = self._first_frames[rows]
            taken = torch.cat([taken, condition], dim=2)
        with _fast_attention(device), autocast(device):
            prediction = model(
                taken,
                timesteps,
                self._input_ids[rows, lengths],
                image_rotary_emb=self._rotary,
            )
        return nn.functional.mse_loss(prediction.float(), signal * noise - sigma * clean)


def _fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """Choose the attention of training.

    On a CPU the fused attention's backward pass is several times slower than plain matrix products
    for sequences as short as these.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
