"""What the VAE needs beside its weights, counted from its configuration. Arithmetic, no torch.

The clip goes through it in pieces of 2 or 3 latent frames. At a level with c channels, one tensor
holds c x frames x height x width values, and the most that is alive at once is a small number of
them: what a residual block starts from, what it makes of it, and for a block's whole run also what
the level started from. To these add the last two frames of every convolution's input, which wait
for the next piece. The numbers of tensors were counted with every allocation accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec

from cogedit.errors import DeviceMemoryError
from cogedit.models.configs import Config, VAEConfig, check_config
from cogedit.models.cost import LatentShape
from cogedit.wording import LESS_CLIP, show_gb

Direction = Literal["encode", "decode"]

_PIECE = 2
"""Latent frames of a piece; the first has one more where their number is odd."""

_SPLIT = 2**30
"""More values than this are convolved in parts by diffusers, which copies them."""

_WORKSPACE: dict[Direction, float] = {"encode": 1.7, "decode": 4.0}
"""What CUDA takes beside what is counted, in inputs and outputs of a convolution at full size.

cuDNN turns both to a layout of its own, and torch keeps pieces of memory that no tensor fits. With
49 frames of 720x480 in bf16, torch reserved 9.9 GB to encode on an H200 and 18.7 GB to decode, and
5.1 GB to decode in tiles; of these, tensors were 7.8, 11.9 and 3.4 GB. With less, torch gives back
what it keeps again and again: decoding at once in 16 GB took 13 s, in tiles 5.
"""

ON_CUDA = "counted, with an allowance for what kernels and torch keep, from measurements on an H200"
"""What the figures for a CUDA device are."""


@dataclass(frozen=True)
class VAEWay:
    """How the VAE runs: in overlapping tiles, and one frame at a time.

    Tiles give other results; frames give the same up to rounding.
    """

    in_tiles: bool = False
    by_frame: bool = False

    def __str__(self) -> str:
        if self.in_tiles:
            return "in tiles, frame by frame" if self.by_frame else "in tiles"
        return "frame by frame" if self.by_frame else "at once"


WAYS = (VAEWay(), VAEWay(by_frame=True), VAEWay(in_tiles=True), VAEWay(True, True))
"""The fastest first; each needs less memory than the one before it."""


@dataclass(frozen=True)
class VAESizes:
    """The sizes that its memory follows from, by the names of its `config.json`."""

    block_out_channels: tuple[int, ...]
    latent_channels: int
    temporal_compression_ratio: int
    # What a file leaves out has the default of `AutoencoderKLCogVideoX`.
    layers_per_block: int = 3
    sample_height: int = 480
    sample_width: int = 720

    @classmethod
    def of(cls, config: Config) -> VAESizes:
        """Read them from a VAE's configuration; ModelError names a field that is wrong."""
        return msgspec.convert(check_config(VAEConfig, config, "vae/config.json"), cls)

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent, along height and width."""
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile in latents."""
        factor: int = self.spatial_compression
        return self.sample_height // 2 // factor, self.sample_width // 2 // factor

    def has_tiles(self, shape: LatentShape) -> bool:
        """Whether latents of this shape are more than one tile."""
        return shape[1] > self.tile[0] or shape[2] > self.tile[1]


@dataclass(frozen=True)
class VAEPlan:
    """How the VAE will run, and the bytes that it takes, those of its weights among them."""

    way: VAEWay
    num_bytes: int
    whole_bytes: int  # the same for the fastest way

    def note(self, direction: Direction, free: int) -> str | None:
        """Say why it is not the fastest way; None where it is."""
        if self.way == VAEWay():
            return None
        how = f"{direction[:-1]}ing {self.way}, about {show_gb(self.num_bytes)}"
        if free >= self.whole_bytes:  # it was asked for
            return how
        return f"{how}: at once it takes {show_gb(self.whole_bytes)}, and {show_gb(free)} is free"


def plan_vae(
    sizes: VAESizes,
    shape: LatentShape,
    direction: Direction,
    *,
    weights: int,
    usable: int,
    item_size: int,
    device: str,
    tiling: bool | None,
) -> VAEPlan:
    """Choose the fastest way to encode or decode that fits.

    Args:
        sizes: Of the VAE.
        shape: Of the latents.
        direction: Which of its two parts runs.
        weights: Bytes of its weights.
        usable: Bytes that it may take.
        item_size: Bytes of a number.
        device: Where it runs, by its kind ("cuda").
        tiling: Whether it works in tiles; None is only where nothing else fits.

    Raises:
        DeviceMemoryError: No way fits.
    """

    def needs(way: VAEWay) -> int:
        beside = vae_bytes(sizes, shape, direction, way, item_size=item_size, device=device)
        return weights + beside

    has_tiles = sizes.has_tiles(shape)
    ways = [way for way in WAYS if way.in_tiles == tiling or (tiling is None and has_tiles)]
    ways = ways or [way for way in WAYS if not way.in_tiles]
    for way in ways:
        if needs(way) <= usable:
            return VAEPlan(way, needs(way), needs(WAYS[0]))
    least, flag = ways[-1], {"encode": "--vae-tiling", "decode": "--decode-tiling"}[direction]
    hint = f"use {LESS_CLIP}"
    if tiling is False and has_tiles:
        fits = needs(WAYS[-1]) <= usable
        hint = f"use {flag}: in tiles it takes about {show_gb(needs(WAYS[-1]))}"
        hint += "" if fits else f", and {LESS_CLIP}"
    raise DeviceMemoryError(
        f"{direction[:-1]}ing this clip takes about {show_gb(needs(least))} {least}, and "
        f"{show_gb(usable)} of memory is free for it",
        hint=hint,
    )


