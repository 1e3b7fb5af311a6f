"""Operations, seconds and bytes of a call."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from cogedit.models.device import wait_for
from cogedit.progress import StepInfo

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Timing:
    """What was measured of one job, or of one kind of step.

    Attributes:
        name: Its row.
        num_prompts: Edits N.
        flops: Operations: counted, or by formula where only some steps were run.
        seconds: Of each run.
        peak: The most memory in bytes; None if the device does not say.
        distance: Largest difference from the first row's edits, relative to their largest value;
            None where only some steps were run.
    """

    name: str
    num_prompts: int
    flops: float
    seconds: tuple[float, ...]
    peak: int | None
    distance: float | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


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


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, tuple[float, ...]]:
    """Time calls in turns, A B A B and not A A B B, so that a slow minute affects all of them.

    Args:
        calls: By name; already run once, so that no first call is timed.
        repeats: Number of turns.
        device: Waited for before and after each.

    Returns:
        The seconds of every turn, by name.
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
    return {name: tuple(values) for name, values in seconds.items()}


class StepClock:
    """Times every step of a loop, as its `on_step`; the first steps only warm up.

    Args:
        num_warmup: How many of them; at least one, because a step ends where the next one starts.
        device: Waited for after each step.
    """

    def __init__(self, *, num_warmup: int, device: torch.device) -> None:
        self._num_warmup = num_warmup
        self._device = device
        self._last = 0.0
        self.seconds: list[float] = []

    def __call__(self, info: StepInfo) -> None:
        """Note the time per model call since the step before."""
        wait_for(self._device)
        now = time.perf_counter()
        if info.index >= self._num_warmup:
            self.seconds.append((now - self._last) / info.num_calls)
        self._last = now


def peak_bytes(call: Callable[[], ResultT], device: torch.device) -> tuple[ResultT, int | None]:
    """Run a call and return the most memory that torch had allocated on a CUDA device.

    The model is included. Of other devices torch does not know: None.
    """
    if device.type != "cuda":
        return call(), None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    return result, torch.cuda.max_memory_allocated(device)
