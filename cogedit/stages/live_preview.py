"""Small images of edits while they form, for those who wait."""

from __future__ import annotations

from pathlib import Path

import torch
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

    It paints the middle frame of the edits, in colours fitted to the source's frames. Those are
    looked for in the workspace of the trajectory at `path`.
    """
    show = run.preview
    if show is None:
        return on_state
    try:
        otherwise = "or go without a preview"
        frames = source_frames(path, record, settings, otherwise=otherwise, with_extra=True)
    except ArtifactError as error:
        run.notify(f"no preview: {error.message}")
        return on_state
    clean_source = reference.latents[0, record.num_pad_frames :].cpu()
    colors = fit_colors(clean_source, map(torch.from_numpy, frames))
    middle = record.num_pad_frames + len(clean_source) // 2
    source = reference.latents[:, middle].cpu()
    last: tuple[int, Tensor] | None = None

    def saved_and_shown(state: StepState) -> None:
        nonlocal last
        on_state(state)
        [name] = {"sample", "offset"} & state.tensors.keys()
        x = state.tensors[name][:_AT_MOST, middle].cpu()
        if name == "offset":
            clean = source + x
        else:
            before, last = last, (state.info.timestep, x)
            if before is None:  # the clean sample follows from both ends of a step
                return
            (t, x_t), s = before, state.info.timestep
            clean = clean_sample(x_t, x, schedule=schedule, t=t, s=s)
        painted = torch.cat(list(paint(clean, colors)), dim=1)
        height, width, _ = painted.shape
        show(RGBPicture(width, height, painted.numpy().tobytes()))

    return saved_and_shown
