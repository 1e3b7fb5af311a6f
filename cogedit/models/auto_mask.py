"""A mask from the model itself: where an edit's prompt and the source's predict differently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from cogedit.diffusion.latent_mask import difference_mask
from cogedit.models.denoiser import Denoiser
from cogedit.models.forward import run_rows
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rows import EditPrompts
from cogedit.types import ReconstructSettings

LEVELS = (0.4, 0.5, 0.6, 0.7)
"""Timesteps of a trajectory to compare at, as shares of its length from the clean end.

DiffEdit compares at half the noise. On the shapes world the lower of these are best at a new
colour, the upper ones at a new background; further up, a sample says too little of where anything
is, and below a new background changes only the background's own texture.
"""


def find_masks(
    predictor: Predictor,
    inverted: InvertedClips,
    settings: Sequence[ReconstructSettings],
    *,
    condition: Tensor | None = None,
) -> Tensor:
    """Find where each edit has something to change, from the source's own trajectory.

    Both predictions are plain: without guidance, which would only scale the difference, and without
    injection, which would take the edit's prompt out of its attention.

    There are B clips, and settings for each. The condition is as for `edit_latents`: each
    prediction is under its own first frame.

    Returns:
        [B, F, 1, H, W] float32 on the CPU, 1 where the edit may change the source; all 0 for a clip
        whose two prompts and first frames are equal.
    """
    trajectory, transformer = inverted.trajectory, predictor.transformer
    bank = list(dict.fromkeys([*(clip.prompt for clip in settings), *inverted.prompts]))

    def denoiser(prompts: Iterable[str], condition: Tensor | None) -> Denoiser:
        return Denoiser(
            transformer,
            embeds=predictor.embeds_of(bank),
            prompts=[EditPrompts(bank.index(prompt), None, 0, 0) for prompt in prompts],
            condition=condition,
            windows=trajectory.windows,
            ranks=predictor.ranks,
        )

    source = denoiser(inverted.prompts, inverted.condition)
    shown = inverted.condition if condition is None else condition
    edit = denoiser((clip.prompt for clip in settings), shown)
    differences: list[Tensor] = []
    with run_rows(transformer, predictor.options):
        for t in mask_levels(trajectory.timesteps):
            x = trajectory.at(t).to(transformer.device)
            differences.append((edit.velocity(x, t) - source.velocity(x, t)).cpu())
    shared = settings[0]
    return difference_mask(
        differences, threshold=shared.auto_mask_threshold, dilation=shared.dilation
    )


def mask_levels(timesteps: Sequence[int]) -> tuple[int, ...]:
    """Return the timesteps of a trajectory to compare at, each once."""
    last = len(timesteps) - 1
    return tuple(dict.fromkeys(timesteps[round(share * last)] for share in LEVELS))
