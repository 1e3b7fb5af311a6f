"""Training of the shapes world's transformer and text encoder, on the latents of the frozen VAE."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5EncoderModel

from cogedit.lab import world
from cogedit.lab.components import (
    MAX_TEXT_SEQ_LENGTH,
    PATCH_SIZE,
    make_pipeline,
    make_text_encoder,
    make_transformer,
    rotary_embeddings,
)
from cogedit.lab.render import ClipTable
from cogedit.lab.train_vae import encode_batch, load_vae, sample_specs
from cogedit.lab.training import Optimizers, TrainingSchedule, autocast, averaged_weights, train

logger = logging.getLogger(__name__)

# How often a clip is shown with a caption of each length: the empty one is the drop of 12 % that
# guidance needs.
CAPTION_SHARES: dict[world.CaptionLength, float] = {
    "full": 0.60,
    "background": 0.10,
    "motion": 0.09,
    "short": 0.09,
    "empty": 0.12,
}


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of a transformer training run.

    Attributes:
        schedule: Length and learning rate.
        batch_size: Clips per step.
        num_clips: Size of the training set: the clips of the seeds 0 to num_clips - 1.
        average_decay: Decay of the weight average.
        timestep_shift: Above 1, high noise levels are drawn more often: u -> s u / (1 + (s - 1) u).
        seed: Of the initial weights, the batches, the noise and the timesteps.
        num_layers: Transformer blocks.
        num_attention_heads: Heads per block.
        attention_head_dim: Channels per head.
        patch_size: Latents per token, along height and width.
        eval_clips: Held-out clips per measurement.
    """

    schedule: TrainingSchedule = field(default_factory=lambda: TrainingSchedule(6000))
    batch_size: int = 32
    num_clips: int = 24576
    average_decay: float = 0.999
    timestep_shift: float = 1.5
    seed: int = 0
    num_layers: int = 6
    num_attention_heads: int = 4
    attention_head_dim: int = 64
    patch_size: int = PATCH_SIZE
    eval_clips: int = 512


def encode_clips(
    vae: AutoencoderKLCogVideoX, clips: ClipTable, *, minutes: float | None = None
) -> Tensor:
    """Render and encode clips.

    Args:
        vae: The frozen codec, on the device of the clips.
        clips: The clips.
        minutes: Stop after this time with fewer clips; None encodes all.

    Returns:
        [N, F', C, H', W'] bfloat16 latents on the VAE's device.
    """
    started = time.monotonic()
    batch = 32 if vae.device.type == "cpu" else 256
    latents: list[Tensor] = []
    for first in range(0, len(clips), batch):
        if minutes is not None and latents and time.monotonic() - started > 60 * minutes:
            break
        pixels = clips.pixels(slice(first, first + batch))
        with autocast(vae.device):
            latents.append(encode_batch(vae, pixels).bfloat16())
        if first % (64 * batch) == 0:
            logger.info("%d of %d clips encoded", first, len(clips))
    return torch.cat(latents)


