"""Jobs as steps of a few kinds: a large model is timed on some of each, and not on all of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cogedit.diffusion.denoise import draw_noise
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.lab.jobs import (
    Inputs,
    Job,
    run_edits,
    run_inversion,
    written_edit_work,
    written_inversion_work,
)
from cogedit.lab.measure import StepClock, peak_bytes
from cogedit.lab.models import Size
from cogedit.lab.speed_report import JobFigures, ModelFigures, StepRow
from cogedit.models.cost import LatentShape, TransformerSizes, Work, edit_work, inversion_work
from cogedit.models.memory_probe import measure_speed
from cogedit.types import InvertSettings, ReconstructSettings


@dataclass(frozen=True)
class StepKind:
    """Steps that all cost the same.

    Attributes:
        part: Up or down.
        job: A job whose steps of this part are all of this kind.
        num_prompts: Edits that are made together.
    """

    part: Literal["invert", "edit"]
    job: Job
    num_prompts: int = 1

    @property
    def name(self) -> str:
        """What people call it."""
        if self.part == "invert":
            return self.job.name
        return f"{self.job.name}, N = {self.num_prompts}"

    def of_length(self, num_steps: int) -> Job:
        """Return the job with some steps of this kind."""
        return replace(self.job, invert=replace(self.job.invert, num_inference_steps=num_steps))


def steps_of(job: Job, num_prompts: int) -> Counter[StepKind]:
    """Return the kinds of step of a job, each with its number of steps (model calls, going up)."""
    if job.as_written:
        count = job.invert.num_inference_steps * num_prompts
        up, down = (replace(job, name=f"{job.name}, {part}") for part in ("inversion", "edit"))
        return Counter(
            {StepKind("invert", _shortened(up)): count, StepKind("edit", _shortened(down)): count}
        )
    calls = job.invert.num_inference_steps * (job.invert.inversion_iterations or 1)
    calls += job.invert.inverse == "consistent"  # the first step has nothing to predict from
    up = Job(f"inversion, {job.invert.inverse}", job.invert, ReconstructSettings(prompt=""))
    kinds = Counter({StepKind("invert", _shortened(up)): calls})
    steps = job.reconstruct.num_inference_steps or job.invert.num_inference_steps
    schedule = Schedule((), tuple(range(steps)))
    guided = schedule.window(*job.reconstruct.guidance_steps)
    seen = schedule.window(*job.reconstruct.injection_steps)
    for step in schedule.timesteps:
        kinds[_edit_kind(job, num_prompts, guided=step in guided, seen=step in seen)] += 1
    return kinds


def _edit_kind(job: Job, num_prompts: int, *, guided: bool, seen: bool) -> StepKind:
    """Return the kind of an edit's step, the same for all jobs whose step takes the same rows."""
    asked = replace(
        job.reconstruct,
        num_inference_steps=None,
        solver="ddim",  # the arithmetic between calls is not what takes the time
        start="random",
        guidance_scale=6.0,  # nor does any scale take longer than another
        guidance_steps=(0.0, float(guided)),
        injection_steps=(0.0, float(seen)),
    )
    name = "edit, alone"
    if seen:
        name = "edit, one reference" if asked.reference_rows == "one" else "edit, exact"
        name += {"all": "", "image": ", its image", "own-text": ", own text"}[
            asked.injection_tokens
        ]
    else:
        asked = replace(
            asked, reference_prompt="edit", reference_rows="two", injection_tokens="all"
        )
    name += "" if guided else ", no guidance"
    return StepKind("edit", _shortened(Job(name, InvertSettings(), asked)), num_prompts)


def _shortened(job: Job) -> Job:
    """Give jobs that differ in their length alone one key."""
    return replace(job, invert=replace(job.invert, num_inference_steps=2))


