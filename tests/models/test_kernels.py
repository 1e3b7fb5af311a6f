"""Kernels of the attention: what they compute, and who may ask for which."""

import pytest
import torch
from diffusers.models import attention_dispatch
from torch.nn import functional

from cogedit.errors import UsageError
from cogedit.models.kernels import (
    attention,
    attention_by_hand,
    attention_with_lse,
    check_backend,
    kernel_dtype,
)


def qkv(seed, rows=2, tokens=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, tokens, 16, generator=generator) for _ in range(3)]


def test_log_sum_exp():
    q, k, v = qkv(2)
    out, lse = attention_with_lse(q, k, v)
    logits = q @ k.transpose(-1, -2) / 4
    assert torch.allclose(lse, logits.logsumexp(-1), atol=1e-5)
    assert torch.allclose(out, functional.scaled_dot_product_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("max_logits", [1, 3 * 2 * 3 * 7, 2**20])
def test_by_hand_in_blocks_of_queries(max_logits):
    """What serves where torch has no kernel that gives the log-sum-exp."""
    q, k, v = qkv(2)
    expected = attention_with_lse(q, k, v)
    by_hand = attention_by_hand(q, k, v, max_logits=max_logits)
    for found, right in zip(by_hand, expected, strict=True):
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


@pytest.mark.parametrize("backend", ["flash", "flash3", "sage"])
def test_the_log_sum_exp_of_a_package(backend, monkeypatch):
    """In the layouts that the packages' functions give it in, as diffusers passes them on."""

    def kernel(query, key, value, **options):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out, lse = attention_with_lse(q, k, v)
        out = out.transpose(1, 2)
        if not options.get("return_lse"):
            return out
        return out, lse.transpose(1, 2) if backend == "flash3" else lse

    register(monkeypatch, backend, kernel, ["query", "key", "value", "return_lse"])
    q, k, v = qkv(5)
    k, v = k[:, :, :5], v[:, :, :5]
    expected = attention_with_lse(q, k, v)
    for found, right in zip(attention_with_lse(q, k, v, backend=backend), expected, strict=True):
        assert torch.equal(found, right)
    assert torch.equal(attention(q, k, v, backend=backend), expected[0])


@pytest.mark.parametrize("takes", [["return_lse"], []])
def test_a_kernel_without_a_log_sum_exp_is_refused(takes, monkeypatch):
    """Another kernel in its place would be silent."""

    def kernel(query, key, value, **options):
        return (query, query) if options else query

    register(monkeypatch, "sage", kernel, ["query", "key", "value", *takes])
    with pytest.raises(UsageError, match="--attention-backend sage") as caught:
        attention_with_lse(*qkv(6), backend="sage")
    assert caught.value.exit_code == 2


def register(monkeypatch, backend, kernel, arguments):
    """Have diffusers call a function for a package that is not installed."""
    name = attention_dispatch.AttentionBackendName({"flash3": "_flash_3"}.get(backend, backend))
    monkeypatch.setitem(attention_dispatch._AttentionBackendRegistry._backends, name, kernel)
    monkeypatch.setitem(
        attention_dispatch._AttentionBackendRegistry._supported_arg_names, name, set(arguments)
    )


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((7, 5), torch.bfloat16, torch.float32),  # no fused kernel of torch takes bf16 there
        ((7, 5), torch.float16, torch.float16),
        ((8, 0), torch.bfloat16, torch.bfloat16),
        ((9, 0), torch.float32, torch.float32),
    ],
)
def test_kernels_of_older_gpus_compute_in_float32(monkeypatch, capability, dtype, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert kernel_dtype(torch.device("cuda"), dtype) == expected
    assert kernel_dtype(torch.device("cpu"), torch.bfloat16) == torch.bfloat16
