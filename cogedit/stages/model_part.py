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
        return resident and self.device == device if device.type == "cuda" else not resident


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
