"""The model of a run, loaded once: T5, transformer, VAE and prompt embeddings.

A session holds at most one of each. Where memory is short, a part makes room for the next one: it
moves from the device to host memory, or it is released. Where everything fits, everything stays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self, cast

from cogedit.artifacts import LoraRecord, keeping_in_use, show_size
from cogedit.config import Settings
from cogedit.errors import UsageError, shown
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    Work,
    activation_bytes,
    part_bytes,
    window_shape,
)
from cogedit.models.vae_cost import Direction, VAEPlan, VAESizes, VAEWay, plan_vae
from cogedit.stages.helpers import Helpers, Pass
from cogedit.stages.model import (
    checkpoint_for,
    dtype_for,
    dtype_note,
    gpu_note,
    lora_records,
    weights_for,
)
from cogedit.stages.model_part import (
    BESIDE_T5,
    LABELS,
    LOST_IN_FP8,
    OTHERWISE,
    Part,
    PartName,
    free_memory_of,
    make_room,
    release,
)
from cogedit.stages.one_thread import OneThread
from cogedit.stages.prompts import PromptCache, embeds_record
from cogedit.stages.run import Run
from cogedit.types import LoraFile, Offload, WindowPlan

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from torch import Tensor, nn

    from cogedit.media.stream import FrameFile
    from cogedit.models.placement import MemoryEstimate
    from cogedit.models.prompts import PromptEmbeds
    from cogedit.models.ranks import Ranks

    _Loaded = tuple[object, nn.Module]


class Session:
    """Owns the loaded parts of a model for the life of a command.

    Each part is loaded when it is first needed, and at most once:

        with Session() as session:
            for video in videos:
                edit(video, prompts, settings, session=session)

    The settings of each call say which model it is for: a part that was loaded under other ones is
    replaced. Leaving the outermost body frees the memory of everything. One thread uses a session
    at a time: UsageError where two do, or a process that was forked.
    """

    def __init__(self) -> None:
        self._users = OneThread()  # the first to be pickled, which it refuses
        self._parts: dict[PartName, Part] = {}
        self._embeds = PromptCache()
        self._expected: dict[str, None] = {}
        self._decodes = False
        self._source: tuple[Hashable, FrameFile] | None = None
        self._said: set[str] = set()
        self._helpers = Helpers()

    @property
    def ranks(self) -> Ranks | None:
        """The processes that compute with this one, while the transformer is had."""
        return self._helpers.ranks

    def __enter__(self) -> Self:
        self._users.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._users.leave():
            with suppress(UsageError) if kind is not None else nullcontext():
                self.close()

    def close(self) -> None:
        """Release everything; the session can be used again, and loads again."""
        with self._users.turn():
            self._embeds.clear()
            self._expected.clear()
            self._decodes = False
            self._source = None
            self._helpers.close()
            release(self._parts, *self._parts)

    def notify_once(self, note: str | None, run: Run) -> None:
        """Say what holds for everything that is made in this session, if there is anything."""
        if note is not None and note not in self._said:
            self._said.add(note)
            run.notify(note)

    def expect_prompts(self, prompts: Sequence[str]) -> None:
        """Announce the prompts to come, so that T5 embeds them all when it is loaded."""
        self._expected |= dict.fromkeys(prompts)

    def embed(self, prompts: Sequence[str], settings: Settings, *, run: Run) -> dict[str, Tensor]:
        """Embed prompts, [1, L, D] by prompt; report which of them are too long for the model.

        T5 is loaded only for prompts that are not in the cache on disk.
        """
        from cogedit.models.device import DTYPES, memory_guard, resolve_device

        checkpoint, device = checkpoint_for(settings), resolve_device(settings.device)
        dtype = DTYPES[dtype_for(settings)]
        describe = partial(
            embeds_record, checkpoint=checkpoint, device_type=device.type, settings=settings
        )
        records = {prompt: describe(prompt) for prompt in prompts}

        folder, known = settings.cache, self._embeds
        if unknown := [record for record in records.values() if not known.has(record, folder, run)]:
            later = [describe(text) for text in self._expected if text not in records]
            later = [record for record in later if not known.is_there(record, folder)]
            with memory_guard("embedding the prompts"):
                embed = self._embedder(checkpoint, device, settings, run=run)
                with run.wait("embedding the prompts"):
                    known.add(unknown, later, embed, folder, run)
        known.keep_alone(records.values())
        return {text: self._embeds[record].to(device, dtype) for text, record in records.items()}

    def _embedder(
        self, checkpoint: Checkpoint, device: torch.device, settings: Settings, *, run: Run
    ) -> Callable[[Sequence[str]], PromptEmbeds]:
        """Load T5, place it, and return the function that embeds with it."""
        from cogedit.models.loading import load_text_encoder
        from cogedit.models.placement import MemoryEstimate
        from cogedit.models.prompts import embed_prompts

        def load(host: torch.device, dtype: torch.dtype) -> _Loaded:
            tokenizer, encoder = load_text_encoder(checkpoint, device=host, dtype=dtype)
            embed = partial(
                embed_prompts,
                tokenizer=tokenizer,
                text_encoder=encoder,
                max_text_seq_length=checkpoint.geometry.max_text_seq_length,
            )
            # The stack holds all weights: the embedding table is tied to this one's.
            return embed, encoder.encoder

        part = self._part("text_encoder", load, checkpoint, device, settings, run=run)
        self._place("text_encoder", MemoryEstimate.of(part.weights, BESIDE_T5), settings, run=run)
        return cast("Callable[[Sequence[str]], PromptEmbeds]", part.model)

    @contextmanager
    def transformer(
        self,
        work: Work,
        shape: LatentShape,
        settings: Settings,
        *,
        windows: WindowPlan | None,
        loras: Sequence[LoraFile],
        run: Run,
    ) -> Iterator[CogVideoXTransformer3DModel]:
        """Have the transformer with LoRAs on its device for a pass over latents, in windows.

        One that is held with other LoRAs is loaded again.
        """
        from cogedit.models.device import memory_guard, resolve_device
        from cogedit.models.loading import load_transformer
        from cogedit.models.lora import fuse_loras
        from cogedit.models.placement import MemoryEstimate, on_device, store_weights

        checkpoint, device = checkpoint_for(settings), resolve_device(settings.device)
        stored = weights_for(settings)
        if self._decodes:
            self.plan_vae(shape, settings, "decode")

        def load(host: torch.device, dtype: torch.dtype) -> _Loaded:
            transformer = load_transformer(checkpoint, device=host, dtype=dtype)
            for note in fuse_loras(transformer, checkpoint, loras):
                self.notify_once(note, run)
            own = checkpoint.files.get("transformer")
            if loras and stored == "fp8" and own is not None and own.is_fp8:
                self.notify_once(LOST_IN_FP8, run)
            if stored is not None:
                store_weights(transformer, stored)
            return transformer, transformer

        with self._helpers.beside(Pass(work, shape, settings, windows, loras)):
            with memory_guard("loading the transformer"):
                added = lora_records(checkpoint, loras)
                part = self._part(
                    "transformer", load, checkpoint, device, settings, added=added, run=run
                )
                activations = activation_bytes(
                    TransformerSizes.of(checkpoint.transformer_config),
                    window_shape(shape, windows),
                    work,
                    max_rows=settings.transformer.max_rows,
                    item_size=ITEM_SIZE[dtype_for(settings)],
                    device=device.type,
                )
                estimate = MemoryEstimate.of(part.weights, activations)
                offload = self._place("transformer", estimate, settings, run=run)
            transformer = cast("CogVideoXTransformer3DModel", part.model)
            with on_device(transformer, device, offload=offload):
                yield transformer

    def vae(
        self, shape: LatentShape, settings: Settings, direction: Direction, *, run: Run
    ) -> tuple[AutoencoderKLCogVideoX, VAEWay]:
        """Have the VAE on its device for latents of a shape, and the fastest way that fits there.

        Raises:
            DeviceMemoryError: No way fits, or none to decode later where that is expected.
        """
        from cogedit.models.device import memory_guard, resolve_device
        from cogedit.models.loading import load_vae
        from cogedit.models.placement import MemoryEstimate
        from cogedit.models.vae_tiles import use_tiles

        checkpoint, device = checkpoint_for(settings), resolve_device(settings.device)

        def load(host: torch.device, dtype: torch.dtype) -> _Loaded:
            vae = load_vae(checkpoint, device=host, dtype=dtype)
            return vae, vae

        if self._decodes:
            self.plan_vae(shape, settings, "decode")
        plan = self.plan_vae(shape, settings, direction, run=run)
        with memory_guard("loading the VAE"):
            part = self._part("vae", load, checkpoint, device, settings, run=run)
            vae = cast("AutoencoderKLCogVideoX", part.model)
            estimate = MemoryEstimate.of(vae, 0)
            estimate = replace(estimate, activations=max(plan.num_bytes - estimate.weights, 0))
            # It has no blocks that could come one by one.
            self._place("vae", estimate, replace(settings, offload="none"), run=run)
        if plan.way.in_tiles:
            use_tiles(vae)
        else:
            vae.disable_tiling()
        return vae, plan.way

    def expect_decoding(self) -> None:
        """Announce that what is computed will be decoded: what could not be is not begun."""
        self._decodes = True

    def plan_vae(
        self,
        shape: LatentShape,
        settings: Settings,
        direction: Direction,
        *,
        run: Run | None = None,
    ) -> VAEPlan:
        """Choose how the VAE runs once the other parts have made room, and say so.

        Raises:
            DeviceMemoryError: No way fits.
        """
        from cogedit.models.device import resolve_device
        from cogedit.models.placement import RESERVE, MemoryEstimate

        checkpoint, device = checkpoint_for(settings), resolve_device(settings.device)
        dtype = dtype_for(settings)
        held = [part.weights for part in self._parts.values() if part.occupies(device)]
        own = sum(MemoryEstimate.of(weights, 0).weights for weights in held)
        plan = partial(
            plan_vae,
            VAESizes.of(checkpoint.vae_config),
            shape,
            direction,
            weights=part_bytes(checkpoint, "vae", dtype),
            item_size=ITEM_SIZE[dtype],
            device=device.type,
            tiling=settings.encode.vae_tiling if direction == "encode" else settings.decode_tiling,
        )
        whole = plan(usable=2**63).whole_bytes
        usable = int((free_memory_of(device, whole - own) + own) * (1 - RESERVE))
        chosen = plan(usable=usable)
        if run is not None and (note := chosen.note(direction, usable)) is not None:
            run.notify(note)
        return chosen

    def source_clip(self, key: Hashable, decode: Callable[[], FrameFile]) -> FrameFile:
        """Return the decoded source of an edit; the last one is kept for further edits of it."""
        if self._source is None or self._source[0] != key:
            self._source = None
            self._source = key, decode()
        return self._source[1]

    def _part(
        self,
        name: PartName,
        load: Callable[[torch.device, torch.dtype], _Loaded],
        checkpoint: Checkpoint,
        device: torch.device,
        settings: Settings,
        *,
        added: tuple[LoraRecord, ...] = (),
        run: Run,
    ) -> Part:
        """Return a part in host memory or on its device; load it where it is not held."""
        import torch

        from cogedit.models.device import DTYPES

        dtype = dtype_for(settings)
        key: Hashable = (checkpoint.digest, checkpoint.folder, dtype, device)
        if name == "transformer":
            added = tuple(replace(lora, name="") for lora in added)
            key = (key, weights_for(settings), settings.offload, added)
        if name in self._parts and self._parts[name].key == key:
            return self._parts[name]
        release(self._parts, name)
        host, size = torch.device("cpu"), part_bytes(checkpoint, name, dtype)
        make_room(self._parts, host, size, besides=name)
        for note in (gpu_note(settings), dtype_note(settings)):
            self.notify_once(note, run)
        with run.wait(f"loading {LABELS[name]}, {show_size(size)} in {dtype}", is_said=True):
            model, weights = load(host, DTYPES[dtype])
        self._parts[name] = Part(key, model, weights, device)
        return self._parts[name]

    def _place(
        self, name: PartName, estimate: MemoryEstimate, settings: Settings, *, run: Run
    ) -> Offload:
        """Bring a part to where it computes; on a CUDA device "auto" chooses how by its memory."""
        from cogedit.models.device import release_memory
        from cogedit.models.placement import choose_offload, place

        part, offload = self._parts[name], settings.offload
        here = part.offload == "none"
        blocks = estimate.resident if part.offload == "group" else estimate.weights
        room = estimate.activations + (0 if here else blocks)
        make_room(self._parts, part.device, room, besides=name)
        if part.offload in ("group", "model"):  # its hooks, or its passes, move its weights
            return part.offload
        if part.device.type != "cuda":
            if offload not in ("auto", "none") and not here:
                run.notify(f"--offload {offload} has no effect on {part.device.type}")
            offload = "none"
        elif offload == "auto":
            needed = estimate.activations + (0 if here else estimate.weights)
            free = free_memory_of(part.device, needed) + (estimate.weights if here else 0)
            offload, why = choose_offload(
                estimate, free=free, name=LABELS[name], otherwise=OTHERWISE[name]
            )
            if offload != part.offload:
                run.notify(why)
        elif name == "text_encoder" and offload == "model":
            offload = "none"  # it is called once, with no passes to wait between
        with run.wait(f"placing {LABELS[name]} for {part.device}"):
            if here and offload != "none":
                part.weights.to("cpu")
                release_memory(part.device)
            told = place(part.weights, part.device, offload=offload, overlap=name == "transformer")
        self.notify_once(told, run)
        part.offload = offload
        return offload


@contextmanager
def use_session(session: Session | None) -> Iterator[Session]:
    """Enter a session that others own, which stays open, or one of this body's own.

    The workspaces of the body stay in use until it ends, so that nothing is removed in between.
    """
    if not isinstance(session, Session | None):
        raise UsageError(f"session is {shown(session)}, expected a cogedit.Session")
    owner = Session() if session is None else session
    with keeping_in_use(), owner if session is None else owner._users.turn():
        yield owner
