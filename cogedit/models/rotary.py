"""Rotary position embeddings of the image tokens, as `CogVideoXPipeline` prepares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from cogedit.models.device import compute_device

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

Crop = tuple[tuple[int, int], tuple[int, int]]


def image_rotary_emb(
    transformer: CogVideoXTransformer3DModel, latent_shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor] | None:
    """Compute (cos, sin), each [tokens, head_dim] float32, on the transformer's device.

    CogVideoX 1.0 stretches the positions of other sizes over the grid it was trained at; 1.5
    (`patch_size_t` set) takes a slice of an unstretched grid. For 2B, which has sin-cos positions
    and no rotary embedding, the result is None. `latent_shape` is (F', H', W').
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    config = transformer.config
    if not config.use_rotary_positional_embeddings:
        return None
    frames, height, width = latent_shape
    patch = config.patch_size
    grid = height // patch, width // patch
    base = config.sample_height // patch, config.sample_width // patch
    device = compute_device(transformer)
    if config.patch_size_t is None:
        cos, sin = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=centred_crop(grid, base),
            grid_size=grid,
            temporal_size=frames,
            device=device,
        )
    else:
        cos, sin = get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=None,
            grid_size=grid,
            temporal_size=-(-frames // config.patch_size_t),
            grid_type="slice",
            # A slice of a longer axis begins with the same positions, so a portrait clip, which
            # is taller than the grid that the model was trained at, continues them.
            max_size=(max(base[0], grid[0]), max(base[1], grid[1])),
            device=device,
        )
    return cos, sin


def centred_crop(grid: tuple[int, int], base: tuple[int, int]) -> Crop:
    """Fit a grid (height, width) of tokens into the base grid, its aspect kept, centred.

    Returns ((top, left), (bottom, right)) within the base grid.
    """
    scale = min(base[0] / grid[0], base[1] / grid[1])
    height, width = round(grid[0] * scale), round(grid[1] * scale)
    top, left = round((base[0] - height) / 2), round((base[1] - width) / 2)
    return (top, left), (top + height, left + width)
