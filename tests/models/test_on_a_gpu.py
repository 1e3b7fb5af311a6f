"""What only a GPU can show, at the width and the number of tokens of CogVideoX-5B.

The marker keeps these out of `make test`; `pytest -m gpu` runs them. They draw weights at random
and take two layers of the 42, so that they need no download and about 3 GB.
"""

import math
import re
import signal
import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from pipelines import GOLDEN_PIPELINE, TINY_PIPELINE, decode_latents
from published import VAE
from videos import make_video

from cogedit.artifacts import newest_artifact
from cogedit.diffusion.denoise import start_sample
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.attention import Heads, attend_with_reference
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.cost import TransformerSizes, activation_bytes, edit_work, inversion_work
from cogedit.models.device import release_memory
from cogedit.models.forward import run_rows
from cogedit.models.kernels import (
    attention,
    attention_by_hand,
    attention_with_lse,
    check_backend,
    native_lse,
)
from cogedit.models.loading import alphas_cumprod, load_transformer, load_vae
from cogedit.models.placement import on_device, place, store_weights
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.models.vae import decode_pieces, encode_frames
from cogedit.models.vae_cost import WAYS, VAESizes, vae_bytes
from cogedit.models.vae_tiles import use_tiles
from cogedit.types import InvertSettings, ReconstructSettings, TransformerSettings

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
TEXT_TOKENS, LATENT_SHAPE = 226, (13, 60, 90)
TOKENS = TEXT_TOKENS + 13 * 30 * 45


def relative_error(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def exact_attention(q, k, v):
    """Attention and log-sum-exp in float64, in blocks of queries."""
    outs, lses = [], []
    k, v = k.double(), v.double()
    for queries in q.double().split(512, dim=2):
        logits = queries @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        lses.append(logits.logsumexp(-1))
        outs.append(logits.softmax(-1) @ v)
    return torch.cat(outs, 2), torch.cat(lses, 2)


@pytest.fixture
def heads():
    """Queries, keys and values of two heads, and keys and values of a reference."""
    generator = torch.Generator(CUDA).manual_seed(0)
    shape = 1, 2, TOKENS, 64
    return [torch.randn(shape, generator=generator, device=CUDA) for _ in range(5)]


@pytest.fixture
def wide_transformer():
    """Two layers of the width of CogVideoX-5B, bf16, in host memory."""
    from diffusers import CogVideoXTransformer3DModel

    frames, height, width = LATENT_SHAPE
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=48,
        num_layers=2,
        sample_frames=4 * (frames - 1) + 1,
        sample_height=height,
        sample_width=width,
        use_rotary_positional_embeddings=True,
    )
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def velocity(transformer, *, rows=1):
    generator = torch.Generator().manual_seed(1)
    frames, height, width = LATENT_SHAPE
    sample = torch.randn(rows, frames, 16, height, width, generator=generator)
    prompt_embeds = torch.randn(rows, TEXT_TOKENS, 4096, generator=generator)
    with torch.no_grad():
        return transformer(
            hidden_states=sample.to(CUDA, torch.bfloat16),
            encoder_hidden_states=prompt_embeds.to(CUDA, torch.bfloat16),
            timestep=torch.full((1,), 500, device=CUDA),
            image_rotary_emb=image_rotary_emb(transformer, LATENT_SHAPE),
            return_dict=False,
        )[0]


def milliseconds(function, *args, **options):
    """How long a call takes once it has run before."""
    function(*args, **options)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(3):
        function(*args, **options)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 3


@pytest.fixture(params=["cudnn", "native", "native without cudnn"])
def lse_backend(request):
    """Names of the kernels that torch brings; the last is FlashAttention's on GPUs of today."""
    if request.param == "cudnn" and torch.cuda.get_device_capability(CUDA) < (8, 0):
        pytest.skip("cuDNN's attention needs a newer GPU")
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    if request.param == "native without cudnn":
        torch.backends.cuda.enable_cudnn_sdp(False)
    yield request.param.split()[0]
    torch.backends.cuda.enable_cudnn_sdp(allowed)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 1e-3)]
)
@pytest.mark.parametrize("layout", ["contiguous", "as projected"])
def test_the_log_sum_exp_of_the_kernel(heads, lse_backend, dtype, error, layout):
    if lse_backend == "cudnn" and dtype == torch.float32:
        pytest.skip("cuDNN's kernel takes half precision")
    q, k, v = (x.to(dtype) for x in heads[:3])
    if layout == "as projected":  # views of [rows, tokens, D], as values are
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    kernel = native_lse(CUDA, dtype) if lse_backend == "native" else lse_backend
    out, lse = attention_with_lse(q, k, v, backend=lse_backend)
    expected, expected_lse = exact_attention(q, k, v)
    errors = relative_error(out, expected), relative_error(lse, expected_lse)
    print(f"{kernel} {dtype} {layout}: attention {errors[0]:.1e}, log-sum-exp {errors[1]:.1e}")
    assert errors[0] < error
    assert lse.dtype == torch.float32
    assert errors[1] < 1e-4


