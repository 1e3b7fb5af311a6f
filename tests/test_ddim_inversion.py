"""The upstream script's functions: its numbers, and its two documented ways of use."""

import inspect

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    DDIMInverseScheduler,
)
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from videos import make_video, read_back

from cogedit import ddim_inversion
from cogedit.ddim_inversion import (
    CogVideoXAttnProcessor2_0ForDDIMInversion,
    OverrideAttnProcessors,
    encode_video_frames,
    export_latents_to_video,
    get_video_frames,
    sample,
)
from cogedit.diffusion.ddim import ddim_step
from cogedit.diffusion.schedule import Schedule
from cogedit.errors import UsageError, VideoError
from cogedit.models.attention import InjectingAttnProcessor
from cogedit.models.vae import decode_latents

PROMPT = "a blue cat running in snow"
STEPS = 10


def distance(found, expected):
    """Largest difference, in standard deviations of the expected tensor."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.std())


@pytest.fixture(scope="module")
def inverse_scheduler(golden_pipeline):
    return DDIMInverseScheduler(**golden_pipeline.scheduler.config)


@pytest.fixture(scope="module")
def forward_scheduler(golden_pipeline):
    return CogVideoXDDIMScheduler.from_config(golden_pipeline.scheduler.config)


@pytest.mark.parametrize("guidance", [1, 6])
def test_inversion_is_upstreams(golden, golden_pipeline, inverse_scheduler, guidance):
    found = sample(
        golden_pipeline, golden["latents"], inverse_scheduler, "", STEPS, float(guidance)
    )
    assert distance(found, golden[f"inversion_g{guidance}"]) < 1e-4


@pytest.mark.parametrize("guidance", [1, 6])
def test_reconstruction_is_upstreams(golden, golden_pipeline, forward_scheduler, guidance):
    with OverrideAttnProcessors(transformer=golden_pipeline.transformer):
        found = sample(
            golden_pipeline,
            golden["noise"],
            forward_scheduler,
            prompt=PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=float(guidance),
            reference_latents=golden["inversion_g6"].flip(0),
        )
    assert distance(found, golden[f"reconstruction_g{guidance}"]) < 1e-4


def test_plain_sampling_is_upstreams(golden, golden_pipeline, forward_scheduler):
    found = sample(golden_pipeline, golden["noise"], forward_scheduler, PROMPT, STEPS)
    assert distance(found, golden["plain_g6"]) < 1e-4


def test_vae_is_upstreams(golden, golden_pipeline):
    latents = encode_video_frames(golden_pipeline.vae, golden["video_frames"])
    assert distance(latents, golden["vae_mode"]) < 1e-4
    decoded = decode_latents(golden_pipeline.vae, golden["vae_mode"])
    assert distance(decoded.movedim(0, 1)[None], golden["decoded"]) < 1e-4


def test_a_script_written_for_upstream_runs(tmp_path, golden_pipeline):
    pipe = golden_pipeline
    video = make_video(tmp_path / "video.mp4", width=176, height=144, fps="25", num_frames=20)
    inverse_scheduler = DDIMInverseScheduler(**pipe.scheduler.config)
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)

    video_frames = get_video_frames(
        video_path=str(video),
        width=96,
        height=64,
        skip_frames_start=1,
        skip_frames_end=2,
        max_num_frames=9,
        frame_sample_step=None,
    )
    assert video_frames.shape == (9, 3, 64, 96)
    assert video_frames.min() >= -1
    assert video_frames.max() <= 1
    video_latents = encode_video_frames(vae=pipe.vae, video_frames=video_frames)
    inverse_latents = sample(
        pipeline=pipe,
        latents=video_latents,
        scheduler=inverse_scheduler,
        prompt="",
        num_inference_steps=4,
        guidance_scale=6.0,
        generator=torch.Generator().manual_seed(42),
    )
    with OverrideAttnProcessors(transformer=pipe.transformer):
        recon_latents = sample(
            pipeline=pipe,
            latents=torch.randn_like(video_latents),
            scheduler=pipe.scheduler,
            prompt=PROMPT,
            num_inference_steps=4,
            guidance_scale=6.0,
            generator=torch.Generator().manual_seed(42),
            reference_latents=inverse_latents.flip(0),
        )
    assert recon_latents.shape == inverse_latents.shape == (4, 1, 3, 16, 8, 12)
    output = tmp_path / "edit.mp4"
    export_latents_to_video(pipe, recon_latents[-1], output, fps=8)
    assert read_back(output, width=96, height=64).shape == (9, 64, 96, 3)


def test_reconstruction_from_the_end_of_the_trajectory(
    golden, golden_pipeline, inverse_scheduler, forward_scheduler
):
    trajectory = sample(golden_pipeline, golden["latents"], inverse_scheduler, "", STEPS, 1.0)
    with OverrideAttnProcessors(golden_pipeline.transformer):
        back = sample(
            golden_pipeline,
            trajectory[-1],
            forward_scheduler,
            "",
            STEPS,
            1.0,
            reference_latents=trajectory.flip(0),
        )
    assert back.shape == trajectory.shape
    assert torch.isfinite(back).all()


def test_processors_are_restored(golden_pipeline):
    blocks = golden_pipeline.transformer.transformer_blocks
    with OverrideAttnProcessors(golden_pipeline.transformer):
        assert all(isinstance(b.attn1.processor, InjectingAttnProcessor) for b in blocks)
    assert all(isinstance(b.attn1.processor, CogVideoXAttnProcessor2_0) for b in blocks)
    with pytest.raises(ZeroDivisionError), OverrideAttnProcessors(golden_pipeline.transformer):
        raise ZeroDivisionError
    assert all(isinstance(b.attn1.processor, CogVideoXAttnProcessor2_0) for b in blocks)


def test_the_processor_set_by_hand_does_what_the_context_manager_does(
    golden, golden_pipeline, forward_scheduler
):
    transformer = golden_pipeline.transformer
    transformer.set_attn_processor(CogVideoXAttnProcessor2_0ForDDIMInversion())
    try:
        found = sample(
            golden_pipeline,
            golden["noise"],
            forward_scheduler,
            PROMPT,
            STEPS,
            reference_latents=golden["inversion_g6"].flip(0),
        )
    finally:
        transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
    assert distance(found, golden["reconstruction_g6"]) < 1e-4


def test_defaults_that_users_rely_on():
    frames = inspect.signature(get_video_frames).parameters
    assert [(p.name, p.default) for p in frames.values()][1:] == [
        ("width", 720),
        ("height", 480),
        ("skip_frames_start", 0),
        ("skip_frames_end", 0),
        ("max_num_frames", 81),
        ("frame_sample_step", None),
    ]
    assert [*inspect.signature(encode_video_frames).parameters] == ["vae", "video_frames"]
    assert inspect.signature(export_latents_to_video).parameters["fps"].default == 16
    assert [(p.name, p.default) for p in inspect.signature(sample).parameters.values()][3:] == [
        ("prompt", None),
        ("num_inference_steps", 50),
        ("guidance_scale", 6.0),
        ("generator", None),
        ("reference_latents", None),
    ]
    assert set(ddim_inversion.__all__) <= set(dir(ddim_inversion))


def test_a_reference_without_the_processors_is_refused(golden, golden_pipeline, forward_scheduler):
    with pytest.raises(UsageError, match="would have no effect"):
        sample(
            golden_pipeline,
            golden["noise"],
            forward_scheduler,
            PROMPT,
            STEPS,
            reference_latents=golden["inversion_g6"].flip(0),
        )


def test_the_processors_without_a_reference_are_refused(golden, golden_pipeline, forward_scheduler):
    override = OverrideAttnProcessors(golden_pipeline.transformer)
    for _ in range(2):  # one object may be entered again
        with override, pytest.raises(UsageError, match="needs reference_latents"):
            sample(golden_pipeline, golden["noise"], forward_scheduler, PROMPT, STEPS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timestep_spacing", "leading"),
        ("set_alpha_to_one", False),
        ("prediction_type", "epsilon"),
        ("clip_sample", True),
    ],
)
def test_a_scheduler_with_other_steps_is_refused(golden, golden_pipeline, key, value):
    scheduler = CogVideoXDDIMScheduler.from_config(golden_pipeline.scheduler.config, **{key: value})
    with pytest.raises(UsageError, match=f"with {key} = {value!r}; expected"):
        sample(golden_pipeline, golden["noise"], scheduler, PROMPT, STEPS)


def test_2b_is_inverted_on_its_own_levels(pipeline_2b):
    """`DDIMInverseScheduler` drops snr_shift_scale and would be off by up to 0.26 in abar."""
    pipe = CogVideoXPipeline.from_pretrained(pipeline_2b, dtype=torch.float32)
    inverse = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    latents = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    found = sample(pipe, latents, inverse, "", 5, 1.0)
    schedule = Schedule.trailing(pipe.scheduler.alphas_cumprod, 5)
    # The first step by hand: v is asked at level 199, with the clean sample.
    with torch.no_grad():
        embeds = pipe.encode_prompt("", None, False, max_sequence_length=16)[0]
        v = pipe.transformer(latents, embeds, torch.tensor([199]), return_dict=False)[0]
    expected = ddim_step(v, latents, schedule=schedule, t_from=-1, t_to=199)
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_a_reference_of_another_length_is_refused(golden, golden_pipeline, forward_scheduler):
    with (
        OverrideAttnProcessors(golden_pipeline.transformer),
        pytest.raises(UsageError, match="reference_latents has 10 entries; expected 5"),
    ):
        sample(
            golden_pipeline,
            golden["noise"],
            forward_scheduler,
            PROMPT,
            5,
            reference_latents=golden["inversion_g6"].flip(0),
        )


def test_a_stochastic_scheduler_is_refused(golden, golden_pipeline):
    scheduler = CogVideoXDPMScheduler.from_config(golden_pipeline.scheduler.config)
    with pytest.raises(UsageError, match="got a CogVideoXDPMScheduler; expected"):
        sample(golden_pipeline, golden["noise"], scheduler, PROMPT, STEPS)


def test_skipping_every_frame_is_refused(tmp_path):
    video = make_video(tmp_path / "short.mp4", num_frames=5)
    with pytest.raises(VideoError, match="has 5 frames; none is left after skipping 3"):
        get_video_frames(video, 96, 64, skip_frames_start=3, skip_frames_end=2)
