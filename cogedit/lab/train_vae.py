"""Training of the shapes world's 3D causal VAE.

First the encoder learns the coefficients of a linear codec (principal components of blocks of
pixels) and the decoder learns to invert that codec; then both are trained end to end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from cogedit.lab import world
from cogedit.lab.render import ClipTable, render_pixels
from cogedit.lab.training import Optimizers, TrainingSchedule, autocast, train


@dataclass(frozen=True)
class VaeTraining:
    """Settings of a VAE training run.

    Attributes:
        schedule: Length and learning rate.
        batch_size: Whole clips per step, or as many pixels of crops.
        crop: Side of the square crops, in pixels.
        crop_fraction: Share of the run, from the start, that trains on crops.
        codec_fraction: Share of the run, from the start, that learns the linear codec.
        kl_weight: Weight of the mean divergence per latent value.
        seed: Of the initial weights, the crops and the latent noise.
        block_out_channels: Channels of the levels; one downsampling by 2 between two levels.
        latent_channels: Channels of the latents.
        num_clips: Size of the training set: the clips of the seeds 0 to num_clips - 1.
        codec_clips: Clips that the linear codec is fitted to.
        eval_clips: Held-out clips per measurement.
    """

    schedule: TrainingSchedule = field(default_factory=lambda: TrainingSchedule(3000, lr=3e-3))
    batch_size: int = 4
    crop: int = 32
    crop_fraction: float = 0.6
    codec_fraction: float = 0.1
    kl_weight: float = 1e-5
    seed: int = 0
    block_out_channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4
    num_clips: int = 24576
    codec_clips: int = 512
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
        scaling_factor=1.0,
    )


@cache
def sample_specs(num_clips: int, split: world.Split) -> tuple[world.ClipSpec, ...]:
    """Draw the clips of the seeds 0 to num_clips - 1; both trainings share one training set."""
    return tuple(world.sample_spec(seed, split) for seed in range(num_clips))


@torch.no_grad()
def encode_batch(vae: AutoencoderKLCogVideoX, pixels: Tensor) -> Tensor:
    """Encode pixels [B, 3, F, H, W] to scaled latents [B, F', C, H', W'] float32: the mode."""
    mode = vae.encode(pixels.to(vae.device)).latent_dist.mode()
    latents: Tensor = mode.float().movedim(2, 1) * vae.config.scaling_factor
    return latents


@torch.no_grad()
def evaluate_vae(vae: AutoencoderKLCogVideoX, num_clips: int) -> dict[str, float]:
    """Measure the round trip of held-out clips through the mode of the posterior.

    Returns:
        `psnr`, the mean over the clips in dB, and `latent_std`, the standard deviation of the
        scaled latents.
    """
    specs = sample_specs(num_clips, "held_out")
    errors, latents = [], []
    for first in range(0, num_clips, 16):
        pixels = render_pixels(specs[first : first + 16], vae.device)
        latents.append(encode_batch(vae, pixels))
        decoded = vae.decode(latents[-1].movedim(2, 1) / vae.config.scaling_factor).sample
        errors.append((decoded.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3, 4)))
    # Pixels lie in -1..1: the peak is 2.
    psnr = 10 * torch.log10(4 / torch.cat(errors)).mean()
    return {"psnr": float(psnr), "latent_std": float(torch.cat(latents).std())}


