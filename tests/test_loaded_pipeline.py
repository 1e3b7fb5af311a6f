"""`cogedit.ddim_inversion` on a pipeline that its user has loaded, changed, or offloaded."""

import re

import pytest
import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from accelerate.hooks import ModelHook, add_hook_to_module  # type: ignore[import-untyped]
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    DDIMInverseScheduler,
    UniPCMultistepScheduler,
)
from pipelines import TINY_PIPELINE, make_15_like, make_i2v_like
from videos import make_video

from cogedit.ddim_inversion import (
    OverrideAttnProcessors,
    encode_video_frames,
    export_latents_to_video,
    get_video_frames,
    sample,
)
from cogedit.errors import UsageError

CPU = torch.device("cpu")
LATENTS = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(0))
STEPS = 2


def load(folder=TINY_PIPELINE, dtype=torch.float32):
    return CogVideoXPipeline.from_pretrained(folder, dtype=dtype)


def invert(pipe, latents=LATENTS, prompt="", **options):
    inverse = DDIMInverseScheduler(**pipe.scheduler.config)
    return sample(pipe, latents, inverse, prompt, STEPS, **options)


def edit(pipe, latents=LATENTS, reference=None):
    """Invert, and denoise beside what that gave, or beside another reference."""
    forward = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    trajectory = invert(pipe, latents)
    reference = trajectory.flip(0) if reference is None else reference
    with OverrideAttnProcessors(pipe.transformer):
        return sample(pipe, trajectory[-1], forward, "a cat", STEPS, reference_latents=reference)


@pytest.fixture(scope="module")
def pipe():
    return load()


@pytest.fixture(scope="module")
def expected(pipe):
    return edit(pipe)[-1]


def sequential(pipe):
    """As `enable_sequential_cpu_offload` does it: the weights are on the device "meta"."""
    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        cpu_offload(part, CPU)


def in_groups(pipe):
    pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
    )


def compiled(pipe):
    pipe.transformer.compile(backend="eager")


def stochastic(pipe):
    """As the cards of the models have it: the noise levels are the same."""
    pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)


@pytest.mark.parametrize("change", [sequential, in_groups, compiled, stochastic])
def test_the_result_is_that_of_the_plain_pipeline(expected, change):
    pipe = load()
    change(pipe)
    assert torch.allclose(edit(pipe)[-1], expected, atol=1e-5)


def test_a_lora_is_part_of_the_model(expected):
    peft = pytest.importorskip("peft")
    pipe = load()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    assert not torch.allclose(edit(pipe)[-1], expected, atol=1e-3)
    pipe.transformer.disable_adapters()
    assert torch.allclose(edit(pipe)[-1], expected, atol=1e-5)


def test_a_pipeline_in_bf16_keeps_its_state_in_float32(expected):
    found = edit(load(dtype=torch.bfloat16), LATENTS.bfloat16())
    assert found.dtype == torch.float32
    assert (found[-1] - expected).std() < 0.1 * expected.std()


