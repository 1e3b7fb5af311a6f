"""Joint training of the shapes world's transformer and text encoder, on latents of the frozen VAE.

The loss is the mean squared error of the v-prediction under the scheduler that the pipeline
samples with, zero terminal signal-to-noise ratio included.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogedit.lab.components import (
    PATCH_SIZE,
    make_pipeline,
    make_text_encoder,
    make_transformer,
    rotary_embeddings,
)
from cogedit.lab.dataset import CAPTION_SHARES, encode_clips, tokenize_captions
from cogedit.lab.optim import Muon, WeightAverage, scheduled_factor
from cogedit.lab.replicas import Replica, run_replicas, shared_zeros
from cogedit.lab.training_state import History, load_checkpoint, plot_losses, save_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransformerTraining:
    """Settings of a transformer training run.

    Attributes:
        steps: Planned number of steps.
        minutes: End after this time instead, and let the learning rate follow the clock; None
            goes by the steps. Two such runs are not equal.
        batch_size: Clips per step and replica.
        num_clips: Size of the training set: the clips of the seeds 0 to num_clips - 1.
        lr: Learning rate of both optimizers.
        warmup_steps: Steps of the linear rise of the learning rate.
        decay_fraction: Share of the steps, at the end, in which the rate falls to 0.
        average_decay: Decay of the weight average.
        timestep_shift: Above 1, high noise levels are drawn more often: u -> s u / (1 + (s - 1) u).
        seed: Of the initial weights, the batches, the noise and the timesteps.
        num_layers: Transformer blocks.
        num_attention_heads: Heads per block.
        attention_head_dim: Channels per head.
        patch_size: Latents per token, along height and width.
        eval_every: Steps between two measurements and checkpoints.
        eval_clips: Held-out clips per measurement.
    """

    steps: int = 6000
    minutes: float | None = None
    batch_size: int = 16
    num_clips: int = 24576
    lr: float = 2e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.35
    average_decay: float = 0.999
    timestep_shift: float = 1.5
    seed: int = 0
    num_layers: int = 6
    num_attention_heads: int = 4
    attention_head_dim: int = 64
    patch_size: int = PATCH_SIZE
    eval_every: int = 500
    eval_clips: int = 512


class _Model(torch.nn.Module):
    """Text encoder and transformer as one module, so that they are saved and averaged together."""

    def __init__(self, pipeline: CogVideoXPipeline) -> None:
        super().__init__()
        self.text_encoder = pipeline.text_encoder
        self.transformer = pipeline.transformer

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        input_ids: torch.Tensor,
        *,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Return the prediction of v, shaped like the latents [B, F', C, H', W']."""
        prompt_embeds = self.text_encoder(input_ids)[0]
        prediction: torch.Tensor = self.transformer(
            hidden_states=latents,
            encoder_hidden_states=prompt_embeds,
            timestep=timesteps,
            image_rotary_emb=image_rotary_emb,
            return_dict=False,
        )[0]
        return prediction


