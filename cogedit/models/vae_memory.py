"""The VAE with less memory and the same numbers: one frame at a time, and caches that are let go.

A piece of a clip has 8 or 9 frames. Of its widest level, diffusers holds up to eleven tensors at
once: the input of a block, its norm, the two that condition it, their product and sum, and the
convolution with its padded input. All but three of them are needed for one frame at a time alone.
Group norm is the exception, whose statistics are those of the whole piece: it runs over all frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cogedit.models.quiet import quiet_imports

with quiet_imports():
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
        CogVideoXCausalConv3d,
        CogVideoXResnetBlock3D,
        CogVideoXSpatialNorm3D,
    )
    from diffusers.models.upsampling import CogVideoXUpsample3D


@contextmanager
def saving_memory(part: nn.Module, *, by_frame: bool) -> Iterator[None]:
    """Let the encoder or the decoder of a VAE hold less while it runs.

    Its caches are let go as they are read, which changes no number. With `by_frame` it computes one
    frame of a piece at a time where it can; the results are then the same up to the rounding of
    convolutions of another length.
    """
    ways: dict[type[nn.Module], Callable[..., object]] = {
        CogVideoXResnetBlock3D: _residual,
        CogVideoXSpatialNorm3D: _normalize,
        CogVideoXCausalConv3d: _convolve,
        CogVideoXUpsample3D: _upsample,
    }
    hooks = [part.register_forward_hook(_let_caches_go)]
    changed: list[nn.Module] = []
    in_place: list[nn.SiLU] = []
    try:
        for module in part.modules():
            way = ways.get(type(module)) if by_frame else None
            if way is not None:
                module.forward = partial(way, module)
                changed.append(module)
            elif isinstance(module, CogVideoXCausalConv3d) and module.time_kernel_size == 1:
                hooks.append(module.register_forward_hook(_without_cache))
            elif by_frame and isinstance(module, nn.SiLU) and not module.inplace:
                module.inplace = True  # its input is always the result of a norm
                in_place.append(module)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in changed:
            del module.forward
        for activation in in_place:
            activation.inplace = False


class _ReadOnce(dict[str, object]):
    """The caches of a part of the VAE, each of which is let go as it is read.

    They hold the last frames of every convolution's input for the next piece. That piece makes its
    own, and without this both sets are in memory until it ends.
    """

    def __init__(self, caches: Mapping[str, object]) -> None:
        super().__init__(
            (name, _ReadOnce(cache) if isinstance(cache, dict) else cache)
            for name, cache in caches.items()
        )

    def get(self, key: str, default: object = None) -> object:
        """Return a cache, for the only time."""
        return self.pop(key, default)


def _let_caches_go(
    part: nn.Module, inputs: object, outputs: tuple[Tensor, dict[str, object]]
) -> tuple[Tensor, _ReadOnce]:
    return outputs[0], _ReadOnce(outputs[1])


def _without_cache(
    causal: nn.Module, inputs: object, outputs: tuple[Tensor, Tensor]
) -> tuple[Tensor, None]:
    """Drop the cache of a convolution over one frame, which diffusers keeps and never reads."""
    return outputs[0], None


def _residual(
    block: CogVideoXResnetBlock3D,
    inputs: Tensor,
    temb: Tensor | None = None,  # neither encoder nor decoder has timesteps
    zq: Tensor | None = None,
    conv_cache: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Run a residual block over frames [B, C, F, H, W], in place wherever it is a tensor's end."""
    caches, kept = conv_cache or {}, {}
    states = inputs
    for norm, name in ((block.norm1, "conv1"), (block.norm2, "conv2")):
        states = norm(states) if zq is None else norm(states, zq)[0]
        states = block.nonlinearity(states)
        conv = getattr(block, name)
        states, kept[name] = _convolve(conv, states, caches.get(name), is_last_use=True)
    own = inputs if block.in_channels == block.out_channels else block.conv_shortcut(inputs)
    return states.add_(own), kept


def _convolve(
    causal: CogVideoXCausalConv3d,
    inputs: Tensor,
    conv_cache: Tensor | None = None,
    *,
    is_last_use: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Convolve frames [B, C, F, H, W] with those before them; return the last as the new cache.

    At the last use of the inputs, the outputs take their place if they have as many channels.
    """
    num_past = causal.time_kernel_size - 1
    if num_past == 0:
        return causal.conv(inputs), None
    past = inputs[:, :, :1].repeat(1, 1, num_past, 1, 1) if conv_cache is None else conv_cache
    del conv_cache
    outputs = (
        inputs if is_last_use and causal.conv.in_channels == causal.conv.out_channels else None
    )
    num_frames = inputs.shape[2]
    for index in range(num_frames):
        window = torch.cat([past, inputs[:, :, index : index + 1]], dim=2)
        past = window[:, :, 1:].clone()
        frame = causal.conv(window)
        if outputs is None:
            batch, channels, _, height, width = frame.shape
            outputs = frame.new_empty(batch, channels, num_frames, height, width)
        outputs[:, :, index] = frame[:, :, 0]
        del window, frame
    return cast(Tensor, outputs), past


def _upsample(up: CogVideoXUpsample3D, inputs: Tensor) -> Tensor:
    """Double the size of frames [B, C, F, H, W], and their number where the level does.

    The convolution is over each frame alone, so a frame that stands twice is convolved once.
    """
    batch, _, num_frames, height, width = inputs.shape
    doubles = up.compress_time and num_frames > 1
    alone = num_frames % 2 if doubles else 0
    first = 0
    outputs = None
    for index in range(num_frames):
        frame = up.conv(functional.interpolate(inputs[:, :, index], scale_factor=2.0))
        if outputs is None:
            total = 2 * num_frames - alone if doubles else num_frames
            outputs = frame.new_empty(batch, frame.shape[1], total, 2 * height, 2 * width)
        last = first + (2 if doubles and index >= alone else 1)
        outputs[:, :, first:last] = frame[:, :, None]
        first = last
        del frame
    return cast(Tensor, outputs)


def _normalize(
    norm: CogVideoXSpatialNorm3D,
    f: Tensor,
    zq: Tensor,
    conv_cache: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Normalize frames [B, C, F, H, W], and scale and shift them by their latents [B, C', ...]."""
    normed: Tensor = norm.norm_layer(f)
    num_frames, *size = f.shape[2:]
    for index in range(num_frames):
        latent = _latent_of(index, num_frames, zq.shape[2])
        z = functional.interpolate(zq[:, :, latent], size=size)[:, :, None]
        frame = normed[:, :, index : index + 1]
        frame.mul_(norm.conv_y(z)[0]).add_(norm.conv_b(z)[0])
    return normed, {}


def _latent_of(frame: int, num_frames: int, num_latents: int) -> int:
    """Which latent frame a frame belongs to; of an odd number of frames the first has its own."""
    alone = num_frames % 2 if num_frames > 1 else 0
    if frame < alone:
        return 0
    return alone + (frame - alone) * (num_latents - alone) // (num_frames - alone)