def test_what_the_log_sum_exp_costs(lse_backend):
    """A row of CogVideoX-5B; only figures, no bound."""
    q, k, v = torch.randn(3, 1, 48, TOKENS, 64, device=CUDA, dtype=torch.bfloat16)
    plain = milliseconds(attention, q, k, v, backend=lse_backend)
    both = milliseconds(attention_with_lse, q, k, v, backend=lse_backend)
    kernel = native_lse(CUDA, q.dtype) if lse_backend == "native" else lse_backend
    print(f"{lse_backend}: {plain:.1f} ms; with log-sum-exp, by {kernel}: {both:.1f} ms")
    assert min(plain, both) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_attentions_merged_are_one_over_both(heads, lse_backend, dtype):
    q, k, v, k_ref, v_ref = (x.to(dtype) for x in heads)
    expected, _ = exact_attention(q, torch.cat([k, k_ref], 2), torch.cat([v, v_ref], 2))
    own = Heads(q, k, v)
    merged = attend_with_reference(own, k_ref, v_ref, strength=1.0, backend=lse_backend)
    joined = attention(q, torch.cat([k, k_ref], 2), torch.cat([v, v_ref], 2), backend=lse_backend)
    errors = relative_error(merged, expected), relative_error(joined, expected)
    print(f"{lse_backend} {dtype}: merged {errors[0]:.1e}, joined {errors[1]:.1e}")
    assert max(errors) < 1e-2


def test_attention_by_hand_is_as_exact_as_a_kernel(heads):
    q, k, v = (x.bfloat16() for x in heads[:3])
    expected, expected_lse = exact_attention(q, k, v)
    by_hand, kernel = (f(q, k, v) for f in (attention_by_hand, attention_with_lse))
    errors = [relative_error(out, expected) for out, _ in (by_hand, kernel)]
    print(f"by hand {errors[0]:.1e}, by a kernel {errors[1]:.1e}")
    assert errors[0] <= 1.1 * errors[1]
    assert relative_error(by_hand[1], expected_lse) < 1e-4


