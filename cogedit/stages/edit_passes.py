"""Computes edits of one trajectory, those that may share rows of the model in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from cogedit.artifacts import (
    EditRecord,
    Pieces,
    SavedSteps,
    Unfinished,
    frames_record,
    made_together,
)
from cogedit.config import Settings
from cogedit.diffusion.latent_mask import pool_mask, unpool_mask
from cogedit.diffusion.schedule import Schedule
from cogedit.errors import UsageError
from cogedit.media.masks import outside_of, read_mask
from cogedit.media.packed_mask import PackedMask
from cogedit.models.auto_mask import find_masks
from cogedit.models.cost import TransformerSizes, Work, edit_work, latent_shape
from cogedit.models.device import memory_guard, resolve_device
from cogedit.models.loading import alphas_cumprod
from cogedit.models.predictor import Predictor
from cogedit.models.sampling import edit_latents
from cogedit.progress import WindowProgress
from cogedit.stages.first_frame import condition_of, encode_first_frame
from cogedit.stages.given import Given
from cogedit.stages.live_preview import with_preview
from cogedit.stages.model import checkpoint_for
from cogedit.stages.pass_times import Stopwatch
from cogedit.stages.reconstruct import as_in_one_pass, edits_together
from cogedit.stages.resume import ResumableLoop
from cogedit.stages.run import Run, is_made_elsewhere
from cogedit.stages.session import Session
from cogedit.stages.source import resize_plan
from cogedit.stages.trajectory import open_trajectory
from cogedit.types import ReconstructSettings


@dataclass(eq=False)
class EditPasses:
    """Computes edits of one trajectory when they are asked for.

    Args:
        path: The trajectory artifact.
        wanted: Records of the edits of the run, by content key.
        missing: Keys of those that will be asked for; the others exist.
        folder: Where the artifacts are to lie, and are made.
        given: Mask and first frame of all of them.
        notes: Workspace where the time of a pass is noted; None notes nothing.
    """

    path: Path
    wanted: Mapping[str, EditRecord]
    missing: Collection[str]
    folder: Path
    given: Given
    notes: Path | None
    settings: Settings
    run: Run
    session: Session

    def __post_init__(self) -> None:
        self._checkpoint = checkpoint_for(self.settings)
        self._record, self._inverted = open_trajectory(self.path, self._checkpoint)
        self._source = self._inverted.trajectory
        self._shape = latent_shape(self._source.latents)
        self._mask: PackedMask | None = None
        if self.given.mask is not None:
            frames = frames_record(self._record)
            indices, resize = frames.frame_indices, resize_plan(frames)
            self._mask = read_mask(self.given.mask, frames.source, indices=indices, resize=resize)
        self._made: dict[str, Mapping[str, Tensor | Pieces]] = {}
        self._done: set[str] = set()

    def edit(self, key: str) -> Mapping[str, Tensor | Pieces]:
        """Denoise a wanted edit by its content key, once each, and with it those that share rows.

        Returns:
            `latents` [B, F', C, H', W'] float32, `trajectory` [N, B, F', C, H', W'] if the record
            has one, `mask` [F, H, W] uint8 and `source_latents` if it has a mask.
        """
        if key not in self._made:
            unfinished = self._together(key)
            alone: AbstractContextManager[None] = nullcontext()
            if len(unfinished.makes) > 1:  # of a single one the caller holds the lease
                waiting = self.run.while_waiting(is_made_elsewhere(unfinished.root))
                alone = unfinished.alone(waiting=waiting)
            with alone:
                made = self._denoise(unfinished)
            self._made |= dict(zip(unfinished.makes, made, strict=True))
            self._done |= set(unfinished.makes)
        return self._made.pop(key)

    def _together(self, key: str) -> Unfinished:
        """Choose the edits of one pass: this one first, then others that are still to be made.

        A pass that an earlier run did not finish goes on with the same edits, also those that exist
        by now: with others, the results would agree to rounding only.
        """
        for kept in made_together(self.folder, "edit"):
            if key in kept.makes and {*kept.makes} <= self.wanted.keys():
                return kept

        def shared(record: EditRecord) -> EditRecord:
            return replace(record, settings=as_in_one_pass(record.settings))

        own = shared(self.wanted[key])
        others = [
            other
            for other, record in self.wanted.items()
            if other in self.missing and other not in {key, *self._done} and shared(record) == own
        ]
        keys = [key, *others][: edits_together(self._source.latents.numel())]
        return Unfinished.of(self.folder, "edit", keys)

    def _denoise(self, unfinished: Unfinished) -> list[Mapping[str, Tensor | Pieces]]:
        """Denoise the edits of one pass; an interrupted pass resumes."""
        records = [self.wanted[key] for key in unfinished.makes]
        options = records[0].settings
        pixels = [self._pixels(record) for record in records]
        masks = [self._latent_mask(mask, options) for mask in pixels if mask is not None]
        num_levels = len(self._source.timesteps)
        num_steps = options.num_steps(num_levels)
        embeds, condition = self._embeds, self._condition  # T5 first: the VAE makes room for it
        loop = ResumableLoop(
            unfinished,
            names=("offset" if options.method == "flow" else "sample",),
            shape=(len(records), *self._source.latents.shape[1:]),
            keep_all=records[0].has_trajectory,
            run=self.run,
        )
        on_state = with_preview(
            loop.save,
            self.path,
            self._record,
            self._source,
            schedule=Schedule.trailing(alphas_cumprod(self._checkpoint), num_levels),
            settings=self.settings,
            run=self.run,
        )
        what = records[0].title if len(records) == 1 else f"{len(records)} edits"
        with (
            memory_guard("editing"),
            self._predictor(embeds) as predictor,
            Stopwatch(resolve_device(self.settings.device)) as stopwatch,
            self.run.progress(f"editing: {what}", num_steps) as on_step,
            loop,
        ):
            num_done = loop.infos[-1].index + 1 if loop.infos else 0
            shown = WindowProgress(on_step, total=num_steps, num_done=num_done)
            samples = edit_latents(
                predictor,
                self._inverted,
                [record.settings for record in records],
                condition=condition,
                mask=torch.stack(masks) if masks else None,
                keep_steps=False,
                done=loop.done,
                on_state=on_state,
                on_step=shown.step,
                on_window=shown.window,
            )
        stopwatch.note(self.notes, unfinished.makes, is_whole=not loop.infos)
        made: list[Mapping[str, Tensor | Pieces]] = []
        for number, (record, mask) in enumerate(zip(records, pixels, strict=True)):
            tensors: dict[str, Tensor | Pieces] = {"latents": samples[-1][[number]]}
            if record.has_trajectory:
                tensors["trajectory"] = self._steps(loop.read_back(), number, options)
            if mask is not None:
                frames = partial(map, torch.from_numpy, mask)
                tensors["mask"] = Pieces("uint8", mask.shape, frames)
                tensors["source_latents"] = self._source.latents
            made.append(tensors)
        return made

    def _steps(self, saved: SavedSteps, number: int, options: ReconstructSettings) -> Pieces:
        """All steps of one edit of a pass, read from disk when they are written."""
        source = self._source.latents

        def slices() -> Iterator[Tensor]:
            for step in saved:
                own = step[[number]]
                yield own + source if options.method == "flow" else own  # offsets from the source

        return Pieces("float32", (len(saved), *source.shape), slices)

    def _pixels(self, record: EditRecord) -> PackedMask | None:
        """The mask of an edit as pixels of the clip; None where it has none."""
        if self._mask is not None and record.settings.mask_keep:
            return outside_of(self._mask, resize_plan(frames_record(self._record)))
        if self._mask is not None or not record.settings.auto_mask:
            return self._mask
        embeds, condition = self._embeds, self._condition
        with memory_guard("looking for the mask"), self._predictor(embeds) as predictor:
            [mask] = find_masks(predictor, self._inverted, [record.settings], condition=condition)
        if not mask.any():
            raise UsageError(
                "the automatic mask is empty: the prompt and the inversion's own predict the same",
                hint="give another prompt, or a mask with --mask",
            )
        spatial = self._checkpoint.geometry.spatial_compression
        temporal = self._checkpoint.geometry.temporal_compression
        latents = mask[self._record.num_pad_frames :]
        frames = (unpool_mask(one[None], spatial=spatial, temporal=temporal) for one in latents)
        return PackedMask(
            frame[0].numpy()
            for index, frame in enumerate(frames)
            for _ in range(temporal if index else 1)
        )

    def _latent_mask(self, pixels: PackedMask, options: ReconstructSettings) -> Tensor:
        """Turn a mask of pixels into one of latents, [F', 1, H', W'] float32."""
        geometry = self._checkpoint.geometry
        return pool_mask(
            map(torch.from_numpy, pixels),
            spatial=geometry.spatial_compression,
            temporal=geometry.temporal_compression,
            # An automatic mask was dilated when it was found.
            dilation=0 if self._mask is None else options.dilation,
            num_pad_frames=self._record.num_pad_frames,
        )

    @cached_property
    def _condition(self) -> Tensor | None:
        """What the model is shown of the edits' own first frame; None where they have none."""
        if self.given.first_frame is None:
            return None
        first = encode_first_frame(
            torch.from_numpy(self.given.first_frame.pixels)[None],
            self._record.latents,
            self.settings,
            run=self.run,
            session=self.session,
        )
        condition = condition_of(first, self._record)
        own = self._inverted.condition
        if own is not None and torch.equal(condition, own):
            self.run.notify(f"{self.given.first_frame.source.name} is the source's own first frame")
        return condition

    @cached_property
    def _embeds(self) -> Mapping[str, Tensor]:
        edits = [record.settings for record in self.wanted.values()]
        prompts = [prompt for edit in edits for prompt in (edit.prompt, edit.negative_prompt)]
        prompts.append(self._record.settings.prompt)
        return self.session.embed(prompts, self.settings, run=self.run)

    @contextmanager
    def _predictor(self, embeds: Mapping[str, Tensor]) -> Iterator[Predictor]:
        """Have the model on its device, placed for the largest of the passes to come."""
        table, options = alphas_cumprod(self._checkpoint), self.settings.transformer
        session = self.session
        with session.transformer(
            self._work,
            self._shape,
            self.settings,
            windows=self._record.windows,
            loras=self.settings.lora,
            run=self.run,
        ) as transformer:
            yield Predictor(transformer, table, embeds, options, session.ranks)

    @cached_property
    def _work(self) -> Work:
        """What all passes of the run take."""
        sizes = TransformerSizes.of(self._checkpoint.transformer_config)
        work, counted = Work(), set[str]()
        for key in self.missing:
            if key in counted:
                continue
            together = self._together(key).makes
            counted |= {*together}
            work += edit_work(
                [self.wanted[other].settings for other in together],
                self._record.settings,
                sizes,
                self._shape,
                self._record.windows,
            )
        return work
