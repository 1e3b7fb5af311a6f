"""Frames to latents and back, through the 3D causal VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from cogedit.models.device import bring_weights, compute_device
from cogedit.models.vae_memory import saving_memory
from cogedit.models.vae_tiles import TensorFile, Tiles

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX


class Pixels(Protocol):
    """A clip, uint8 [F, H, W, 3], of which `[i:j]` reads some frames: a tensor, or one on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """F, H, W and 3."""

    def __getitem__(self, part: slice, /) -> Tensor: ...


def encode_frames(
    vae: AutoencoderKLCogVideoX,
    frames: Tensor,
    *,
    span: int = 0,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
) -> Tensor:
    """Encode a clip to the mode of the posterior, so that equal clips give equal latents.

    Frames [F, C, H, W] in [-1, 1] become latents [1, F', C', H', W'] float32, times the VAE's
    scaling factor. F = 8n + 1: other counts do not come back with their own length. With tiling the
    result differs; `by_frame` needs less memory for the same result (`saving_memory`). `on_call` is
    called after each of the `num_encoder_calls` of the encoder.

    A clip of more than `span` frames (4n + 1; 0 is any number) is encoded as clips of so many, each
    from the last frame of the one before it, which has that frame's latents. A VAE gives other
    latents far from a clip's first frame than near it, and a transformer that was trained on clips
    of `span` frames has never seen those.
    """

    def read(part: slice, rows: slice, columns: slice) -> Tensor:
        return frames[part, :, rows, columns]

    return _encode(vae, tuple(frames.shape), read, span=span, by_frame=by_frame, on_call=on_call)


def encode_pixels(
    vae: AutoencoderKLCogVideoX,
    pixels: Pixels,
    *,
    span: int = 0,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
) -> Tensor:
    """Encode a clip as `encode_frames` does, from uint8 [F, H, W, 3] that is read in pieces."""
    num_frames, height, width, channels = pixels.shape

    def read(part: slice, rows: slice, columns: slice) -> Tensor:
        return to_model_range(pixels[part][:, rows, columns], vae.dtype)

    size = (num_frames, channels, height, width)
    return _encode(vae, size, read, span=span, by_frame=by_frame, on_call=on_call)


def _encode(
    vae: AutoencoderKLCogVideoX,
    size: tuple[int, ...],
    read: Callable[[slice, slice, slice], Tensor],
    *,
    span: int,
    by_frame: bool,
    on_call: Callable[[], None] | None,
) -> Tensor:
    """Encode a clip of size [F, C, H, W], of which `read` gives some frames, rows and columns.

    The encoder is causal, as the decoder is (`decode_pieces`), and these are the pieces of
    `AutoencoderKLCogVideoX.encode`; one of them is on the device at a time.
    """
    spans, device = _spans(size[0], span), compute_device(vae)
    bring_weights(vae)

    def encode_part(rows: slice, columns: slice) -> Tensor:
        encoded = []
        for start, end in spans:
            lengths = _piece_lengths(end - start, int(vae.num_sample_frames_batch_size))
            conv_cache = None
            for first, last in pairwise(accumulate(lengths, initial=start)):
                piece = read(slice(first, last), rows, columns).movedim(0, 1).unsqueeze(0)
                piece = piece.to(device, vae.dtype)
                piece, conv_cache = vae.encoder(piece, conv_cache=conv_cache)
                piece = piece if vae.quant_conv is None else vae.quant_conv(piece)
                # The latent frame of the shared frame is the span's before.
                encoded.append(piece[:, :, 1:] if first == start > 0 else piece)
        return torch.cat(encoded, dim=2)

    tiles = Tiles.of_frames(vae, size[2:])
    with (
        torch.no_grad(),
        saving_memory(vae.encoder, by_frame=by_frame),
        _after_each_call(vae.encoder, on_call),
    ):
        if tiles is None:
            moments = encode_part(slice(None), slice(None))
        else:
            parts = [[encode_part(*part) for part in row] for row in tiles.parts]
            moments = tiles.join(vae, parts)
    mean, _ = moments.chunk(2, dim=1)
    return mean.movedim(2, 1).float() * float(vae.config.scaling_factor)


