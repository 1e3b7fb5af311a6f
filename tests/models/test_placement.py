"""Where the weights are changes no number; in which format they are kept does."""

from types import SimpleNamespace

import pytest
import torch
from pipelines import GOLDEN_PIPELINE
from torch import nn

from cogedit.errors import UsageError
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.cost import TransformerSizes, Work, activation_bytes
from cogedit.models.denoiser import Denoiser
from cogedit.models.loading import load_text_encoder, load_transformer
from cogedit.models.placement import (
    MemoryEstimate,
    ScaledLinear,
    check_weights,
    choose_offload,
    on_device,
    place,
    store_weights,
)
from cogedit.models.rows import EditPrompts

CPU = torch.device("cpu")
GB = 10**9
COGVIDEOX_5B = MemoryEstimate(
    weights=int(11.1 * GB), resident=int(0.9 * GB), activations=int(5.7 * GB)
)


@pytest.fixture
def transformer():
    return load_transformer(find_checkpoint(str(GOLDEN_PIPELINE)), device=CPU, dtype=torch.float32)


def velocity(transformer):
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(1, 226, 32, generator=generator)
    sample = torch.randn(1, 3, 16, 8, 12, generator=generator)
    return Denoiser(transformer, embeds=embeds, prompts=[EditPrompts(0, None, 0, 0)]).velocity(
        sample, 500
    )


@pytest.mark.parametrize(
    ("free", "expected", "said"),
    [
        (80, "none", "stays on the device: 11.1 GB of weights and about 5.7 GB beside them, 80.0"),
        (18, "none", "stays on the device"),
        (17, "group", "block by block"),  # 16.8 GB, and a reserve of 5 %
        (8, "group", "do not fit into 8.0 GB free"),
        (6, "group", "even so it takes about 6.6 GB (--weights fp8 or fewer frames help)"),
    ],
)
def test_the_fastest_that_fits(free, expected, said):
    chosen, why = choose_offload(
        COGVIDEOX_5B,
        free=free * GB,
        name="the transformer",
        otherwise="--weights fp8 or fewer frames help",
    )
    assert chosen == expected
    assert said in why
    assert ("even so" in why) == (free == 6)


def test_a_demand_counts_two_blocks_and_what_is_outside():
    model = nn.Module()
    model.outside = nn.Linear(10, 1, bias=False)
    model.blocks = nn.ModuleList([nn.Linear(10, 10, bias=False) for _ in range(5)])
    found = MemoryEstimate.of(model, 7)
    assert found == MemoryEstimate(weights=4 * 510, resident=4 * (10 + 200), activations=7)


def test_an_estimate_counts_shared_weights_once():
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    _, t5 = load_text_encoder(checkpoint, device=CPU, dtype=torch.float32)
    assert MemoryEstimate.of(t5.encoder, 0).weights == sum(p.nbytes for p in t5.parameters())


@pytest.mark.parametrize(
    ("weights", "dtype", "size", "error"),
    [
        ("fp8", torch.bfloat16, 1, 0.2),
        ("fp8", torch.float32, 1, 0.2),
        ("int8", torch.bfloat16, 1, 0.02),
        ("int8", torch.float32, 1, 0.02),
        ("bf16", torch.float32, 2, 0.02),
    ],
)
def test_weights_in_fewer_bits(weights, dtype, size, error):
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    whole = load_transformer(checkpoint, device=CPU, dtype=dtype)
    expected = velocity(whole)
    stored = load_transformer(checkpoint, device=CPU, dtype=dtype)
    store_weights(stored, weights)
    for _ in range(2):
        found = velocity(stored)
        assert 0 < (found - expected).norm() / expected.norm() < error
    block = stored.transformer_blocks[0]
    numbers = sum(p.numel() for p in whole.transformer_blocks[0].ff.parameters())
    assert MemoryEstimate.of(block.ff, 0).weights == pytest.approx(size * numbers, rel=0.15)
    assert block.norm1.linear.weight.dtype == stored.patch_embed.proj.weight.dtype == dtype
    assert MemoryEstimate.of(stored, 0).weights < MemoryEstimate.of(whole, 0).weights
    assert stored.dtype == dtype  # what it computes in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_of_integers_has_a_scale_for_each_row(dtype):
    linear = nn.Linear(6, 4).to(dtype).requires_grad_(False)
    linear.weight[1] *= 1000
    linear.weight[2] = 0
    stored = ScaledLinear.of(linear)
    assert (stored.weight.dtype, stored.scale.dtype, stored.bias.dtype) == (
        torch.int8,
        dtype,
        dtype,
    )
    rows = stored.weight.float() * stored.scale.float()[:, None]
    largest = linear.weight.float().abs().amax(dim=1, keepdim=True)
    assert bool(((rows - linear.weight.float()).abs() <= 0.009 * largest).all())
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.double() @ rows.double().T + linear.bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(stored(x).double(), expected, rtol=tolerance, atol=tolerance)
    assert stored(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("weights", "storage"), [("fp8", torch.float8_e4m3fn), ("bf16", None)])
