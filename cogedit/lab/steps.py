"""Jobs as steps of a few kinds: a large model is timed on some of each and not on all of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Literal

import torch

from cogedit.diffusion.denoise import draw_noise
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.lab.jobs import (
    Job,
    edits_work,
    inversion_step_work,
    run_edits,
    run_inversion,
)
from cogedit.lab.measure import StepClock, Timing, peak_bytes
from cogedit.lab.random_model import Inputs, Size
from cogedit.lab.report import notify
from cogedit.models.cost import LatentShape, TransformerSizes
from cogedit.models.rows import guidance_reused, injection_strengths
from cogedit.types import InvertSettings, ReconstructSettings


@dataclass(frozen=True)
class StepKind:
    """Steps that all cost the same.

    Attributes:
        name: Its row in the table.
        part: Of the inversion or of the edit.
        job: A job of any length whose steps of this part are all of this kind.
        num_prompts: Edits that are made together.
    """

    name: str
    part: Literal["invert", "edit"]
    job: Job
    num_prompts: int = 1

    def flops(self, sizes: TransformerSizes, shape: LatentShape) -> float:
        """Count one step."""
        job = with_length(self.job, 1)
        if self.part == "invert":
            return inversion_step_work(job, sizes, shape).flops.total
        return edits_work(job, self.num_prompts, sizes, shape).flops.total


def with_length(job: Job, num_steps: int) -> Job:
    """Return the job with another number of steps."""
    invert = replace(job.invert, num_inference_steps=num_steps, low_levels=0)
    return replace(job, invert=invert)


def steps_of(job: Job, num_prompts: int) -> Counter[StepKind]:
    """Return the kinds of step of a job, each with its number of model calls."""
    one_step = with_length(job, 1)  # one key for jobs that differ in their length alone
    if job.as_written:
        count = job.invert.num_inference_steps * num_prompts
        up = StepKind(f"{job.name}, inversion", "invert", one_step)
        return Counter({up: count, StepKind(f"{job.name}, edit", "edit", one_step): count})
    calls = job.invert.num_levels * (job.invert.inversion_iterations or 1)
    calls += job.invert.inverse == "consistent"  # the first step has nothing to predict from
    up_job = Job("", one_step.invert, ReconstructSettings(prompt=""))
    kinds = Counter({StepKind(f"inversion, {job.invert.inverse}", "invert", up_job): calls})
    num_steps = job.reconstruct.num_inference_steps or job.invert.num_levels
    schedule = Schedule.of_steps(num_steps - job.reconstruct.first_step)
    guided = schedule.window(*job.reconstruct.guidance_steps)
    guided -= guidance_reused(job.reconstruct, schedule)
    injected = injection_strengths(job.reconstruct, schedule)
    for step in schedule.timesteps:
        kind = _edit_kind(job, num_prompts, guided=step in guided, injected=step in injected)
        kinds[kind] += 1
    return kinds


def _edit_kind(job: Job, num_prompts: int, *, guided: bool, injected: bool) -> StepKind:
    """Return the kind of an edit's step: the same for all jobs whose step runs the same rows."""
    settings = replace(
        job.reconstruct,
        num_inference_steps=None,
        # The solver, the start and the guidance scale take no time beside the model.
        solver="ddim",
        start="inverted",
        guidance_scale=6.0,
        guidance_steps=(0.0, float(guided)),
        guidance_reuse=0.0,
        injection_steps=(0.0, float(injected)),
    )
    if isinstance(settings.injection_strength, tuple):  # every strength but 1 takes the same time
        settings = replace(settings, injection_strength=0.5)
    if settings.injection_recentering > 0:  # and every share but 0
        settings = replace(settings, injection_recentering=0.5)
    if injected:
        name = "edit, one reference" if settings.reference_rows == "one" else "edit, exact"
        tokens = {"all": "", "image": ", its image", "own-text": ", own text"}
        name += tokens[settings.injection_tokens]
    else:
        name = "edit, alone"
        settings = replace(
            settings,
            reference_prompt="edit",
            reference_rows="two",
            injection_tokens="all",
            injection_strength=1.0,
            injection_recentering=0.0,
        )
    name += "" if guided else ", no guidance"
    edit = Job("", InvertSettings(num_inference_steps=1), settings)
    return StepKind(f"{name}, N = {num_prompts}", "edit", edit, num_prompts)


def measure_steps(
    jobs: Sequence[Job],
    inputs: Inputs,
    size: Size,
    *,
    prompts: Sequence[int],
    repeats: int,
    num_warmup: int,
    num_timed: int,
) -> tuple[list[Timing], list[Timing]]:
    """Time every kind of step of some jobs, in turns, and add the jobs up.

    Args:
        jobs: The rows.
        inputs: Model and clip.
        size: Of both.
        prompts: Numbers N of edits.
        repeats: Turns.
        num_warmup: Steps of every kind and turn that are not timed.
        num_timed: Steps that are.

    Returns:
        The kinds of step, and the jobs.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    sizes, shape, device = size.sizes, size.latent_shape, inputs.latents.device
    steps = {(job, count): steps_of(job, count) for count in prompts for job in jobs}
    kinds = list(dict.fromkeys(kind for counts in steps.values() for kind in counts))
    seconds: dict[StepKind, list[list[float]]] = {kind: [] for kind in kinds}
    peaks: dict[StepKind, int | None] = {}
    for turn in range(repeats):
        for kind in kinds:
            clock = StepClock(num_warmup=num_warmup, device=device)
            run = partial(_run_kind, kind, inputs, clock, num_steps=num_warmup + num_timed)
            _, peaks[kind] = peak_bytes(run, device)
            seconds[kind].append(clock.seconds)
            median = statistics.median(clock.seconds)
            notify(f"turn {turn + 1}: {kind.name}: {median:.3f} s a step")
    flops = {kind: kind.flops(sizes, shape) for kind in kinds}
    timed = [
        Timing(k.name, k.num_prompts, flops[k], tuple(chain(*seconds[k])), peaks[k]) for k in kinds
    ]
    added = []
    for (job, count), counts in steps.items():
        total = sum(number * flops[kind] for kind, number in counts.items())
        times = tuple(
            sum(number * statistics.median(seconds[k][turn]) for k, number in counts.items())
            for turn in range(repeats)
        )
        peak = max((peak for kind in counts if (peak := peaks[kind]) is not None), default=None)
        added.append(Timing(job.name, count, total, times, peak))
    return timed, added


def _run_kind(kind: StepKind, inputs: Inputs, clock: StepClock, *, num_steps: int) -> None:
    """Run some steps of a kind under a clock."""
    job = with_length(kind.job, num_steps)
    if kind.part == "invert":
        run_inversion(job, inputs, on_step=clock)
        return
    # Where the source's trajectory really is makes no difference to the cost.
    schedule = Schedule.trailing(inputs.predictor.alphas_cumprod, num_steps)
    samples = [draw_noise(inputs.latents.shape, seed=step) for step in range(num_steps)]
    inverted = Trajectory.of(torch.stack(samples), inputs.latents.cpu(), schedule)
    run_edits(job, inputs, inverted, inputs.prompts[: kind.num_prompts], on_step=clock)
