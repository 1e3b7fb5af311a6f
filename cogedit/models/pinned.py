"""Page-locked host memory for weights that come to a CUDA device block by block.

Copies from it overlap with computation. torch's allocator of such memory rounds each request up to
a power of two: matrix by matrix, the blocks of CogVideoX-5B would take 19.7 GB instead of 11.1. So
many tensors share a buffer, and the buffers' sizes are powers of two.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from cogedit.models.device import is_out_of_memory, release_memory
from cogedit.wording import show_gb

_LARGEST = 2**28
"""Bytes of a buffer, at most, if no tensor is larger: about a block of CogVideoX-5B."""

_FULL = 0.9
"""Share of a buffer that all that is left must fill; else it gets one of half the size first."""

_SHARE_OF_WINDOWS = 0.4
"""Share of the machine's memory that may be page-locked on Windows, and in its WSL: the driver's
own limit is about a half, and what goes past it fails as if the GPU's memory were full."""

_ONE_BY_ONE = "each block is copied when the one before has computed, which is slower"

_ALIGNMENT = 256
"""Bytes at whose multiples a tensor begins, as torch's own allocations do."""


@dataclass(frozen=True)
class Layout:
    """Where some tensors lie.

    Attributes:
        buffers: Size of each buffer in bytes, a power of two.
        places: Of each tensor, its buffer and its first byte there.
    """

    buffers: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


def plan_buffers(sizes: Sequence[int]) -> Layout:
    """Lay tensors of some bytes out in few buffers: the largest first, each where it fits first.

    A new buffer is no larger than what is left, so that the last ones are small.
    """
    rounded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    left = sum(rounded)
    buffers: list[int] = []
    used: list[int] = []
    places = [(0, 0)] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -rounded[index]):
        size = rounded[index]
        fitting = (n for n, whole in enumerate(buffers) if whole - used[n] >= size)
        number = next(fitting, len(buffers))
        if number == len(buffers):
            whole = _power_of_two(left)
            chosen = whole if left > _FULL * whole else whole // 2
            buffers.append(max(_power_of_two(size), min(_LARGEST, chosen)))
            used.append(0)
        places[index] = number, used[number]
        used[number] += size
        left -= size
    return Layout(tuple(buffers), tuple(places))


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least this size."""
    return 1 << (size - 1).bit_length()


def most_pinned(total: int, *, system: str, release: str) -> int | None:
    """Return how many bytes of a machine's memory may be page-locked; None where all may be.

    Args:
        total: Bytes of memory of the machine.
        system: As `platform.system()` names it.
        release: Of its kernel, as `platform.release()` names it, which says where it is WSL's.
    """
    is_limited = system == "Windows" or "microsoft" in release.lower()
    return int(_SHARE_OF_WINDOWS * total) if is_limited else None


def why_not_pinned(model: nn.Module) -> str | None:
    """Say why a model's blocks cannot all be page-locked on this machine; None where they can."""
    total = int(psutil.virtual_memory().total)
    most = most_pinned(total, system=platform.system(), release=platform.release())
    if most is None:
        return None
    needed = sum(_layout_of(_tensors_of_blocks(model)).buffers)
    if needed <= most:
        return None
    return (
        f"{_ONE_BY_ONE}: {show_gb(needed)} of memory would be page-locked, and Windows lets about "
        f"{show_gb(most)} of {show_gb(total)} be"
    )


def pin_or_not(model: nn.Module) -> str | None:
    """Pin a model's blocks, or where the system refuses leave none pinned, and say why."""
    if (why := why_not_pinned(model)) is not None:
        return why
    try:
        pin_blocks(model)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # How much the system lets be pinned, only an attempt tells: under WSL at times 1 GB.
        pin_blocks(model, pinned=False)
        if torch.cuda.is_available():
            release_memory(torch.device("cuda"))
        return f"{_ONE_BY_ONE}: the system lets too little memory be page-locked"
    return None


def pin_blocks(model: nn.Module, *, pinned: bool = True) -> None:
    """Move the weights of a model's blocks to page-locked memory; their values stay the same.

    Each tensor lets go of its own memory as it is copied, so that the host never holds much more
    than one copy. diffusers' group offload pins tensor by tensor what is not pinned already.

    Args:
        model: In host memory, and in its final format.
        pinned: False lays out in the same way in usual memory, for machines without CUDA.
    """
    tensors = _tensors_of_blocks(model)
    layout = _layout_of(tensors)
    buffers: dict[int, Tensor] = {}
    # In the order of the buffers: each is allocated when the one before is full.
    for tensor, (number, begin) in sorted(
        zip(tensors, layout.places, strict=True), key=lambda pair: pair[1]
    ):
        if number not in buffers:
            size = layout.buffers[number]
            buffers = {number: torch.empty(size, dtype=torch.uint8, pin_memory=pinned)}
        place = buffers[number][begin : begin + tensor.nbytes].view(tensor.dtype)
        strides = torch.empty_like(tensor, device="meta").stride()
        tensor.data = place.as_strided(tensor.shape, strides).copy_(tensor)


def _tensors_of_blocks(model: nn.Module) -> list[Tensor]:
    """List the weights of a model's blocks."""
    lists = (child for child in model.children() if isinstance(child, nn.ModuleList))
    blocks = (block for child in lists for block in child)
    return [
        tensor
        for block in blocks
        for tensor in (*block.parameters(), *block.buffers())
        if tensor.nbytes
    ]


def _layout_of(tensors: Sequence[Tensor]) -> Layout:
    return plan_buffers([tensor.nbytes for tensor in tensors])
