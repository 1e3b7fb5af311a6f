"""The cost model against the counter of torch, and against the published sizes of CogVideoX-5B."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from pipelines import GOLDEN_PIPELINE, make_15_i2v_like
from published import COGVIDEOX_5B
from schedules import forward_scheduler
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cogedit.diffusion.trajectory import Trajectory
from cogedit.diffusion.windows import moves_windows, window_starts
from cogedit.errors import ModelError
from cogedit.lab.configurations import UPSTREAM_EDIT
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.cost import (
    TransformerSizes,
    Work,
    activation_bytes,
    edit_work,
    inversion_work,
    part_bytes,
    row_flops,
    text_encoder_bytes,
    trajectory_bytes,
    window_shape,
)
from cogedit.models.device import DTYPES
from cogedit.models.layer_probe import probe_levels, probe_work, short_edit
from cogedit.models.loading import alphas_cumprod, load_text_encoder, load_transformer
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rows import rows_at_a_time
from cogedit.models.sampling import edit_latents, inversion_schedule, invert_latents
from cogedit.models.split import Division
from cogedit.types import InvertSettings, ReconstructSettings, WindowPlan

TERA = 1e12
SIZES_5B = TransformerSizes.of(COGVIDEOX_5B)
CLIP_5B = (13, 60, 90)
FIFTY = InvertSettings(num_inference_steps=50)
SHARED = {"reference_rows": "one", "reference_prompt": "inversion"}


def test_a_row_of_5b():
    assert SIZES_5B.width == 3072
    assert SIZES_5B.num_image_tokens(CLIP_5B) == 17550
    row = row_flops(SIZES_5B, CLIP_5B)
    assert row.linear / TERA == pytest.approx(169.1, abs=0.05)
    assert row.attention / TERA == pytest.approx(163.1, abs=0.05)


def test_a_patch_over_two_frames_halves_the_tokens():
    sizes = TransformerSizes.of(COGVIDEOX_5B | {"patch_size_t": 2})
    assert sizes.num_image_tokens((22, 96, 170)) == 11 * 48 * 85


WINDOWS_5B = WindowPlan(13, 4, 4)


@pytest.mark.parametrize(("num_frames", "ratio"), [(97, 1.07), (481, 0.28)])
def test_windows_cost_in_proportion_to_the_length(num_frames, ratio):
    """Of one pass over the whole clip, whose attention grows with the square of its length."""
    shape = ((num_frames - 1) // 4 + 1, *CLIP_5B[1:])
    invert = partial(inversion_work, FIFTY, SIZES_5B, shape)
    assert invert(WINDOWS_5B).flops.total / invert().flops.total == pytest.approx(ratio, rel=0.1)
    # An edit that attends to its source has more attention to spare.
    asked = [replace(UPSTREAM_EDIT, prompt="a fox")]
    edit = partial(edit_work, asked, FIFTY, SIZES_5B, shape)
    assert edit(WINDOWS_5B).flops.total / edit().flops.total < 1.1 * ratio


def test_windows_are_counted_as_an_inversion_meets_them():
    shape = (49, *CLIP_5B[1:])
    table = forward_scheduler().alphas_cumprod
    for settings in (
        FIFTY,
        InvertSettings(num_inference_steps=27, low_levels=2),
        InvertSettings(num_inference_steps=50, inverse="midpoint"),
    ):
        met = [
            len(window_starts(WINDOWS_5B, 49, moved=moves_windows(t)))
            for t in inversion_schedule(settings, table).timesteps
        ]
        assert {*met} == {5, 6}
        counted = inversion_work(settings, SIZES_5B, shape, WINDOWS_5B)
        # The first step asks twice; the noise of a midpoint inversion is not asked about.
        assert counted.calls == pytest.approx(sum(met), abs=8)


@pytest.mark.parametrize(
    ("num_ranks", "inversion", "edit"),
    [
        (1, 1, 1),
        # The rows of a reference are computed twice, tokens that are shared only once.
        (2, 1 / 2, 2 / 3),
        (8, 1 / 8, 2 / 3 / 4),
        (9, 1 / 8, 2 / 3 / 4),
    ],
)
def test_several_ranks_are_done_when_the_busiest_is(num_ranks, inversion, edit):
    division = Division(num_ranks, device="cuda")
    inverting = InvertSettings()
    always = {"injection_steps": (0.0, 1.0), "guidance_steps": (0.0, 1.0), "guidance_reuse": 0.0}
    editing = ReconstructSettings("a fox", injection_strength=1.0, **always, **SHARED)
    works = [
        (inversion, inversion_work(inverting, SIZES_5B, CLIP_5B, None, division)),
        (edit, edit_work([editing], inverting, SIZES_5B, CLIP_5B, None, division)),
    ]
    for share, work in works:
        assert work.busiest.total == pytest.approx(share * work.flops.total)
    # A long clip of 4 and 5 windows.
    work = inversion_work(inverting, SIZES_5B, (40, 60, 90), WINDOWS_5B, Division(2, device="cuda"))
    counts = [len(window_starts(WINDOWS_5B, 40, moved=moved)) for moved in (False, True)]
    assert counts == [4, 5]
    assert work.busiest.total / work.flops.total == pytest.approx((2 + 3) / (4 + 5), abs=0.01)


def test_memory_is_that_of_one_window():
    def needed(shape, windows):
        work = inversion_work(FIFTY, SIZES_5B, shape, windows)
        seen = window_shape(shape, windows)
        return activation_bytes(SIZES_5B, seen, work, item_size=2, device="cuda")

    one = needed(CLIP_5B, None)
    assert needed((121, *CLIP_5B[1:]), WINDOWS_5B) == needed((25, *CLIP_5B[1:]), WINDOWS_5B) == one
    assert needed((25, *CLIP_5B[1:]), None) > 1.8 * one


def upstream_flops(num_prompts):
    """The upstream script, run once for every prompt: two rows up, four rows down."""
    row = row_flops(SIZES_5B, CLIP_5B)
    up, down = 2 * row.total, 4 * row.linear + 6 * row.attention
    return num_prompts * 50 * (up + down)


def test_the_upstream_job():
    # With VAE and T5 it is 116.8 PFLOP.
    assert upstream_flops(1) / 1e15 == pytest.approx(116.0, abs=0.1)


def job_flops(num_prompts, inversion=None, **changes):
    inversion = inversion or FIFTY
    asked = [
        replace(UPSTREAM_EDIT, prompt=f"edit {number}", **changes) for number in range(num_prompts)
    ]
    up = inversion_work(inversion, SIZES_5B, CLIP_5B)
    return (up + edit_work(asked, inversion, SIZES_5B, CLIP_5B)).flops.total


@pytest.mark.parametrize(
    ("changes", "ratios"),
    [
        ({}, (1.16, 1.55, 1.64)),
        (SHARED, (1.40, 2.00, 2.15)),
        (SHARED | {"injection_steps": (0.0, 0.5)}, (1.74, 2.43, 2.60)),
        (
            SHARED | {"injection_steps": (0.0, 0.5), "guidance_steps": (0.0, 0.5)},
            (1.99, 2.94, 3.20),
        ),
    ],
)
def test_savings_over_the_upstream_script(changes, ratios):
    prompt = replace(FIFTY, prompt="what the clip shows")
    for num_prompts, ratio in zip((1, 4, 8), ratios, strict=True):
        found = upstream_flops(num_prompts) / job_flops(num_prompts, prompt, **changes)
        # Our inversion takes one call more than it has levels.
        assert found >= 0.99 * ratio
        assert found < 1.1 * ratio


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 3 * 2 + 1),
        (SHARED, 2 * 2 + 1),
        ({"guidance_scale": 1.0}, 2 * 2),
        ({"injection_strength": 0.0}, 2 * 2),
        ({"injection_strength": 0.0, "guidance_scale": 1.0}, 2),
    ],
)
def test_rows_of_a_step(changes, rows):
    asked = [replace(UPSTREAM_EDIT, prompt=text, **changes) for text in ("a", "b")]
    work = edit_work(asked, FIFTY, SIZES_5B, CLIP_5B)
    assert (work.calls, work.max_rows, work.rows) == (50, rows, 50 * rows)


def test_fewer_steps_windows_and_layers():
    def work(**changes):
        asked = [replace(UPSTREAM_EDIT, prompt="a", **changes)]
        return edit_work(asked, FIFTY, SIZES_5B, CLIP_5B)

    assert work(num_inference_steps=20).calls == 20
    assert work(num_inference_steps=20, start_step=5).calls == 15
    assert work(injection_steps=(0.0, 0.5)).rows == 25 * 4 + 25 * 2
    # 1 - i / 50 is 0.06 in step 47 and 0.04 in step 48, where the reference rows are left out.
    assert work(injection_strength=(1.0, 0.0)).rows == 48 * 4 + 2 * 2
    assert work(injection_strength=(0.0, 1.0), injection_steps=(0.0, 0.5)).rows == 23 * 4 + 27 * 2
    assert work(guidance_steps=(0.0, 0.2)).rows == 10 * 4 + 40 * 2
    assert work(injection_layers=(0, 21)).flops.total < work().flops.total
    assert work(injection_tokens="image").flops.total < work().flops.total
    assert work(method="flow").rows == 50 * 5
    assert work(auto_mask=True).rows == work().rows + 8


@pytest.mark.parametrize(
    ("changes", "calls", "rows"),
    [
        ({}, 51, 51),
        ({"inversion_iterations": 2}, 101, 101),
        ({"inverse": "upstream"}, 50, 50),
        ({"inverse": "upstream", "guidance_scale": 6.0}, 50, 50),  # both sides are one row
        ({"inverse": "upstream", "guidance_scale": 6.0, "prompt": "a"}, 50, 100),
    ],
)
def test_calls_of_an_inversion(changes, calls, rows):
    work = inversion_work(replace(FIFTY, **changes), SIZES_5B, CLIP_5B)
    assert (work.calls, work.rows) == (calls, rows)


def test_bytes():
    # 225 MB: 50 levels of 1.1 million numbers.
    assert trajectory_bytes(49, CLIP_5B, channels=16) == 50 * 4 * 16 * 13 * 5400

    def activations(rows, *, injected=False, device="cuda", **changes):
        work = Work(1, rows, rows, injected)
        return activation_bytes(SIZES_5B, CLIP_5B, work, item_size=2, device=device, **changes)

    one = activations(1)
    # Measured on an H200: 1.9 GB for one row, 3.3 for an edit with its reference, 4.8 for four.
    assert one == pytest.approx(1.9e9, rel=0.1)
    assert activations(3, injected=True) == pytest.approx(3.3e9, rel=0.1)
    assert activations(9, injected=True) == pytest.approx(4.8e9, rel=0.1)
    assert activations(4, max_rows=4) == 4 * one
    assert one < activations(4) < 2 * one  # one at a time


def test_a_cpu_takes_smaller_chunks():
    large = rows_at_a_time(None, num_tokens=500, device="cuda")
    small = rows_at_a_time(None, num_tokens=500, device="cpu")
    assert large > small > 1
    assert rows_at_a_time(7, num_tokens=500, device="cpu") == 7
    assert rows_at_a_time(None, num_tokens=10**9, device="cpu") == 1


@pytest.mark.parametrize("value", [None, 0, "48", 1.5, 10**400])
def test_a_configuration_without_a_size(value):
    with pytest.raises(ModelError, match="num_attention_heads"):
        TransformerSizes.of(COGVIDEOX_5B | {"num_attention_heads": value})


def cpu_attention(query, key, value, *args, **kwargs):
    return sdpa_flop_count(query, key, value)


def counted(run):
    """Operations of a run by torch's counter, which does not know the CPU's attention."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: cpu_attention}) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def golden_model():
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    device, dtype = torch.device("cpu"), torch.float32
    transformer = load_transformer(checkpoint, device=device, dtype=dtype)
    return transformer, TransformerSizes.of(checkpoint.transformer_config), checkpoint


