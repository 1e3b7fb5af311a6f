"""Where an edit may change the source: masks of pixels, of latents, and the final composite.

A mask blended into the steps keeps the source's layout outside of it, but locks no pixel there: the
causal VAE leaks across frames and over its receptive field. Only the composite does that.

The automatic mask is DiffEdit's (arXiv 2210.11427, section 3.2): where two prompts make a model
predict differently for one noisy sample, the edit has something to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cogedit.errors import UsageError


def pool_mask(
    mask: Iterable[Tensor],
    *,
    spatial: int,
    temporal: int,
    dilation: int = 0,
    num_pad_frames: int = 0,
) -> Tensor:
    """Turn a mask of pixels into one of latents: a latent may change if one of its pixels may.

    The causal VAE makes latent frame 0 of frame 0 alone, and latent frame k >= 1 of `temporal`
    frames, (k - 1) `temporal` + 1 to k `temporal`.

    Args:
        mask: F frames [H, W], not 0 where the edit may change the source.
        spatial: Pixels per latent, along height and width.
        temporal: Frames per latent frame, after the first.
        dilation: By how many latents the mask then grows, along height and width.
        num_pad_frames: Latent frames in front that repeat the first.

    Returns:
        [F', 1, H', W'] float32, 0 or 1.

    Raises:
        UsageError: The clip does not divide into latents.
    """
    frames = []
    for frame in mask:
        height, width = frame.shape
        if height % spatial or width % spatial:
            raise UsageError(
                f"a mask of {width}x{height} does not divide into latents of {spatial}x{spatial} "
                "pixels"
            )
        frames.append(functional.max_pool2d((frame != 0).float()[None], spatial))
    if (len(frames) - 1) % temporal:
        raise UsageError(
            f"a mask of {len(frames)} frames does not divide into latents of 1 + n x {temporal}"
        )
    pooled = torch.stack(frames)
    groups = pooled[1:].reshape(-1, temporal, *pooled.shape[1:]).amax(dim=1)
    latents = _grow(torch.cat([pooled[:1], groups]), dilation)
    return torch.cat([latents[:1].expand(num_pad_frames, -1, -1, -1), latents])


def unpool_mask(mask: Tensor, *, spatial: int, temporal: int) -> Tensor:
    """Turn a mask of latents into one of the pixels they stand for; `pool_mask` undoes it.

    [F', 1, H', W'] without pad frames becomes [F, H, W] uint8, with F = (F' - 1) `temporal` + 1.
    """
    rest = mask[1:].repeat_interleave(temporal, dim=0)
    frames = torch.cat([mask[:1], rest])[:, 0].to(torch.uint8)
    return frames.repeat_interleave(spatial, dim=1).repeat_interleave(spatial, dim=2)


def difference_mask(
    differences: Sequence[Tensor], *, threshold: float, dilation: int = 0
) -> Tensor:
    """Find where predictions differ, from their differences at some timesteps.

    Each timestep counts alike: its channel mean is divided by its own strongest value. The mean is
    smoothed over neighbouring latents, because single latents stand out by noise, and divided by
    its strongest value again. "Strongest" is the 99th percentile, so that one latent does not set
    the scale.

    Args:
        differences: v under one prompt minus v under the other, [B, F, C, H, W] float32, each.
        threshold: Share of the strongest difference from which on the edit may change the source.
        dilation: By how many latents the mask then grows, along height and width.

    Returns:
        [B, F, 1, H, W] float32, 0 or 1; all 0 for a clip whose predictions do not differ.
    """
    strengths = [_scaled(v.abs().mean(dim=2, keepdim=True)) for v in differences]
    mean = torch.stack(strengths).mean(dim=0)
    # Neighbours beyond the border are left out of the mean, or the border would count for less.
    smooth = functional.avg_pool2d(
        mean.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False
    )
    strength = _scaled(smooth.reshape(mean.shape))
    binary = ((strength >= threshold) & (strength > 0)).float()
    return _grow(binary.flatten(0, 1), dilation).reshape(mean.shape)


def composite(edited: Tensor, source: Tensor, mask: Tensor, *, feather: int = 0) -> Tensor:
    """Lay an edit over its source: outside the mask every pixel is the source's own, to the bit.

    Args:
        edited: [F, H, W, C] uint8, or float of the same range.
        source: Likewise.
        mask: [F, H, W], not 0 where the edit is shown.
        feather: Width in pixels of the passage from the source to the edit. It lies inside the
            mask, and none at the border of the frame, where there is no source to pass to.

    Returns:
        Like `edited`.
    """
    clips = zip(edited, source, mask, strict=True)
    return torch.stack([_lay_over(*frames, feather=feather) for frames in clips])


def _lay_over(edited: Tensor, source: Tensor, mask: Tensor, *, feather: int) -> Tensor:
    """Lay one frame over another: a clip's floats would take as much again four times."""
    weight = feather_mask(mask[None], feather)[0, ..., None].to(edited.device)
    below = source.to(edited.device).float()
    mixed = below + weight * (edited.float() - below)
    return mixed.round().to(torch.uint8) if edited.dtype == torch.uint8 else mixed


def feather_mask(mask: Tensor, feather: int) -> Tensor:
    """Turn a mask [F, H, W] into float32 weights that fall to 0 over `feather` pixels inside it.

    They are min(d / (feather + 1), 1), where d is the distance to the nearest pixel outside, in
    steps to one of eight neighbours; 0 leaves a hard edge.
    """
    inside = (mask != 0).float()[:, None]
    total = inside
    for _ in range(feather):
        # An erosion: what lies beyond the border of the frame counts as inside.
        inside = -functional.max_pool2d(-inside, 3, stride=1, padding=1)
        total = total + inside
    return total[:, 0] / (feather + 1)


def _grow(mask: Tensor, dilation: int) -> Tensor:
    """Grow a mask [N, 1, H, W] by `dilation` along height and width."""
    if dilation == 0:
        return mask
    # One step at a time: the kernel of a single large step would not fit a small frame.
    for _ in range(min(dilation, max(mask.shape[-2:]))):
        mask = functional.max_pool2d(mask, 3, stride=1, padding=1)
    return mask


def _scaled(strength: Tensor) -> Tensor:
    """Divide each clip of [B, F, 1, H, W] by its 99th percentile, at most to 1."""
    ranked = strength.flatten(1).sort(dim=1).values
    top = ranked[:, round(0.99 * (ranked.shape[1] - 1))]
    scaled = strength / top.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None, None, None]
    return scaled.clamp_max(1.0)
