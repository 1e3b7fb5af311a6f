"""The functions that users of the CogVideo repository's `inference/ddim_inversion.py` know.

A thin face over the rooms: same names, same defaults, same results in float32. What differs on
purpose: the state stays in float32 whatever the model's dtype, clips are encoded to the mode of the
posterior instead of a draw from the global random generator, both directions read the pipeline's
own noise table (`DDIMInverseScheduler` drops the shift of CogVideoX-2B), and any number of steps is
spaced exactly.

    with OverrideAttnProcessors(transformer=pipe.transformer):
        sample(pipe, latents, scheduler, prompt=..., reference_latents=...)
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.diffusion.denoise import denoise
from cogedit.diffusion.invert import invert_upstream
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import UsageError, VideoError, shown
from cogedit.media.probe import probe_stored
from cogedit.media.reader import read_frames_upstream
from cogedit.media.writer import write_video
from cogedit.models.attention import (
    AttentionModule,
    Heads,
    Injection,
    attend_rows,
    output,
    project,
)
from cogedit.models.denoiser import Denoiser
from cogedit.models.device import compute_device
from cogedit.models.kernels import attention
from cogedit.models.prompts import embed_prompts
from cogedit.models.rows import EditPrompts
from cogedit.models.steps import run_steps
from cogedit.models.tensor_checks import check_clip, check_frames, check_latents, shape_text
from cogedit.models.vae import decode_pixels, encode_frames, to_model_range
from cogedit.progress import OnStep

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
        DDIMInverseScheduler,
    )

__all__ = [
    "CogVideoXAttnProcessor2_0ForDDIMInversion",
    "OverrideAttnProcessors",
    "encode_video_frames",
    "export_latents_to_video",
    "get_video_frames",
    "sample",
]


def get_video_frames(
    video_path: str | Path,
    width: int = 720,
    height: int = 480,
    skip_frames_start: int = 0,
    skip_frames_end: int = 0,
    max_num_frames: int = 81,
    frame_sample_step: int | None = None,
) -> Tensor:
    """Read a clip as the upstream script does: stretched to size, trimmed to 4k + 1 frames.

    Of a video longer than `max_num_frames` every `frame_sample_step`-th frame is taken; None or 0
    spreads the frames over the video.

    Returns:
        [F, C, H, W] float32 in [-1, 1].

    Raises:
        VideoError: The file cannot be read, or no frame is left.
        UsageError: A number is out of range.
    """
    for name, number, least in (
        ("width", width, 1),
        ("height", height, 1),
        ("skip_frames_start", skip_frames_start, 0),
        ("skip_frames_end", skip_frames_end, 0),
        ("max_num_frames", max_num_frames, 1),
        ("frame_sample_step", frame_sample_step, 0),
    ):
        if number is not None and number < least:
            raise UsageError(f"{name} is {number}, expected at least {least}")
    path = Path(video_path)
    num_frames = probe_stored(path).num_frames
    start, end = skip_frames_start, num_frames - skip_frames_end
    if end <= start:
        raise VideoError(
            f"{path.name} has {num_frames} frames; none is left after skipping "
            f"{skip_frames_start} at the start and {skip_frames_end} at the end"
        )
    fits = end - start <= max_num_frames
    step = 1 if fits else frame_sample_step or (end - start) // max_num_frames
    indices = list(range(start, end, step))[:max_num_frames]
    indices = indices[: (len(indices) - 1) // 4 * 4 + 1]
    frames = read_frames_upstream(path, width=width, height=height, indices=indices)
    return to_model_range(torch.from_numpy(frames))


def encode_video_frames(vae: AutoencoderKLCogVideoX, video_frames: Tensor) -> Tensor:
    """Encode frames [F, C, H, W] in [-1, 1] to scaled latents [1, F', C', H', W'] float32.

    UsageError for whole numbers, which are no such frames, or another shape.
    """
    check_frames(video_frames, vae)
    return encode_frames(vae, video_frames)


def sample(
    pipeline: CogVideoXPipeline,
    latents: Tensor,
    scheduler: DDIMInverseScheduler | CogVideoXDDIMScheduler,
    prompt: str | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 6.0,
    generator: torch.Generator | None = None,
    reference_latents: Tensor | None = None,
) -> Tensor:
    """Invert or denoise, and return the whole trajectory.

    Args:
        pipeline: A CogVideoX text-to-video pipeline, on a device or with offloading.
        latents: Clean latents to invert or noise to denoise, [B, F', C', H', W'].
        scheduler: `DDIMInverseScheduler` inverts, `CogVideoXDDIMScheduler` denoises.
        prompt: Text; None and "" are the empty prompt.
        num_inference_steps: Number of timesteps.
        guidance_scale: Classifier-free guidance; above 1, against the empty prompt.
        generator: Accepted for compatibility; every step is deterministic.
        reference_latents: An inversion's trajectory reversed, [N, B, F', C', H', W']; needs
            `OverrideAttnProcessors` around the call.

    Returns:
        [N, B, F', C', H', W'] float32: the sample after each step.

    Raises:
        UsageError: Another scheduler class or configuration, latents that the transformer does not
            take, an inversion with a reference, a reference of another length or shape, or one
            without `OverrideAttnProcessors` or the other way round.
    """
    name = type(scheduler).__name__
    _check_scheduler(scheduler)
    if not isinstance(prompt, str | None):
        raise UsageError(f"prompt is {shown(prompt)}; expected one text for all clips")
    if name == "DDIMInverseScheduler":
        _check_noise_levels(pipeline)
    # `DDIMInverseScheduler(**config)` drops 2B's snr_shift_scale: both directions read the
    # forward table.
    forward = pipeline.scheduler if name == "DDIMInverseScheduler" else scheduler
    schedule = Schedule.trailing(forward.alphas_cumprod, num_inference_steps)
    embeds = embed_prompts(
        [prompt or "", ""],
        pipeline.tokenizer,
        pipeline.text_encoder,
        max_text_seq_length=pipeline.transformer.config.max_text_seq_length,
    ).embeds
    return sample_embedded(
        pipeline.transformer,
        latents,
        torch.cat(embeds),
        schedule=schedule,
        inverting=name == "DDIMInverseScheduler",
        guidance_scale=guidance_scale,
        reference_latents=reference_latents,
    )


def sample_embedded(
    transformer: CogVideoXTransformer3DModel,
    latents: Tensor,
    embeds: Tensor,
    *,
    schedule: Schedule,
    inverting: bool,
    guidance_scale: float = 6.0,
    reference_latents: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Do what `sample` does, given embeddings of the prompt and the empty prompt, [2, L, D]."""
    if inverting and reference_latents is not None:
        raise UsageError("An inversion takes no reference_latents")
    check_latents(latents, transformer)
    reference = _reference(reference_latents, latents, transformer, schedule)
    denoiser = Denoiser(
        transformer,
        embeds=embeds,
        # Each side of guidance attends to a reference under its own prompt.
        prompts=[EditPrompts(0, 1, 0, 1, source=clip) for clip in range(len(latents))],
        guidance_scale=max(1.0, guidance_scale),
    )
    start = _state(latents, transformer)
    if inverting:
        states = invert_upstream(denoiser.velocity, start, schedule)
    else:
        states = denoise(
            lambda x, t: denoiser(x, t, None if reference is None else reference.at(t)).edit,
            start,
            schedule,
        )
    return run_steps(states, "sample", on_step=on_step).to(start.device)


