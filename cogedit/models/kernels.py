"""The attention kernels of torch and of optional packages, each under one name.

diffusers' own CogVideoX processor calls torch and nothing else, so its `set_attention_backend` has
no effect on it; attention here goes through `dispatch_attention_fn`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor

from cogedit.errors import UsageError, first_line
from cogedit.models.device import DTYPES
from cogedit.types import AttentionBackend, DType

_NAMES: Mapping[AttentionBackend, str] = {
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash": "flash",
    "flash3": "_flash_3",
    "sage": "sage",
}
"""diffusers' names (`diffusers.models.attention_dispatch.AttentionBackendName`)."""

_MENDED_BY: Mapping[str, str] = {
    "flash": "pip install flash-attn",
    "flash3": "build FlashAttention-3 from its repository",
    "sage": "pip install sageattention",
}


MAX_LOGITS = 2**27
"""Logits that the form by hand holds at once: half a gigabyte in float32."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: AttentionBackend = "native") -> Tensor:
    """Attend with a kernel: queries [rows, heads, tokens, head_dim] in any memory layout.

    Keys and values may have any number of tokens; `check_backend` finds out whether a kernel can
    run. torch has no fused kernel for Macs: its function there holds all logits at once, 60 GB of
    them for a row of CogVideoX-5B, rounds the softmax in half precision and is wrong without an
    error from 2^32 logits on (pytorch/pytorch#149261, #179592). So "native" is by hand there.
    """
    if backend == "native":
        if q.device.type == "mps":
            return attention_by_hand(q, k, v)[0]
        if (wide := kernel_dtype(q.device, q.dtype)) != q.dtype:
            out = attention(q.to(wide), k.to(wide), v.to(wide))
            return out.to(q.dtype)
    return cast(Tensor, _dispatch(q, k, v, backend)).transpose(1, 2)


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, *, backend: AttentionBackend = "native"
) -> tuple[Tensor, Tensor]:
    """Return attention and the log-sum-exp of its logits, [rows, heads, tokens] in float32.

    Both come from the kernel that `backend` names; of "native", from the one of `native_lse`. torch
    keeps the log-sum-exp in its fused kernels for the backward pass but has no public function that
    returns it.

    Raises:
        UsageError: The named kernel gives no log-sum-exp.
    """
    if backend == "cudnn":
        return _cudnn_with_lse(q, k, v)
    if backend != "native":
        return _package_with_lse(q, k, v, backend)
    ops, kernel = torch.ops.aten, native_lse(q.device, q.dtype)
    if kernel == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out, lse
    if kernel == "cudnn":
        return _cudnn_with_lse(q, k, v)
    if kernel == "flash":
        out, lse, *_ = ops._scaled_dot_product_flash_attention(q, k, v)
        return out, lse
    if kernel == "efficient":
        wide = kernel_dtype(q.device, q.dtype)
        out, lse, *_ = ops._scaled_dot_product_efficient_attention(
            q.to(wide), k.to(wide), v.to(wide), None, True
        )
        return out.to(q.dtype), lse[:, :, : q.shape[2]]  # it pads the rows of its log-sum-exp
    return attention_by_hand(q, k, v)


def native_lse(
    device: torch.device, dtype: torch.dtype
) -> Literal["cpu", "cudnn", "flash", "efficient", "by hand"]:
    """Name the fastest of torch's kernels that give the log-sum-exp; "by hand" where none does."""
    if device.type != "cuda":
        return "cpu" if device.type == "cpu" else "by hand"
    half = dtype in (torch.float16, torch.bfloat16)
    capability = torch.cuda.get_device_capability(device)
    has_cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    if half and capability >= (9, 0) and has_cudnn:
        return "cudnn"  # 1.35 times as fast as "flash" on an H200, with the same log-sum-exp
    return "flash" if half and capability >= (8, 0) else "efficient"


def kernel_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which torch's fused kernels take numbers of this one.

    GPUs before Ampere, such as a T4, have none for bf16: torch's function would hold all logits,
    30 GB of them for a row of CogVideoX-5B.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        return dtype if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    return dtype


def _dispatch(
    q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend, **options: object
) -> object:
    """Call diffusers' kernel, which takes and gives [rows, tokens, heads, head_dim]."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    result: object = dispatch_attention_fn(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attention_kwargs=options,
        backend=AttentionBackendName(_NAMES[backend]),
    )
    return result


def _cudnn_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # Called below torch's own function, the kernel misreads tensors in other memory layouts.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.reshape(q.shape[:3])  # torch 2.9 and newer add a dimension


def _package_with_lse(
    q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend
) -> tuple[Tensor, Tensor]:
    """Take both from flash-attn, flash-attn 3 or sageattention."""
    result = _dispatch(q, k, v, backend, return_lse=True)
    if isinstance(result, tuple):  # a kernel without this option ignores it
        out, lse = result
        if backend == "flash3":
            lse = lse.transpose(1, 2)  # [rows, tokens, heads] from diffusers
        if lse.shape == q.shape[:3]:
            return out.transpose(1, 2), lse.float()
    raise UsageError(
        f"--attention-backend {backend} gives no log-sum-exp, which an injection strength other "
        "than 1 and --injection-mode image-queries-keys need",
        hint="--attention-backend native, or --injection-strength 1 with --injection-mode "
        "concatenate",
    )


def check_backend(
    backend: AttentionBackend,
    *,
    device: torch.device,
    dtype: DType,
    head_dim: int = 64,
    with_lse: bool = False,
) -> None:
    """Make sure that a kernel is installed and runs on a device, in a dtype.

    All published checkpoints have heads of 64 channels.

    Raises:
        UsageError: Its package is missing, it does not take the device, dtype or head size, or it
            gives no log-sum-exp where `with_lse` asks for one.
    """
    if backend == "native":
        return
    flag, instead = f"--attention-backend {backend}", "--attention-backend native"
    if device.type != "cuda":
        raise UsageError(f"{flag} needs a CUDA device; this run is on {device.type}", hint=instead)
    from diffusers.models.attention_dispatch import attention_backend

    try:
        with attention_backend(_NAMES[backend]):
            pass
    except RuntimeError as error:
        mend = _MENDED_BY.get(backend)
        raise UsageError(
            f"{flag} needs a package that is missing or too old: {first_line(error)}",
            hint=f"{mend}, or {instead}" if mend else instead,
        ) from error
    # Not a multiple of a kernel's blocks: some pad their log-sum-exp to one.
    probe = torch.zeros(1, 1, 100, head_dim, device=device, dtype=DTYPES[dtype])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says in warnings why a kernel is ruled out
            attention(probe, probe, probe, backend=backend)
            if with_lse:
                attention_with_lse(probe, probe, probe, backend=backend)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(
            f"{flag} cannot run on this device in {dtype} with heads of {head_dim}: "
            f"{first_line(error)}",
            hint=instead,
        ) from error


def attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, *, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Attend in blocks of queries, so that no more than `max_logits` logits are in memory.

    Everything is computed in float32, as in the fused kernels' accumulators: a product rounded to
    bfloat16 before the softmax would be off by up to 0.4 % of a logit, and its exponential by more.
    """
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    keys, values, scale = k.float().transpose(-1, -2), v.float(), 1 / math.sqrt(q.shape[-1])
    block = max(1, max_logits // (q.shape[0] * q.shape[1] * k.shape[2]))
    for queries in torch.split(q, block, dim=2):
        logits = (queries.float() * scale) @ keys
        lse = torch.logsumexp(logits, dim=-1)
        weights = logits.sub_(lse.unsqueeze(-1)).exp_()
        outs.append((weights @ values).to(q.dtype))
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