class _Objective:
    """The v-prediction loss on random clips, noise and timesteps.

    Args:
        pipeline: Its scheduler and rotary positions are used.
        latents: [N, F', C, H', W'] scaled latents, any float dtype.
        input_ids: [N, lengths, text tokens], from `tokenize_captions`.
        timestep_shift: As in `TransformerTraining`.
    """

    def __init__(
        self,
        pipeline: CogVideoXPipeline,
        latents: torch.Tensor,
        *,
        input_ids: torch.Tensor,
        timestep_shift: float,
    ) -> None:
        self.latents = latents
        self.input_ids = input_ids
        self.shift = timestep_shift
        self.device = str(pipeline.device)
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.double()
        self.rotary = rotary_embeddings(
            pipeline, num_latent_frames=latents.shape[1], device=self.device
        )
        self.shares = torch.tensor(list(CAPTION_SHARES.values()))

    def __call__(
        self, model: _Model, batch_size: int, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the mean squared error of one random batch, a scalar with gradients."""
        rows = torch.randint(len(self.latents), (batch_size,), generator=generator)
        lengths = torch.multinomial(self.shares, batch_size, replacement=True, generator=generator)
        # Stratified: the batch's noise levels cover the range evenly, which calms the loss.
        u = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
        u = self.shift * u / (1 + (self.shift - 1) * u)
        timesteps = (u * len(self.alphas_cumprod)).long().clamp_max(len(self.alphas_cumprod) - 1)
        clean = self.latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        signal, sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
        noisy, velocity = signal * clean + sigma * noise, signal * noise - sigma * clean
        device = self.device
        with (
            sdpa_kernel(SDPBackend.MATH) if device == "cpu" else sdpa_kernel(list(_GPU_BACKENDS)),
            torch.autocast(torch.device(device).type, torch.bfloat16),
        ):
            prediction = model(
                noisy.to(device),
                timesteps.to(device),
                self.input_ids[rows, lengths].to(device),
                image_rotary_emb=self.rotary,
            )
        return torch.nn.functional.mse_loss(prediction.float(), velocity.to(device))


# On a CPU the fused attention's backward pass is several times slower than plain matrix products
# for sequences as short as these.
_GPU_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def train_transformer(
    settings: TransformerTraining,
    vae_folder: Path,
    *,
    out: Path,
    start_from: Path | None = None,
    device: str = "cpu",
    replicas: int = 1,
) -> CogVideoXPipeline:
    """Train transformer and text encoder, or go on from the checkpoint in `out`.

    A model of large patches learns colours, places and motions in a fraction of the time that one
    of small patches takes; its blocks are then a good start for the latter, which draws outlines.

    Args:
        settings: The run.
        vae_folder: The trained VAE, as `train_vae` saves it. The encoded clips lie beside it, in
            `latents.pt`; delete that for another VAE or number of clips.
        out: Folder for `transformer.pt` (checkpoint) and `transformer.png` (the losses).
        start_from: Checkpoint of another run whose averaged weights a new run starts from, as far
            as they fit: of a run with another patch size, all but the first and the last layer.
        device: A torch device.
        replicas: Processes that train together, on a CPU; each takes whole batches of its own.

    Returns:
        The pipeline with the averaged weights, in float32.

    Raises:
        OSError: If the VAE cannot be read or `out` cannot be written.
    """
    pipeline = _make_untrained(settings, vae_folder).to(device)
    vae = pipeline.vae
    out.mkdir(parents=True, exist_ok=True)
    cache = vae_folder.parent / "latents.pt"
    if cache.exists():
        latents = torch.load(cache, weights_only=True)
    else:
        latents = encode_clips(vae, settings.num_clips, split="train", processes=replicas)
        torch.save(latents, cache)
    objective = _Objective(
        pipeline,
        latents,
        input_ids=tokenize_captions(pipeline, len(latents), split="train"),
        timestep_shift=settings.timestep_shift,
    )
    validation = _Objective(
        pipeline,
        encode_clips(vae, settings.eval_clips, split="held_out", processes=replicas),
        input_ids=tokenize_captions(pipeline, settings.eval_clips, split="held_out"),
        timestep_shift=settings.timestep_shift,
    )
    model = _Model(pipeline)
    if start_from is not None:
        _take_weights(model, start_from)
    optimizers = _make_optimizers(model, settings.lr)
    average = WeightAverage(model, decay=settings.average_decay)
    history: History = []
    checkpoint = out / "transformer.pt"
    first = load_checkpoint(checkpoint, model, optimizers, average=average, history=history)

    # Decided by the first replica, before the others are let into the next step.
    progress = shared_zeros(1, dtype=torch.float64)

    def work(replica: Replica) -> None:
        before = history[-1]["seconds"] if history else 0.0
        started = time.monotonic() - before
        losses: list[float] = []
        if replica.rank == 0:
            progress[0] = _progress(settings, first, before)
        replica.wait()
        now = first
        while progress[0] < 1:
            factor = scheduled_factor(
                now,
                float(progress[0]),
                warmup_steps=settings.warmup_steps,
                decay_fraction=settings.decay_fraction,
            )
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor
            # One generator per batch: a resumed run sees the batches that it would have seen.
            number_of_batch = now * replica.size + replica.rank
            generator = torch.Generator().manual_seed(settings.seed * 10_000_019 + number_of_batch)
            loss = objective(model, settings.batch_size, generator=generator)
            loss.backward()  # type: ignore[no-untyped-call]
            replica.average_gradients()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            average.update(model, replica.owned)
            losses.append(float(loss.detach()))
            now += 1
            seconds = time.monotonic() - started
            if replica.rank == 0:
                progress[0] = _progress(settings, now, seconds)
            replica.wait()
            if replica.rank == 0 and now % 50 == 0:
                mean = sum(losses) / len(losses)
                history.append({"step": now, "seconds": seconds, "loss": mean})
                logger.info("step %d  %.0f s  loss %.4f", now, seconds, mean)
                losses = []
            if now % settings.eval_every == 0 or progress[0] >= 1:
                if replica.rank == 0:
                    held_out_loss = _validate(model, validation, average)
                    history.append(
                        {"step": now, "seconds": seconds, "held_out_loss": held_out_loss}
                    )
                    logger.info("step %d  held-out loss %.4f", now, held_out_loss)
                    save_checkpoint(
                        checkpoint, model, optimizers, average=average, step=now, history=history
                    )
                    names = ("loss", "held_out_loss")
                    plot_losses(checkpoint.with_suffix(".png"), history, names, unit="loss")
                replica.wait()

    run_replicas(replicas, work, module=model, optimizers=optimizers, average=average)
    average.copy_to(model)
    return pipeline


@torch.no_grad()
def _take_weights(model: _Model, checkpoint: Path) -> None:
    """Copy the averaged weights of another run into the parameters that have their shapes."""
    weights = torch.load(checkpoint, weights_only=True)["average"]["average"]
    for name, param in model.named_parameters():
        if name in weights and weights[name].shape == param.shape:
            param.copy_(weights[name])


def load_trained(
    settings: TransformerTraining, vae_folder: Path, checkpoint: Path
) -> CogVideoXPipeline:
    """Return the pipeline with the averaged weights of a run's last checkpoint.

    Args:
        settings: Those of the run.
        vae_folder: The trained VAE, as `train_vae` saves it.
        checkpoint: `transformer.pt` of the run.

    Returns:
        The pipeline, in float32 on the CPU.

    Raises:
        OSError: If a file cannot be read.
        RuntimeError: If the checkpoint belongs to another model.
    """
    pipeline = _make_untrained(settings, vae_folder)
    model = _Model(pipeline)
    average = WeightAverage(model)
    average.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    average.copy_to(model)
    return pipeline


def _make_untrained(settings: TransformerTraining, vae_folder: Path) -> CogVideoXPipeline:
    """Return the trained VAE with a transformer and a text encoder as random as the seed says."""
    vae = AutoencoderKLCogVideoX.from_pretrained(
        vae_folder, dtype=torch.float32, use_safetensors=True
    )
    torch.manual_seed(settings.seed)
    transformer = make_transformer(
        vae,
        num_layers=settings.num_layers,
        num_attention_heads=settings.num_attention_heads,
        attention_head_dim=settings.attention_head_dim,
        patch_size=settings.patch_size,
    )
    return make_pipeline(vae, transformer, make_text_encoder())


def _progress(settings: TransformerTraining, step: int, seconds: float) -> float:
    """Return the share of the run that is over, 0..1, after some steps and seconds."""
    if settings.minutes is not None:
        return seconds / (60 * settings.minutes)
    return step / settings.steps


def _make_optimizers(model: _Model, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer and the text encoder, AdamW for the rest."""
    outside = ("shared", "embed", "proj_out", "relative_attention_bias")
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, param in model.named_parameters():
        inside = param.dim() == 2 and not any(part in name for part in outside)
        (matrices if inside else others).append(param)
    return [
        Muon(matrices, lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def _validate(model: _Model, objective: _Objective, average: WeightAverage) -> float:
    """Return the averaged weights' loss on held-out clips, with the same noise every time."""
    present = {name: param.detach().clone() for name, param in model.named_parameters()}
    average.copy_to(model)
    generator = torch.Generator().manual_seed(1)
    number = len(objective.latents)
    losses = [float(objective(model, number // 4, generator=generator)) for _ in range(4)]
    for name, param in model.named_parameters():
        param.copy_(present[name])
    return sum(losses) / len(losses)
