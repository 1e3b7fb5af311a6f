"""An inversion and an edit as their settings say: the mathematics with CogVideoX put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.ddim import Model
from cogedit.diffusion.denoise import denoise, start_sample
from cogedit.diffusion.flow_edit import flow_edit, noised_source
from cogedit.diffusion.invert import invert_consistent, invert_upstream
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import OnState, StepState
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.attention import Injection
from cogedit.models.denoiser import Denoiser
from cogedit.models.forward import run_rows
from cogedit.models.rows import EditTexts
from cogedit.types import InvertSettings, OnStep, ReconstructSettings, TransformerSettings

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
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    how: TransformerSettings | None = None,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Invert clips as their settings say.

    Args:
        transformer: The checkpoint's transformer.
        latents: z0, [B, F, C, H, W] float32, on the transformer's device.
        settings: One per clip; they may differ in the prompt alone.
        alphas_cumprod: The forward scheduler's table, [T].
        embeds: Embeddings of the prompts and of the empty prompt.
        done: Steps of an earlier run of the same inversion, from the first on; it goes on there.
        on_state: Given what a later run goes on from, after every step.
        how: How the transformer runs; None is its defaults.
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
    with run_rows(transformer, settings=how):
        if asked.inverse == "upstream":
            return invert_upstream(
                denoiser.velocity, latents, schedule, done=done, on_state=on_state, on_step=on_step
            )
        return invert_consistent(
            denoiser.velocity,
            latents,
            schedule,
            iterations=asked.inversion_iterations,
            done=done,
            on_state=on_state,
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
    how: TransformerSettings | None = None,
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Make N edits together, as their settings say: of one clip, or each of a clip of its own.

    Edits of one clip share the rows that would be equal, and how many they are changes no number
    beyond rounding: matrix products of another size may add up in another order, about 1e-6 of a
    value in float32.

    Args:
        transformer: The checkpoint's transformer.
        reference: Trajectory of the one clip, or of N clips.
        settings: One per edit; they may differ in the prompt and the seed alone.
        inversion_prompts: What the clip of each edit was inverted under.
        alphas_cumprod: The forward scheduler's table, [T].
        embeds: Embeddings of all prompts, negative prompts and inversion prompts.
        mask: 1 where the edit may change the source, [F, 1, H, W] for all edits or
            [N, F, 1, H, W]; None is everywhere.
        how: How the transformer runs; None is its defaults.
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: Steps of an earlier run of the same edits, from the first on, or the last alone where
            not every step is returned; it goes on there.
        on_state: Given what a later run goes on from, after every step.
        on_step: Told after every step.

    Returns:
        The samples after each step, [N, F, C, H, W] float32; the last are clean.

    Raises:
        UsageError: A setting is out of range.
        ArtifactMismatch: The reference did not visit a level that the edit needs.
        NumericalError: NaN or Inf appeared.
    """
    asked = settings[0]
    visited = Schedule.trailing(alphas_cumprod, len(reference.timesteps))
    schedule = visited.subset(asked.num_inference_steps, start_step=asked.start_step)
    sources = _sources(settings, num_clips=len(reference.latents))
    if len(reference.latents) < len(settings):
        reference = reference.repeated(len(settings))
    reference_steps = asked.injection_steps if sees_reference(asked) else (0.0, 0.0)
    has_guidance = {asked.guidance_scale, asked.source_guidance_scale} != {1}
    guided = schedule.window(*asked.guidance_steps) if has_guidance else frozenset()
    restarts = schedule.changes(guided, schedule.window(*reference_steps))
    mask = None if mask is None else mask.to(transformer.device)
    injection = Injection(
        strength=asked.injection_strength, mode=asked.injection_mode, tokens=asked.injection_tokens
    )
    models = _edit_models(
        transformer,
        settings,
        inversion_prompts=inversion_prompts,
        sources=sources,
        embeds=embeds,
        injection=injection,
        guided=guided,
        share=how is None or how.rows != "upstream",
    )
    seeds = [s.seed for s in settings]
    with run_rows(transformer, injection, layers=asked.injection_layers, settings=how):
        if asked.method == "flow":
            z0 = reference.latents.to(transformer.device)
            fresh = noised_source(z0, schedule, seeds=seeds)
            return flow_edit(
                models.edit,
                models.source,
                z0,
                schedule,
                source_at=fresh if asked.start == "random" else reference.at,
                reference_steps=reference_steps,
                mask=mask,
                solver=asked.solver,
                restarts=restarts,
                keep_steps=keep_steps,
                done=done,
                on_state=on_state,
                on_step=on_step,
            )
        start = start_sample(reference, schedule, seeds=seeds, start_noise=asked.noise_share)
        return denoise(
            models.edit,
            start.to(transformer.device),
            schedule,
            reference=reference if sees_reference(asked) or mask is not None else None,
            reference_steps=reference_steps,
            drift_correction=asked.drift_correction,
            mask=mask,
            solver=asked.solver,
            restarts=restarts,
            keep_steps=keep_steps,
            done=done,
            on_state=on_state,
            on_step=on_step,
        )


