"""The parts of the model that a run uses: where they compute, in which number format, one by one.

T5 comes, embeds and goes before the transformer is loaded; embeddings stay on disk, so that the
same prompts never need T5 again. Both come block by block where a device has no room for the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts.embeds import EmbedsRecord, default_cache, find_embeds, write_embeds
from cogedit.config import Settings
from cogedit.errors import ArtifactDamaged, StorageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import LatentShape, TransformerSizes, Work, activation_bytes
from cogedit.stages.model import dtype_for, weights_for
from cogedit.stages.run import Run
from cogedit.types import Offload

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from torch import Tensor

    from cogedit.models.placement import MemoryEstimate

_SHOWN_WORDS = 8

_BESIDE_T5 = 2**28
"""Bytes that T5 computes in, at most: one prompt at a time."""


class Parts:
    """Loads what a run needs of a checkpoint. Nothing is kept here: who asks, owns.

    Args:
        checkpoint: The model.
        settings: `device`, `dtype`, `weights`, `offload`, `cache`, `encode.vae_tiling`.
        run: Whom to tell.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, *, run: Run) -> None:
        self.checkpoint = checkpoint
        self._settings = settings
        self._run = run
        self._offload: Offload = "none"

    @cached_property
    def device(self) -> torch.device:
        """Where the run computes.

        Raises:
            UsageError: The device is not there.
        """
        from cogedit.models.device import resolve_device

        return resolve_device(self._settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        from cogedit.models.device import DTYPES

        return DTYPES[dtype_for(self._settings)]

    @cached_property
    def sizes(self) -> TransformerSizes:
        """The sizes of the transformer."""
        return TransformerSizes.of(self.checkpoint.transformer_config)

    @cached_property
    def _asked(self) -> Offload:
        """The placement asked for, where the device leaves a choice; said if it does not."""
        asked = self._settings.offload
        if self.device.type == "cuda":
            return asked
        if asked not in ("auto", "none"):
            self._run.notify(f"--offload {asked} has no effect on {self.device.type}")
        return "none"

    def transformer(self, work: Work, shape: LatentShape) -> CogVideoXTransformer3DModel:
        """Load the transformer and place it for what it is to do.

        Args:
            work: The passes that it is to make.
            shape: Of the clip's latents.

        Raises:
            ModelError: It is incomplete.
            DeviceMemoryError: The device is full.
        """
        import torch

        from cogedit.models.device import memory_guard
        from cogedit.models.loading import load_transformer
        from cogedit.models.placement import MemoryEstimate, place, store_weights

        with memory_guard("loading the transformer"):
            host = torch.device("cpu")
            transformer = load_transformer(self.checkpoint, device=host, dtype=self.dtype)
            weights = weights_for(self._settings)
            if weights is not None:
                store_weights(transformer, weights)
            activations = activation_bytes(
                self.sizes,
                shape,
                rows=work.max_rows,
                max_rows=self._settings.transformer.max_rows,
                item_size=self.dtype.itemsize,
                device=self.device.type,
            )
            demand = MemoryEstimate.of(transformer, activations)
            self._offload = self._choose(
                demand, "the transformer", otherwise="--weights fp8 or fewer frames help"
            )
            place(transformer, self.device, offload=self._offload)
            return transformer

    def running(self, transformer: CogVideoXTransformer3DModel) -> AbstractContextManager[None]:
        """Have a transformer that was loaded here on its device for a pass."""
        from cogedit.models.placement import on_device

        return on_device(transformer, self.device, offload=self._offload)

    def _choose(self, demand: MemoryEstimate, name: str, *, otherwise: str) -> Offload:
        """Choose the placement where it is left open, and say what was chosen and why."""
        from cogedit.models.placement import choose_offload, free_memory

        if self._asked != "auto":
            return self._asked
        free = free_memory(self.device)
        chosen, why = choose_offload(demand, free=free, name=name, otherwise=otherwise)
        self._run.notify(why)
        return chosen

    def vae(self) -> AutoencoderKLCogVideoX:
        """Load the VAE, in tiles if the settings say so.

        Raises:
            ModelError: It is incomplete.
            DeviceMemoryError: The device is full.
        """
        from cogedit.models.device import memory_guard
        from cogedit.models.loading import load_vae
        from cogedit.models.vae import use_tiles

        with memory_guard("loading the VAE"):
            vae = load_vae(self.checkpoint, device=self.device, dtype=self.dtype)
        if self._settings.encode.vae_tiling:
            use_tiles(vae)
        return vae

    def embed(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Embed texts, [1, L, D] by text; say which of them were too long for the model.

        What is in the cache is read from there. T5 is loaded for the rest and freed before this
        returns.

        Raises:
            ModelError: T5 or its vocabulary is incomplete.
            DeviceMemoryError: The device is full.
        """
        cache = self._settings.cache or default_cache()
        records = {text: self._record(text) for text in texts}
        embeds: dict[str, Tensor] = {}
        for text, record in records.items():
            found = self._find(cache, record)
            if found is not None:
                self._tell(found[0])
                embeds[text] = found[1].to(self.device, self.dtype)
        for record, tensor in self._compute([t for t in records if t not in embeds]):
            self._tell(record)
            self._keep(cache, record, tensor)
            embeds[record.prompt] = tensor
        return embeds

    def _compute(self, texts: Sequence[str]) -> list[tuple[EmbedsRecord, Tensor]]:
        """Embed texts with T5, which is gone when this returns."""
        if not texts:
            return []
        import torch

        from cogedit.models.device import memory_guard, release_memory
        from cogedit.models.loading import load_text_encoder
        from cogedit.models.placement import MemoryEstimate, place
        from cogedit.models.prompts import embed_prompts

        length = self.checkpoint.geometry.max_text_seq_length
        with memory_guard("embedding the prompts"):
            host = torch.device("cpu")
            tokenizer, encoder = load_text_encoder(self.checkpoint, device=host, dtype=self.dtype)
            stack = encoder.encoder  # all of it: the embedding table is tied to this one's
            demand = MemoryEstimate.of(stack, _BESIDE_T5)
            offload = self._choose(demand, "T5", otherwise="--device chooses another device")
            # Used once, it has no between that "model" could mean.
            offload = "none" if offload == "model" else offload
            place(stack, self.device, offload=offload, overlap=False)
            embedded = embed_prompts(texts, tokenizer, encoder, max_text_seq_length=length)
        del encoder, stack
        release_memory(self.device)
        return [
            (replace(self._record(text), truncated=truncated, unknown=unknown), embeds)
            for text, truncated, unknown, embeds in zip(
                texts, embedded.truncated, embedded.unknown, embedded.embeds, strict=True
            )
        ]

    def _record(self, text: str) -> EmbedsRecord:
        from importlib.metadata import version

        return EmbedsRecord(
            prompt=text,
            model=self.checkpoint.digest,
            dtype=dtype_for(self._settings),
            device=self.device.type,
            max_text_seq_length=self.checkpoint.geometry.max_text_seq_length,
            library=f"transformers {version('transformers')}",
        )

    def _find(self, cache: Path, record: EmbedsRecord) -> tuple[EmbedsRecord, Tensor] | None:
        try:
            return find_embeds(cache, record)
        except (ArtifactDamaged, StorageError) as error:
            self._run.notify(f"{error.message}; the prompt is embedded again")
            return None

    def _keep(self, cache: Path, record: EmbedsRecord, embeds: Tensor) -> None:
        try:
            path = write_embeds(cache, embeds, record)
        except StorageError as error:
            # The run does not need it; the next one takes longer.
            self._run.notify(f"the embedding of the prompt is not kept: {error.message}")
        else:
            self._run.detail(f"wrote {path} (the embedding of {_short(record.prompt)!r})")

    def _tell(self, record: EmbedsRecord) -> None:
        if record.truncated:
            self._run.notify(
                f"the prompt {_short(record.prompt)!r} is {record.truncated} tokens too long for "
                f"this model ({record.max_text_seq_length}); its end is left out"
            )
        if record.unknown:
            words = ", ".join(repr(_short(word)) for word in record.unknown[:_SHOWN_WORDS])
            more = ", ..." if len(record.unknown) > _SHOWN_WORDS else ""
            self._run.notify(
                f"the model does not know these words of the prompt {_short(record.prompt)!r}: "
                f"{words}{more}; only the others count"
            )


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
