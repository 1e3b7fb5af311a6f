"""What a run of the model is given: the transformer, and clips as they were inverted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.ranks import Ranks
from cogedit.types import TransformerSettings

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

Embeds = Mapping[str, Tensor]
"""Prompt embeddings [1, L, D] by prompt."""


@dataclass(frozen=True)
class Predictor:
    """A transformer with what its calls need beside samples.

    Attributes:
        transformer: The checkpoint's transformer, which predicts v.
        alphas_cumprod: The forward scheduler's table, [T].
        embeds: Embeddings of every prompt of the run.
        options: How the transformer runs; None is by the defaults.
        ranks: Processes that compute with this one, and have the same transformer.
    """

    transformer: CogVideoXTransformer3DModel
    alphas_cumprod: Tensor
    embeds: Embeds
    options: TransformerSettings | None = None
    ranks: Ranks | None = None

    def embeds_of(self, prompts: Iterable[str]) -> Tensor:
        """Return the embeddings of some prompts in their order, [K, L, D]."""
        return torch.cat([self.embeds[prompt] for prompt in prompts])


@dataclass(frozen=True)
class InvertedClips:
    """B clips as they were inverted: what their edits start from and attend to.

    Attributes:
        trajectory: Their samples; edits are made in its windows.
        prompts: What each was inverted under.
        condition: The first frames that they were inverted under, [1 or B, F, C, H, W] from
            `make_condition`, for a transformer that takes them.
    """

    trajectory: Trajectory
    prompts: tuple[str, ...] = ("",)
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse clips without a prompt of their own: ValueError."""
        if len(self.prompts) != len(self.trajectory.latents):
            raise ValueError(
                f"{len(self.prompts)} prompts for {len(self.trajectory.latents)} clips"
            )

    def repeated(self, count: int) -> InvertedClips:
        """Return one clip as `count` equal ones, without a copy."""
        trajectory = self.trajectory.repeated(count)
        return replace(self, trajectory=trajectory, prompts=self.prompts * count)
