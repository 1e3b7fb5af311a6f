"""What this machine computes with, asked without torch, whose import takes 2 s."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cogedit.errors import UsageError

_COMMAND = "by the command that https://pytorch.org/get-started/locally/ shows"


def cuda_present() -> bool:
    """Return whether torch would find a CUDA device, without importing it."""
    return num_cuda_devices() > 0


def num_cuda_devices() -> int:
    """Return how many CUDA devices torch would find, without importing it."""
    driver, built_for = nvidia_driver(), cuda_of_torch()
    if driver is None or built_for is None or driver.cuda < built_for:
        return 0
    return driver.num_devices


def unused_gpus() -> UsageError | None:
    """Say why torch finds no CUDA device where the driver has one; None if that is not so."""
    driver, built_for = nvidia_driver(), cuda_of_torch()
    if driver is None or driver.num_devices == 0:
        return None
    if built_for is None:
        return UsageError(
            f"torch ({version('torch')}) is built without CUDA, so the GPU of this machine is not "
            "used",
            hint=f"install a torch for CUDA {driver.cuda}, {_COMMAND}",
        )
    if driver.cuda < built_for:
        return UsageError(
            f"torch ({version('torch')}) is built for CUDA {built_for} and the driver knows CUDA "
            f"{driver.cuda}, so the GPU of this machine is not used",
            hint=f"update NVIDIA's driver, or install a torch for CUDA {driver.cuda}, {_COMMAND}",
        )
    return None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver.

    Attributes:
        num_devices: How many devices it lets this process use.
        cuda: The newest CUDA that it knows, 12 of 12.8; torch needs no older one than its own.
    """

    num_devices: int
    cuda: int


@functools.cache
def nvidia_driver() -> Driver | None:
    """Ask NVIDIA's driver; None if there is none, or it does not start."""
    library = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    count, newest = ctypes.c_int(0), ctypes.c_int(0)
    answers = (
        driver.cuInit(0),
        driver.cuDeviceGetCount(ctypes.byref(count)),
        driver.cuDriverGetVersion(ctypes.byref(newest)),
    )
    return None if any(answers) else Driver(count.value, newest.value // 1000)


@functools.cache
def cuda_of_torch() -> int | None:
    """Return for which CUDA torch was built, 13 of 13.0; None without torch or CUDA."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    with suppress(OSError):
        text = Path(found.origin).with_name("version.py").read_text()
        if match := re.search(r"^cuda\b.*= '(\d+)\.", text, re.MULTILINE):
            return int(match[1])
    return None


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
