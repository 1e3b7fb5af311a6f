"""An inversion and an edit as their settings say: the mathematics with CogVideoX put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.edit import denoise, start_sample
from cogedit.diffusion.flow import flow_edit, noised_source
from cogedit.diffusion.invert import invert_consistent, invert_upstream
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.attention import Injection, inject
from cogedit.models.denoiser import Denoiser
from cogedit.models.rows import EditTexts
from cogedit.types import InvertSettings, OnStep, ReconstructSettings

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

Embeds = Mapping[str, Tensor]
"""Prompt embeddings [1, L, D] by text."""


def invert_latents(
    transformer: CogVideoXTransformer3DModel,
    latents: Tensor,
    settings: Sequence[InvertSettings],
    *,
    alphas_cumprod: Tensor,
    embeds: Embeds,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Invert clips as their settings say.

    Args:
        transformer: The checkpoint's transformer.
        latents: z0, [B, F, C, H, W] float32, on the transformer's device.
        settings: One per clip; they may differ in the prompt alone.
        alphas_cumprod: The forward scheduler's table, [T].
        embeds: Embeddings of the prompts and of the empty prompt.
        on_step: Told after every step.

    Raises:
        UsageError: A setting is out of range.
        NumericalError: NaN or Inf appeared.
    """
    asked = settings[0]
    schedule = Schedule.trailing(alphas_cumprod, asked.num_inference_steps)
    bank = list(dict.fromkeys(["", *(s.prompt for s in settings)]))
    denoiser = Denoiser(
        transformer,
        embeds=torch.cat([embeds[text] for text in bank]),
        texts=[
            EditTexts(bank.index(s.prompt), 0, 0, 0, source=clip) for clip, s in enumerate(settings)
        ],
        guidance_scale=asked.guidance_scale,
    )
    if asked.inverse == "upstream":
        return invert_upstream(denoiser.velocity, latents, schedule, on_step=on_step)
    return invert_consistent(
        denoiser.velocity,
        latents,
        schedule,
        iterations=asked.inversion_iterations,
        on_step=on_step,
    )


def edit_latents(
    transformer: CogVideoXTransformer3DModel,
    reference: Trajectory,
    settings: Sequence[ReconstructSettings],
    *,
    inversion_prompts: Sequence[str],
    alphas_cumprod: Tensor,
    embeds: Embeds,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Edit clips as their settings say.

    Args:
        transformer: The checkpoint's transformer.
        reference: The clips' trajectories in one, B clips.
        settings: One per clip; they may differ in the prompt and the seed alone.
        inversion_prompts: What each clip was inverted under.
        alphas_cumprod: The forward scheduler's table, [T].
        embeds: Embeddings of all prompts, negative prompts and inversion prompts.
        mask: 1 where the edit may change the source, [F, 1, H, W]; None is everywhere.
        on_step: Told after every step.

    Returns:
        The sample after each step, [B, F, C, H, W] float32; the last is clean.

    Raises:
        UsageError: A setting is out of range.
        ArtifactMismatch: The reference did not visit a level that the edit needs.
        NumericalError: NaN or Inf appeared.
    """
    asked = settings[0]
    visited = Schedule.trailing(alphas_cumprod, len(reference.timesteps))
    schedule = visited.subset(asked.num_inference_steps, start_step=asked.start_step)
    bank = list(
        dict.fromkeys(
            text
            for s, source in zip(settings, inversion_prompts, strict=True)
            for text in (s.negative_prompt, s.prompt, source)
        )
    )
    table = torch.cat([embeds[text] for text in bank])
    texts = [
        edit_texts(s, source, bank, clip=clip)
        for clip, (s, source) in enumerate(zip(settings, inversion_prompts, strict=True))
    ]
    injection = Injection(
        strength=asked.injection_strength, mode=asked.injection_mode, tokens=asked.injection_tokens
    )
    # Without strength or drift the reference row would be computed for nothing.
    looks = asked.injection_strength > 0 or asked.drift_correction > 0
    seeds = [s.seed for s in settings]
    with inject(transformer, injection, layers=asked.injection_layers):
        denoiser = Denoiser(
            transformer,
            embeds=table,
            texts=texts,
            guidance_scale=asked.guidance_scale,
            guided=schedule.window(*asked.guidance_steps),
            injection=injection,
        )
        if asked.method == "flow":
            source = Denoiser(
                transformer,
                embeds=table,
                texts=[
                    replace(text, conditional=bank.index(source))
                    for text, source in zip(texts, inversion_prompts, strict=True)
                ],
                guidance_scale=asked.source_guidance_scale,
                injection=injection,
            )
            z0 = reference.latents.to(transformer.device)
            fresh = noised_source(z0, schedule, seeds=seeds)
            return flow_edit(
                denoiser,
                source.velocity,
                z0,
                schedule,
                source_at=fresh if asked.start == "random" else reference.at,
                reference_steps=asked.injection_steps if looks else (0.0, 0.0),
                on_step=on_step,
            )
        start_noise = asked.start_noise
        if start_noise is None:
            start_noise = 1.0 if asked.start == "random" else 0.0
        start = start_sample(reference, schedule, seeds=seeds, start_noise=start_noise)
        return denoise(
            denoiser,
            start.to(transformer.device),
            schedule,
            reference=reference if looks or mask is not None else None,
            reference_steps=asked.injection_steps if looks else (0.0, 0.0),
            drift_correction=asked.drift_correction,
            mask=mask,
            on_step=on_step,
        )


def edit_texts(
    settings: ReconstructSettings, inversion_prompt: str, bank: Sequence[str], *, clip: int
) -> EditTexts:
    """Choose the texts of an edit's rows.

    Args:
        settings: Prompt, negative prompt, `unconditional`, `reference_prompt`, `reference_rows`.
        inversion_prompt: What the source was inverted under.
        bank: The texts of the run, in the order of their embeddings.
        clip: Index of the source.
    """
    negative = settings.negative_prompt
    unconditional = negative if settings.unconditional == "negative" else inversion_prompt
    own = settings.reference_prompt == "edit"
    conditional_reference = settings.prompt if own else inversion_prompt
    shared = settings.reference_rows == "one"
    return EditTexts(
        conditional=bank.index(settings.prompt),
        unconditional=bank.index(unconditional),
        reference_conditional=bank.index(conditional_reference),
        reference_unconditional=bank.index(conditional_reference if shared else unconditional),
        source=clip,
    )