def test_casts_give_what_diffusers_layerwise_casting_gives(weights, storage, dtype):
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    hooked, stored = (load_transformer(checkpoint, device=CPU, dtype=dtype) for _ in range(2))
    hooked.enable_layerwise_casting(
        storage_dtype=storage or torch.bfloat16, compute_dtype=hooked.dtype
    )
    store_weights(stored, weights)
    formats = [[p.dtype for p in model.parameters()] for model in (hooked, stored)]
    assert formats[0] == formats[1]
    assert torch.equal(velocity(hooked), velocity(stored))


def test_compiled_casts_need_a_gpu_whose_compiler_knows_the_format(monkeypatch):
    """What Triton takes of a GPU older than Ada is not what torch itself takes."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    check_weights("fp8", device=device)
    check_weights("int8", device=device, compile=True)
    with pytest.raises(UsageError, match=r"--weights fp8 .* 8\.6") as caught:
        check_weights("fp8", device=device, compile=True)
    assert caught.value.exit_code == 2
    assert "--weights int8" in caught.value.hint
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    check_weights("fp8", device=device, compile=True)


@pytest.mark.gpu
def test_offload_on_a_gpu_gives_the_same_numbers():
    device = torch.device("cuda")
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    results = []
    for offload in ("none", "model", "group"):
        model = load_transformer(checkpoint, device=CPU, dtype=torch.bfloat16)
        place(model, device, offload=offload)
        with on_device(model, device, offload=offload):
            assert model.device.type == "cuda"
            results += [velocity(model), velocity(model)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.gpu
def test_blocks_that_may_not_be_pinned_come_without(monkeypatch):
    device = torch.device("cuda")
    results = []
    for system in ("Linux", "Windows"):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        monkeypatch.setattr(
            "cogedit.models.pinned.psutil.virtual_memory", lambda: SimpleNamespace(total=2**16)
        )
        model = load_transformer(
            find_checkpoint(str(GOLDEN_PIPELINE)), device=CPU, dtype=torch.bfloat16
        )
        told = place(model, device, offload="group")
        assert (told is None) == (system == "Linux")
        assert next(model.transformer_blocks.parameters()).is_pinned() == (system == "Linux")
        with on_device(model, device, offload="group"):
            results += [velocity(model), velocity(model)]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.gpu
def test_group_offload_keeps_few_blocks_on_the_gpu():
    """The one that computes and the one that is being copied: the host does not run ahead."""
    from diffusers import CogVideoXTransformer3DModel

    device = torch.device("cuda")
    config = {"num_attention_heads": 16, "num_layers": 24, "text_embed_dim": 32}
    model = CogVideoXTransformer3DModel(**config).to(torch.bfloat16).eval().requires_grad_(False)
    demand = MemoryEstimate.of(model, 0)
    place(model, device, offload="group")
    velocity(model)  # the order of the blocks is learned in the first pass
    torch.cuda.reset_peak_memory_stats(device)
    velocity(model)
    sizes = TransformerSizes.of(dict(model.config))
    work = Work(1, 1, 1)
    activations = activation_bytes(sizes, (3, 8, 12), work, item_size=2, device="cuda")
    assert torch.cuda.max_memory_allocated(device) < 2 * (demand.resident + activations)
    assert 2 * demand.resident < 0.5 * demand.weights
