"""Operations, seconds and bytes of a call."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from cogedit.models.device import wait_for
from cogedit.types import OnStep, StepInfo

ResultT = TypeVar("ResultT")

_STATM = Path("/proc/self/statm")
_SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Timing:
    """How long something took, several times.

    Attributes:
        seconds: Each time.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """From the shortest to the longest, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def count_flops(call: Callable[[], ResultT]) -> tuple[ResultT, int]:
    """Run a call and count its floating-point operations, of matrix products and attention.

    torch's counter knows no formula for its fused attention on the CPU. It gets the one that it has
    for the kernels of other devices: two operations for each product in q k^T and in its product
    with v.
    """

    def attention(
        query: tuple[int, ...],
        key: tuple[int, ...],
        value: tuple[int, ...],
        *args: object,
        out_shape: object = None,
        **kwargs: object,
    ) -> int:
        rows, heads, queries, _ = query
        return 2 * rows * heads * queries * key[2] * (key[3] + value[3])

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        result = call()
    return result, int(counter.get_total_flops())


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, Timing]:
    """Time calls in turns, A B A B and not A A B B, so that a slow minute meets them all.

    Args:
        calls: By name; they have been run before, for what a first run alone takes.
        repeats: How many turns.
        device: Waited for before and after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            wait_for(device)
            started = time.perf_counter()
            call()
            wait_for(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


class StepClock:
    """Takes the time of every step of a loop, as its `on_step`; the first steps only warm up.

    Args:
        num_warmup: How many of them; at least one, because only a step tells the time.
        device: Waited for after each step.
    """

    def __init__(self, *, num_warmup: int, device: torch.device) -> None:
        self._num_warmup = num_warmup
        self._device = device
        self._last = 0.0
        self.seconds: list[float] = []

    @property
    def on_step(self) -> OnStep:
        """What a loop is to call."""
        return self._on_step

    def _on_step(self, info: StepInfo) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        if info.index >= self._num_warmup:
            self.seconds.append((now - self._last) / info.num_calls)
        self._last = now


def peak_bytes(call: Callable[[], ResultT], device: torch.device) -> tuple[ResultT, int | None]:
    """Run a call and return the most memory that it held at a time.

    On a CUDA device that is what torch had allocated, the model included. On a CPU it is the
    resident memory of this process beyond what was resident before; None where the system does not
    say.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        return result, torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not _STATM.exists():
        return call(), None
    _release_free_memory()
    before, peak = _resident(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return result, max(0, peak - before)


def _release_free_memory() -> None:
    """Have the C library give back what is free, which would hide what a call takes again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident() -> int:
    pages = int(_STATM.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
