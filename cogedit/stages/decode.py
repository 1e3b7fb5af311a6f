"""Latents of an artifact to the frames that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cogedit.artifacts import (
    Artifact,
    EditRecord,
    FramesRecord,
    content_key,
    frames_record,
    num_pad_frames,
    read_artifact,
)
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.composite import composite_for
from cogedit.stages.model import check_same_model, checkpoint_for
from cogedit.stages.run import Run
from cogedit.stages.session import Parts
from cogedit.stages.source_frames import otherwise_use, source_frames, source_latents
from cogedit.types import ExportSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX
    from numpy.typing import NDArray
    from torch import Tensor

    from cogedit.media.edges import Change


class Decoder:
    """Decodes artifacts; loads the VAE when the first is asked for and keeps it.

    Args:
        settings: `model`, `device`, `dtype`, `encode.vae_tiling`; `workspace`, where the source's
            frames and latents are looked for; and `export`.
        run: Shown how far it is; None is silent.
    """

    def __init__(self, settings: Settings, *, run: Run | None = None) -> None:
        self._settings = settings
        self._run = run or Run()
        self._last_round_trip: tuple[str, NDArray[np.uint8]] | None = None

    def decode(self, source: Path, *, export: ExportSettings | None = None) -> NDArray[np.uint8]:
        """Decode the latents of an artifact, of a trajectory its noise end.

        Args:
            source: The artifact.
            export: What an edit shows outside its mask, and whether its edges are aligned; None is
                as the settings have it.

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
        export = export or self._settings.export
        artifact = read_artifact(source, ("latents", "trajectory", "edit"))
        record = artifact.record
        if isinstance(record, FramesRecord):
            raise TypeError("frames are not decoded")
        check_same_model(str(source), record, self._checkpoint)
        wanted = composite_for(record, export)
        if not isinstance(record, EditRecord):
            latents = artifact.tensors["latents"]
            if record.kind == "trajectory":
                latents = artifact.tensors["trajectory"][-1]  # the clean ones: `decode_source`
            return self._pixels(latents[:, num_pad_frames(record) :])
        edit = Artifact(record, artifact.tensors)
        own: NDArray[np.uint8] | None = None
        if export.align_edges or wanted == "source":
            own = self._own_frames(source, record, export)
        if export.align_edges and own is not None:
            pixels = np.empty_like(own)
            changes = self._changes(source, edit, own, export)
            with self._run.counting("aligning edges", len(own)) as done:
                for index, change in enumerate(changes):
                    pixels[index] = change.on(own[index])
                    done()
        else:
            pixels = self._pixels(edit.tensors["latents"][:, num_pad_frames(record) :])
        if wanted == "none":
            return pixels
        below = self._round_trip(source, edit, export) if own is None else own
        return _composite(pixels, below, edit.tensors["mask"], feather=export.feather)

    def changes(self, source: Path, *, export: ExportSettings) -> Iterator[Change]:
        """Decode what an edit changed, fitted to the edges of the source's own frames.

        Args:
            source: The edit.
            export: `align_edges`, more than 0.

        Yields:
            The change of each frame.

        Raises:
            CogeditError: As `decode`, before the first.
        """
        edit = read_artifact(source, "edit")
        check_same_model(str(source), edit.record, self._checkpoint)
        own = self._own_frames(source, edit.record, export)
        return self._changes(source, edit, own, export)

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
        return self._pixels(artifact.tensors["latents"][:, num_pad_frames(artifact.record) :])

    def _own_frames(
        self, source: Path, record: EditRecord, export: ExportSettings
    ) -> NDArray[np.uint8]:
        otherwise = otherwise_use(export)
        frames: NDArray[np.uint8] = source_frames(
            source, record, self._settings, otherwise=otherwise
        ).numpy()
        return frames

    def _changes(
        self,
        source: Path,
        edit: Artifact[EditRecord],
        own: NDArray[np.uint8],
        export: ExportSettings,
    ) -> Iterator[Change]:
        """The changes of an edit; what can be missing is looked for before the first is decoded."""
        from cogedit.media.edges import fit_changes

        round_trip = self._round_trip(source, edit, export)
        edited = self._pixels(edit.tensors["latents"][:, num_pad_frames(edit.record) :])
        box = frames_record(edit.record).box
        picture = (slice(None), slice(None))
        if box.mode == "pad":
            picture = (
                slice(box.top, box.top + box.scaled_height),
                slice(box.left, box.left + box.scaled_width),
            )
        return fit_changes(edited, round_trip, own, radius=export.align_edges, picture=picture)

    def _round_trip(
        self, source: Path, edit: Artifact[EditRecord], export: ExportSettings
    ) -> NDArray[np.uint8]:
        """Decode what an edit was made of; the last one is kept, for further edits of it."""
        record = edit.record
        key = content_key(record.trajectory)
        if self._last_round_trip is None or self._last_round_trip[0] != key:
            if record.has_mask:
                clean = edit.tensors["source_latents"][:, num_pad_frames(record) :]
            else:
                otherwise = otherwise_use(export)
                clean = source_latents(source, record, self._settings, otherwise=otherwise)
            self._last_round_trip = key, self._pixels(clean, "decoding the source")
        return self._last_round_trip[1]

    def _pixels(self, latents: Tensor, doing: str = "decoding") -> NDArray[np.uint8]:
        """Decode latents [1, F', C', H', W'] to uint8 [F, H, W, C]."""
        from cogedit.models.device import memory_guard
        from cogedit.models.vae import decode_latents, num_decoder_calls, to_pixels

        num_calls = num_decoder_calls(self._vae, latents.shape)
        with memory_guard("decoding"), self._run.counting(doing, num_calls) as done:
            frames = decode_latents(self._vae, latents, on_call=done)
        pixels: NDArray[np.uint8] = to_pixels(frames).cpu().numpy()
        return pixels

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return checkpoint_for(self._settings)

    @cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        return Parts(self._checkpoint, self._settings, run=Run()).vae()


def _composite(
    edited: NDArray[np.uint8], below: NDArray[np.uint8], mask: Tensor, *, feather: int
) -> NDArray[np.uint8]:
    import torch

    from cogedit.diffusion.latent_mask import composite

    laid: NDArray[np.uint8] = composite(
        torch.from_numpy(edited), torch.from_numpy(below), mask, feather=feather
    ).numpy()
    return laid
