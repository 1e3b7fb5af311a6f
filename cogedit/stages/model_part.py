"""A part of a loaded model, and the memory that it may take."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cogedit.types import Offload

if TYPE_CHECKING:
    import torch
    from torch import nn

PartName = Literal["text_encoder", "vae", "transformer"]

LABELS: dict[PartName, str] = {
    "text_encoder": "T5",
    "vae": "the VAE",
    "transformer": "the transformer",
}
"""What the parts are called in sentences."""

OTHERWISE: dict[PartName, str] = {
    "text_encoder": "--device chooses another device",
    "transformer": "--weights fp8 or fewer frames help",
}
"""What helps where a part is too large for the device."""

LOST_IN_FP8 = (
    "a transformer in fp8 takes up small changes of a LoRA only in part (--weights bf16 takes up "
    "all of them)"
)

BESIDE_T5 = 2**28
"""Bytes that T5 computes in, at most: one prompt at a time."""


@dataclass
class Part:
    """A part of the model that is loaded.

    Attributes:
        key: The settings that it was loaded under.
        model: What is called: the module itself, or of T5 the function that embeds with it.
        weights: What moves between host and device.
        device: Where it computes.
        offload: Its placement there; None while it waits in host memory as a whole.
    """

    key: Hashable
    model: object
    weights: nn.Module
    device: torch.device
    offload: Offload | None = None

    def occupies(self, device: torch.device) -> bool:
        """Whether its weights lie in the memory of this device."""
        resident = self.offload == "none" and self.device.type == "cuda"
        if device.type != "cuda":
            return not resident
        return resident and _number(self.device) == _number(device)


def _number(device: torch.device) -> int:
    """Which CUDA device it is; "cuda" is the current one."""
    import torch

    return torch.cuda.current_device() if device.index is None else device.index


def free_memory_of(device: torch.device, needed: int) -> int:
    """Return the bytes that are free on a device, garbage collected where that is too few.

    What a pass left in reference cycles would count as taken, and a part would move for nothing.
    """
    from cogedit.models.device import release_memory
    from cogedit.models.placement import RESERVE, free_memory

    free = free_memory(device)
    if needed > free * (1 - RESERVE):
        release_memory(device)
        free = free_memory(device)
    return free


def make_room(
    parts: dict[PartName, Part], device: torch.device, needed: int, *, besides: PartName
) -> None:
    """Move other parts out of the memory of a device until this many bytes are free there.

    Parts of a CUDA device move to host memory if that has room; otherwise they are released.
    """
    import torch

    from cogedit.models.device import release_memory
    from cogedit.models.placement import RESERVE, MemoryEstimate

    host = torch.device("cpu")
    order: tuple[PartName, ...] = ("text_encoder", "vae", "transformer")
    for name in order:
        if name == besides or name not in parts:
            continue
        part = parts[name]
        if not part.occupies(device):
            continue
        if needed <= free_memory_of(device, needed) * (1 - RESERVE):
            return
        weights = MemoryEstimate.of(part.weights, 0).weights
        if device.type == "cuda" and weights <= free_memory_of(host, weights) * (1 - RESERVE):
            part.weights.to(host)
            part.offload = None
            release_memory(device)
        else:
            del part
            release(parts, name)


def release(parts: dict[PartName, Part], *names: PartName) -> None:
    """Let go of parts, and give their memory back to their devices."""
    going = [parts.pop(name) for name in names if name in parts]
    devices = {part.device for part in going}
    going.clear()
    if devices:
        from cogedit.models.device import release_memory

        # A model with hooks hangs in a reference cycle, which only the collector opens. It
        # takes a third of a second, and so runs once for all.
        release_memory(*devices)
