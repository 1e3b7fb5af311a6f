"""Anchored flow: an edit as an offset from the source that grows while the noise falls.

FlowEdit (arXiv 2412.08629) moves from the source to the edit along the difference of two velocity
fields. For v-prediction on a variance-preserving schedule, keep an offset D in clean space:

    x_edit = x*_t + sqrt(abar_t) D
    D <- r D + (1 - r) (x0^_edit(x_edit) - x0^_source(x*_t)),   r = sigma_s / sigma_t
    sigma = sqrt((1 - abar) / abar)

where x*_t is the source at level t. The edit is z0 + D. At zero terminal SNR sigma is infinite and
r = 0, so no level needs a special case. It is the first-order step of DPM-Solver++ (arXiv
2211.01095) for the offset, so the second-order one (`multistep`) serves here too. Under one text
and one guidance on both sides both predictions are the same numbers, D stays exactly zero, and the
source comes back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cogedit.diffusion.ddim import Model, pred_original_sample, require_finite
from cogedit.diffusion.denoise import EditModel, draw_noise
from cogedit.diffusion.multistep import Estimate, estimates, extrapolate, kept_estimate
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import OnState, StepState, on_device, steps_after, tell
from cogedit.types import OnStep, Solver, StepInfo, Window

SourceAt = Callable[[int], Tensor]
"""x*_t: the source's sample at a timestep, [B, F, C, H, W] float32."""


def flow_edit(
    edit_model: EditModel,
    source_model: Model,
    latents: Tensor,
    schedule: Schedule,
    *,
    source_at: SourceAt,
    reference_steps: Window = (0.0, 0.0),
    mask: Tensor | None = None,
    solver: Solver = "ddim",
    restarts: frozenset[int] = frozenset(),
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Carry an offset from the source down the levels of a schedule.

    Args:
        edit_model: v under the edit's text and guidance; it may look at the source. Where it says
            what the source's own v is, `source_model` is not asked.
        source_model: v under the source's text and guidance.
        latents: z0, [B, F, C, H, W] float32.
        schedule: Levels to visit; starting below the noisiest keeps more of the source.
        source_at: The source at each of them: its trajectory, or z0 with fresh noise.
        reference_steps: Window of the steps whose edit looks at the source.
        mask: 1 where the edit may change the source, 0 where not, [F, 1, H, W] or as `latents`: the
            offset is kept at 0 outside, so that there every sample is z0 itself.
        solver: How a step uses the models' calls.
        restarts: Levels at which a model changes (`Schedule.changes`).
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: Steps of an earlier run of the same edit, from the first on, or the last alone where
            not every step is returned; it goes on there.
        on_state: Given what a later run goes on from, after every step.
        on_step: Told after every step.

    Returns:
        z0 + D after each step, like `latents`; the last is the edit.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    done = on_device(done, latents.device)
    offsets = [state.tensors["offset"] for state in done]
    offset = offsets[-1] if offsets else torch.zeros_like(latents)
    samples = [latents + one for one in offsets]
    before = kept_estimate(done, "before", schedule)
    seen = schedule.window(*reference_steps)
    for index, (t, s) in steps_after(done, schedule.denoising_steps()):
        x_source = source_at(t).to(latents.device)
        x_edit = x_source + math.sqrt(schedule.alpha_cumprod(t)) * offset
        predicted = edit_model(x_edit, t, x_source if t in seen else None)
        v_source = predicted.reference
        if v_source is None:
            v_source = source_model(x_source, t)
        x0_edit = pred_original_sample(predicted.edit, x_edit, schedule=schedule, timestep=t)
        x0_source = pred_original_sample(v_source, x_source, schedule=schedule, timestep=t)
        ratio = noise_ratio(schedule, t, s)
        difference = Estimate(t, x0_edit - x0_source)
        known = before if solver == "dpm++2m" and t not in restarts else None
        ahead = extrapolate(difference, known, schedule=schedule, t_to=s)
        offset, before = ratio * offset + (1 - ratio) * ahead, difference
        if mask is not None:
            offset = mask * offset
        require_finite(offset, name="the offset of the flow", step=index + 1, timestep=t)
        samples = [*samples, latents + offset] if keep_steps else [latents + offset]
        kept = {"offset": offset} | estimates({"before": before})
        tell(StepState(StepInfo(index, len(schedule.timesteps), s), kept), on_state, on_step)
    return samples


def noise_ratio(schedule: Schedule, t: int, s: int) -> float:
    """Return sigma_s / sigma_t without forming sigma, which is infinite at zero terminal SNR."""
    a_t, a_s = schedule.alpha_cumprod(t), schedule.alpha_cumprod(s)
    return math.sqrt((1 - a_s) * a_t / (a_s * (1 - a_t)))


def noised_source(latents: Tensor, schedule: Schedule, *, seeds: Sequence[int]) -> SourceAt:
    """Return z0 with fresh noise at each level: a source path that needs no inversion.

    The noise of a clip at a level depends on its seed and the level alone, so that a run can be
    resumed and a clip's edit does not depend on the others in its batch.

    Args:
        latents: z0, [B, F, C, H, W] float32.
        schedule: Table of levels.
        seeds: Seed of each clip's noise.
    """
    levels = len(schedule.alphas_cumprod)
    shape = (1, *latents.shape[1:])

    def at(timestep: int) -> Tensor:
        drawn = [draw_noise(shape, seed=seed * levels + timestep) for seed in seeds]
        noise = torch.cat(drawn).to(latents.device)
        alpha = schedule.alpha_cumprod(timestep)
        return math.sqrt(alpha) * latents + math.sqrt(1 - alpha) * noise

    return at
