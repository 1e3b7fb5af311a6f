"""An inversion and an edit as their settings say: the mathematics with CogVideoX put in."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.ddim import Model
from cogedit.diffusion.denoise import denoise, keep_outside, start_sample
from cogedit.diffusion.flow_edit import FlowModel, flow_edit, noised_source
from cogedit.diffusion.invert import invert_consistent, invert_upstream
from cogedit.diffusion.midpoint import invert_midpoint
from cogedit.diffusion.schedule import Schedule, check_low_levels
from cogedit.diffusion.state import OnState, StepState
from cogedit.diffusion.trajectory import Samples, Trajectory
from cogedit.diffusion.windows import OnWindow
from cogedit.models.attention import Injection
from cogedit.models.denoiser import Denoiser
from cogedit.models.device import compute_device
from cogedit.models.forward import run_rows
from cogedit.models.ranks import Ranks
from cogedit.models.rows import (
    EditPrompts,
    edit_prompts,
    injection_jumps,
    injection_strengths,
    needs_reference_velocity,
    prompt_bank,
)
from cogedit.models.steps import run_steps
from cogedit.progress import OnStep
from cogedit.types import InvertSettings, ReconstructSettings, TransformerSettings, WindowPlan

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

Embeds = Mapping[str, Tensor]
"""Prompt embeddings [1, L, D] by prompt."""


def inversion_schedule(settings: InvertSettings, alphas_cumprod: Tensor) -> Schedule:
    """Return the levels of an inversion, for the forward scheduler's table [T].

    Raises:
        UsageError: The settings ask for levels that the table does not have.
    """
    count, low = settings.num_inference_steps, settings.num_low_levels
    check_low_levels(low, count)
    schedule = Schedule.trailing(alphas_cumprod, count - low).with_low_levels(low)
    return schedule.midpoints() if settings.inverse == "midpoint" else schedule


def invert_latents(
    transformer: CogVideoXTransformer3DModel,
    latents: Tensor,
    settings: Sequence[InvertSettings],
    *,
    alphas_cumprod: Tensor,
    embeds: Embeds,
    condition: Tensor | None = None,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    read_back: Callable[[], Samples] | None = None,
    options: TransformerSettings | None = None,
    windows: WindowPlan | None = None,
    on_step: OnStep | None = None,
    on_window: OnWindow | None = None,
    ranks: Ranks | None = None,
) -> Trajectory:
    """Invert clips z0, [B, F, C, H, W] float32 on the transformer's device.

    There is one entry of settings per clip; they may differ in the prompt alone. The empty prompt
    must be among the embeddings. Tables and callbacks are as for `edit_latents`, and so are errors;
    `done` are the steps of an earlier run of the same inversion, from the first on. What `on_state`
    has saved `read_back` gives again: then no step is kept in memory, and `done` may be the last
    two. The windows are those of all edits of the trajectory; None is one pass over the whole clip.
    The condition is the clips' own, [1 or B, F, C, H, W], for a transformer that takes their first
    frames (`make_condition`).
    """
    shared = settings[0]
    schedule = inversion_schedule(shared, alphas_cumprod)
    bank = list(dict.fromkeys(["", *(clip.prompt for clip in settings)]))
    denoiser = Denoiser(
        transformer,
        embeds=torch.cat([embeds[prompt] for prompt in bank]),
        prompts=[
            EditPrompts(bank.index(clip.prompt), 0, 0, 0, source=number)
            for number, clip in enumerate(settings)
        ],
        condition=condition,
        guidance_scale=shared.guidance_scale,
        windows=windows,
        on_window=on_window,
        ranks=ranks,
    )
    if shared.inverse == "upstream":
        states = invert_upstream(denoiser.velocity, latents, schedule, done=done)
    elif shared.inverse == "midpoint":
        states = invert_midpoint(denoiser.velocity, latents, schedule, done=done)
    else:
        states = invert_consistent(
            denoiser.velocity,
            latents,
            schedule,
            iterations=shared.inversion_iterations,
            done=done,
        )
    with run_rows(transformer, options):
        kept = run_steps(
            states,
            "sample",
            keep_steps=read_back is None,
            done=done,
            on_state=on_state,
            on_step=on_step,
        )
    samples: Samples = kept if read_back is None else read_back()
    return Trajectory.of(samples, latents.cpu(), schedule, windows=windows)


def edit_latents(
    transformer: CogVideoXTransformer3DModel,
    reference: Trajectory,
    settings: Sequence[ReconstructSettings],
    *,
    inversion_prompts: Sequence[str],
    alphas_cumprod: Tensor,
    embeds: Embeds,
    condition: Tensor | None = None,
    reference_condition: Tensor | None = None,
    mask: Tensor | None = None,
    options: TransformerSettings | None = None,
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
    on_window: OnWindow | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Make N edits together, as their settings say: of one clip, or each of a clip of its own.

    Edits of one clip share the rows that would be equal. How many edits there are changes results
    by rounding only: matrix products of another size may add up in another order, about 1e-6 of a
    value in float32.

    Args:
        transformer: The checkpoint's transformer.
        reference: Trajectory of the one clip, or of N clips; edits are made in its windows.
        settings: One per edit; they may differ in the prompt and the seed alone.
        inversion_prompts: The prompt that the clip of each edit was inverted under.
        alphas_cumprod: The forward scheduler's table, [T].
        embeds: Embeddings of all prompts, negative prompts and inversion prompts.
        condition: First frames of the edits, [1 or N, F, C, H, W] from `make_condition`, for a
            transformer that takes them.
        reference_condition: Those that the reference's clips were inverted under, [1 or N, ...].
        mask: 1 where the edit may change the source, [F, 1, H, W] for all edits or
            [N, F, 1, H, W]; None is everywhere.
        options: How the transformer runs.
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: Steps of an earlier run of the same edits, from the first on, or the last alone where
            not every step is returned; this run continues there.
        on_state: Called after every step with what a later run continues from.
        on_step: Called after every step.
        on_window: Called after each window of a model call.
        ranks: Processes that compute with this one, and have the same transformer.

    Returns:
        The samples after each step, in host memory, [S, N, F, C, H, W] float32; the last are clean.

    Raises:
        UsageError: A setting is out of range.
        ArtifactMismatch: The reference did not visit a timestep that the edit needs.
        NumericalError: NaN or Inf appeared.
    """
    shared, device = settings[0], compute_device(transformer)
    schedule = edit_schedule(shared, reference, alphas_cumprod)
    sources = _sources(settings, num_clips=len(reference.latents))
    if len(reference.latents) < len(settings):
        reference = reference.repeated(len(settings))
    scales = {shared.guidance_scale}
    if shared.method == "flow":  # which alone guides the source
        scales.add(shared.source_guidance_scale)
    has_guidance = scales != {1}
    guided = schedule.window(*shared.guidance_steps) if has_guidance else frozenset()
    strengths = injection_strengths(shared, schedule)
    restarts = schedule.changes(guided, injection_jumps(shared, schedule))
    seeds = [edit.seed for edit in settings]
    mask = None if mask is None else mask.to(device)
    bank = prompt_bank(settings, inversion_prompts)
    table = torch.cat([embeds[prompt] for prompt in bank])
    prompts = [
        edit_prompts(edit, own, bank, source=source)
        for edit, own, source in zip(settings, inversion_prompts, sources, strict=True)
    ]
    model = Denoiser(
        transformer,
        embeds=table,
        prompts=prompts,
        condition=condition,
        reference_condition=reference_condition,
        guidance_scale=shared.guidance_scale,
        guided=guided,
        injection=Injection.of(shared, max(strengths.values(), default=0.0)),
        strengths=strengths,
        reference_velocity=needs_reference_velocity(shared),
        windows=reference.windows,
        on_window=on_window,
        ranks=ranks,
    )
    if shared.method == "flow":
        z0 = reference.latents.to(device)
        fresh = noised_source(z0, schedule, seeds=seeds)
        # v of the sources, each under its own prompt and once however many edits it has.
        once = list(dict.fromkeys(sources))
        source_condition = reference_condition
        if source_condition is not None and len(source_condition) > 1:
            source_condition = source_condition[once]
        source_model = Denoiser(
            transformer,
            embeds=table,
            prompts=[
                replace(prompts[i], conditional=bank.index(inversion_prompts[i])) for i in once
            ],
            condition=source_condition,
            guidance_scale=shared.source_guidance_scale,
            guided=guided,
            windows=reference.windows,
            on_window=on_window,
            ranks=ranks,
        )
        states = flow_edit(
            _flow_model(model, _of_each_edit(source_model.velocity, sources), strengths),
            z0,
            schedule,
            source_at=fresh if shared.start == "random" else reference.at,
            mask=mask,
            solver=shared.solver,
            restarts=restarts,
            done=done,
        )
    else:
        start = start_sample(reference, schedule, seeds=seeds, start_noise=shared.noise_share)
        states = denoise(
            _beside(model, reference, strengths),
            start.to(device),
            schedule,
            solver=shared.solver,
            restarts=restarts,
            constrain=None if mask is None else keep_outside(mask, reference),
            done=done,
        )
    name = "offset" if shared.method == "flow" else "sample"
    with run_rows(transformer, options):
        samples = run_steps(
            states, name, keep_steps=keep_steps, done=done, on_state=on_state, on_step=on_step
        )
    if shared.method == "flow":
        samples += reference.latents.cpu()  # they are offsets from it
    return samples


