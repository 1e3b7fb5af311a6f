"""The upstream script's functions: its results, and its two documented ways of use.

Results are compared twice: with stored ones of the script itself, as far as another processor's
rounding allows, and sharply with the script's loop over stock diffusers classes in this process.
"""

import inspect
from copy import deepcopy

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    DDIMInverseScheduler,
)
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from pipelines import decode_latents
from references import written_out
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
from cogedit.models.attention import Injection
from cogedit.models.prompts import embed_prompts
from cogedit.models.rotary import image_rotary_emb

PROMPT = "a blue cat running in snow"
STEPS = 10

STORED = 1e-3
"""Of stored tensors: guidance 6 over random weights amplifies the rounding of another processor's
float32 kernels to 1.5e-4."""
SAME_PROCESS = 1e-6
"""In float64, of two loops in this process."""


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
    assert distance(found, golden[f"inversion_g{guidance}"]) < STORED


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
    assert distance(found, golden[f"reconstruction_g{guidance}"]) < STORED


def test_plain_sampling_is_upstreams(golden, golden_pipeline, forward_scheduler):
    found = sample(golden_pipeline, golden["noise"], forward_scheduler, PROMPT, STEPS)
    assert distance(found, golden["plain_g6"]) < STORED


@pytest.fixture(scope="module")
def exact_pipeline(golden_pipeline):
    """The golden pipeline with its transformer and its table of noise levels in float64."""
    parts = golden_pipeline.components
    transformer = deepcopy(parts["transformer"]).double()
    return CogVideoXPipeline(**(parts | {"transformer": transformer}))


def in_float64(scheduler, table):
    """A scheduler that takes its steps from a table of noise levels in float64.

    The inverse class has the same table as the forward one, in float32.
    """
    assert torch.allclose(scheduler.alphas_cumprod.double(), table, atol=1e-6)
    scheduler.alphas_cumprod = table
    return scheduler