def decode_pixels(
    vae: AutoencoderKLCogVideoX,
    latents: Tensor,
    *,
    by_frame: bool = False,
    on_call: Callable[[], None] | None = None,
    folder: Path | None = None,
) -> Iterator[Tensor]:
    """Decode latents [1, F', C', H', W'] to uint8 [f, H, W, 3] on the CPU, as `decode_pieces` does.

    The pieces are rounded on the device, and none is kept. `num_decoded_frames` says how many
    frames they have together. In tiles a file in `folder` has room for the clip in the VAE's dtype.
    """
    pieces = decode_pieces(vae, latents, by_frame=by_frame, on_call=on_call, folder=folder)
    for piece in pieces:
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
    folder: Path | None = None,
) -> Iterator[Tensor]:
    """Decode latents [1, F', C', H', W'] in pieces of two or three latent frames, in turn.

    They are scaled, and become frames in about [-1, 1]. `by_frame` needs less memory for the same
    result (`saving_memory`). `on_call` is called after each of the `num_decoder_calls` of the
    decoder.

    The VAE is causal: it keeps the last frames of its convolutions' inputs and continues from them.
    These are the pieces that `AutoencoderKLCogVideoX.decode` itself makes and joins at the end, so
    the result is the same. Frames [f, C, H, W] are on the VAE's device and in its dtype. Between
    two pieces the VAE is as it was, so that others may use it.

    A tile is decoded over all pieces before the next one: what the convolutions keep of all tiles
    would take what the tiles save. The tiles wait in a file in `folder` to be joined.
    """
    unscaled = latents.movedim(1, 2) / float(vae.config.scaling_factor)
    device = compute_device(vae)
    z = unscaled.to(device, vae.dtype)
    bring_weights(vae)
    lengths = _piece_lengths(z.shape[2], int(vae.num_latent_frames_batch_size))

    def decode_part(rows: slice, columns: slice) -> Iterator[Tensor]:
        conv_cache = None
        for first, last in pairwise(accumulate(lengths, initial=0)):
            with (
                torch.no_grad(),
                saving_memory(vae.decoder, by_frame=by_frame),
                _after_each_call(vae.decoder, on_call),
            ):
                piece = z[:, :, first:last, rows, columns]
                if vae.post_quant_conv is not None:
                    piece = vae.post_quant_conv(piece)
                piece, conv_cache = vae.decoder(piece, conv_cache=conv_cache)
            yield piece
            del piece

    tiles = Tiles.of_latents(vae, z.shape[3:])
    if tiles is None:
        joined = decode_part(slice(None), slice(None))
    else:
        file = TensorFile(folder)
        kept = [[[*map(file.put, decode_part(*part))] for part in row] for row in tiles.parts]
        joined = (
            tiles.join(vae, [[file.get(tile[index]).to(device) for tile in row] for row in kept])
            for index in range(len(lengths))
        )
    for piece in joined:
        yield piece[0].movedim(1, 0)


def _spans(num_frames: int, span: int) -> list[tuple[int, int]]:
    """Cut a clip into spans, first frame and end each; neighbours share a frame."""
    if not 0 < span < num_frames:
        return [(0, num_frames)]
    starts = range(0, num_frames - 1, span - 1)
    return [(start, min(start + span, num_frames)) for start in starts]


def _piece_lengths(num_frames: int, size: int) -> list[int]:
    """How many frames diffusers takes at a time; what is left over goes with the first."""
    num_pieces = max(num_frames // size, 1)
    return [num_frames - size * (num_pieces - 1)] + [size] * (num_pieces - 1)


def num_encoder_calls(vae: AutoencoderKLCogVideoX, size: Sequence[int]) -> int:
    """How often the encoder runs for a clip [F, C, H, W]: pieces in time, by tiles in space."""
    pieces = _piece_lengths(size[0], vae.num_sample_frames_batch_size)
    tiles = Tiles.of_frames(vae, size[2:])
    return len(pieces) * (1 if tiles is None else tiles.count)


def num_decoder_calls(vae: AutoencoderKLCogVideoX, size: Sequence[int]) -> int:
    """How often the decoder runs for latents [1, F', C', H', W'], likewise."""
    pieces = _piece_lengths(size[1], vae.num_latent_frames_batch_size)
    tiles = Tiles.of_latents(vae, size[3:])
    return len(pieces) * (1 if tiles is None else tiles.count)


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
