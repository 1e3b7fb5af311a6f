"""Devices, dtypes, and the error for a device that is out of memory."""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import nn

from cogedit.errors import DeviceMemoryError, UsageError
from cogedit.types import DType
from cogedit.wording import LESS_CLIP

DTYPES: dict[DType, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def resolve_device(device: str) -> torch.device:
    """Turn "auto", "cuda", "cuda:N", "mps" or "cpu" into a device; UsageError if it is not here."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"there is no device {device!r}; expected auto, cuda, cuda:N, mps or cpu"
        ) from error
    count = torch.cuda.device_count()
    if resolved.type == "cuda" and (resolved.index or 0) >= count:
        raise UsageError(
            f"the device {device} is not available: this machine has {count} CUDA devices",
            hint="choose another --device, or --device auto",
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("the device mps is not available", hint="use --device cpu")
    if resolved.type not in {"cuda", "mps", "cpu"}:
        raise UsageError(f"the device {device} is not supported; use cuda, mps or cpu")
    return resolved


def compute_device(module: nn.Module) -> torch.device:
    """Return where a model of diffusers or transformers computes.

    `enable_model_cpu_offload` and `enable_sequential_cpu_offload` of a pipeline let weights wait
    elsewhere, the latter on the device "meta"; accelerate's hooks know where they are used, as
    `DiffusionPipeline._execution_device` reads it.
    """
    if hasattr(module, "_hf_hook"):
        for part in module.modules():
            device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return cast(torch.device, module.device)


def bring_weights(module: nn.Module) -> None:
    """Let accelerate's hook bring a model of which parts are called, and not the model itself.

    `apply_forward_hook` of diffusers does so for a VAE's `encode` and `decode`.
    """
    bring = getattr(getattr(module, "_hf_hook", None), "pre_forward", None)
    if bring is not None:
        bring(module)


@contextmanager
def being_current(device: torch.device) -> Iterator[None]:
    """Let a CUDA device be the current one while the block runs.

    Streams are made on that one, and some kernels and libraries ask for it alone.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(*devices: torch.device) -> None:
    """Free what no object refers to any more, so that the next part of a model has room.

    Modules with hooks are in reference cycles, and torch keeps freed blocks of a GPU for itself.
    """
    gc.collect()
    types = {device.type for device in devices}
    if "cuda" in types:
        torch.cuda.empty_cache()
        # Page-locked memory, which torch keeps for itself as well. Before 2.12 only a private
        # function of torch gives it back.
        public = getattr(torch.accelerator, "empty_host_cache", None)
        (public or torch._C._host_emptyCache)()
    if "mps" in types:
        torch.mps.empty_cache()


_NO_ENGINE = "unable to find an engine"
"""What cuDNN says where no way to compute a convolution gets its memory; or cuDNN is broken."""

_SMALL_PAGING_FILE = ("os error 1455", "WinError 1455", "paging file is too small")
"""What Windows says where it has promised as much memory as RAM and paging file hold."""

_OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "Invalid buffer size"),
    *("ALLOC_FAILED", _NO_ENGINE, *_SMALL_PAGING_FILE),
)
"""Words of the errors that are not `torch.OutOfMemoryError`: MPS, the CPU allocators, cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError | OSError):
        return False
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:  # its text names the file, too
        if error.errno == errno.ENOMEM:
            return True
        text = error.strerror or ""
    return any(word.lower() in text.lower() for word in _OUT_OF_MEMORY)


_HINTS = {
    "encoding": f"use --vae-tiling, which changes the latents a little, {LESS_CLIP}",
    "embedding the prompts": "use --offload group or --dtype bf16, or another --device",
    "loading the VAE": "use another --device",
}
_HINT_FOR_TRANSFORMER = (
    "use --offload group, --weights int8 or fp8, --dtype bf16, --max-rows 1, fewer prompts at "
    f"once, {LESS_CLIP}"
)
"""What helps in a stage; all others run the transformer."""


@contextmanager
def memory_guard(doing: str, *, hint: str | None = None) -> Iterator[None]:
    """Turn the errors of a device that is out of memory into a DeviceMemoryError.

    It says what the device was `doing`, as in "inverting", and what helps there: `hint`, or what is
    known of it. Nothing is tried again in another way.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        # Whoever tries again while this is being handled needs what the failed calls hold.
        traceback.clear_frames(error.__traceback__)
        maybe = ", or its cuDNN does not work" if _NO_ENGINE in str(error) else ""
        if any(word in str(error) for word in _SMALL_PAGING_FILE):
            raise DeviceMemoryError(
                f"Windows had no memory left while {doing}: its paging file is too small",
                hint="enlarge it (System, Advanced system settings, Performance, Virtual memory)",
            ) from error
        raise DeviceMemoryError(
            f"the device ran out of memory while {doing}{maybe}",
            hint=hint or _HINTS.get(doing, _HINT_FOR_TRANSFORMER),
        ) from error
