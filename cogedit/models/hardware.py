"""What this machine computes with, asked without torch, whose import takes 2 s."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cuda_present() -> bool:
    """Return whether torch would find a CUDA device, without importing it."""
    return num_cuda_devices() > 0


def num_cuda_devices() -> int:
    """Return how many CUDA devices torch would find, without importing it.

    The driver is asked, and the name of torch's build: a CPU build finds none in any case.
    """
    try:
        if version("torch").endswith("+cpu"):
            return 0
    except PackageNotFoundError:
        return 0

    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0


@functools.cache
def cpu_computes_bf16() -> bool:
    """Return whether the CPU has instructions for bf16 (AMX, AVX-512 BF16, Arm's).

    Without them matrix products take 7 times as long in bf16 or fp16 as in fp32, and convolutions
    33 times (measured on an EPYC with AVX2).
    """
    if platform.system() != "Linux":
        return False
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())
    return False
