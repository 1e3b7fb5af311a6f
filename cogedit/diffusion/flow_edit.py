"""Anchored flow: an edit as an offset from the source that grows while the noise falls.

FlowEdit (arXiv 2412.08629) moves from the source to the edit along the difference of two velocity
fields. For v-prediction on a variance-preserving schedule, keep an offset D in clean space:

    x_edit = x*_t + sqrt(abar_t) D
    D <- r D + (1 - r) (x0^_edit(x_edit) - x0^_source(x*_t)),   r = sigma_s / sigma_t
    sigma = sqrt((1 - abar) / abar)

where x*_t is the source at timestep t. The edit is z0 + D. At zero terminal SNR sigma is infinite
and r = 0, so no timestep is a special case. It is the first-order step of DPM-Solver++ (arXiv
2211.01095) for the offset, so the second-order one (`multistep`) serves here too. Under one prompt
and one guidance on both sides the two predictions are equal, D stays exactly zero, and the source
comes back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cogedit.diffusion.ddim import pred_original_sample, require_finite
from cogedit.diffusion.denoise import draw_noise
from cogedit.diffusion.multistep import Memory, extrapolate, kept, read_kept
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import StepState, steps_after
from cogedit.progress import StepInfo
from cogedit.types import Solver

SourceAt = Callable[[int], Tensor]
"""x*_t: the source's sample at a timestep, [B, F, C, H, W] float32."""

FlowModel = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(v_edit(x_edit, t), v_source(x*_t, t)) of (x_edit, x*_t, t), each [B, F, C, H, W] float32."""


def flow_edit(
    model: FlowModel,
    latents: Tensor,
    schedule: Schedule,
    *,
    source_at: SourceAt,
    mask: Tensor | None = None,
    solver: Solver = "ddim",
    restarts: frozenset[int] = frozenset(),
    done: Sequence[StepState] = (),
) -> Iterator[StepState]:
    """Carry an offset from the source down the timesteps of a schedule.

    Args:
        model: The edit's velocity and the source's, each under its own prompt and guidance.
        latents: z0, [B, F, C, H, W] float32.
        schedule: Timesteps to visit; starting below the noisiest keeps more of the source.
        source_at: The source at each of them: its trajectory, or z0 with fresh noise.
        mask: 1 where the edit may change the source, 0 where not, [F, 1, H, W] or
            [B, F, 1, H, W]: the offset stays 0 outside, so that every sample there is z0 itself.
        solver: How a step uses the model's calls.
        restarts: Timesteps at which the model changes (`Schedule.changes`).
        done: Steps of an earlier run of the same edit, or the last of them; it continues there.

    Yields:
        Each step, with D in its tensor "offset"; the edit is z0 + D of the last.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    offset = torch.zeros_like(latents)
    if done:
        offset = done[-1].tensors["offset"].to(latents.device)
    before = read_kept(done, schedule, device=latents.device)
    for index, (t, s) in steps_after(done, schedule.denoising_steps()):
        x_source = source_at(t).to(latents.device)
        x_edit = x_source + math.sqrt(schedule.alpha_cumprod(t)) * offset
        v_edit, v_source = model(x_edit, x_source, t)
        x0_edit = pred_original_sample(v_edit, x_edit, schedule=schedule, timestep=t)
        x0_source = pred_original_sample(v_source, x_source, schedule=schedule, timestep=t)
        ratio = noise_ratio(schedule, t, s)
        difference = Memory(t, x0_edit - x0_source)
        known = before if solver == "dpm++2m" and t not in restarts else None
        ahead = extrapolate(difference, known, schedule=schedule, t_to=s)
        offset, before = ratio * offset + (1 - ratio) * ahead, difference
        if mask is not None:
            offset = mask * offset
        require_finite(offset, name="the offset of the flow", step=index + 1, timestep=t)
        info = StepInfo(index, len(schedule.timesteps), s)
        yield StepState(info, {"offset": offset} | kept(before))


def noise_ratio(schedule: Schedule, t: int, s: int) -> float:
    """Return sigma_s / sigma_t without forming sigma, which is infinite at zero terminal SNR."""
    a_t, a_s = schedule.alpha_cumprod(t), schedule.alpha_cumprod(s)
    return math.sqrt((1 - a_s) * a_t / (a_s * (1 - a_t)))


def noised_source(latents: Tensor, schedule: Schedule, *, seeds: Sequence[int]) -> SourceAt:
    """Return z0 with fresh noise at each timestep: a source path that needs no inversion.

    The noise of a clip at a timestep depends on its seed and the timestep alone, so that a run can
    be resumed and a clip's edit does not depend on the others in its batch.
    """
    levels = len(schedule.alphas_cumprod)
    shape = (1, *latents.shape[1:])

    def at(timestep: int) -> Tensor:
        drawn = [draw_noise(shape, seed=seed * levels + timestep) for seed in seeds]
        noise = torch.cat(drawn).to(latents.device)
        alpha = schedule.alpha_cumprod(timestep)
        return math.sqrt(alpha) * latents + math.sqrt(1 - alpha) * noise

    return at