@dataclass(frozen=True)
class _Level:
    """A level of the encoder or decoder; values of one channel, over all frames of a piece."""

    channels_in: int
    channels: int
    num_frames: int
    frame: int

    @property
    def values(self) -> int:
        return self.num_frames * self.frame


def vae_bytes(
    sizes: VAESizes,
    shape: LatentShape,
    direction: Direction,
    way: VAEWay,
    *,
    item_size: int,
    device: str,
) -> int:
    """Count what encoding to, or decoding from, latents of a shape needs beside the weights.

    On "cuda" with an allowance for what kernels and torch keep.
    """
    num_frames, height, width = shape
    kept = sizes.latent_channels * num_frames * height * width
    if way.in_tiles and sizes.has_tiles(shape):
        height, width = min(height, sizes.tile[0]), min(width, sizes.tile[1])
    piece = (num_frames, height, width)
    if direction == "encode":
        levels, num_blocks = _encoder_levels, sizes.layers_per_block
        tensors = partial(_encoder_tensors, by_frame=way.by_frame)
    else:
        levels, num_blocks = _decoder_levels, sizes.layers_per_block + 1
        tensors = partial(
            _decoder_tensors, by_frame=way.by_frame, latent_channels=sizes.latent_channels
        )
    most = max(
        _most(
            [*levels(sizes, length, piece)],
            num_blocks=num_blocks,
            is_first=number == 0,
            tensors=tensors,
        )
        for number, length in enumerate(_pieces(num_frames))
    )
    if device == "cuda":
        kept += round(_WORKSPACE[direction] * _convolved(sizes, piece, by_frame=way.by_frame))
    return item_size * (kept + most)


def _convolved(sizes: VAESizes, piece: LatentShape, *, by_frame: bool) -> int:
    """Values that go into and come out of a convolution of the finest level."""
    finest = [*_decoder_levels(sizes, _pieces(piece[0])[0], piece)][-1]
    num_frames = 1 if by_frame else finest.num_frames
    inputs = finest.channels * (num_frames + 2) * finest.frame
    return (inputs + finest.channels * num_frames * finest.frame) // (inputs // _SPLIT + 1)


def _most(
    levels: Sequence[_Level],
    *,
    num_blocks: int,
    is_first: bool,
    tensors: Callable[[_Level], tuple[int, int]],
) -> int:
    """Return the most values at once of a piece, where a level begins or within it.

    `tensors` counts both for a level. Convolutions that have run keep frames for the next piece;
    unless the piece is the first, the others still have those of the one before it.
    """
    kept = [_kept(num_blocks, level) for level in levels]
    most = 0
    for index, level in enumerate(levels):
        waiting = sum(kept[:index] if is_first else kept)
        begins, within = tensors(level)
        if is_first:
            within += kept[index]
        most = max(most, begins + waiting, within + waiting)
    return most


def _decoder_tensors(level: _Level, *, by_frame: bool, latent_channels: int) -> tuple[int, int]:
    c_in, c, values = level.channels_in, level.channels, level.values
    if by_frame:
        made = c if c_in != c else 0
        beside = 3 * values + 2 * latent_channels * level.frame
        begins = (2 * c_in + made) * values + 8 * c_in * level.frame
        return begins + beside, (c_in + 3 * c) * values + beside
    # The latents of every frame condition the norms; the frames of the piece before wait.
    latents = latent_channels * (1 + level.num_frames % 2)
    # While they are convolved there are four copies of the latents, and fewer of the channels.
    within = max(7 * c + latents, 4 * c + 4 * latent_channels)
    return (6 * c_in + latents + 3) * values, (c_in + within + 3) * values


def _encoder_tensors(level: _Level, *, by_frame: bool) -> tuple[int, int]:
    c_in, c = level.channels_in, level.channels
    within = (c_in + 3 * c + 3) * level.values + 2 * c * level.frame  # with the piece's pixels
    if by_frame:
        return 0, within
    padded = c * (level.num_frames + 2) * level.frame
    parts = padded // _SPLIT + 1
    if parts > 1:
        within += padded + c * level.values
    return 0, within + padded + padded // parts  # which the kernel copies once more


def _pieces(num_frames: int) -> tuple[int, ...]:
    """Return the latent frames of the first piece and of one of the others, if there are any."""
    if num_frames < 2 * _PIECE:
        return (num_frames,)
    return _PIECE + num_frames % _PIECE, _PIECE


def _kept(num_blocks: int, level: _Level) -> int:
    """Values of the frames that the convolutions of a level keep for the next piece."""
    return 2 * level.frame * (level.channels_in + (2 * num_blocks - 1) * level.channels)


def _decoder_levels(sizes: VAESizes, num_frames: int, shape: LatentShape) -> Iterator[_Level]:
    """Yield the levels of the decoder, from the latents to the pixels."""
    _, height, width = shape
    channels_in = sizes.block_out_channels[-1]
    doublings = sizes.temporal_compression_ratio.bit_length() - 1
    for index, channels in enumerate(reversed(sizes.block_out_channels)):
        if index and index <= doublings and num_frames > 1:
            num_frames = 2 * num_frames - num_frames % 2
        scale = 2**index
        yield _Level(channels_in, channels, num_frames, scale**2 * height * width)
        channels_in = channels


def _encoder_levels(sizes: VAESizes, num_frames: int, shape: LatentShape) -> Iterator[_Level]:
    """Yield the levels of the encoder, from the pixels to the latents."""
    levels = [*_decoder_levels(sizes, num_frames, shape)][::-1]
    channels_in = sizes.block_out_channels[0]
    for level, channels in zip(levels, sizes.block_out_channels, strict=True):
        yield _Level(channels_in, channels, level.num_frames, level.frame)
        channels_in = channels