def written_loop(pipeline, scheduler, x, prompt, guidance, reference=None):
    """What the upstream script computes, by the schedulers' own steps, and guidance written out.

    Rows are the unconditional and the conditional one, with guidance, then the reference's.
    """
    guided = guidance > 1
    prompts = ["", prompt] if guided else [prompt]
    embeds = torch.cat(
        embed_prompts(
            prompts, pipeline.tokenizer, pipeline.text_encoder, max_text_seq_length=226
        ).embeds
    ).double()
    count = len(prompts)
    samples = []
    scheduler.set_timesteps(STEPS)
    for step, t in enumerate(scheduler.timesteps):
        rows = [x] * count + ([] if reference is None else [reference[step]] * count)
        with torch.no_grad():
            v = pipeline.transformer(
                torch.cat(rows),
                embeds.repeat(len(rows) // count, 1, 1),
                t.expand(len(rows)),
                image_rotary_emb=image_rotary_emb(
                    pipeline.transformer, tuple(x.shape[i] for i in (1, 3, 4))
                ),
                return_dict=False,
            )[0][:count]
        if guided:
            v = v[:1] + guidance * (v[1:] - v[:1])
        x = scheduler.step(v, t, x, return_dict=False)[0]
        samples.append(x)
    return torch.stack(samples)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_inversion_is_the_written_loop(golden, exact_pipeline, guidance):
    forward = exact_pipeline.scheduler
    inverse = in_float64(DDIMInverseScheduler(**forward.config), forward.alphas_cumprod.double())
    z0 = golden["latents"].double()
    expected = written_loop(exact_pipeline, inverse, z0, PROMPT, guidance)
    found = sample(exact_pipeline, z0, inverse, PROMPT, STEPS, guidance)
    assert found.dtype == torch.float64
    assert distance(found, expected) < SAME_PROCESS


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_sampling_is_the_written_loop(golden, exact_pipeline, guidance):
    scheduler = CogVideoXDDIMScheduler.from_config(exact_pipeline.scheduler.config)
    in_float64(scheduler, scheduler.alphas_cumprod.double())
    noise = golden["noise"].double()
    expected = written_loop(exact_pipeline, scheduler, noise, PROMPT, guidance)
    found = sample(exact_pipeline, noise, scheduler, PROMPT, STEPS, guidance)
    assert distance(found, expected) < SAME_PROCESS


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_reconstruction_is_the_written_loop(golden, exact_pipeline, guidance):
    scheduler = CogVideoXDDIMScheduler.from_config(exact_pipeline.scheduler.config)
    in_float64(scheduler, scheduler.alphas_cumprod.double())
    noise, reference = golden["noise"].double(), golden["inversion_g6"].double().flip(0)
    rows = (2, 3) if guidance > 1 else (1,)
    with written_out(exact_pipeline.transformer, rows, Injection()):
        expected = written_loop(exact_pipeline, scheduler, noise, PROMPT, guidance, reference)
    with OverrideAttnProcessors(exact_pipeline.transformer):
        found = sample(
            exact_pipeline, noise, scheduler, PROMPT, STEPS, guidance, reference_latents=reference
        )
    assert distance(found, expected) < SAME_PROCESS
    plain = written_loop(exact_pipeline, scheduler, noise, PROMPT, guidance)
    assert distance(plain, expected) > 0.1


def test_vae_is_upstreams(golden, golden_pipeline):
    latents = encode_video_frames(golden_pipeline.vae, golden["video_frames"])
    assert distance(latents, golden["vae_mode"]) < STORED
    decoded = decode_latents(golden_pipeline.vae, golden["vae_mode"])
    assert distance(decoded.movedim(0, 1)[None], golden["decoded"]) < STORED


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
        assert all(
            isinstance(b.attn1.processor, CogVideoXAttnProcessor2_0ForDDIMInversion) for b in blocks
        )
    assert all(isinstance(b.attn1.processor, CogVideoXAttnProcessor2_0) for b in blocks)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_processors_are_restored_when_the_body_raises(golden_pipeline, error):
    before = golden_pipeline.transformer.attn_processors
    with pytest.raises(error), OverrideAttnProcessors(golden_pipeline.transformer):
        raise error
    after = golden_pipeline.transformer.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


def test_what_does_not_nest_or_would_lose_a_processor(golden_pipeline):
    transformer = deepcopy(golden_pipeline.transformer)
    with OverrideAttnProcessors(transformer):
        with pytest.raises(UsageError, match="does not nest"), OverrideAttnProcessors(transformer):
            pass
        processors = transformer.attn_processors.values()
        assert {type(p) for p in processors} == {CogVideoXAttnProcessor2_0ForDDIMInversion}
    transformer.fuse_qkv_projections()
    with (
        pytest.raises(UsageError, match="unfuse_qkv_projections"),
        OverrideAttnProcessors(transformer),
    ):
        pass


def test_a_batch_without_halves_and_a_mask_are_refused():
    processor = CogVideoXAttnProcessor2_0ForDDIMInversion()
    with pytest.raises(ValueError, match="attention mask"):
        processor(None, torch.zeros(2), torch.zeros(2), attention_mask=torch.ones(1))
    with pytest.raises(ValueError, match="3 rows"):
        processor(None, torch.zeros(3), torch.zeros(3))


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
    assert distance(found, golden["reconstruction_g6"]) < STORED


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
    with pytest.raises(UsageError, match="reference_latents"):
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
        with override, pytest.raises(UsageError, match="reference_latents"):
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
    with pytest.raises(UsageError, match=f"{key} = {value!r}") as caught:
        sample(golden_pipeline, golden["noise"], scheduler, PROMPT, STEPS)
    assert caught.value.hint


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
        pytest.raises(UsageError, match=r"10 .* 5"),
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
    with pytest.raises(UsageError, match="CogVideoXDPMScheduler"):
        sample(golden_pipeline, golden["noise"], scheduler, PROMPT, STEPS)


def test_skipping_every_frame_is_refused(tmp_path):
    video = make_video(tmp_path / "short.mp4", num_frames=5)
    with pytest.raises(VideoError, match="5 frames"):
        get_video_frames(video, 96, 64, skip_frames_start=3, skip_frames_end=2)