SHAPE = (3, 8, 12)


def embeds_of(*texts):
    generator = torch.Generator().manual_seed(3)
    return {text: torch.randn(1, 226, 32, generator=generator) for text in texts}


def counted_inversion(transformer, checkpoint, shape, asked, embeds, *, has_condition=False):
    """Operations of an inversion by the counter."""
    z0 = torch.randn(1, shape[0], 16, *shape[1:], generator=torch.Generator().manual_seed(1))
    condition = torch.zeros_like(z0) if has_condition else None
    predictor = Predictor(transformer, alphas_cumprod(checkpoint), embeds)
    return counted(partial(invert_latents, predictor, z0, [asked], condition=condition))


@pytest.mark.parametrize("changes", [{}, {"inverse": "upstream", "guidance_scale": 2.0}])
def test_an_inversion_against_the_counter(golden_model, changes):
    transformer, sizes, checkpoint = golden_model
    asked = InvertSettings(num_inference_steps=3, inversion_iterations=1, prompt="a", **changes)
    found = counted_inversion(transformer, checkpoint, SHAPE, asked, embeds_of("", "a"))
    assert inversion_work(asked, sizes, SHAPE).flops.total == pytest.approx(found, rel=0.01)


def test_the_channels_of_a_first_frame_are_counted(tmp_path):
    checkpoint = find_checkpoint(str(make_15_i2v_like(tmp_path / "tiny")))
    transformer = load_transformer(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    asked = InvertSettings(num_inference_steps=2, inversion_iterations=1)
    shape = (4, *SHAPE[1:])
    sizes = TransformerSizes.of({**checkpoint.transformer_config, "max_text_seq_length": 64})
    embeds = {"": torch.zeros(1, 64, 32)}
    found = counted_inversion(transformer, checkpoint, shape, asked, embeds, has_condition=True)
    assert inversion_work(asked, sizes, shape).flops.total == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"injection_tokens": "image"},
        {"injection_tokens": "own-text"},
        {"injection_tokens": "own-text", "injection_strength": 2.0},
        {"injection_recentering": 0.5, "injection_strength": 2.0},
        {"injection_strength": 0.5},
        {"injection_strength": (2.0, 0.0)},
        {"injection_strength": (0.0, 1.0), "injection_mode": "queries-keys"},
        {"injection_mode": "queries-keys"},
        {"injection_strength": 0.5, "injection_mode": "image-queries-keys"},
        {"injection_mode": "image-queries-keys"},
        {"injection_layers": (1, 2)},
        {"injection_steps": (0.0, 0.5), "guidance_steps": (0.0, 0.3)},
        {"guidance_reuse": 0.3},
        {"method": "flow", "source_guidance_scale": 2.0},
        {"reference_rows": "one"},
        {"injection_strength": 0.0},
        {"method": "flow", "reference_prompt": "inversion"},
    ],
)
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_an_edit_against_the_counter(golden_model, changes, num_prompts):
    transformer, sizes, checkpoint = golden_model
    inversion = InvertSettings(num_inference_steps=4)
    base = replace(UPSTREAM_EDIT, **changes)
    asked = [replace(base, prompt=text) for text in "abc"[:num_prompts]]
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(4, 1, SHAPE[0], 16, *SHAPE[1:], generator=generator)
    reference = Trajectory(samples, samples[0], (249, 499, 749, 999))

    embeds = embeds_of("", "a", "b", "c")
    predictor = Predictor(transformer, alphas_cumprod(checkpoint), embeds)
    work = edit_work(asked, inversion, sizes, SHAPE)
    run = partial(edit_latents, predictor, InvertedClips(reference), asked)
    assert work.flops.total == pytest.approx(counted(run), rel=0.02)