@dataclass(frozen=True)
class _EditModels:
    """What edits ask the transformer.

    Attributes:
        edit: v of each edit, which may look at its source.
        source: v of the source of each edit under its own text, which a flow asks for.
    """

    edit: Denoiser
    source: Model


def _edit_models(
    transformer: CogVideoXTransformer3DModel,
    settings: Sequence[ReconstructSettings],
    *,
    inversion_prompts: Sequence[str],
    sources: Sequence[int],
    embeds: Embeds,
    injection: Injection,
    guided: frozenset[int],
    share: bool,
) -> _EditModels:
    """Lay out the texts of some edits and of their sources.

    Args:
        transformer: The checkpoint's transformer.
        settings: One per edit.
        inversion_prompts: What the clip of each edit was inverted under.
        sources: For each edit, the first one with the same source samples.
        embeds: Embeddings of all prompts, negative prompts and inversion prompts.
        injection: Told which row looks at which before every call.
        guided: Timesteps with guidance, of the edits and of their sources.
        share: Run rows that are equal once.
    """
    asked = settings[0]
    prompts = list(zip(settings, inversion_prompts, strict=True))
    bank = list(
        dict.fromkeys(text for s, own in prompts for text in (s.negative_prompt, s.prompt, own))
    )
    table = torch.cat([embeds[text] for text in bank])
    texts = [
        edit_texts(s, own, bank, source=source)
        for (s, own), source in zip(prompts, sources, strict=True)
    ]
    edit = Denoiser(
        transformer,
        embeds=table,
        texts=texts,
        guidance_scale=asked.guidance_scale,
        guided=guided,
        injection=injection,
        reference_velocity=wants_reference_velocity(asked, share=share),
        share=share,
    )
    plain = Denoiser(
        transformer,
        embeds=table,
        texts=[
            replace(texts[i], conditional=bank.index(inversion_prompts[i]))
            for i in dict.fromkeys(sources)
        ],
        guidance_scale=asked.source_guidance_scale,
        guided=guided,
        injection=injection,
    )
    return _EditModels(edit, _of_each_edit(plain.velocity, sources))


def _sources(settings: Sequence[ReconstructSettings], *, num_clips: int) -> list[int]:
    """Return, for each edit, the first one whose source samples are the same as its own.

    Raises:
        ValueError: There is neither one clip nor one for each edit.
    """
    if num_clips not in (1, len(settings)):
        raise ValueError(f"{num_clips} clips for {len(settings)} edits")
    fresh = settings[0].method == "flow" and settings[0].draws_noise
    keys = [
        (clip if num_clips > 1 else 0, s.seed if fresh else None) for clip, s in enumerate(settings)
    ]
    return [keys.index(key) for key in keys]


def sees_reference(settings: ReconstructSettings) -> bool:
    """Whether an edit has a use for reference rows, by its strength or its drift correction."""
    return settings.injection_strength > 0 or settings.drift_correction > 0


def wants_reference_velocity(settings: ReconstructSettings, *, share: bool) -> bool:
    """Whether reference rows run to the last layer, for what they predict.

    Args:
        settings: Of the edit. A flow takes the source's velocity from them if they are under the
            text and the guidance that its source side asks for.
        share: Run rows that are equal once; False is upstream's layout, where all rows run through.
    """
    if settings.method == "flow":
        return settings.reference_prompt == "inversion" and settings.source_guidance_scale == 1
    return settings.drift_correction > 0 or not share


def _of_each_edit(model: Model, sources: Sequence[int]) -> Model:
    """Ask a model once for each source and hand its answer to all edits of the source."""
    once = list(dict.fromkeys(sources))
    index = [once.index(source) for source in sources]
    return lambda x, t: model(x[once], t)[index]


def edit_texts(
    settings: ReconstructSettings, inversion_prompt: str, bank: Sequence[str], *, source: int
) -> EditTexts:
    """Choose the texts of an edit's rows.

    Args:
        settings: Prompt, negative prompt, `unconditional`, `reference_prompt`, `reference_rows`.
        inversion_prompt: What the source was inverted under.
        bank: The texts of the run, in the order of their embeddings.
        source: Number of the source's samples.
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
        source=source,
    )