def measure_model(
    jobs: Sequence[Job],
    inputs: Inputs,
    size: Size,
    *,
    prompts: Sequence[int],
    repeats: int,
    num_warmup: int,
    num_timed: int,
    say: Callable[[str], None],
) -> tuple[ModelFigures, list[JobFigures]]:
    """Time every kind of step of some jobs, in turns, and add the jobs up.

    Args:
        jobs: The rows.
        inputs: Model and clip.
        size: Theirs.
        prompts: Numbers N of edits.
        repeats: Turns.
        num_warmup: Steps of every kind and turn before the clock runs.
        num_timed: Steps under the clock.
        say: Told after every kind of step.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    sizes, shape = size.sizes, size.latent_shape
    parts = {(job, count): steps_of(job, count) for count in prompts for job in jobs}
    kinds = list(dict.fromkeys(kind for steps in parts.values() for kind in steps))
    seconds: dict[StepKind, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    peaks: dict[StepKind, int | None] = {}
    for turn in range(repeats):
        for kind in kinds:
            clock = StepClock(num_warmup=num_warmup, device=inputs.latents.device)
            job = kind.of_length(num_warmup + num_timed)
            peaks[kind] = _run_kind(kind, job, inputs, clock)
            seconds[kind].append(tuple(clock.seconds))
            say(f"turn {turn + 1}: {kind.name}: {statistics.median(clock.seconds):.3f} s a step")
    flops = {kind: step_work(kind, sizes, shape).flops.total for kind in kinds}
    rows = [
        StepRow(kind.name, flops[kind], tuple(s for turn in seconds[kind] for s in turn), peak)
        for kind, peak in peaks.items()
    ]
    figures = [
        JobFigures(
            job.name,
            count,
            sum(number * flops[kind] for kind, number in steps.items()),
            peak=max((peak for kind in steps if (peak := peaks[kind]) is not None), default=None),
            distance=None,
            seconds=tuple(
                sum(number * statistics.median(seconds[k][turn]) for k, number in steps.items())
                for turn in range(repeats)
            ),
        )
        for (job, count), steps in parts.items()
    ]
    speed = measure_speed(
        sizes,
        num_tokens=sizes.num_tokens(shape),
        device=inputs.latents.device,
        dtype=inputs.transformer.dtype,
    )
    return ModelFigures(speed.linear, speed.attention, tuple(rows)), figures


def _run_kind(kind: StepKind, job: Job, inputs: Inputs, clock: StepClock) -> int | None:
    """Run steps of a kind under a clock; the most memory that they held, in bytes."""
    device = inputs.latents.device
    if kind.part == "invert":
        return peak_bytes(lambda: run_inversion(job, inputs, on_step=clock.on_step), device)[1]
    inverted = random_trajectory(inputs, job.invert.num_inference_steps)
    prompts = inputs.prompts[: kind.num_prompts]
    return peak_bytes(
        lambda: run_edits(job, inputs, inverted, prompts, on_step=clock.on_step), device
    )[1]


def random_trajectory(inputs: Inputs, num_steps: int) -> Trajectory:
    """Draw a trajectory of the clip: where a source really is costs the same."""
    schedule = Schedule.trailing(inputs.alphas_cumprod, num_steps)
    samples = [draw_noise(inputs.latents.shape, seed=step) for step in range(num_steps)]
    return Trajectory.of(
        [sample.to(inputs.latents.device) for sample in samples], inputs.latents, schedule
    )


def step_work(kind: StepKind, sizes: TransformerSizes, shape: LatentShape) -> Work:
    """Count one step by the formulas of `cogedit.models.cost`."""
    job = kind.of_length(1)
    if job.as_written:
        if kind.part == "invert":
            return written_inversion_work(sizes, shape)
        return written_edit_work(sizes, shape)
    if kind.part == "invert":
        return inversion_work(replace(job.invert, inverse="upstream"), sizes, shape)
    asked = [replace(job.reconstruct, prompt=f"prompt {i}") for i in range(kind.num_prompts)]
    return edit_work(asked, job.invert, sizes, shape)
