"""Frames to latents and back, through the 3D causal VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cogedit.models.vae_memory import saving_memory

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX


def use_tiles(vae: AutoencoderKLCogVideoX) -> None:
    """Let a VAE work in overlapping tiles that fit together.

    diffusers rounds the overlap to whole latents and to whole pixels, each for itself. Where a tile
    has few latents the two differ, and the joined image gets another size. Here the overlap is the
    nearest whole number of latents; that of CogVideoX's own VAE, whose tiles have 30x45 latents, is
    one already, so its results are those of diffusers.
    """
    vae.enable_tiling()
    for side in ("height", "width"):
        count = getattr(vae, f"tile_latent_min_{side}")
        name = f"tile_overlap_factor_{side}"
        overlap = min(max(1, round(count * getattr(vae, name))), count - 1)
        setattr(vae, name, overlap / count)


def encode_frames(
    vae: AutoencoderKLCogVideoX,
    frames: Tensor,
    *,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
) -> Tensor:
    """Encode a clip to the mode of the posterior, so that equal clips give equal latents.

    Frames [F, C, H, W] in [-1, 1] become latents [1, F', C', H', W'] float32, times the VAE's
    scaling factor. F = 8n + 1: other counts do not come back with their own length. With tiling the
    result differs; `by_frame` needs less memory for the same result (`saving_memory`). `on_call` is
    called after each of the `num_encoder_calls` of the encoder.
    """
    video = frames.movedim(0, 1).unsqueeze(0).to(vae.device, vae.dtype)
    with (
        torch.no_grad(),
        saving_memory(vae.encoder, by_frame=by_frame),
        _after_each_call(vae.encoder, on_call),
    ):
        latents: Tensor = vae.encode(video).latent_dist.mode()
    return latents.movedim(2, 1).float() * float(vae.config.scaling_factor)


def decode_latents(
    vae: AutoencoderKLCogVideoX,
    latents: Tensor,
    *,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
) -> Tensor:
    """Decode latents to a clip, which leaves the device piece by piece.

    Latents [1, F', C', H', W'], scaled, become frames [F, C, H, W] on the CPU, in the VAE's dtype
    and in about [-1, 1]. `by_frame` needs less memory for the same result (`saving_memory`).
    `on_call` is called after each of the `num_decoder_calls` of the decoder.
    """
    pieces = decode_pieces(vae, latents, by_frame=by_frame, on_call=on_call)
    return torch.cat([piece.cpu() for piece in pieces])


def decode_pixels(
    vae: AutoencoderKLCogVideoX,
    latents: Tensor,
    *,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """Decode latents as `decode_latents` does, piece by piece, to uint8 [f, H, W, 3] on the CPU.

    The pieces are rounded on the device, and none is kept. `num_decoded_frames` says how many
    frames they have together.
    """
    for piece in decode_pieces(vae, latents, by_frame=by_frame, on_call=on_call):
        yield to_pixels(piece).cpu()


def num_decoded_frames(vae: AutoencoderKLCogVideoX, num_latent_frames: int) -> int:
    """Return how many frames this many latent frames become.

    The first of an odd number stands for one frame, every other one for as many as the VAE packs.
    """
    packed = int(vae.config.temporal_compression_ratio)
    return num_latent_frames * packed - num_latent_frames % 2 * (packed - 1)


def decode_pieces(
    vae: AutoencoderKLCogVideoX,
    latents: Tensor,
    *,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """Decode latents [1, F', C', H', W'] in pieces of two or three latent frames, in turn.

    The VAE is causal: it keeps the last frames of its convolutions' inputs and continues from them.
    These are the pieces that `AutoencoderKLCogVideoX.decode` itself makes and joins at the end, so
    the result is the same. Tiles are joined over all frames by diffusers; they come as one piece.
    Frames [f, C, H, W] are on the VAE's device and in its dtype. Between two pieces the VAE is as
    it was, so that others may use it.
    """
    unscaled = latents.movedim(1, 2) / float(vae.config.scaling_factor)
    z = unscaled.to(vae.device, vae.dtype)
    height, width = z.shape[3:]
    too_large = height > vae.tile_latent_min_height or width > vae.tile_latent_min_width

    @contextmanager
    def decoding() -> Iterator[None]:
        with (
            torch.no_grad(),
            saving_memory(vae.decoder, by_frame=by_frame),
            _after_each_call(vae.decoder, on_call),
        ):
            yield

    if vae.use_tiling and too_large:
        with decoding():
            decoded = vae.decode(z).sample
        yield decoded[0].movedim(1, 0)
        return
    conv_cache = None
    for first, last in pairwise(accumulate(_piece_lengths(vae, z.shape[2]), initial=0)):
        piece = z[:, :, first:last]
        with decoding():
            if vae.post_quant_conv is not None:
                piece = vae.post_quant_conv(piece)
            decoded, conv_cache = vae.decoder(piece, conv_cache=conv_cache)
        yield decoded[0].movedim(1, 0)
        del decoded


def _piece_lengths(vae: AutoencoderKLCogVideoX, num_latent_frames: int) -> list[int]:
    """How many latent frames diffusers decodes at a time; what is left over goes with the first."""
    size = int(vae.num_latent_frames_batch_size)
    num_pieces = max(num_latent_frames // size, 1)
    return [num_latent_frames - size * (num_pieces - 1)] + [size] * (num_pieces - 1)


def num_encoder_calls(vae: AutoencoderKLCogVideoX, size: torch.Size) -> int:
    """How often the encoder runs for a clip [F, C, H, W]: pieces in time, by tiles in space."""
    return _num_calls(
        size,
        per_call=vae.num_sample_frames_batch_size,
        tile=(vae.tile_sample_min_height, vae.tile_sample_min_width) if vae.use_tiling else None,
        overlap=(vae.tile_overlap_factor_height, vae.tile_overlap_factor_width),
    )


def num_decoder_calls(vae: AutoencoderKLCogVideoX, size: torch.Size) -> int:
    """How often the decoder runs for latents [1, F', C', H', W'], likewise."""
    return _num_calls(
        size[1:],
        per_call=vae.num_latent_frames_batch_size,
        tile=(vae.tile_latent_min_height, vae.tile_latent_min_width) if vae.use_tiling else None,
        overlap=(vae.tile_overlap_factor_height, vae.tile_overlap_factor_width),
    )


def _num_calls(
    size: torch.Size,
    *,
    per_call: int,
    tile: tuple[int, int] | None,
    overlap: tuple[float, float],
) -> int:
    """Count the pieces that diffusers cuts [F, C, H, W] into."""
    num_frames, _, *sides = size
    num_tiles = 1
    if tile is not None and any(side > whole for side, whole in zip(sides, tile, strict=True)):
        for side, whole, factor in zip(sides, tile, overlap, strict=True):
            num_tiles *= len(range(0, side, int(whole * (1 - factor))))
    return num_tiles * max(num_frames // per_call, 1)


@contextmanager
def _after_each_call(part: nn.Module, notify: Callable[[], None] | None) -> Iterator[None]:
    if notify is None:
        yield
        return
    hook = part.register_forward_hook(lambda *_: notify())
    try:
        yield
    finally:
        hook.remove()


def to_model_range(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 [F, H, W, C] into [F, C, H, W] in [-1, 1], computed in float32 frame by frame."""
    count, height, width, channels = frames.shape
    scaled = frames.new_empty((count, channels, height, width), dtype=dtype)
    for place, frame in zip(scaled, frames, strict=True):
        place.copy_(frame.permute(2, 0, 1).float() / 127.5 - 1.0)
    return scaled


def to_pixels(frames: Tensor) -> Tensor:
    """Turn frames [F, C, H, W] of any dtype, clamped to [-1, 1], into uint8 [F, H, W, C]."""
    return to_levels(frames).round().permute(0, 2, 3, 1).to(torch.uint8)


def to_levels(frames: Tensor) -> Tensor:
    """Turn frames of any dtype, clamped to [-1, 1], into levels of 0..255, float32, not rounded."""
    return (frames.float().clamp(-1, 1) + 1) * 127.5
