"""Makes edits of one trajectory with the model loaded once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    TrajectoryRecord,
    Unfinished,
    frames_record,
    made_together,
    read_artifact,
)
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import Work, edit_work, latent_shape
from cogedit.stages.live_preview import show_states
from cogedit.stages.mask import (
    found_pixels,
    latents_of,
    pixels_of,
)
from cogedit.stages.pass_times import Stopwatch
from cogedit.stages.resume import StepKeeper
from cogedit.stages.run import Run, tell_waiting
from cogedit.stages.session import Parts

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel
    from torch import Tensor

    from cogedit.diffusion.trajectory import Trajectory
    from cogedit.media.masks import GivenMask


MAX_VALUES = 2**24
"""Latent values of the edits that are denoised together: 14 clips of CogVideoX-5B.

Their hidden states are in memory at once, whatever the number of rows that run at a time.
"""


def edits_together(num_values: int) -> int:
    """Return how many edits of a clip of this many latent values are denoised together."""
    return max(1, MAX_VALUES // num_values)


class Editor:
    """Makes edits of one trajectory; loads prompts and model when the first is asked for.

    Args:
        path: The trajectory artifact.
        record: Its record.
        checkpoint: The model.
        wanted: Records of the edits of the run, by content key.
        missing: Keys of those that will be asked for; the others are there.
        folder: Where the artifacts are to lie, and are made.
        mask: The mask of all of them; None where there is none, or it is to be found.
        notes: Workspace where the time of a pass is noted; None notes nothing.
        settings: Device and dtype of the run, and how its transformer runs.
        run: How to run.
    """

    def __init__(
        self,
        path: Path,
        record: TrajectoryRecord,
        checkpoint: Checkpoint,
        wanted: Mapping[str, EditRecord],
        *,
        missing: Collection[str],
        folder: Path,
        mask: GivenMask | None,
        notes: Path | None,
        settings: Settings,
        run: Run,
    ) -> None:
        self._path = path
        self._record = record
        self._checkpoint = checkpoint
        self._wanted = wanted
        self._missing = missing
        self._folder = folder
        self._mask = mask
        self._parts = Parts(checkpoint, settings, run=run)
        self._notes = notes
        self._settings = settings
        self._run = run
        self._made: dict[str, Mapping[str, Tensor]] = {}
        self._done: set[str] = set()

    def edit(self, key: str) -> Mapping[str, Tensor]:
        """Denoise one of the wanted edits, together with those that differ in text and seed alone.

        Args:
            key: Its content key; each may be asked for once.

        Returns:
            `latents` [B, F', C, H', W'] float32, `trajectory` [N, B, F', C, H', W'] if the record
            asks for it, `mask` [F, H, W] uint8 and `source_latents` if it has a mask.
        """
        if key not in self._made:
            unfinished = self._together(key)
            alone: AbstractContextManager[None] = nullcontext()
            if len(unfinished.makes) > 1:  # of a single one the caller holds the lock
                waiting = partial(tell_waiting, unfinished.root, self._run)
                alone = unfinished.alone(waiting=waiting)
            with alone:
                made = self._edit(unfinished)
            self._made |= dict(zip(unfinished.makes, made, strict=True))
            self._done |= set(unfinished.makes)
        return self._made.pop(key)

    def _together(self, key: str) -> Unfinished:
        """Choose the edits of one pass: this one first, then others that are still to be made.

        A pass that an earlier run did not finish goes on with the same edits, also those that are
        there by now: in another company the numbers would agree to rounding only.
        """
        for kept in made_together(self._folder, "edit"):
            if key in kept.makes and {*kept.makes} <= self._wanted.keys():
                return kept

        def shared(record: EditRecord) -> EditRecord:
            return replace(record, settings=replace(record.settings, prompt="", seed=0))

        own = shared(self._wanted[key])
        others = [
            other
            for other, record in self._wanted.items()
            if other in self._missing and other not in {key, *self._done} and shared(record) == own
        ]
        keys = [key, *others][: edits_together(self._reference.latents.numel())]
        return Unfinished.of(self._folder, "edit", keys)

    def _edit(self, unfinished: Unfinished) -> list[Mapping[str, Tensor]]:
        """Denoise edits that differ in the prompt and the seed alone."""
        import torch

        from cogedit.diffusion.schedule import Schedule
        from cogedit.models.device import memory_guard
        from cogedit.models.loading import alphas_cumprod
        from cogedit.models.sampling import edit_latents

        records = [self._wanted[key] for key in unfinished.makes]
        asked = records[0].settings
        pixels = [self._pixels(record) for record in records]
        masks = [
            self._latents(one, record)
            for one, record in zip(pixels, records, strict=True)
            if one is not None
        ]
        steps = (asked.num_inference_steps or len(self._reference.timesteps)) - asked.start_step
        transformer, embeds = self._transformer, self._embeds  # loaded before the clock starts
        keeper = StepKeeper(
            unfinished,
            names=("offset" if asked.method == "flow" else "sample",),
            shape=(len(records), *self._reference.latents.shape[1:]),
            keep_all=records[0].has_trajectory,
            run=self._run,
        )
        levels = alphas_cumprod(self._checkpoint)
        on_state = show_states(
            keeper.keep,
            self._path,
            self._record,
            self._reference,
            schedule=Schedule.trailing(levels, len(self._reference.timesteps)),
            settings=self._settings,
            run=self._run,
        )
        stopwatch = Stopwatch(self._parts.device)
        what = asked.prompt if len(records) == 1 else f"{len(records)} edits"
        with (
            memory_guard("editing"),
            self._parts.running(transformer),
            self._run.progress(f"editing: {what}", steps) as on_step,
            keeper,
        ):
            samples = edit_latents(
                transformer,
                self._reference,
                [record.settings for record in records],
                inversion_prompts=[self._record.settings.prompt] * len(records),
                alphas_cumprod=levels,
                embeds=embeds,
                mask=torch.stack(masks) if masks else None,
                options=self._settings.transformer,
                keep_steps=records[0].has_trajectory,
                done=keeper.done,
                on_state=on_state,
                on_step=on_step,
            )
        stopwatch.note(self._notes, unfinished.makes, is_whole=not keeper.done)
        return [
            self._tensors([sample[[number]] for sample in samples], pixels[number], record)
            for number, record in enumerate(records)
        ]

    def _tensors(
        self, samples: Sequence[Tensor], pixels: Tensor | None, record: EditRecord
    ) -> Mapping[str, Tensor]:
        """Return what the artifact of an edit holds."""
        import torch

        tensors = {"latents": samples[-1].cpu()}
        if record.has_trajectory:
            tensors["trajectory"] = torch.stack(list(samples)).cpu()
        if pixels is not None:
            tensors |= {"mask": pixels, "source_latents": self._reference.latents}
        return tensors

    def _pixels(self, record: EditRecord) -> Tensor | None:
        """The mask of an edit as pixels of the clip, [F, H, W] uint8; None where it has none."""
        if self._given is not None or not record.settings.auto_mask:
            return self._given
        from cogedit.models.auto_mask import find_masks
        from cogedit.models.device import memory_guard

        with memory_guard("looking for the mask"), self._parts.running(self._transformer):
            [found] = find_masks(
                self._transformer,
                self._reference,
                [record.settings],
                inversion_prompts=[self._record.settings.prompt],
                embeds=self._embeds,
                options=self._settings.transformer,
            )
        geometry = self._checkpoint.geometry
        return found_pixels(found, geometry, num_pad_frames=self._record.num_pad_frames)

    def _latents(self, pixels: Tensor, record: EditRecord) -> Tensor:
        geometry, pad = self._checkpoint.geometry, self._record.num_pad_frames
        return latents_of(pixels, record, geometry, num_pad_frames=pad)

    @cached_property
    def _given(self) -> Tensor | None:
        return None if self._mask is None else pixels_of(self._mask, frames_record(self._record))

    @cached_property
    def _reference(self) -> Trajectory:
        from cogedit.diffusion.trajectory import Trajectory

        tensors = read_artifact(self._path, "trajectory").tensors
        timesteps = tuple(int(t) for t in tensors["timesteps"])
        return Trajectory(tensors["trajectory"], tensors["latents"], timesteps)

    @cached_property
    def _embeds(self) -> Mapping[str, Tensor]:
        asked = [record.settings for record in self._wanted.values()]
        texts = [text for one in asked for text in (one.prompt, one.negative_prompt)]
        return self._parts.embed([*texts, self._record.settings.prompt])

    @cached_property
    def _transformer(self) -> CogVideoXTransformer3DModel:
        _ = self._embeds  # T5 is done and freed before the transformer needs the memory.
        shape = latent_shape(self._reference.latents)
        work, counted = Work(), set[str]()
        for key in self._missing:
            if key in counted:
                continue
            together = self._together(key).makes
            counted |= {*together}
            asked = [self._wanted[one].settings for one in together]
            work += edit_work(
                asked,
                self._record.settings,
                self._parts.sizes,
                shape,
            )
        return self._parts.transformer(work, shape)
