"""Latents of an artifact to the frames that it shows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import EditRecord, FramesRecord, num_pad_frames, read_artifact
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.checkpoints import check_same_model, checkpoint_for
from cogedit.stages.composite import composite_for
from cogedit.stages.originals import source_frames, source_latents
from cogedit.stages.parts import Parts
from cogedit.stages.run import Run

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKLCogVideoX
    from numpy.typing import NDArray
    from torch import Tensor


class Decoder:
    """Decodes artifacts; loads the VAE when the first is asked for and keeps it.

    Args:
        settings: `model`, `device`, `dtype`, `encode.vae_tiling`, and of `export` what is shown
            outside a mask and whether edges are aligned; `workspace` where that needs the source's
            frames or latents.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def decode(self, source: Path) -> NDArray[np.uint8]:
        """Decode the latents of an artifact, of a trajectory its noise end.

        Returns:
            uint8 RGB, [F, H, W, C]. Of an edit the changes are fitted to the source's edges where
            that is asked for, and under a composite every pixel outside its mask is the source's
            own.

        Raises:
            ArtifactError: It is of another model, or damaged, or the source's frames or latents are
                gone.
            UsageError: A composite is asked for, and the artifact has no mask.
            ModelError: The model is missing or incomplete.
            DeviceMemoryError: The device is full.
        """
        artifact = read_artifact(source, ("latents", "trajectory", "edit"))
        record = artifact.record
        if isinstance(record, FramesRecord):
            raise TypeError("frames are not decoded")
        check_same_model(str(source), record, self._checkpoint)
        if record.kind == "trajectory":
            latents = artifact.tensors["trajectory"][-1]
        else:
            latents = artifact.tensors["latents"]
        wanted = composite_for(record, self._settings)
        radius = self._settings.export.align_edges
        # Looked for before anything is decoded.
        own = clean = None
        if isinstance(record, EditRecord) and (radius or wanted != "none"):
            instead = "leave --align-edges out" if radius else "use --composite decode"
            if radius or wanted == "source":
                own = source_frames(source, record, self._settings, otherwise=f"or {instead}")
            if radius or wanted == "decode":
                clean = source_latents(source, record, self._settings, hint=instead)
        pad = num_pad_frames(record)
        pixels = self._pixels(latents[:, pad:])
        round_trip = None if clean is None else self._pixels(clean[:, pad:])
        if radius and own is not None and round_trip is not None:
            import torch

            from cogedit.media.edges import align_edges

            arrays = (tensor.numpy() for tensor in (pixels, round_trip, own))
            pixels = torch.from_numpy(align_edges(*arrays, radius=radius))
        below = own if wanted == "source" else round_trip
        if wanted != "none" and below is not None:
            from cogedit.diffusion.mask import composite

            feather = self._settings.export.feather
            pixels = composite(pixels, below, artifact.tensors["mask"], feather=feather)
        array: NDArray[np.uint8] = pixels.numpy()
        return array

    def decode_source(self, trajectory: Path) -> NDArray[np.uint8]:
        """Decode the clean latents of a trajectory: its source, after the VAE's round trip.

        Returns:
            uint8 RGB, [F, H, W, C].

        Raises:
            ArtifactError: It is no trajectory, of another model, or damaged.
            ModelError: The model is missing or incomplete.
        """
        artifact = read_artifact(trajectory, "trajectory")
        check_same_model(str(trajectory), artifact.record, self._checkpoint)
        clean = artifact.tensors["latents"][:, num_pad_frames(artifact.record) :]
        array: NDArray[np.uint8] = self._pixels(clean).numpy()
        return array

    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode latents [1, F', C', H', W'] to uint8 [F, H, W, C] on the CPU."""
        from cogedit.models.device import memory_guard
        from cogedit.models.vae import decode_latents, to_pixels

        with memory_guard("decoding"):
            return to_pixels(decode_latents(self._vae, latents)).cpu()

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return checkpoint_for(self._settings)

    @cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        return Parts(self._checkpoint, self._settings, run=Run()).vae()
