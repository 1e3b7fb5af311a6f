"""Kernels of the attention: what they compute, and who may ask for which."""

import pytest
import torch
from torch.nn import functional

from cogedit.errors import UsageError
from cogedit.models.kernels import attention, attention_by_hand, attention_with_lse, check_backend


def qkv(seed, rows=2, tokens=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, tokens, 16, generator=generator) for _ in range(3)]


def test_log_sum_exp():
    q, k, v = qkv(2)
    out, lse = attention_with_lse(q, k, v)
    logits = q @ k.transpose(-1, -2) / 4
    assert torch.allclose(lse, logits.logsumexp(-1), atol=1e-5)
    assert torch.allclose(out, functional.scaled_dot_product_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_by_hand_in_blocks_of_queries(block):
    """What serves where torch has no kernel that gives the log-sum-exp."""
    q, k, v = qkv(2)
    expected = attention_with_lse(q, k, v)
    for found, right in zip(attention_by_hand(q, k, v, block=block), expected, strict=True):
        assert torch.allclose(found, right, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_by_hand_in_half_precision_rounds_nothing_but_its_output(dtype):
    """Large logits: their product in half precision would move the softmax by per cents."""
    q, k, v = (x.to(dtype) for x in qkv(4, tokens=64))
    q = 4 * q
    out, lse = attention_by_hand(q, k, v)
    logits = q.double() @ k.double().transpose(-1, -2) / 4
    assert torch.allclose(lse.double(), logits.logsumexp(-1), rtol=1e-5, atol=1e-4)
    exact = logits.softmax(-1) @ v.double()
    error = (out.double() - exact).norm() / exact.norm()
    assert error < torch.finfo(dtype).eps / 2  # an output rounded once
    assert out.dtype == dtype


def test_the_kernel_of_the_cpu():
    q, k, v = qkv(3)
    found = attention(q, k[:, :, :5], v[:, :, :5])
    expected = functional.scaled_dot_product_attention(q, k[:, :, :5], v[:, :, :5])
    assert torch.allclose(found, expected, atol=1e-5)
    check_backend("native", device=torch.device("cpu"), dtype="fp32", head_dim=16)


@pytest.mark.parametrize("backend", ["cudnn", "flash", "flash3", "sage"])
def test_a_kernel_of_another_device_is_refused(backend):
    with pytest.raises(UsageError, match=f"--attention-backend {backend} .* cpu") as caught:
        check_backend(backend, device=torch.device("cpu"), dtype="bf16", head_dim=64)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("backend", ["flash", "flash3", "sage"])
def test_a_kernel_whose_package_is_missing_is_refused(backend):
    """The packages are looked for before the device is touched."""
    with pytest.raises(UsageError, match=f"--attention-backend {backend} .* package"):
        check_backend(backend, device=torch.device("cuda"), dtype="bf16", head_dim=64)