class LinearCodec:
    """Principal components of blocks of pixels, as coarse as the VAE's latents.

    The first frame has a codec of its own, as in the causal VAE: latent frame 0 is frame 0, and
    latent frame k is the frames 4k - 3 to 4k (with a temporal factor of 4).

    Args:
        pixels: [B, 3, F, H, W], from which the components are computed.
        spatial: Compression in space.
        temporal: Compression in time.
        channels: Number of components kept.
    """

    def __init__(self, pixels: Tensor, *, spatial: int, temporal: int, channels: int) -> None:
        self._spatial, self._temporal = spatial, temporal
        self._bases = []
        for blocks in self._blocks(pixels):
            flat = blocks.reshape(-1, blocks.shape[-1]).double().cpu()
            mean = flat.mean(dim=0)
            covariance = (flat - mean).T @ (flat - mean) / len(flat)
            variances, vectors = torch.linalg.eigh(covariance)
            top = vectors[:, -channels:].flip(1)
            # Halfway (in the logarithm) between the components' own variances and equal ones, so
            # that neither noise in small components nor noise in large ones dominates.
            scale = variances[-channels:].flip(0).clamp_min(1e-8) ** -0.25
            scale = scale / ((variances[-channels:].flip(0) * scale**2).mean() ** 0.5)
            self._bases.append((mean.to(pixels), (top * scale).to(pixels)))

    def _blocks(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Split [B, 3, F, H, W] into blocks [B, F', H', W', values]: first frame, and the rest."""
        s = self._spatial
        blocks = []
        for part, t in ((pixels[:, :, :1], 1), (pixels[:, :, 1:], self._temporal)):
            b, c, f, h, w = part.shape
            split = part.reshape(b, c, f // t, t, h // s, s, w // s, s)
            blocks.append(split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4))
        return blocks[0], blocks[1]

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the coefficients of pixels [B, 3, F, H, W]: [B, channels, F', H', W']."""
        coefficients = [
            (blocks - mean) @ basis
            for blocks, (mean, basis) in zip(self._blocks(pixels), self._bases, strict=True)
        ]
        return torch.cat(coefficients, dim=1).permute(0, 4, 1, 2, 3)


def training_pixels(settings: VaeTraining, clips: ClipTable, step: int, *, cropped: bool) -> Tensor:
    """Return the pixels of a step: whole clips, or crops, half of which follow the object."""
    count, crop = settings.batch_size, settings.crop
    if cropped:
        count *= world.HEIGHT * world.WIDTH // crop**2
    rows = (step * count + torch.arange(count, device=clips.device)) % len(clips)
    if not cropped:
        return clips.pixels(rows)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    follows, x, y = torch.rand(3, count, 1, generator=generator).to(clips.device)
    room = torch.tensor([world.WIDTH - crop, world.HEIGHT - crop], device=clips.device)
    place = torch.cat([x, y], dim=1)
    near = clips.centers(rows) - crop / 2 + crop * (place - 0.5)
    corner = torch.where(follows < 0.5, torch.minimum(near.clamp_min(0), room), place * (room + 1))
    return clips.pixels(rows, corner=corner.floor(), size=crop)


def vae_loss(
    vae: AutoencoderKLCogVideoX, pixels: Tensor, *, target: Tensor | None, kl_weight: float
) -> Tensor:
    """Return the loss of a batch, a scalar with gradients.

    Args:
        vae: The codec.
        pixels: [B, 3, F, H, W] in -1..1.
        target: The linear code that the encoder learns and the decoder starts from; None trains
            end to end.
        kl_weight: As in `VaeTraining`.
    """
    posterior = vae.encode(pixels).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn_like(mean) * (0.5 * logvar).exp()
    loss = kl_weight * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    if target is None:
        latents = mean + noise
    else:
        latents = target + noise.detach()
        loss = loss + (mean - target).abs().mean()
    error = vae.decode(latents).sample.float() - pixels
    total: Tensor = loss + error.abs().mean() + 5 * error.square().mean()
    return total


def load_vae(folder: Path) -> AutoencoderKLCogVideoX:
    """Return a VAE that was saved, in float32. Raises `OSError` if it cannot be read."""
    return AutoencoderKLCogVideoX.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def train_vae(
    settings: VaeTraining, out: Path, *, start_from: Path | None = None, device: str = "cpu"
) -> AutoencoderKLCogVideoX:
    """Train the VAE, or continue from the checkpoint in `out`.

    Args:
        settings: The run.
        out: Folder for `vae.pt` (checkpoint), `vae.json` (history) and, at the end, `vae/`.
        start_from: Folder of a VAE whose weights a new run starts from; None draws them.
        device: A torch device.

    Returns:
        The averaged weights, in float32, with the scaling factor set to 1 / std of the latents.

    Raises:
        OSError: `out` cannot be written.
    """
    torch.manual_seed(settings.seed)
    vae = make_vae(settings) if start_from is None else load_vae(start_from)
    vae.register_to_config(scaling_factor=1.0)  # until the latents' deviation is measured again
    vae.to(device)
    clips = ClipTable(sample_specs(settings.num_clips, "train"), device)
    codec = LinearCodec(
        clips.pixels(slice(settings.codec_clips)),
        spatial=2 ** (len(vae.config.block_out_channels) - 1),
        temporal=int(vae.config.temporal_compression_ratio),
        channels=vae.config.latent_channels,
    )

    def loss_of(step: int, progress: float) -> Tensor:
        torch.manual_seed(settings.seed * 1_000_003 + step)
        cropped = progress < settings.crop_fraction
        pixels = training_pixels(settings, clips, step, cropped=cropped)
        target = codec.encode(pixels) if progress < settings.codec_fraction else None
        with autocast(vae.device):
            return vae_loss(vae, pixels, target=target, kl_weight=settings.kl_weight)

    def evaluate(averaged: nn.Module) -> dict[str, float]:
        return evaluate_vae(averaged, settings.eval_clips)

    named = list(vae.named_parameters())
    kernels = [param for name, param in named if param.dim() > 1 and "conv_in" not in name]
    others = [param for name, param in named if param.dim() == 1 or "conv_in" in name]
    train(
        vae,
        Optimizers(kernels, others, weight_decay=0.0),
        loss_of,
        schedule=settings.schedule,
        average_decay=0.998,
        evaluate=evaluate,
        checkpoint=out / "vae.pt",
    )
    vae.eval()
    figures = evaluate_vae(vae, 4 * settings.eval_clips)
    vae.register_to_config(scaling_factor=1 / figures["latent_std"])
    vae.save_pretrained(out / "vae")
    return vae
