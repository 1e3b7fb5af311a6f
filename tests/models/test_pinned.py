"""Weights in page-locked memory: what their buffers take, as torch's allocator rounds them."""

import platform
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pipelines import GOLDEN_PIPELINE
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.device import release_memory
from cogedit.models.loading import load_transformer
from cogedit.models.pinned import (
    most_pinned,
    pin_blocks,
    pin_or_not,
    plan_buffers,
    why_not_pinned,
)
from cogedit.models.placement import place, store_weights

CPU = torch.device("cpu")


def rounded(size):
    """What torch's allocator of page-locked memory takes for a request."""
    return 1 << (size - 1).bit_length()


def block_of(width, *, item_size=2):
    """Sizes of the weights of a block of CogVideoX."""
    matrices = [6 * width * 512] * 2 + [width * width] * 4 + [4 * width * width] * 2
    vectors = [6 * width] * 2 + [width] * 9 + [64] * 4 + [4 * width]
    return [item_size * size for size in matrices + vectors]


@pytest.mark.parametrize("num_blocks", [2, 3, 30, 42])
@pytest.mark.parametrize(("width", "item_size"), [(3072, 2), (3072, 1), (1920, 2), (1920, 4)])
def test_buffers_take_no_more_than_a_twentieth_beside_the_weights(width, item_size, num_blocks):
    sizes = block_of(width, item_size=item_size) * num_blocks
    layout = plan_buffers(sizes)
    assert sum(map(rounded, layout.buffers)) < 1.05 * sum(sizes) < sum(map(rounded, sizes))
    assert max(layout.buffers) <= 2**28  # beside one copy of the weights, the host holds one


@pytest.mark.parametrize("sizes", [[], [1], [3, 5000, 3, 2**20 + 1], [2**29 + 7], [100] * 1000])
def test_no_two_tensors_share_a_byte(sizes):
    layout = plan_buffers(sizes)
    ends = {}
    for size, (number, begin) in sorted(
        zip(sizes, layout.places, strict=True), key=lambda pair: pair[1]
    ):
        assert begin >= ends.get(number, 0)
        ends[number] = begin + size
    assert all(end <= layout.buffers[number] for number, end in ends.items())


@pytest.mark.parametrize(
    ("system", "release", "most"),
    [
        ("Linux", "6.8.0-45-generic", None),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", 400),
        ("Linux", "4.4.0-19041-Microsoft", 400),
        ("Windows", "11", 400),
        ("Darwin", "23.5.0", None),
    ],
)
def test_windows_lets_a_part_of_memory_be_pinned(system, release, most):
    assert most_pinned(1000, system=system, release=release) == most


@pytest.mark.parametrize(("total", "fits"), [(10_300, True), (10_200, False)])
def test_blocks_that_may_not_be_pinned_are_told(monkeypatch, total, fits):
    model = nn.Module()
    model.outside = nn.Linear(100, 100)
    model.blocks = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))  # 4 x 1024 bytes
    monkeypatch.setattr(platform, "release", lambda: "1")
    memory = SimpleNamespace(total=total)
    monkeypatch.setattr("cogedit.models.pinned.psutil.virtual_memory", lambda: memory)
    assert why_not_pinned(model) is None
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    said = why_not_pinned(model)
    assert said is None if fits else "Windows lets about" in said


def test_where_pinning_fails_none_is_pinned(monkeypatch):
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    empty, asked = torch.empty, []

    def refused(*size, pin_memory=False, **options):
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refused)
    said = pin_or_not(model)
    assert "too little memory" in said
    assert any(asked)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def storages(model):
    tensors = [*model.parameters(), *model.buffers()]
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


@pytest.mark.parametrize("weights", [None, "fp8", "int8"])
def test_the_values_stay_and_lie_in_few_buffers(weights):
    model = load_transformer(
        find_checkpoint(str(GOLDEN_PIPELINE)), device=CPU, dtype=torch.bfloat16
    )
    if weights is not None:
        store_weights(model, weights)
    blocks = model.transformer_blocks
    before = {name: value.clone() for name, value in blocks.state_dict().items()}
    kept = {id(one): one for one in blocks.parameters()}
    pin_blocks(model, pinned=False)
    after = blocks.state_dict()
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert (old.dtype, old.stride()) == (new.dtype, new.stride())
        assert torch.equal(old.view(torch.uint8), new.view(torch.uint8))
    assert kept.keys() == {id(one) for one in blocks.parameters()}, "hooks know them by identity"
    sizes = [value.nbytes for value in before.values()]
    aligned = sum(-(-size // 256) * 256 for size in sizes)
    assert sum(map(rounded, storages(blocks).values())) < 1.1 * aligned
    assert len(storages(blocks)) < len(sizes) / 4


class Copies(TorchDispatchMode):
    """Notes what is told before each copy."""

    def __init__(self, tell):
        super().__init__()
        self._tell, self.told = tell, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default:
            self.told.append(self._tell())
        return func(*args, **(kwargs or {}))


def test_each_tensor_is_let_go_as_it_is_copied():
    model, alive = nn.Module(), []

    def linear(width):
        layer = nn.Linear(width, width, bias=False)
        values = np.zeros((width, width), np.float32)
        alive.append(weakref.ref(values))
        layer.weight = nn.Parameter(torch.from_numpy(values), requires_grad=False)
        return layer

    model.blocks = nn.ModuleList([linear(8) for _ in range(10)])
    with Copies(lambda: sum(ref() is not None for ref in alive)) as copies:
        pin_blocks(model, pinned=False)
    assert copies.told == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert not any(ref() is not None for ref in alive)


def test_pinned_memory_is_given_back_by_a_torch_that_has_no_word_for_it(monkeypatch):
    """Before 2.12: seen on a GPU, where 11 GB of CogVideoX-5B would have stayed."""
    calls = []
    monkeypatch.delattr(torch.accelerator, "empty_host_cache", raising=False)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: calls.append(1), raising=False)
    release_memory(CPU)
    assert not calls
    release_memory(torch.device("cuda"))
    assert calls == [1]


def test_a_model_with_hooks_goes_when_memory_is_released():
    """Its hooks refer to it in a cycle."""
    model = load_transformer(
        find_checkpoint(str(GOLDEN_PIPELINE)), device=CPU, dtype=torch.bfloat16
    )
    place(model, CPU, offload="group")
    gone = weakref.ref(model)
    del model
    assert gone() is not None
    release_memory(CPU)
    assert gone() is None
