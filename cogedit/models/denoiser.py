"""The transformer as a velocity function v(x_t, t), guided, of several edits at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.windows import OnWindow, over_windows
from cogedit.models.attention import Injection
from cogedit.models.forward import References, runs_rows
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.rows import EditPrompts, RowPlan, plan_rows
from cogedit.types import WindowPlan

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


@dataclass(frozen=True)
class Prediction:
    """v of each edit, guided, and of its source if that was wanted, each [B, F, C, H, W]."""

    edit: Tensor
    reference: Tensor | None = None


class Denoiser:
    """v(x_t, t) of some edits at once, with guidance and, where they are given, references.

    The rows of a call are those of `cogedit.models.rows`. A reference row predicts the source's own
    velocity; its keys and values are what the edit rows attend to.

    Args:
        transformer: Inside `run_rows` if there is an injection.
        embeds: Embeddings of the run's prompts, [K, L, D].
        prompts: The prompts of each edit, as indices into `embeds`.
        guidance_scale: 1 means no guidance.
        guided: Timesteps with guidance; None is all of them.
        injection: How edit rows attend to references; None where there are no references, or the
            transformer's attention processors know by themselves.
        strengths: The injection's strength by timestep, in place of its own; None keeps that.
        reference_velocity: Whether a caller wants the velocity that the reference rows predict.
        windows: What the transformer sees at a time; None is whole clips.
        on_window: Called after each window.

    Raises:
        UsageError: The injection's window holds no layer of this model.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        *,
        embeds: Tensor,
        prompts: Sequence[EditPrompts],
        guidance_scale: float = 1.0,
        guided: frozenset[int] | None = None,
        injection: Injection | None = None,
        strengths: Mapping[int, float] | None = None,
        reference_velocity: bool = False,
        windows: WindowPlan | None = None,
        on_window: OnWindow | None = None,
    ) -> None:
        if injection is not None:
            injection.window(len(transformer.transformer_blocks))
        self.transformer = transformer
        self.guidance_scale = guidance_scale
        self._embeds = embeds.to(transformer.device, transformer.dtype)
        self._prompts = tuple(prompts)
        self._guided = guided
        self._injection = injection
        self._strengths = strengths
        self._reference_velocity = reference_velocity
        self._windows = windows
        self._on_window = on_window
        self._rotary = lru_cache(maxsize=1)(
            lambda *shape: image_rotary_emb(transformer, shape)  # once per run, not per step
        )

    def __call__(
        self, sample: Tensor, timestep: int, reference: Tensor | None = None
    ) -> Prediction:
        """Predict v at x_t, one sample per edit, [B, F, C, H, W], in its dtype and on its device.

        The reference is x*_t, one per source, [S, F, C, H, W]; None runs the edit rows alone. In
        windows, an edit row attends to the same frames of its source.
        """
        velocities = over_windows(
            partial(self._predict, timestep),
            *([sample] if reference is None else [sample, reference]),
            timestep=timestep,
            plan=self._windows,
            on_window=self._on_window,
        )
        return Prediction(*velocities)

    def _predict(
        self, timestep: int, sample: Tensor, reference: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Predict v of each edit, and of its source if that was wanted, in one call."""
        has_guidance = self.guidance_scale != 1 and (
            self._guided is None or timestep in self._guided
        )
        plan = plan_rows(
            self._prompts,
            guided=has_guidance,
            referenced=reference is not None,
            reference_velocity=self._reference_velocity,
        )
        v = self.rows(plan, sample, timestep, reference)
        edit = v[list(plan.conditional)]
        if has_guidance:
            # Classifier-free guidance (arXiv 2207.12598, equation 6), as diffusers scales it.
            unconditional = v[list(plan.unconditional)]
            edit = unconditional + self.guidance_scale * (edit - unconditional)
        return (edit, v[list(plan.reference)]) if plan.reference_velocity else (edit,)

    def rows(
        self, plan: RowPlan, sample: Tensor, timestep: int, reference: Tensor | None = None
    ) -> Tensor:
        """Predict v of each row of a plan in one call, without guidance, as in `__call__`."""
        rows = [sample[[row.sample for row in plan.edits]]]
        references: References | None = None
        if reference is not None:
            rows.append(reference[[row.sample for row in plan.references]].to(sample.device))
            if self._injection is not None:
                if not runs_rows(self.transformer):  # diffusers would only log that it is ignored
                    raise ValueError("a denoiser with an injection needs `run_rows` around it")
                injection = self._injection
                if self._strengths is not None:
                    injection = replace(injection, strength=self._strengths[timestep])
                references = {"plan": plan, "injection": injection}
        device = self.transformer.device
        with torch.no_grad():
            v: Tensor = self.transformer(
                hidden_states=torch.cat(rows).to(device, self.transformer.dtype),
                encoder_hidden_states=self._embeds[plan.prompts],
                # One for all rows: time embedding and modulation are computed once per layer.
                timestep=torch.full((1,), timestep, device=device),
                image_rotary_emb=self._rotary(sample.shape[1], *sample.shape[3:]),
                attention_kwargs=references,
                return_dict=False,
            )[0]
        return v.to(sample)

    def velocity(self, sample: Tensor, timestep: int) -> Tensor:
        """Predict v of samples [B, F, C, H, W] without a reference, as an inversion wants it."""
        return self(sample, timestep).edit