def test_a_backend_is_found_to_give_its_log_sum_exp():
    if torch.cuda.get_device_capability(CUDA) >= (8, 0):
        check_backend("cudnn", device=CUDA, dtype="bf16", with_lse=True)
    packages = {"flash": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention"}
    for backend, package in packages.items():
        if find_spec(package) is not None:
            check_backend(backend, device=CUDA, dtype="bf16", with_lse=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_row_by_row_is_the_models_own_forward(wide_transformer, rows):
    """To the bit, where as many rows run at a time."""
    transformer = wide_transformer.to(CUDA)
    expected = velocity(transformer, rows=rows)
    with run_rows(transformer, TransformerSettings(max_rows=rows)):
        assert torch.equal(velocity(transformer, rows=rows), expected)
    with run_rows(transformer):
        error = relative_error(velocity(transformer, rows=rows), expected.double())
    print(f"{rows} rows one at a time: {error:.1e} from all at once")
    assert error < 1e-2
    assert torch.equal(velocity(transformer, rows=rows), expected)


@pytest.mark.parametrize("weights", [None, "int8", "fp8"])
def test_compiled_blocks_agree(wide_transformer, weights):
    from torch._dynamo.utils import counters

    if weights == "fp8" and torch.cuda.get_device_capability(CUDA) < (8, 9):
        pytest.skip("this GPU's compiler does not know fp8, and `check_weights` says so")
    if weights is not None:
        store_weights(wide_transformer, weights)
    transformer = wide_transformer.to(CUDA)
    expected = velocity(transformer)
    torch._dynamo.reset()
    counters.clear()
    with run_rows(transformer, TransformerSettings(compile=True)):
        compiled = velocity(transformer)
        with torch._dynamo.config.patch(error_on_recompile=True):
            velocity(transformer)
        fast = milliseconds(velocity, transformer)
    error = relative_error(compiled, expected.double())
    with run_rows(transformer):
        slow = milliseconds(velocity, transformer)
    print(f"weights {weights}: error {error:.1e}, {slow:.0f} ms, compiled {fast:.0f} ms")
    assert not counters["graph_break"]
    assert not counters["inductor"]["woq_matcher_count"]
    assert counters["stats"]["unique_graphs"] <= 4
    assert error < 2e-2


@pytest.mark.parametrize("weights", [None, "fp8", "int8"])
def test_weights_that_wait_in_host_memory_give_the_same_results(wide_transformer, weights):
    if weights is not None:
        store_weights(wide_transformer, weights)
    wide_transformer.to(CUDA)
    expected = velocity(wide_transformer)
    wide_transformer.to("cpu")
    place(wide_transformer, CUDA, offload="group")
    with on_device(wide_transformer, CUDA, offload="group"):
        for _ in range(3):  # the order of the blocks is learned in the first pass
            assert torch.equal(velocity(wide_transformer), expected)


def test_group_offload_pins_what_it_holds_and_gives_it_back(wide_transformer):
    """Twice in a row, as an inversion and an edit of another model do."""

    def pinned():
        return torch.cuda.host_memory_stats()["allocated_bytes.current"]

    blocks = list(wide_transformer.transformer_blocks.parameters())
    held = sum(parameter.nbytes for parameter in blocks)
    expected = velocity(wide_transformer.to(CUDA))
    wide_transformer.to("cpu")
    release_memory(CUDA)
    before = pinned()
    for turn in range(2):
        model = deepcopy(wide_transformer)
        place(model, CUDA, offload="group")
        taken = pinned() - before
        print(f"group offload {turn + 1}: {taken / 1e6:.1f} MB pinned for {held / 1e6:.1f} MB")
        assert held <= taken < 1.05 * held
        for _ in range(2):  # the order of the blocks is learned in the first pass
            assert torch.equal(velocity(model), expected)
        assert pinned() - before < 1.05 * held, "diffusers pinned something again"
        torch.cuda.synchronize()
        del model
        release_memory(CUDA)
        print(f"group offload {turn + 1}: {(pinned() - before) / 1e6:.1f} MB stay pinned after it")
        assert pinned() - before < 0.05 * held


def test_the_vae_decodes_in_pieces_as_diffusers_does():
    vae = load_vae(find_checkpoint(str(GOLDEN_PIPELINE)), device=CUDA, dtype=torch.bfloat16)
    channels = vae.config.latent_channels
    latents = torch.randn(1, 5, channels, 8, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pieces = torch.cat([piece.clone() for piece in decode_pieces(vae, latents)])
        scaled = (latents.movedim(1, 2) / vae.config.scaling_factor).to(CUDA, torch.bfloat16)
        expected = vae.decode(scaled).sample[0].movedim(1, 0)
    assert torch.equal(pieces, expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_vae_takes_the_memory_that_is_counted(way):
    """At 9 frames of 720x480, with random weights of CogVideoX's own VAE."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(**VAE).to(CUDA, torch.bfloat16).eval()
    if way.in_tiles:
        use_tiles(vae)
    shape = 3, 60, 90
    calls = {
        "encode": lambda: encode_frames(vae, torch.rand(9, 3, 480, 720), by_frame=way.by_frame),
        "decode": lambda: decode_latents(vae, torch.randn(1, 3, 16, 60, 90), by_frame=way.by_frame),
    }
    for direction, call in calls.items():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        held, kept = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
        counted = vae_bytes(VAESizes.of(VAE), shape, direction, way, item_size=2, device="cuda")
        print(
            f"{direction} {way}: {held / 1e9:.2f} GB in tensors, {kept / 1e9:.2f} GB reserved, "
            f"counted {counted / 1e9:.2f} GB"
        )
        assert held < 1.1 * counted


@pytest.mark.parametrize("start_noise", [0.0, 0.3, 1.0])
def test_a_start_mixes_noise_with_a_trajectory_on_the_gpu(start_noise):
    generator = torch.Generator().manual_seed(3)
    schedule = Schedule.trailing(torch.linspace(0.99, 0.0, 1000, dtype=torch.float64), 4)
    samples = torch.randn(4, 1, 3, 16, 8, 12, generator=generator)
    latents = torch.randn(1, 3, 16, 8, 12, generator=generator)
    timesteps = tuple(reversed(schedule.timesteps))
    here, there = (
        Trajectory(samples.to(device), latents.to(device), timesteps) for device in ("cpu", CUDA)
    )
    expected = start_sample(here, schedule, seeds=[7], start_noise=start_noise)
    actual = start_sample(there, schedule, seeds=[7], start_noise=start_noise)
    assert actual.device.type == "cuda"
    assert torch.allclose(actual.cpu(), expected, atol=1e-5)


@pytest.mark.parametrize("inverse", ["consistent", "upstream"])
def test_an_inversion_and_an_edit_agree_with_the_cpus(inverse):
    """In float32, where another device adds up in another order and no more."""
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 3, 16, 8, 12, generator=generator)
    embeds = {text: torch.randn(1, 226, 32, generator=generator) for text in ("", "a cat")}
    results = []
    for device in (torch.device("cpu"), CUDA):
        transformer = load_transformer(checkpoint, device=device, dtype=torch.float32)
        predictor = Predictor(transformer, alphas_cumprod(checkpoint), embeds)
        trajectory = invert_latents(
            predictor,
            latents.to(device),
            [InvertSettings(num_inference_steps=6, inverse=inverse)],
        )
        assert trajectory.noise.device.type == "cpu"  # where they wait, and take no GPU memory
        edits = edit_latents(
            predictor,
            InvertedClips(trajectory),
            [ReconstructSettings(prompt="a cat", start_noise=0.2, guidance_scale=2.0)],
        )
        results.append((trajectory.noise, edits[-1].cpu()))
    for on_gpu, on_cpu in zip(results[1], results[0], strict=True):
        assert relative_error(on_gpu, on_cpu.double()) < 1e-2


@pytest.mark.parametrize("part", ["invert", "edit"])
def test_a_pass_takes_the_memory_that_was_counted(wide_transformer, part):
    """What is counted is the most that was seen; a tenth of it may be left over, or more needed."""
    from cogedit.lab.components import make_scheduler

    transformer = wide_transformer.to(CUDA)
    weights = torch.cuda.memory_allocated()
    frames, height, width = LATENT_SHAPE
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, frames, 16, height, width, generator=generator)
    embeds = {text: torch.randn(1, TEXT_TOKENS, 4096, generator=generator) for text in ("", "fox")}
    predictor = Predictor(transformer, make_scheduler().alphas_cumprod, embeds)
    sizes = TransformerSizes.of(dict(transformer.config))
    inversion, edit = InvertSettings(num_inference_steps=2), ReconstructSettings(prompt="fox")
    torch.cuda.reset_peak_memory_stats()
    if part == "invert":
        work = inversion_work(inversion, sizes, LATENT_SHAPE)
        invert_latents(predictor, latents.to(CUDA), [inversion])
    else:
        work = edit_work([edit], inversion, sizes, LATENT_SHAPE)
        schedule = Schedule.trailing(predictor.alphas_cumprod, 2)
        source = Trajectory.of(torch.stack([latents, latents]), latents, schedule)
        edit_latents(predictor, InvertedClips(source), [edit])
    taken = torch.cuda.max_memory_allocated() - weights
    counted = activation_bytes(sizes, LATENT_SHAPE, work, item_size=2, device="cuda")
    print(f"{part}: {taken / 1e9:.2f} GB taken, {counted / 1e9:.2f} GB counted")
    assert 0.7 * counted < taken < 1.1 * counted


def test_an_inversion_that_is_killed_goes_on(tmp_path):
    """Through the command line; bit for bit, as one that nothing stopped."""
    make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)
    model = ["--model", str(TINY_PIPELINE), "--device", "cuda", "--dtype", "bf16"]
    size = ["--width", "96", "--height", "64", "--max-num-frames", "9", "--frame-rate", "spread"]
    command = [sys.executable, "-m", "cogedit", "invert", "clip.mp4", *model, *size]
    command += ["--num-inference-steps", "200", "--jsonl", "--workspace"]
    # Processes of their own: one that is forked from a process that has asked for CUDA has none.
    killed = subprocess.Popen(
        [*command, "killed"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert killed.stderr is not None
    with killed:
        for _ in range(10):
            assert any(b'"step", "doing": "inverting' in line for line in killed.stderr), "it ended"
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    went_on = subprocess.run([*command, "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert went_on.returncode == 0, went_on.stderr
    [step] = re.findall(r"going on after step (\d+) of 200", went_on.stderr)
    print(f"killed after {step} of 200 steps")
    assert 0 < int(step) < 200
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True)
    first, second = (
        newest_artifact([tmp_path / name], "trajectory") for name in ("killed", "whole")
    )
    assert first.read_bytes() == second.read_bytes()


def test_what_the_gpu_holds_does_not_grow_with_the_steps():
    """Of a trajectory, and of the samples that are kept, one step's are there at a time."""
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    transformer = load_transformer(checkpoint, device=CUDA, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 3, 16, 8, 12, generator=generator)
    embeds = {text: torch.randn(1, 226, 32, generator=generator) for text in ("", "a cat")}
    predictor = Predictor(transformer, alphas_cumprod(checkpoint), embeds)
    peaks = []
    for num_steps in (6, 6, 24):  # the first also makes what stays
        torch.cuda.reset_peak_memory_stats()
        trajectory = invert_latents(
            predictor, latents.to(CUDA), [InvertSettings(num_inference_steps=num_steps)]
        )
        edit_latents(
            predictor,
            InvertedClips(trajectory),
            [ReconstructSettings(prompt="a cat")],
            mask=torch.ones(3, 1, 8, 12),
        )
        peaks.append(torch.cuda.max_memory_allocated())
        print(f"{num_steps} steps: at most {peaks[-1] / 1e6:.2f} MB on the GPU")
    assert abs(peaks[2] - peaks[1]) < 4 * latents.nbytes