@pytest.mark.parametrize("num_together", [2, 14])
def test_a_probe_against_the_counter(golden_model, num_together):
    transformer, sizes, checkpoint = golden_model
    inversion = InvertSettings(num_inference_steps=4)
    settings = ReconstructSettings("a", injection_strength=(2.0, 0.5), injection_steps=(0.0, 0.6))
    asked = short_edit(settings, 4)
    samples = torch.randn(
        4, 1, SHAPE[0], 16, *SHAPE[1:], generator=torch.Generator().manual_seed(1)
    )
    predictor = Predictor(transformer, alphas_cumprod(checkpoint), embeds_of("", "a"))
    inverted = InvertedClips(Trajectory(samples, samples[0], (249, 499, 749, 999)))

    def run():
        edited = edit_latents(predictor, inverted, [asked])
        levels = probe_levels(predictor, inverted, asked, samples=edited, num_together=num_together)
        assert [level.timestep for level in levels] == [749, 499]

    work = probe_work(asked, inversion, sizes, SHAPE, num_together=num_together)
    assert work.flops.total == pytest.approx(counted(run), rel=0.03)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_size_of_t5_is_that_of_the_loaded_encoder(dtype):
    """In fp16 some of its matrices stay in float32."""
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    _, t5 = load_text_encoder(checkpoint, device=torch.device("cpu"), dtype=DTYPES[dtype])
    loaded = sum(parameter.nbytes for parameter in t5.parameters())
    assert part_bytes(checkpoint, "text_encoder", dtype) == loaded


def test_the_size_of_cogvideox_t5():
    config = {"num_layers": 24, "d_model": 4096, "d_ff": 10240}
    bf16, fp16 = (text_encoder_bytes(4_762_310_656, config, dtype) for dtype in ("bf16", "fp16"))
    assert (round(bf16 / 1e9, 1), round(fp16 / 1e9, 1)) == (9.5, 11.5)
