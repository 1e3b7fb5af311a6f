"""A mask from the model itself: where an edit's prompt and the source's predict differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.latent_mask import difference_mask
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.denoiser import Denoiser
from cogedit.models.forward import run_rows
from cogedit.models.ranks import Ranks
from cogedit.models.rows import EditPrompts
from cogedit.types import ReconstructSettings, TransformerSettings

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

LEVELS = (0.4, 0.5, 0.6, 0.7)
"""Timesteps of a trajectory to compare at, as shares of its length from the clean end.

DiffEdit compares at half the noise. On the shapes world the lower of these are best at a new
colour, the upper ones at a new background; further up, a sample says too little of where anything
is, and below a new background changes only the background's own texture.
"""


def find_masks(
    transformer: CogVideoXTransformer3DModel,
    reference: Trajectory,
    settings: Sequence[ReconstructSettings],
    *,
    inversion_prompts: Sequence[str],
    embeds: Mapping[str, Tensor],
    condition: Tensor | None = None,
    reference_condition: Tensor | None = None,
    options: TransformerSettings | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Find where each edit has something to change, from the source's own trajectory.

    Both predictions are plain: without guidance, which would only scale the difference, and without
    injection, which would take the edit's prompt out of its attention.

    The reference holds the trajectories of B clips; settings and inversion prompts are one per
    clip; embeddings are [1, L, D] by prompt. Conditions are as for `edit_latents`: each prediction
    is under its own first frame.

    Returns:
        [B, F, 1, H, W] float32 on the CPU, 1 where the edit may change the source; all 0 for a clip
        whose two prompts and first frames are equal.
    """
    bank = list(dict.fromkeys([*(clip.prompt for clip in settings), *inversion_prompts]))
    table = torch.cat([embeds[prompt] for prompt in bank])

    def denoiser(prompts: Iterable[str], condition: Tensor | None) -> Denoiser:
        return Denoiser(
            transformer,
            embeds=table,
            prompts=[EditPrompts(bank.index(prompt), None, 0, 0) for prompt in prompts],
            condition=condition,
            windows=reference.windows,
            ranks=ranks,
        )

    edit = denoiser((clip.prompt for clip in settings), condition)
    source = denoiser(inversion_prompts, reference_condition)
    differences: list[Tensor] = []
    with run_rows(transformer, options):
        for t in mask_levels(reference.timesteps):
            x = reference.at(t).to(transformer.device)
            differences.append((edit.velocity(x, t) - source.velocity(x, t)).cpu())
    shared = settings[0]
    return difference_mask(
        differences, threshold=shared.auto_mask_threshold, dilation=shared.dilation
    )


def mask_levels(timesteps: Sequence[int]) -> tuple[int, ...]:
    """Return the timesteps of a trajectory to compare at, each once."""
    last = len(timesteps) - 1
    return tuple(dict.fromkeys(timesteps[round(share * last)] for share in LEVELS))
