"""Training of the shapes world's 3D causal VAE.

The run has two parts. First the encoder learns to give the coefficients of a linear codec
(principal components of blocks of pixels) and the decoder learns to invert that codec; then both
are trained end to end.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX

from cogedit.lab.optim import Muon, WeightAverage, learning_rate_factor
from cogedit.lab.replicas import Replica, run_replicas
from cogedit.lab.training_state import load_checkpoint, plot_losses, save_checkpoint
from cogedit.media import metrics
from cogedit.shapes import world

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VaeTraining:
    """Settings of a VAE training run.

    Attributes:
        steps: Planned number of steps.
        batch_size: Whole clips per step and replica, or as many pixels of crops.
        crop: Side of the square crops, in pixels.
        crop_fraction: Share of the steps, from the start, that train on crops.
        lr: Learning rate of both optimizers.
        warmup_steps: Steps of the linear rise of the learning rate.
        decay_fraction: Share of the steps, at the end, in which the rate falls to 0.
        codec_steps: Steps that learn the linear codec, before the training end to end.
        kl_weight: Weight of the mean divergence per latent number.
        seed: Of the initial weights, the crops and the latent noise.
        block_out_channels: Channels of the levels; one downsampling by 2 between two levels.
        latent_channels: Channels of the latents.
        eval_every: Steps between two measurements and checkpoints.
        eval_clips: Held-out clips per measurement.
    """

    steps: int = 3000
    batch_size: int = 2
    crop: int = 32
    crop_fraction: float = 0.6
    lr: float = 3e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.35
    codec_steps: int = 300
    kl_weight: float = 1e-5
    seed: int = 0
    block_out_channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    eval_every: int = 500
    eval_clips: int = 64


def make_vae(settings: VaeTraining) -> AutoencoderKLCogVideoX:
    """Return a VAE with random weights (from torch's global generator)."""
    levels = len(settings.block_out_channels)
    return AutoencoderKLCogVideoX(
        block_out_channels=settings.block_out_channels,
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        latent_channels=settings.latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=world.HEIGHT,
        sample_width=world.WIDTH,
    )


def frames_to_pixels(frames: np.ndarray) -> torch.Tensor:
    """Turn [B, F, H, W, 3] uint8 frames into [B, 3, F, H, W] float32 pixels in -1..1."""
    pixels = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float()
    return pixels.div_(127.5).sub_(1.0)


def pixels_to_frames(pixels: torch.Tensor) -> np.ndarray:
    """Turn [B, 3, F, H, W] pixels in -1..1 into [B, F, H, W, 3] uint8 frames."""
    levels = (pixels.float().clamp(-1, 1) + 1).mul(127.5).round_().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).cpu().numpy()


def render_batch(seeds: range | list[int], split: world.Split) -> np.ndarray:
    """Render the clips of some seeds: [B, F, H, W, 3] uint8."""
    return np.stack([world.render(world.sample_spec(seed, split)) for seed in seeds])


