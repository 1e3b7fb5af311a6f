"""Small images of edits while they form, for those who wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cogedit.artifacts import TrajectoryRecord
from cogedit.config import Settings
from cogedit.diffusion.clean_estimate import clean_sample, fit_colors, paint
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.state import OnState, StepState
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import ArtifactError
from cogedit.progress import RGBPicture
from cogedit.stages.run import Run
from cogedit.stages.source import source_frames

_AT_MOST = 4
"""Edits of one pass that are shown beside each other."""


class LivePreview:
    """Paints the middle frame of edits after each step, in colours fitted to the source's frames.

    The frames are [H, W, 3] uint8 each, the trajectory is that of the one source.
    """

    def __init__(
        self,
        reference: Trajectory,
        frames: Iterable[NDArray[np.uint8]],
        schedule: Schedule,
        *,
        num_pad_frames: int,
        show: Callable[[RGBPicture], None],
    ) -> None:
        clean = reference.latents[0, num_pad_frames:].cpu()
        self._colors = fit_colors(clean, map(torch.from_numpy, frames))
        self._middle = num_pad_frames + len(clean) // 2
        self._source = reference.latents[:, self._middle].cpu()
        self._schedule = schedule
        self._show = show
        self._before: tuple[int, Tensor] | None = None

    def after(self, state: StepState) -> None:
        """Show the clean samples that the edits tend to after a step."""
        [name] = {"sample", "offset"} & state.tensors.keys()
        x = state.tensors[name][:_AT_MOST, self._middle].cpu()
        if name == "offset":
            clean = self._source + x
        else:
            before, self._before = self._before, (state.info.timestep, x)
            if before is None:  # the clean sample follows from both ends of a step
                return
            (t, x_t), s = before, state.info.timestep
            clean = clean_sample(x_t, x, schedule=self._schedule, t=t, s=s)
        painted = torch.cat(list(paint(clean, self._colors)), dim=1)
        height, width, _ = painted.shape
        self._show(RGBPicture(width, height, painted.numpy().tobytes()))


def with_preview(
    on_state: OnState,
    path: Path,
    record: TrajectoryRecord,
    reference: Trajectory,
    *,
    schedule: Schedule,
    settings: Settings,
    run: Run,
) -> OnState:
    """Return `on_state` that also shows each state, if anybody looks.

    The source's frames are looked for in the workspace of the trajectory at `path`.
    """
    if run.preview is None:
        return on_state
    try:
        otherwise = "or go without a preview"
        frames = source_frames(path, record, settings, otherwise=otherwise, with_extra=True)
    except ArtifactError as error:
        run.notify(f"no preview: {error.message}")
        return on_state
    pad = record.num_pad_frames
    preview = LivePreview(reference, frames, schedule, num_pad_frames=pad, show=run.preview)

    def saved_and_shown(state: StepState) -> None:
        on_state(state)
        preview.after(state)

    return saved_and_shown
