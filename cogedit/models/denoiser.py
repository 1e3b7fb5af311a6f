"""The transformer as a velocity function v(x_t, t): rows in, one guided prediction per edit out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.denoise import Prediction
from cogedit.diffusion.guidance import guide
from cogedit.models.attention import Injection
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.rows import EditTexts, RowPlan, plan_rows

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


class Denoiser:
    """v(x_t, t) of some edits at once, with guidance and, where they are given, references.

    The rows of a call are those of `cogedit.models.rows`. What a reference row predicts is the
    source's own velocity; its keys and values are what the edit rows look at.

    Args:
        transformer: The checkpoint's transformer.
        embeds: Embeddings of the run's texts, [K, L, D].
        texts: The texts of each edit, as indices into `embeds`.
        guidance_scale: 1 means no guidance.
        guided: Timesteps with guidance; None is all of them.
        reference_velocity: Whether a caller wants to know what the reference rows predict.
        share: Run rows that are equal once.
        injection: Told which row looks at which before every call; None where the transformer's
            processors know it by themselves, or there are no references.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        *,
        embeds: Tensor,
        texts: Sequence[EditTexts],
        guidance_scale: float = 1.0,
        guided: frozenset[int] | None = None,
        reference_velocity: bool = True,
        share: bool = True,
        injection: Injection | None = None,
    ) -> None:
        self.transformer = transformer
        self.guidance_scale = guidance_scale
        self.injection = injection
        self._embeds = embeds.to(transformer.device, transformer.dtype)
        self._texts = tuple(texts)
        self._guided = guided
        self._reference_velocity = reference_velocity
        self._share = share
        self._rotary = lru_cache(maxsize=1)(
            lambda *shape: image_rotary_emb(transformer, shape)  # once per run, not per step
        )

    def __call__(
        self, sample: Tensor, timestep: int, reference: Tensor | None = None
    ) -> Prediction:
        """Predict v.

        Args:
            sample: x_t, one per edit, [B, F, C, H, W] float32.
            timestep: Their level.
            reference: x*_t, one per source, [S, F, C, H, W]; None runs the edit rows alone.

        Returns:
            v of each edit, float32, and of the source of each where there is a reference and its
            velocity is wanted.
        """
        has_guidance = self.guidance_scale != 1 and (
            self._guided is None or timestep in self._guided
        )
        plan = plan_rows(
            self._texts,
            guided=has_guidance,
            referenced=reference is not None,
            share=self._share,
        )
        if self.injection is not None:
            self.injection.reference_of = plan.reference_of
            self.injection.reference_velocity = self._reference_velocity
        v = self._transform(plan, sample, reference, timestep=timestep)
        edit = v[list(plan.conditional)]
        if has_guidance:
            unconditional = v[list(plan.unconditional)]
            edit = guide(unconditional, edit, guidance_scale=self.guidance_scale)
        wanted = self._reference_velocity and plan.reference
        return Prediction(edit, v[list(plan.reference)] if wanted else None)

    def velocity(self, sample: Tensor, timestep: int) -> Tensor:
        """Predict v of samples [B, F, C, H, W] without a reference, as an inversion wants it."""
        return self(sample, timestep).edit

    def _transform(
        self, plan: RowPlan, sample: Tensor, reference: Tensor | None, *, timestep: int
    ) -> Tensor:
        """Run the transformer on the rows of a plan."""
        device, dtype = self.transformer.device, self.transformer.dtype
        rows = [sample[[row.sample for row in plan.edits]]]
        if reference is not None:
            rows.append(reference[[row.sample for row in plan.references]].to(sample.device))
        hidden_states = torch.cat(rows)
        texts = [row.text for row in (*plan.edits, *plan.references)]
        with torch.no_grad():
            v: Tensor = self.transformer(
                hidden_states=hidden_states.to(device, dtype),
                encoder_hidden_states=self._embeds[texts],
                # One for all rows: time embedding and modulation are computed once per layer.
                timestep=torch.full((1,), timestep, device=device),
                image_rotary_emb=self._rotary(sample.shape[1], *sample.shape[3:]),
                return_dict=False,
            )[0]
        return v.float().to(sample.device)