def tokenize_captions(pipeline: CogVideoXPipeline, num_clips: int, *, split: world.Split) -> Tensor:
    """Return the tokens of the clips' captions in every length.

    Returns:
        [N, lengths, `MAX_TEXT_SEQ_LENGTH`] int64, the lengths in the order of `CAPTION_SHARES`.
    """
    # Far fewer captions than clips: each is tokenized once.
    rows: dict[str, int] = {}
    order = [
        rows.setdefault(world.caption(spec, length), len(rows))
        for spec in sample_specs(num_clips, split)
        for length in CAPTION_SHARES
    ]
    tokens: Tensor = pipeline.tokenizer(
        list(rows),
        padding="max_length",
        max_length=MAX_TEXT_SEQ_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens[torch.tensor(order)].view(num_clips, len(CAPTION_SHARES), -1)


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
        """Return the prediction of v, shaped like the latents [B, F', C, H', W']."""
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
    """

    def __init__(
        self,
        pipeline: CogVideoXPipeline,
        latents: Tensor,
        *,
        split: world.Split,
        timestep_shift: float,
    ) -> None:
        device = latents.device
        self._latents = latents
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
        self._shares = torch.tensor(list(CAPTION_SHARES.values()), device=device)

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
        with _fast_attention(device), autocast(device):
            prediction = model(
                signal * clean + sigma * noise,
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


def train_transformer(
    settings: TransformerTraining,
    vae_folder: Path,
    *,
    out: Path,
    start_from: Path | None = None,
    device: str = "cpu",
    encode_minutes: float | None = None,
) -> CogVideoXPipeline:
    """Train transformer and text encoder, or continue from the checkpoint in `out`.

    A model of large patches learns colours, places and motions in a fraction of the time that one
    of small patches takes; its blocks are then a good start for the latter, which draws outlines.

    Args:
        settings: The run.
        vae_folder: The trained VAE, as `train_vae` saves it. The encoded clips lie beside it, in
            `latents.pt`; delete that file to use another VAE or number of clips.
        out: Folder for `transformer.pt` (checkpoint) and `transformer.json` (history).
        start_from: Checkpoint of another run (its averaged weights) or a pipeline's folder that a
            new run starts from, as far as the weights fit: of another patch size, all but the
            first and the last layer.
        device: A torch device.
        encode_minutes: Encode as many clips as this time allows; None encodes all.

    Returns:
        The pipeline with the averaged weights, in float32.

    Raises:
        OSError: The VAE cannot be read or `out` cannot be written.
    """
    pipeline = untrained_pipeline(settings, vae_folder).to(device)
    out.mkdir(parents=True, exist_ok=True)
    cache = vae_folder.parent / "latents.pt"
    if not cache.exists():

        def encoded(count: int, split: world.Split, minutes: float | None = None) -> Tensor:
            clips = ClipTable(sample_specs(count, split), device)
            return encode_clips(pipeline.vae, clips, minutes=minutes)

        latents = {
            "train": encoded(settings.num_clips, "train", encode_minutes),
            "held_out": encoded(settings.eval_clips, "held_out"),
        }
        torch.save(latents, cache)
    latents = torch.load(cache, map_location=device, weights_only=True)
    shift = settings.timestep_shift
    training_loss = VelocityLoss(pipeline, latents["train"], split="train", timestep_shift=shift)
    held_out_loss = VelocityLoss(
        pipeline, latents["held_out"], split="held_out", timestep_shift=shift
    )
    model = TextToVelocity(pipeline)
    if start_from is not None:
        copy_weights(model, _saved_weights(start_from))
    if pipeline.device.type != "cpu":
        for block in pipeline.transformer.transformer_blocks:
            block.compile()

    def loss_of(step: int, progress: float) -> Tensor:
        generator = torch.Generator(pipeline.device)
        generator.manual_seed(settings.seed * 10_000_019 + step)
        return training_loss(model, settings.batch_size, generator=generator)

    @torch.no_grad()
    def evaluate(averaged: nn.Module) -> dict[str, float]:
        generator = torch.Generator(pipeline.device).manual_seed(1)  # the same noise every time
        batch = max(len(latents["held_out"]) // 4, 1)
        losses = [held_out_loss(averaged, batch, generator=generator) for _ in range(4)]
        return {"held_out_loss": float(torch.stack(losses).mean())}

    # Muon for the matrices inside the transformer and the text encoder.
    outside = ("shared", "embed", "proj_out", "relative_attention_bias")
    kernels: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        inside = param.dim() == 2 and not any(part in name for part in outside)
        (kernels if inside else others).append(param)
    train(
        model,
        Optimizers(kernels, others, weight_decay=0.01),
        loss_of,
        schedule=settings.schedule,
        average_decay=settings.average_decay,
        evaluate=evaluate,
        checkpoint=out / "transformer.pt",
    )
    return pipeline


def untrained_pipeline(settings: TransformerTraining, vae_folder: Path) -> CogVideoXPipeline:
    """Return the trained VAE with a transformer and a text encoder as random as the seed says."""
    vae = load_vae(vae_folder)
    torch.manual_seed(settings.seed)
    transformer = make_transformer(
        vae,
        num_layers=settings.num_layers,
        num_attention_heads=settings.num_attention_heads,
        attention_head_dim=settings.attention_head_dim,
        patch_size=settings.patch_size,
    )
    return make_pipeline(vae, transformer, make_text_encoder())


def load_checkpoint(pipeline: CogVideoXPipeline, checkpoint: Path) -> None:
    """Put a checkpoint's averaged weights into a pipeline. Raises `OSError` if it is not there."""
    copy_weights(TextToVelocity(pipeline), averaged_weights(checkpoint))


def _saved_weights(saved: Path) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint or a pipeline's folder, by their names in the model."""
    if saved.is_file():
        return averaged_weights(saved)
    kinds = {"transformer": CogVideoXTransformer3DModel, "text_encoder": T5EncoderModel}
    parts = {
        part: kind.from_pretrained(saved / part, use_safetensors=True)
        for part, kind in kinds.items()
    }
    return {
        f"{part}.{name}": weight
        for part, model in parts.items()
        for name, weight in model.state_dict().items()
    }


@torch.no_grad()
def copy_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters that have their name and shape."""
    for name, param in model.named_parameters():
        weight = weights.get(name)
        if weight is not None and weight.shape == param.shape:
            param.copy_(weight)