def test_an_offloaded_vae_encodes_and_decodes(tmp_path, pipe):
    offloaded = load()
    sequential(offloaded)
    frames = torch.rand(9, 3, 64, 96) * 2 - 1
    latents = encode_video_frames(offloaded.vae, frames)
    assert torch.allclose(latents, encode_video_frames(pipe.vae, frames), atol=1e-5)
    export_latents_to_video(offloaded, latents, tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").exists()


def test_the_hook_of_a_whole_vae_brings_it(pipe):
    """Parts of the VAE are called, not itself: the hook would wait for its `forward`."""
    brought = []

    class Hook(ModelHook):
        execution_device = CPU

        def pre_forward(self, module, *args, **kwargs):
            brought.append(module)
            return args, kwargs

    vae = add_hook_to_module(load().vae, Hook())
    encode_video_frames(vae, torch.zeros(9, 3, 64, 96))
    assert brought == [vae]


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (LATENTS[0], "latents is [3, 16, 8, 12], expected [B, F, 16, H, W]"),
        (LATENTS.movedim(2, 1), "latents is [1, 16, 3, 8, 12], expected [B, F, 16, H, W]"),
        (LATENTS[..., :7, :], "with H a multiple of 2"),
        (LATENTS[..., :11], "with W a multiple of 2"),
        (LATENTS.long(), "latents is torch.int64, expected floats"),
        (LATENTS.numpy(), "latents is a ndarray, expected a tensor"),
    ],
)
def test_latents_of_another_shape_are_refused(pipe, latents, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        invert(pipe, latents)


@pytest.mark.parametrize(
    "shape", [(STEPS, 2, 3, 16, 8, 12), (STEPS, 3, 16, 8, 12), (STEPS, 1, 3, 16, 8, 10)]
)
def test_a_reference_of_another_shape_is_refused(pipe, shape):
    """One of more clips would be read in part, and one without a batch be stretched over it."""
    with pytest.raises(UsageError, match=r"reference_latents is .*, expected \[2, 1, 3, 16, 8, 12"):
        edit(pipe, reference=torch.zeros(shape))


def test_models_that_take_more_than_latents_are_refused(tmp_path):
    with pytest.raises(UsageError, match="this transformer takes 32 channels"):
        invert(load(make_i2v_like(tmp_path / "i2v")))
    with pytest.raises(UsageError, match="with F a multiple of 2"):
        invert(load(make_15_like(tmp_path / "1.5")))


@pytest.mark.parametrize("prompt", [["a cat", "a dog"], 3])
def test_a_prompt_that_is_no_text_is_refused(pipe, prompt):
    with pytest.raises(UsageError, match=r"prompt is .*; expected one text"):
        invert(pipe, prompt=prompt)


def test_an_inversion_takes_no_reference(pipe):
    with pytest.raises(UsageError, match="An inversion takes no reference_latents"):
        invert(pipe, reference_latents=LATENTS[None].expand(STEPS, -1, -1, -1, -1, -1))


def test_noise_levels_that_may_not_be_the_models_are_refused(pipe):
    """An inversion reads the table of the pipeline's scheduler, whatever that is."""
    changed, config = load(), pipe.scheduler.config
    inverse = DDIMInverseScheduler(**config)
    for scheduler, message in (
        (UniPCMultistepScheduler(), "is a UniPCMultistepScheduler"),
        (CogVideoXDDIMScheduler.from_config(config, prediction_type="epsilon"), "'epsilon'"),
    ):
        changed.scheduler = scheduler
        with pytest.raises(UsageError, match=f"the pipeline's scheduler .*{message}"):
            sample(changed, LATENTS, inverse, "", STEPS)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(9, 64, 96, 3), "permute(0, 3, 1, 2)"),
        (torch.zeros(9, 3, 64, 96, dtype=torch.uint8), "torch.uint8, expected floats"),
    ],
)
def test_frames_that_a_vae_does_not_take_are_refused(pipe, frames, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        encode_video_frames(pipe.vae, frames)


@pytest.mark.parametrize("latents", [torch.cat([LATENTS, LATENTS]), LATENTS[0], LATENTS[None]])
def test_latents_that_are_not_one_clip_are_not_written(tmp_path, pipe, latents):
    """Of two clips the first alone would be written."""
    with pytest.raises(UsageError, match="expected one clip"):
        export_latents_to_video(pipe, latents, tmp_path / "clip.mp4")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_frames": 0}, "max_num_frames is 0, expected at least 1"),
        ({"skip_frames_start": -1}, "skip_frames_start is -1, expected at least 0"),
        ({"frame_sample_step": -1}, "frame_sample_step is -1, expected at least 0"),
        ({"width": 0}, "width is 0, expected at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, options, message):
    video = make_video(tmp_path / "clip.mp4", num_frames=5)
    with pytest.raises(UsageError, match=message):
        get_video_frames(video, **({"width": 96, "height": 64} | options))