def export_latents_to_video(
    pipeline: CogVideoXPipeline, latents: Tensor, video_path: str | Path, fps: int = 16
) -> None:
    """Decode latents [1, F', C', H', W'] and write them as a video; UsageError for other shapes."""
    check_clip(latents, pipeline.vae)
    frames = torch.cat(list(decode_pixels(pipeline.vae, latents)))
    write_video(frames.cpu().numpy(), Path(video_path), fps=Fraction(fps))


class CogVideoXAttnProcessor2_0ForDDIMInversion:  # noqa: N801
    """The upstream processor: each row of the batch's first half attends to its second half, too.

    Row i of N / 2 attends to its own keys and values and to those of row i + N / 2.
    """

    def __call__(
        self,
        attn: AttentionModule,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend, given image tokens [N, S, D] and text tokens [N, L, D]; return both.

        `image_rotary_emb` is (cos, sin), each [S, head_dim], for the image tokens.
        """
        if attention_mask is not None:
            raise ValueError("CogVideoX attends to all tokens; an attention mask is not supported")
        half, odd = divmod(len(hidden_states), 2)
        if odd:
            raise ValueError(f"a batch of {len(hidden_states)} rows has no second half")
        length = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        rows = project(attn, tokens, length, image_rotary_emb)
        edits, references = Heads(*(x[:half] for x in rows)), Heads(*(x[half:] for x in rows))
        attended = attend_rows(
            edits, references, range(half), injection=Injection(), text_length=length
        )
        out = output(attn, torch.cat([attended, attention(*references)]))
        return out[:, length:], out[:, :length]


class OverrideAttnProcessors:
    """Put the upstream processor into every block of a transformer inside a `with` body.

    The original processors come back also when the body raises.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel) -> None:
        self._transformer = transformer

    def __enter__(self) -> None:
        """Install the processors; UsageError if they are installed, or the originals are fused."""
        originals = self._transformer.attn_processors
        names = {type(processor).__name__ for processor in originals.values()}
        if CogVideoXAttnProcessor2_0ForDDIMInversion.__name__ in names:
            raise UsageError("OverrideAttnProcessors is around this transformer; it does not nest")
        if any("Fused" in name for name in names):
            raise UsageError(
                "OverrideAttnProcessors needs separate projections; this transformer's are fused",
                hint="call `transformer.unfuse_qkv_projections()` first",
            )
        self._originals = originals
        self._transformer.set_attn_processor(CogVideoXAttnProcessor2_0ForDDIMInversion())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the original processors."""
        self._transformer.set_attn_processor(self._originals)


_STEPS = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "clip_sample": False,
}
"""What a scheduler says of its own steps where they are those that are taken here."""


def _check_scheduler(scheduler: DDIMInverseScheduler | CogVideoXDDIMScheduler) -> None:
    """Refuse a scheduler whose own steps would be others than those taken here."""
    name = type(scheduler).__name__
    if name not in {"DDIMInverseScheduler", "CogVideoXDDIMScheduler"}:
        raise UsageError(
            f"sample() got a {name}; expected DDIMInverseScheduler or CogVideoXDDIMScheduler",
            hint="build one from the pipeline's: CogVideoXDDIMScheduler.from_config(config)",
        )
    for key, expected in _STEPS.items():
        found = scheduler.config[key]
        if found != expected:
            mend = f"build it with {name}.from_config(config, {key}={expected!r})"
            raise UsageError(
                f"sample() got a {name} with {key} = {found!r}; expected {expected!r}",
                hint="take a model that predicts velocity" if key == "prediction_type" else mend,
            )


def _check_noise_levels(pipeline: CogVideoXPipeline) -> None:
    """Refuse to invert on the noise levels of a scheduler that may have others than the model."""
    name = type(pipeline.scheduler).__name__
    if name not in {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}:
        raise UsageError(
            f"the pipeline's scheduler is a {name}, whose noise levels may not be the model's",
            hint="pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)",
        )
    prediction: str = pipeline.scheduler.config.prediction_type
    if prediction != "v_prediction":
        raise UsageError(
            f"the pipeline's scheduler has prediction_type = {prediction!r}; "
            "expected 'v_prediction'"
        )


def _state(latents: Tensor, transformer: CogVideoXTransformer3DModel) -> Tensor:
    """Return latents for the loop: on the device, in float32 at least."""
    return latents.to(
        compute_device(transformer), torch.promote_types(latents.dtype, torch.float32)
    )


def _reference(
    reference: Tensor | None,
    latents: Tensor,
    transformer: CogVideoXTransformer3DModel,
    schedule: Schedule,
) -> Trajectory | None:
    """Turn a reversed trajectory, given by position, into one that is looked up by timestep."""
    injecting = any(
        isinstance(processor, CogVideoXAttnProcessor2_0ForDDIMInversion)
        for processor in transformer.attn_processors.values()
    )
    if reference is None:
        if injecting:
            raise UsageError(
                "OverrideAttnProcessors needs reference_latents",
                hint="give sample() the inversion's trajectory, or call it outside of the block",
            )
        return None
    if len(reference) != len(schedule.timesteps):
        raise UsageError(
            f"reference_latents has {len(reference)} entries; expected {len(schedule.timesteps)}, "
            "one for each inference step"
        )
    if reference.shape[1:] != latents.shape:
        raise UsageError(
            f"reference_latents is {shape_text(reference)}, expected "
            f"{[len(reference), *latents.shape]}: at each step the shape of latents"
        )
    if not injecting:
        raise UsageError(
            "reference_latents without injecting processors would have no effect",
            hint="call sample() inside `with OverrideAttnProcessors(pipe.transformer):`",
        )
    samples = _state(reference.flip(0), transformer)
    return Trajectory(samples, samples[0], tuple(reversed(schedule.timesteps)))