def edit_schedule(
    settings: ReconstructSettings, reference: Trajectory, alphas_cumprod: Tensor
) -> Schedule:
    """Return the levels of an edit of a trajectory, for the forward scheduler's table [T].

    Raises:
        UsageError: The edit has more steps than the trajectory, or skips all of them.
    """
    visited = Schedule(
        tuple(alphas_cumprod.double().tolist()), tuple(reversed(reference.timesteps))
    )
    return visited.subset(settings.num_inference_steps, start_step=settings.first_step)


def _beside(edit: Denoiser, reference: Trajectory, attending: Container[int]) -> Model:
    """Let an edit attend to its source's sample at some timesteps."""
    return lambda x, t: edit(x, t, reference.at(t) if t in attending else None).edit


def _flow_model(edit: Denoiser, source: Model, attending: Container[int]) -> FlowModel:
    """Return the velocities of edit and source; the reference rows' where they are the source's."""

    def velocities(x_edit: Tensor, x_source: Tensor, t: int) -> tuple[Tensor, Tensor]:
        predicted = edit(x_edit, t, x_source if t in attending else None)
        if predicted.reference is not None:
            return predicted.edit, predicted.reference
        return predicted.edit, source(x_source, t)

    return velocities


def _sources(settings: Sequence[ReconstructSettings], *, num_clips: int) -> list[int]:
    """Return, for each edit, the first one whose source samples are the same as its own."""
    if num_clips not in (1, len(settings)):
        raise ValueError(f"{num_clips} clips for {len(settings)} edits")
    fresh = settings[0].method == "flow" and settings[0].draws_noise
    keys = [
        (clip if num_clips > 1 else 0, s.seed if fresh else None) for clip, s in enumerate(settings)
    ]
    return [keys.index(key) for key in keys]


def _of_each_edit(model: Model, sources: Sequence[int]) -> Model:
    """Ask a model once for each source and hand its answer to all edits of that source."""
    once = list(dict.fromkeys(sources))
    index = [once.index(source) for source in sources]
    return lambda x, t: model(x[once], t)[index]
