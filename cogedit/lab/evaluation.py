"""Edits of held-out clips by several configurations, measured against their right answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cogedit.diffusion.windows import window_starts
from cogedit.lab import world
from cogedit.lab.cases import EDIT_KINDS, EditCase, EditKind, change_mask, make_case
from cogedit.lab.configurations import Configuration, Inversion
from cogedit.lab.edit_metrics import (
    Answer,
    EditFigures,
    InversionFigures,
    Levels,
    measure,
    to_frames,
)
from cogedit.lab.quality_tables import CEILING, COPY, FLOOR
from cogedit.lab.report import notify
from cogedit.media.contact_sheet import SheetRow
from cogedit.media.metrics import psnr
from cogedit.models.predictor import InvertedClips
from cogedit.models.quiet import quiet_imports
from cogedit.types import WindowPlan

with quiet_imports():
    from cogedit.lab.batch_pipeline import BatchPipeline, as_exported


class Evaluation:
    """Runs configurations over held-out clips, batch by batch, and collects the figures.

    Args:
        pipeline: The model.
        configurations: The rows.
        kinds: The kinds of edit.
        num_images: Of how many clips per kind the middle frames are kept for a contact sheet.
        shows_last: Keep their last frames instead.
        draw: Draws the edit of a kind of the clip with a number, of one clip for every kind.

    Attributes:
        edits: Figures of the clips so far, by kind and row.
        inversions: Figures of the clips so far, by inversion.
        images: Rows of the contact sheet of each kind.
    """

    def __init__(
        self,
        pipeline: BatchPipeline,
        configurations: Sequence[Configuration],
        *,
        kinds: Sequence[EditKind],
        num_images: int = 0,
        shows_last: bool = False,
        draw: Callable[[int, EditKind], EditCase] = make_case,
    ) -> None:
        self._pipeline = pipeline
        self._draw = draw
        self._configurations = configurations
        self._num_images = num_images
        self._shows_last = shows_last
        fixed = (
            (CEILING, FLOOR, COPY) if pipeline.checkpoint.takes_first_frame else (CEILING, FLOOR)
        )
        self.edits: dict[EditKind, dict[str, list[EditFigures]]] = {
            kind: {name: [] for name in (*fixed, *names_of(configurations, kind))} for kind in kinds
        }
        self.inversions: dict[Inversion, list[InversionFigures]] = {
            configuration.inversion: [] for configuration in configurations
        }
        self.images: dict[EditKind, list[SheetRow]] = {kind: [] for kind in kinds}

    def run_batch(self, seeds: Sequence[int]) -> None:
        """Evaluate some held-out clips, all in one batch.

        Raises:
            NumericalError: NaN or Inf appeared.
        """
        specs = [self._draw(seed, "same").source for seed in seeds]
        captions = [world.caption(spec) for spec in specs]
        clips = [world.render(spec) for spec in specs]
        latents = self._pipeline.encode(clips)
        condition = self._pipeline.condition(clips)
        round_trips = self._pipeline.decode(latents)
        answers = {kind: self._answers(kind, seeds, round_trips) for kind in self.edits}
        inverted = {
            inversion: self._invert(inversion, latents, captions, round_trips, condition=condition)
            for inversion in self.inversions
        }
        exported: dict[EditKind, list[list[Levels]]] = {kind: [] for kind in self.edits}
        cache: dict[tuple[Configuration, EditKind], tuple[list[Levels], Tensor | None]] = {}
        for configuration in self._configurations:
            # Rows that differ only in their export share the edit.
            edit = replace(configuration, name="", align_edges=0, kinds=EDIT_KINDS)
            for kind, right in answers.items():
                if kind not in configuration.kinds:
                    continue
                if (edit, kind) not in cache:
                    cache[edit, kind] = self._edit(edit, inverted[edit.inversion], right)
                made, masks = cache[edit, kind]
                radius = configuration.align_edges
                made = as_exported(made, right, masks=masks, align_edges=radius)
                borders = self._borders(edit.inversion, num_frames=len(right[0].source_round_trip))
                self._add(kind, configuration.name, made, right, borders=borders)
                exported[kind].append(made)
            notify(f"  {configuration.name}: {len(seeds)} clips")
        for kind, right in answers.items():
            self._keep_images(kind, right, exported[kind])

    def _answers(
        self, kind: EditKind, seeds: Sequence[int], round_trips: Sequence[Levels]
    ) -> list[Answer]:
        """Render and encode the right answers, and measure ceiling and floor."""
        cases = [self._draw(seed, kind) for seed in seeds]
        right = round_trips
        if kind != "same":
            rendered = [world.render(case.right) for case in cases]
            right = self._pipeline.decode(self._pipeline.encode(rendered))
        answers = [Answer(*facts) for facts in zip(cases, round_trips, right, strict=True)]
        self._add(kind, CEILING, right, answers)
        self._add(kind, FLOOR, round_trips, answers)
        if COPY in self.edits[kind]:
            clips = [world.render(case.right) for case in cases]
            repeated = [np.broadcast_to(clip[:1], clip.shape).astype("f4") for clip in clips]
            self._add(kind, COPY, repeated, answers)
        return answers

    def _invert(
        self,
        inversion: Inversion,
        latents: Tensor,
        captions: Sequence[str],
        round_trips: Sequence[Levels],
        *,
        condition: Tensor | None,
    ) -> InvertedClips:
        """Invert the source clips and measure how well they come back."""
        inverted = self._pipeline.invert(latents, inversion, captions, condition=condition)
        decoded = self._pipeline.decode(self._pipeline.resample(inverted, inversion))
        noises = inverted.trajectory.noise
        self.inversions[inversion] += [
            InversionFigures(psnr(clip, expected), float(noise.std()))
            for clip, expected, noise in zip(decoded, round_trips, noises, strict=True)
        ]
        return inverted

    def _edit(
        self,
        configuration: Configuration,
        inverted: InvertedClips,
        answers: Sequence[Answer],
    ) -> tuple[list[Levels], Tensor | None]:
        """Return the edited clips, and their masks [N, F, H, W] if they have any."""
        settings = configuration.reconstruct
        by_frame = inverted.condition is not None and not configuration.with_prompt
        prompts = ["" if by_frame else answer.case.prompt for answer in answers]
        condition = self._pipeline.condition(
            [world.render(answer.case.right) for answer in answers]
        )
        masks = None
        if settings.auto_mask:
            masks = self._pipeline.find_masks(
                inverted, settings, prompts=prompts, condition=condition
            )
        elif configuration.exact_mask:
            masks = exact_masks(answers)
        latents = self._pipeline.edit(
            inverted,
            settings,
            prompts=prompts,
            seeds=[settings.seed + answer.case.seed for answer in answers],
            condition=condition,
            masks=masks,
        )
        return self._pipeline.decode(latents), masks

    def _add(
        self,
        kind: EditKind,
        name: str,
        clips: Sequence[Levels],
        answers: Sequence[Answer],
        *,
        borders: Collection[int] = (),
    ) -> None:
        self.edits[kind][name] += [
            measure(clip, answer, borders=borders)
            for clip, answer in zip(clips, answers, strict=True)
        ]

    def _borders(self, inversion: Inversion, *, num_frames: int) -> Collection[int]:
        if inversion.windows is None:
            return ()
        temporal = self._pipeline.checkpoint.geometry.temporal_compression
        return window_borders(inversion.windows, num_frames, temporal=temporal)

    def _keep_images(
        self, kind: EditKind, answers: Sequence[Answer], edits: Sequence[Sequence[Levels]]
    ) -> None:
        """Keep the middle frames of the first clips; `edits` has a list per configuration."""
        missing = self._num_images - len(self.images[kind])
        for index, answer in enumerate(answers[: max(missing, 0)]):
            case = answer.case
            clips = [world.render(case.source), world.render(case.right)]
            clips += [to_frames(edited[index]) for edited in edits]
            # What becomes of a first frame shows in the last one.
            place = -1 if self._shows_last else len(clips[0]) // 2
            row = SheetRow(_row_label(case), tuple(clip[place] for clip in clips))
            self.images[kind].append(row)


def names_of(configurations: Sequence[Configuration], kind: EditKind) -> list[str]:
    """Return the rows that are run for a kind of edit."""
    return [one.name for one in configurations if kind in one.kinds]


def window_borders(plan: WindowPlan, num_frames: int, *, temporal: int) -> tuple[int, ...]:
    """Return the frames of a clip that lie in other windows than the frame before.

    The windows are those of the levels at which they are not moved, the last one among them.
    `temporal` is how many frames the VAE joins; the first frame stands alone.
    """
    latent = [-(-frame // temporal) for frame in range(num_frames)]
    starts = window_starts(plan, latent[-1] + 1, moved=False)
    inside = [[start <= place < start + plan.length for start in starts] for place in latent]
    return tuple(frame for frame in range(1, num_frames) if inside[frame] != inside[frame - 1])


def exact_masks(answers: Sequence[Answer]) -> Tensor:
    """Render the exact mask of each edit, [N, F, H, W] uint8."""
    return torch.stack([torch.from_numpy(change_mask(answer.case)) for answer in answers])


def _row_label(case: EditCase) -> str:
    if case.kind == "same":
        return f"{case.seed}: {case.prompt}"
    target = case.right.texture.kind if case.kind == "texture" else getattr(case.right, case.kind)
    return f"{case.seed}: {case.source_prompt}  ->  {target}"
