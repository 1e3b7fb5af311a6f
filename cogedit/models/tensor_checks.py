"""Checks of what a caller gives to the models directly: latents and frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cogedit.errors import UsageError

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel


def check_latents(latents: Tensor, transformer: CogVideoXTransformer3DModel) -> None:
    """Refuse latents that a text-to-video transformer cannot cut into patches.

    Raises:
        UsageError: They are not [B, F, C, H, W] in floats with the transformer's C, a side is no
            multiple of its patches, or it takes more channels than those of latents.
    """
    config = transformer.config
    channels, patch = config.in_channels, config.patch_size
    if channels != config.out_channels:
        raise UsageError(
            f"this transformer takes {channels} channels for latents of {config.out_channels}; "
            "expected one of a text-to-video pipeline",
            hint="cogedit.edit with `first_frame` runs image-to-video models",
        )
    expected = f"[B, F, {channels}, H, W]"
    check_floats("latents", latents, expected)
    if latents.ndim != 5 or latents.shape[2] != channels:
        raise UsageError(f"latents is {shape_text(latents)}, expected {expected}")
    sides = {"F": (1, config.patch_size_t or 1), "H": (3, patch), "W": (4, patch)}
    for name, (axis, step) in sides.items():
        if latents.shape[axis] % step:
            raise UsageError(
                f"latents is {shape_text(latents)}, expected {expected} with {name} "
                f"a multiple of {step}"
            )


def check_clip(latents: Tensor, vae: AutoencoderKLCogVideoX) -> None:
    """Raise `UsageError` unless latents are those of one clip, [1, F, C, H, W], for this VAE."""
    channels = int(vae.config.latent_channels)
    expected = f"one clip, [1, F, {channels}, H, W]"
    check_floats("latents", latents, expected)
    if latents.ndim != 5 or (latents.shape[0], latents.shape[2]) != (1, channels):
        raise UsageError(
            f"latents is {shape_text(latents)}, expected {expected}",
            hint="of what sample() returns, trajectory[-1] is the last step",
        )


def check_frames(frames: Tensor, vae: AutoencoderKLCogVideoX) -> None:
    """Raise `UsageError` unless frames are floats [F, C, H, W], as a VAE takes them."""
    channels = int(vae.config.in_channels)
    expected = f"[F, {channels}, H, W]"
    check_floats("video_frames", frames, f"{expected} in [-1, 1]")
    if frames.ndim != 4 or frames.shape[1] != channels:
        raise UsageError(
            f"video_frames is {shape_text(frames)}, expected {expected}",
            hint="of frames [F, H, W, C] take frames.permute(0, 3, 1, 2)",
        )


def check_floats(name: str, tensor: object, expected: str) -> None:
    """Raise `UsageError` unless something is a tensor of floats."""
    if not isinstance(tensor, Tensor):
        raise UsageError(
            f"{name} is a {type(tensor).__name__}, expected a tensor {expected}",
            hint="torch.from_numpy(array) makes one of an array",
        )
    if not tensor.is_floating_point():
        raise UsageError(f"{name} is {tensor.dtype}, expected floats, {expected}")


def shape_text(tensor: Tensor) -> str:
    """Write the shape of a tensor for a sentence, as in [1, 13, 16, 60, 90]."""
    return str([*tensor.shape])
