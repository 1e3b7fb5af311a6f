"""What the VAE would take, for dry runs."""

from __future__ import annotations

from dataclasses import dataclass

from cogedit.artifacts import FramesRecord
from cogedit.config import Settings
from cogedit.errors import DeviceMemoryError
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import ITEM_SIZE, part_bytes
from cogedit.models.vae_cost import ON_CUDA, WAYS, Direction, VAESizes, vae_bytes
from cogedit.stages.model import dtype_for, latent_shape_of
from cogedit.stages.session import Session


@dataclass(frozen=True)
class VAEEstimate:
    """What encoding or decoding would take.

    Attributes:
        way: How the VAE would run, such as "at once" or "frame by frame".
        num_bytes: Its memory on the device, its weights among it.
        problem: Why it cannot run, with what helps; None where it can.
    """

    way: str
    num_bytes: int
    problem: str | None = None


def estimate_vae(
    direction: Direction, frames: FramesRecord, checkpoint: Checkpoint, settings: Settings
) -> VAEEstimate:
    """Say how the VAE would run in the memory that is free now."""
    from cogedit.models.device import resolve_device

    shape = latent_shape_of(frames, checkpoint.geometry)
    try:
        plan = Session().plan_vae(shape, settings, direction)
    except DeviceMemoryError as error:
        dtype, device = dtype_for(settings), resolve_device(settings.device).type
        least = part_bytes(checkpoint, "vae", dtype) + vae_bytes(
            VAESizes.of(checkpoint.vae_config),
            shape,
            direction,
            WAYS[-1],
            item_size=ITEM_SIZE[dtype],
            device=device,
        )
        return VAEEstimate("does not fit", least, str(error))
    return VAEEstimate(str(plan.way), plan.num_bytes)


def notes_on(device: str) -> tuple[str, ...]:
    """Return what there is to know about the figures for a kind of device."""
    return (ON_CUDA,) if device == "cuda" else ()
