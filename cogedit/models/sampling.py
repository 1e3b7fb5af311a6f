"""An inversion and an edit as their settings say: the mathematics with CogVideoX put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from cogedit.diffusion.denoise import denoise, keep_outside, start_sample
from cogedit.diffusion.flow_edit import flow_edit, noised_source
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
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rows import (
    EditPrompts,
    edit_prompts,
    guidance_reused,
    injection_jumps,
    injection_strengths,
    needs_reference_velocity,
    prompt_bank,
)
from cogedit.models.steps import run_steps
from cogedit.progress import OnStep
from cogedit.types import InvertSettings, ReconstructSettings, WindowPlan

_GUIDANCE = "guidance"
"""Name of `Denoiser.difference` among the tensors of a step."""


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
    predictor: Predictor,
    latents: Tensor,
    settings: Sequence[InvertSettings],
    *,
    condition: Tensor | None = None,
    windows: WindowPlan | None = None,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    read_back: Callable[[], Samples] | None = None,
    on_step: OnStep | None = None,
    on_window: OnWindow | None = None,
) -> Trajectory:
    """Invert clips z0, [B, F, C, H, W] float32 on the transformer's device.

    There is one entry of settings per clip; they may differ in the prompt alone. The empty prompt
    must be among the embeddings. Callbacks are as for `edit_latents`, and so are errors; `done` are
    the steps of an earlier run of the same inversion, from the first on. What `on_state` has saved
    `read_back` gives again: then no step is kept in memory, and `done` may be the last two. The
    windows are those of all edits of the trajectory; None is one pass over the whole clip. The
    condition is the clips' own, [1 or B, F, C, H, W], for a transformer that takes their first
    frames (`make_condition`).
    """
    shared = settings[0]
    schedule = inversion_schedule(shared, predictor.alphas_cumprod)
    bank = list(dict.fromkeys(["", *(clip.prompt for clip in settings)]))
    denoiser = Denoiser(
        predictor.transformer,
        embeds=predictor.embeds_of(bank),
        prompts=[
            EditPrompts(bank.index(clip.prompt), 0, 0, 0, source=number)
            for number, clip in enumerate(settings)
        ],
        condition=condition,
        guidance_scale=shared.guidance_scale,
        windows=windows,
        on_window=on_window,
        ranks=predictor.ranks,
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
    with run_rows(predictor.transformer, predictor.options):
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
    predictor: Predictor,
    inverted: InvertedClips,
    settings: Sequence[ReconstructSettings],
    *,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
    on_window: OnWindow | None = None,
) -> Tensor:
    """Make N edits together, as their settings say: of one clip, or each of a clip of its own.

    Edits of one clip share the rows that would be equal. How many edits there are changes results
    by rounding only: matrix products of another size may add up in another order, about 1e-6 of a
    value in float32.

    Args:
        predictor: The model, with embeddings of all prompts, negative ones and those of inversions.
        inverted: The one clip, or N clips.
        settings: One per edit; they may differ in the prompt and the seed alone.
        condition: First frames of the edits, [1 or N, F, C, H, W] from `make_condition`, for a
            transformer that takes them; None is those of the clips.
        mask: 1 where the edit may change the source, [F, 1, H, W] for all edits or
            [N, F, 1, H, W]; None is everywhere.
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: Steps of an earlier run of the same edits, from the first on, or the last alone where
            not every step is returned; this run continues there.
        on_state: Called after every step with what a later run continues from.
        on_step: Called after every step.
        on_window: Called after each window of a model call.

    Returns:
        The samples after each step, in host memory, [S, N, F, C, H, W] float32; the last are clean.

    Raises:
        UsageError: A setting is out of range.
        ArtifactMismatch: The trajectory did not visit a timestep that the edit needs.
        NumericalError: NaN or Inf appeared.
    """
    edits = _Edits(predictor, inverted, settings, condition, on_window)
    shared, trajectory = settings[0], edits.inverted.trajectory
    device, seeds = compute_device(predictor.transformer), [edit.seed for edit in settings]
    mask = None if mask is None else mask.to(device)
    is_flow = shared.method == "flow"
    if is_flow:
        z0 = trajectory.latents.to(device)
        fresh = noised_source(z0, edits.schedule, seeds=seeds)
        states = flow_edit(
            edits.velocities,
            z0,
            edits.schedule,
            source_at=fresh if shared.start == "random" else trajectory.at,
            mask=mask,
            solver=shared.solver,
            restarts=edits.restarts,
            done=done,
        )
    else:
        start = start_sample(
            trajectory, edits.schedule, seeds=seeds, start_noise=shared.noise_share
        )
        states = denoise(
            edits.velocity,
            start.to(device),
            edits.schedule,
            solver=shared.solver,
            restarts=edits.restarts,
            constrain=None if mask is None else keep_outside(mask, trajectory),
            done=done,
        )
    states = edits.with_guidance(states, done)
    with run_rows(predictor.transformer, predictor.options):
        samples = run_steps(
            states,
            "offset" if is_flow else "sample",
            keep_steps=keep_steps,
            done=done,
            on_state=on_state,
            on_step=on_step,
        )
    if is_flow:
        samples += trajectory.latents.cpu()  # they are offsets from it
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


class _Edits:
    """The model as edits that are made together ask it: beside their sources where they attend."""

    def __init__(
        self,
        predictor: Predictor,
        inverted: InvertedClips,
        settings: Sequence[ReconstructSettings],
        condition: Tensor | None,
        on_window: OnWindow | None,
    ) -> None:
        clips, shared = len(inverted.prompts), settings[0]
        self._sources = _sources(settings, num_clips=clips)
        self._once = list(dict.fromkeys(self._sources))
        self.inverted = inverted if clips == len(settings) else inverted.repeated(len(settings))
        self.schedule = edit_schedule(shared, inverted.trajectory, predictor.alphas_cumprod)
        scales = {shared.guidance_scale}
        if shared.method == "flow":  # which alone guides the source
            scales.add(shared.source_guidance_scale)
        self._guided = (
            frozenset() if scales == {1} else self.schedule.window(*shared.guidance_steps)
        )
        self._reused = guidance_reused(shared, self.schedule)
        # Also where no step attends: a window outside of the model is a mistake.
        Injection.of(shared, 0.0).window(len(predictor.transformer.transformer_blocks))
        strengths = injection_strengths(shared, self.schedule)
        self._injection = {t: Injection.of(shared, w) for t, w in strengths.items()}
        self.restarts = self.schedule.changes(self._guided, injection_jumps(shared, self.schedule))
        self._predictor = predictor
        self._shared = shared
        self._on_window = on_window
        self._bank = prompt_bank(settings, self.inverted.prompts)
        self._prompts = [
            edit_prompts(edit, own, self._bank, source=source)
            for edit, own, source in zip(
                settings, self.inverted.prompts, self._sources, strict=True
            )
        ]
        self._edit = self._denoiser(
            self._prompts,
            condition=inverted.condition if condition is None else condition,
            guidance_scale=shared.guidance_scale,
            reused=self._reused,
            injection=self._injection,
        )

    def with_guidance(
        self, states: Iterator[StepState], done: Sequence[StepState]
    ) -> Iterator[StepState]:
        """Keep with a step what the next one uses of guidance again, and read it from the last."""
        if done and _GUIDANCE in done[-1].tensors:
            device = compute_device(self._predictor.transformer)
            self._edit.difference = done[-1].tensors[_GUIDANCE].to(device)
        for state in states:
            if state.info.timestep in self._reused and self._edit.difference is not None:
                kept = {**state.tensors, _GUIDANCE: self._edit.difference}
                state = StepState(state.info, kept)
            yield state

    def velocity(self, x: Tensor, t: int) -> Tensor:
        """Return v of the edits at x_t, [N, F, C, H, W]."""
        reference = self.inverted.trajectory.at(t) if t in self._injection else None
        return self._edit(x, t, reference).edit

    def velocities(self, x_edit: Tensor, x_source: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Return v of the edits and of their sources, each at its own x_t, [N, F, C, H, W].

        The sources' is that of the reference rows where these predict it.
        """
        predicted = self._edit(x_edit, t, x_source if t in self._injection else None)
        if predicted.reference is not None:
            return predicted.edit, predicted.reference
        v = self._source.velocity(x_source[self._once], t)
        return predicted.edit, v[[self._once.index(source) for source in self._sources]]

    @cached_property
    def _source(self) -> Denoiser:
        """The sources, each under its own prompt and once however many edits it has."""
        condition, prompts = self.inverted.condition, self.inverted.prompts
        if condition is not None and len(condition) > 1:
            condition = condition[self._once]
        return self._denoiser(
            [
                replace(self._prompts[i], conditional=self._bank.index(prompts[i]))
                for i in self._once
            ],
            condition=condition,
            guidance_scale=self._shared.source_guidance_scale,
        )

    def _denoiser(
        self,
        prompts: Sequence[EditPrompts],
        *,
        condition: Tensor | None,
        guidance_scale: float,
        reused: frozenset[int] = frozenset(),
        injection: Mapping[int, Injection] | None = None,
    ) -> Denoiser:
        """Return the model of edits or, without an injection, of their sources."""
        return Denoiser(
            self._predictor.transformer,
            embeds=self._predictor.embeds_of(self._bank),
            prompts=prompts,
            condition=condition,
            reference_condition=self.inverted.condition,
            guidance_scale=guidance_scale,
            guided=self._guided,
            reused=reused,
            injection=injection,
            reference_velocity=needs_reference_velocity(self._shared),
            windows=self.inverted.trajectory.windows,
            on_window=self._on_window,
            ranks=self._predictor.ranks,
        )


def _sources(settings: Sequence[ReconstructSettings], *, num_clips: int) -> list[int]:
    """Return, for each edit, the first one whose source samples are the same as its own."""
    if num_clips not in (1, len(settings)):
        raise ValueError(f"{num_clips} clips for {len(settings)} edits")
    fresh = settings[0].method == "flow" and settings[0].draws_noise
    keys = [
        (clip if num_clips > 1 else 0, s.seed if fresh else None) for clip, s in enumerate(settings)
    ]
    return [keys.index(key) for key in keys]
