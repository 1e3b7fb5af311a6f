"""Training of the shapes world's transformer and text encoder, on the latents of the frozen VAE."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from cogedit.lab import world
from cogedit.lab.components import (
    PATCH_SIZE,
    make_pipeline,
    make_text_encoder,
    make_transformer,
)
from cogedit.lab.render import ClipTable
from cogedit.lab.train_vae import encode_batch, load_vae, sample_specs
from cogedit.lab.training import Optimizers, TrainingSchedule, autocast, averaged_weights, train
from cogedit.lab.velocity_loss import TextToVelocity, VelocityLoss

logger = logging.getLogger(__name__)


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
        takes_first_frame: The transformer also takes the latents of a first frame, as CogVideoX's
            image-to-video models do: always, since their pipelines never leave it out.
        keeps_text_encoder: The text encoder stays as it is, as whoever shares it needs.
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
    takes_first_frame: bool = False
    keeps_text_encoder: bool = False


def encode_clips(
    vae: AutoencoderKLCogVideoX, clips: ClipTable, *, minutes: float | None = None
) -> dict[str, Tensor]:
    """Render and encode clips.

    Args:
        vae: The frozen codec, on the device of the clips.
        clips: The clips.
        minutes: Stop after this time with fewer clips; None encodes all.

    Returns:
        `clips`, the latents [N, F', C, H', W'], and `first_frames`, those of frame 0 encoded alone,
        [N, 1, C, H', W']; both bfloat16, on the VAE's device.
    """
    started = time.monotonic()
    batch = 8 if vae.device.type == "cpu" else 256
    latents: list[Tensor] = []
    first_frames: list[Tensor] = []
    for first in range(0, len(clips), batch):
        if minutes is not None and latents and time.monotonic() - started > 60 * minutes:
            break
        pixels = clips.pixels(slice(first, first + batch))
        with autocast(vae.device):
            latents.append(encode_batch(vae, pixels).bfloat16())
            first_frames.append(encode_batch(vae, pixels[:, :, :1]).bfloat16())
        if first % (64 * batch) == 0:
            logger.info("%d of %d clips encoded", first, len(clips))
    return {"clips": torch.cat(latents), "first_frames": torch.cat(first_frames)}


def train_transformer(
    settings: TransformerTraining,
    vae_folder: Path,
    *,
    out: Path,
    encoded: Path,
    start_from: Path | None = None,
    device: str = "cpu",
    encode_minutes: float | None = None,
) -> CogVideoXPipeline:
    """Train transformer and text encoder, or continue from the checkpoint in `out`.

    A model of large patches learns colours, places and motions in a fraction of the time that one
    of small patches takes; its blocks are then a good start for the latter, which draws outlines.

    Args:
        settings: The run.
        vae_folder: The trained VAE, as `train_vae` saves it.
        out: Folder for `transformer.pt` (checkpoint) and `transformer.json` (history).
        encoded: File of the encoded clips, made if it is not there; delete it to use another VAE
            or number of clips.
        start_from: Checkpoint of another run (its averaged weights) or a pipeline's folder that a
            new run starts from, as far as the weights fit: of another patch size, all but the
            first and the last layer; of a transformer that takes no first frame, all of them.
        device: A torch device.
        encode_minutes: Encode as many clips as this time allows; None encodes all.

    Returns:
        The pipeline with the averaged weights, in float32.

    Raises:
        OSError: The VAE cannot be read or `out` cannot be written.
    """
    pipeline = untrained_pipeline(settings, vae_folder).to(device)
    out.mkdir(parents=True, exist_ok=True)
    clips = _encoded_clips(settings, pipeline.vae, encoded, minutes=encode_minutes)

    def loss_on(split: world.Split) -> VelocityLoss:
        return VelocityLoss(
            pipeline,
            clips[split]["clips"],
            split=split,
            timestep_shift=settings.timestep_shift,
            first_frames=clips[split]["first_frames"] if settings.takes_first_frame else None,
        )

    training_loss, held_out_loss = loss_on("train"), loss_on("held_out")
    model = TextToVelocity(pipeline)
    if start_from is not None:
        copy_weights(model, _saved_weights(start_from))
    pipeline.text_encoder.requires_grad_(not settings.keeps_text_encoder)
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
        batch = max(len(clips["held_out"]["clips"]) // 4, 1)
        losses = [held_out_loss(averaged, batch, generator=generator) for _ in range(4)]
        return {"held_out_loss": float(torch.stack(losses).mean())}

    # Muon for the matrices inside the transformer and the text encoder.
    outside = ("shared", "embed", "proj_out", "relative_attention_bias")
    kernels: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        inside = param.dim() == 2 and not any(part in name for part in outside)
        if param.requires_grad:
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


def _encoded_clips(
    settings: TransformerTraining,
    vae: AutoencoderKLCogVideoX,
    encoded: Path,
    *,
    minutes: float | None,
) -> dict[world.Split, dict[str, Tensor]]:
    """Return what `encode_clips` makes of both splits, from the file if it is there."""
    if not encoded.exists():
        counts: dict[world.Split, int] = {
            "train": settings.num_clips,
            "held_out": settings.eval_clips,
        }
        made = {
            split: encode_clips(
                vae,
                ClipTable(sample_specs(count, split), vae.device),
                minutes=minutes if split == "train" else None,
            )
            for split, count in counts.items()
        }
        torch.save(made, encoded)
    clips: dict[world.Split, dict[str, Tensor]] = torch.load(
        encoded, map_location=vae.device, weights_only=True
    )
    return clips


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
        takes_first_frame=settings.takes_first_frame,
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
    """Copy weights into the parameters that have their name and shape.

    The first layer of a transformer that takes a first frame has twice the channels of one that
    does not: the columns of the frame start at zero, so that it begins as the model of text.
    """
    for name, param in model.named_parameters():
        weight = weights.get(name)
        if weight is None:
            continue
        if weight.shape == param.shape:
            param.copy_(weight)
        elif (
            name.endswith("patch_embed.proj.weight") and weight.shape == param.chunk(2, 1)[0].shape
        ):
            param.zero_()
            param[:, : weight.shape[1]] = weight
