"""Rows of the speed table: ways to make N edits of one clip, from its latents to theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cogedit.ddim_inversion import OverrideAttnProcessors, sample_embedded
from cogedit.diffusion.denoise import draw_noise
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.lab.configurations import UPSTREAM_EDIT, find_configuration
from cogedit.lab.random_model import SIZES, Inputs, count_vae_and_t5
from cogedit.models.cost import (
    LatentShape,
    TransformerSizes,
    Work,
    call_work,
    edit_work,
    inversion_work,
)
from cogedit.models.predictor import InvertedClips
from cogedit.models.rows import EditPrompts, plan_rows
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.progress import OnStep
from cogedit.types import InvertSettings, ReconstructSettings

UPSTREAM = "upstream"
"""The row that the others are compared with."""
EXACT = "exact"
"""The same edits in fewer rows of the transformer."""
APPROXIMATE = ("shared", "shared-half", "shared-half-guided", "default", "fast")
"""Rows that make other edits, by their names in the quality benchmark."""


@dataclass(frozen=True)
class Job:
    """One way to make N edits.

    Attributes:
        name: Its row in the table.
        invert: How the clip is inverted.
        reconstruct: How it is edited; the prompt is filled in.
        as_written: As the CogVideo repository's script does it: an inversion of its own for every
            prompt, two rows per step in the inversion and four in the edit. Of the settings only
            the numbers of steps and the guidance scales are used.
    """

    name: str
    invert: InvertSettings
    reconstruct: ReconstructSettings
    as_written: bool = False


def make_jobs(num_inference_steps: int) -> tuple[Job, ...]:
    """Return the rows of the table, at a number of steps in place of 50.

    Raises:
        ConfigError: The preset `fast` cannot be read.
    """
    upstream = find_configuration(UPSTREAM)
    rows = (upstream, replace(upstream, name=EXACT), *map(find_configuration, APPROXIMATE))
    scaled = [row.with_steps(num_inference_steps) for row in rows]
    return tuple(
        Job(row.name, row.inversion.settings, row.reconstruct, as_written=row.name == UPSTREAM)
        for row in scaled
    )


def run_job(job: Job, inputs: Inputs, num_prompts: int) -> Tensor:
    """Make the first N edits.

    Returns:
        Their latents, [N, F', C, H', W'] float32.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    prompts = inputs.prompts[:num_prompts]
    if not job.as_written:
        return run_edits(job, inputs, run_inversion(job, inputs), prompts)
    edits = [run_edits(job, inputs, run_inversion(job, inputs), [prompt]) for prompt in prompts]
    return torch.cat(edits)


def run_inversion(job: Job, inputs: Inputs, *, on_step: OnStep | None = None) -> Trajectory:
    """Invert the clip as the job says; as written, for one prompt."""
    if not job.as_written:
        return invert_latents(inputs.predictor, inputs.latents, [job.invert], on_step=on_step)
    model = inputs.predictor
    schedule = Schedule.trailing(model.alphas_cumprod, job.invert.num_inference_steps)
    samples = sample_embedded(
        model.transformer,
        inputs.latents,
        model.embeds_of(["", ""]),
        schedule=schedule,
        inverting=True,
        guidance_scale=job.invert.guidance_scale,
        on_step=on_step,
    )
    return Trajectory(samples, inputs.latents, tuple(reversed(schedule.timesteps)))


def run_edits(
    job: Job,
    inputs: Inputs,
    inverted: Trajectory,
    prompts: Sequence[str],
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """Edit under some prompts, as written under one; latents [N, F', C, H', W'] float32."""
    if not job.as_written:
        return edit_latents(
            inputs.predictor,
            InvertedClips(inverted, (job.invert.prompt,)),
            [replace(job.reconstruct, prompt=prompt) for prompt in prompts],
            keep_steps=False,
            on_step=on_step,
        )[-1]
    (prompt,) = prompts
    model = inputs.predictor
    schedule = Schedule.trailing(model.alphas_cumprod, len(inverted.timesteps))
    with OverrideAttnProcessors(model.transformer):
        return sample_embedded(
            model.transformer,
            draw_noise(inputs.latents.shape, seed=job.reconstruct.seed),
            model.embeds_of([prompt, ""]),
            schedule=schedule,
            inverting=False,
            guidance_scale=job.reconstruct.guidance_scale,
            reference_latents=torch.stack([inverted.at(t) for t in schedule.timesteps]),
            on_step=on_step,
        )[-1]


_WRITTEN = EditPrompts(
    conditional=0, unconditional=1, reference_conditional=0, reference_unconditional=1
)


def inversion_step_work(job: Job, sizes: TransformerSizes, shape: LatentShape) -> Work:
    """Count one model call of the job's inversion; as written, two rows of one prompt."""
    if job.as_written:
        return call_work(plan_rows([_WRITTEN], guided=True, referenced=False), sizes, shape)
    call = replace(job.invert, inverse="upstream", num_inference_steps=1, low_levels=0)
    return inversion_work(call, sizes, shape)


def written_edit_step_work(sizes: TransformerSizes, shape: LatentShape) -> Work:
    """Count one step of upstream's edit: four rows, all of them through every layer."""
    plan = plan_rows([_WRITTEN], guided=True, referenced=True, reference_velocity=True)
    return call_work(plan, sizes, shape, injection=UPSTREAM_EDIT)


def edits_work(job: Job, num_prompts: int, sizes: TransformerSizes, shape: LatentShape) -> Work:
    """Count the steps of the job's N edits; as written, of one edit after the other."""
    if job.as_written:
        step = written_edit_step_work(sizes, shape)
        return step * (job.invert.num_inference_steps * num_prompts)
    edits = [replace(job.reconstruct, prompt=f"prompt {i}") for i in range(num_prompts)]
    return edit_work(edits, job.invert, sizes, shape)


def job_work(job: Job, num_prompts: int, sizes: TransformerSizes, shape: LatentShape) -> Work:
    """Count what the transformer does in a job by the formulas of `cogedit.models.cost`."""
    edits = edits_work(job, num_prompts, sizes, shape)
    if not job.as_written:
        return inversion_work(job.invert, sizes, shape) + edits
    step = inversion_step_work(job, sizes, shape)
    return step * (job.invert.num_inference_steps * num_prompts) + edits


def job_flops(job: Job, num_prompts: int) -> float:
    """Count a whole job on CogVideoX-5B, from the clip's frames to those of N edits.

    As written, every prompt encodes the clip again and embeds four prompts: the inversion's and the
    edit's, each with the empty one.
    """
    size, (encode, decode, embed) = SIZES["5b"], count_vae_and_t5()
    work = job_work(job, num_prompts, size.sizes, size.latent_shape).flops.total
    if job.as_written:
        return work + num_prompts * (encode + decode + 4 * embed)
    return work + encode + num_prompts * decode + (num_prompts + 1) * embed