def psnr(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the PSNR in dB of each clip of a batch [B, F, H, W, 3] uint8: [B] float64."""
    return np.array([metrics.psnr(*pair) for pair in zip(frames, reference, strict=True)])


@torch.no_grad()
def encode_frames(vae: AutoencoderKLCogVideoX, frames: np.ndarray) -> torch.Tensor:
    """Encode frames with the mode of the posterior, scaled by the VAE's scaling factor.

    Args:
        vae: The codec.
        frames: [B, F, H, W, 3] uint8.

    Returns:
        [B, F', C, H', W'] float32 latents, as the pipeline and the transformer take them.
    """
    pixels = frames_to_pixels(frames).to(vae.device, vae.dtype)
    mode = vae.encode(pixels).latent_dist.mode()
    latents: torch.Tensor = mode.float() * vae.config.scaling_factor
    return latents.permute(0, 2, 1, 3, 4)


@torch.no_grad()
def decode_latents(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> np.ndarray:
    """Decode scaled latents [B, F', C, H', W'] into frames [B, F, H, W, 3] uint8."""
    mode = latents.permute(0, 2, 1, 3, 4) / vae.config.scaling_factor
    return pixels_to_frames(vae.decode(mode.to(vae.device, vae.dtype)).sample)


class LinearCodec:
    """Principal components of blocks of pixels, as coarse as the VAE's latents.

    The first frame has a codec of its own, as in the causal VAE: latent frame 0 is frame 0, and
    latent frame k is the frames 4k - 3 to 4k (with a temporal factor of 4).

    Args:
        frames: [B, F, H, W, 3] uint8, from which the components are computed.
        spatial: Compression in space.
        temporal: Compression in time.
        channels: Number of components kept.
    """

    def __init__(self, frames: np.ndarray, *, spatial: int, temporal: int, channels: int) -> None:
        self.spatial, self.temporal = spatial, temporal
        pixels = frames_to_pixels(frames)
        self._parts = []
        for blocks in self._blocks(pixels):
            flat = blocks.reshape(-1, blocks.shape[-1]).double()
            mean = flat.mean(dim=0)
            covariance = (flat - mean).T @ (flat - mean) / len(flat)
            variances, vectors = torch.linalg.eigh(covariance)
            top = vectors[:, -channels:].flip(1)
            # Halfway (in the logarithm) between the components' own variances and equal ones, so
            # that neither noise in small components nor noise in large ones dominates.
            scale = variances[-channels:].flip(0).clamp_min(1e-8) ** -0.25
            scale = scale / ((variances[-channels:].flip(0) * scale**2).mean() ** 0.5)
            self._parts.append((mean.float(), (top * scale).float()))

    def _blocks(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split [B, 3, F, H, W] into blocks [B, F', H', W', numbers]: first frame, and the rest."""
        s = self.spatial
        parts = []
        for part, t in ((pixels[:, :, :1], 1), (pixels[:, :, 1:], self.temporal)):
            b, c, f, h, w = part.shape
            split = part.reshape(b, c, f // t, t, h // s, s, w // s, s)
            parts.append(split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4))
        return parts[0], parts[1]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of pixels [B, 3, F, H, W]: [B, channels, F', H', W']."""
        coefficients = [
            (blocks - mean) @ basis
            for blocks, (mean, basis) in zip(self._blocks(pixels), self._parts, strict=True)
        ]
        return torch.cat(coefficients, dim=1).permute(0, 4, 1, 2, 3)


class _Batches:
    """Endless training batches: whole clips, or crops that follow the object half of the time."""

    def __init__(self, settings: VaeTraining) -> None:
        self.settings = settings

    def __call__(self, step: int, replica: Replica) -> torch.Tensor:
        """Return the pixels of one step, a pure function of its number and the replica."""
        settings = self.settings
        crop = settings.crop
        number_of_batch = step * replica.size + replica.rank
        if step >= settings.crop_fraction * settings.steps:
            first = number_of_batch * settings.batch_size
            seeds = range(first, first + settings.batch_size)
            return frames_to_pixels(render_batch(seeds, "train"))
        per_clip = world.HEIGHT * world.WIDTH // crop**2
        number = settings.batch_size * per_clip
        rng = np.random.default_rng((settings.seed, number_of_batch))
        crops = []
        for seed in range(number_of_batch * number, (number_of_batch + 1) * number):
            spec = world.sample_spec(seed)
            y, x = rng.integers(0, (world.HEIGHT - crop + 1, world.WIDTH - crop + 1))
            if rng.uniform() < 0.5:
                shift = rng.uniform(-crop / 2, crop / 2, size=2)
                x = int(np.clip(spec.x - crop / 2 + shift[0], 0, world.WIDTH - crop))
                y = int(np.clip(spec.y - crop / 2 + shift[1], 0, world.HEIGHT - crop))
            crops.append(world.render(spec)[:, y : y + crop, x : x + crop])
        return frames_to_pixels(np.stack(crops))


def _loss(
    vae: AutoencoderKLCogVideoX,
    pixels: torch.Tensor,
    *,
    target: torch.Tensor | None,
    kl_weight: float,
) -> tuple[torch.Tensor, float]:
    """Return the loss and the mean squared error of the pixels; `target` is the linear code."""
    posterior = vae.encode(pixels).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn_like(mean) * (0.5 * logvar).exp()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    extra = kl_weight * kl
    if target is None:
        latents = mean + noise
    else:
        latents = target + noise.detach()
        extra = extra + (mean - target).abs().mean()
    decoded = vae.decode(latents).sample.float()
    error = decoded - pixels
    mse = (error**2).mean()
    return error.abs().mean() + 5 * mse + extra, float(mse.detach())


def evaluate_vae(vae: AutoencoderKLCogVideoX, num_clips: int = 64) -> tuple[float, float]:
    """Round-trip held-out clips through the mode of the posterior.

    Args:
        vae: The codec.
        num_clips: Held-out clips, from seed 0 on.

    Returns:
        Mean PSNR over the clips in dB, and the standard deviation of the scaled latents.
    """
    values, latents = [], []
    for first in range(0, num_clips, 16):
        seeds = range(first, min(first + 16, num_clips))
        frames = render_batch(seeds, "held_out")
        encoded = encode_frames(vae, frames)
        values.append(psnr(decode_latents(vae, encoded), frames))
        latents.append(encoded)
    return float(np.concatenate(values).mean()), float(torch.cat(latents).std())


def train_vae(
    settings: VaeTraining, out: Path, *, device: str = "cpu", replicas: int = 1
) -> AutoencoderKLCogVideoX:
    """Train the VAE, or go on from the checkpoint in `out`.

    Args:
        settings: The run.
        out: Folder for `vae.pt` (checkpoint), `vae-losses.png` and, at the end, `vae/`.
        device: A torch device.
        replicas: Processes that train together, on a CPU; each takes whole batches of its own.

    Returns:
        The averaged weights, in float32, with the scaling factor set to 1 / std of the latents.

    Raises:
        OSError: If `out` cannot be written.
    """
    torch.manual_seed(settings.seed)
    vae = make_vae(settings).to(device)
    spatial = 2 ** (len(settings.block_out_channels) - 1)
    temporal = int(vae.config.temporal_compression_ratio)
    codec = LinearCodec(
        render_batch(range(512), "train"),
        spatial=spatial,
        temporal=temporal,
        channels=settings.latent_channels,
    )
    matrices = [p for n, p in vae.named_parameters() if p.dim() > 1 and "conv_in" not in n]
    others = [p for n, p in vae.named_parameters() if p.dim() == 1 or "conv_in" in n]
    optimizers = [
        Muon(matrices, settings.lr),
        torch.optim.AdamW(others, settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = WeightAverage(vae, decay=0.998)
    history: list[dict[str, float]] = []
    step = load_checkpoint(out / "vae.pt", vae, optimizers, average=average, history=history)
    batches = _Batches(settings)

    def work(replica: Replica) -> None:
        first = step
        started = time.monotonic() - (history[-1]["seconds"] if history else 0.0)
        errors: list[float] = []
        for now in range(first, settings.steps):
            torch.manual_seed(settings.seed * 1_000_003 + now * replica.size + replica.rank)
            factor = learning_rate_factor(
                now,
                settings.steps,
                warmup_steps=settings.warmup_steps,
                decay_fraction=settings.decay_fraction,
            )
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor
            pixels = batches(now, replica)
            target = codec.encode(pixels).to(device) if now < settings.codec_steps else None
            pixels = pixels.to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                loss, mse = _loss(vae, pixels, target=target, kl_weight=settings.kl_weight)
            loss.backward()  # type: ignore[no-untyped-call]
            replica.average_gradients()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            average.update(vae, replica.owned)
            replica.wait()
            errors.append(mse)
            done = now + 1
            if replica.rank == 0 and done % 50 == 0:
                decibel = -10 * float(np.log10(np.mean(errors) / 4))
                errors = []
                seconds = time.monotonic() - started
                history.append({"step": done, "seconds": seconds, "psnr": decibel})
                logger.info("step %d  %.0f s  train %.2f dB", done, seconds, decibel)
            if done % settings.eval_every == 0 or done == settings.steps:
                if replica.rank == 0:
                    held_out, deviation = _evaluate_average(settings, average, device=device)
                    seconds = time.monotonic() - started
                    history.append({"step": done, "seconds": seconds, "held_out_psnr": held_out})
                    logger.info("step %d  held out %.2f dB  std %.3f", done, held_out, deviation)
                    save_checkpoint(
                        out / "vae.pt", vae, optimizers, average=average, step=done, history=history
                    )
                    names = ("psnr", "held_out_psnr")
                    plot_losses(out / "vae-losses.png", history, names, unit="dB")
                replica.wait()

    run_replicas(replicas, work, module=vae, optimizers=optimizers, average=average)
    average.copy_to(vae)
    vae.eval()
    # The class's default factor is another model's.
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=1 / evaluate_vae(vae, 4 * settings.eval_clips)[1])
    vae.save_pretrained(out / "vae")
    return vae


def _evaluate_average(
    settings: VaeTraining, average: WeightAverage, *, device: str
) -> tuple[float, float]:
    """Evaluate the averaged weights in a copy of the model."""
    with torch.random.fork_rng():
        copy = make_vae(settings).to(device).eval()
    copy.register_to_config(scaling_factor=1.0)
    average.copy_to(copy)
    return evaluate_vae(copy, settings.eval_clips)
