"""A model call that several ranks compute: what each of them does, and how it is joined."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cogedit.models.device import wait_for
from cogedit.models.ranks import Ranks
from cogedit.models.row_model import RowCall, RowModel
from cogedit.models.split import Split, split_call
from cogedit.models.ulysses import Part, Team

Window = Sequence[Tensor]
"""Samples of the edits, and of the sources where there are references, of one window."""


@dataclass(frozen=True)
class SharedCall:
    """What all ranks are told of a call, beside its tensors."""

    call: RowCall
    num_windows: int
    at_a_time: int


def predict_windows(
    ranks: Ranks, model: RowModel, call: RowCall, embeds: Tensor, windows: Sequence[Window]
) -> list[Tensor]:
    """Predict v of the rows of a call in each window, in rank 0, with the others' help.

    Rows whose velocity nobody wants are left empty. The windows have one shape.
    """
    home = windows[0][0].device
    windows = [[sample.to(model.device) for sample in window] for window in windows]
    shape = windows[0][0].shape
    shared = SharedCall(call, len(windows), model.rows_at_a_time(embeds.shape[1], shape))
    image = shape[1], model.num_channels, *shape[3:]
    velocities = [windows[0][0].new_empty(call.plan.num_rows, *image) for _ in windows]
    with ranks.calling():
        ranks.tell(shared, embeds, *(sample for window in windows for sample in window))
        split = _split(ranks, model, shared)
        for team, shares in enumerate(split.shares):
            count = sum(len(share.answers) for share in shares)
            if team == 0:
                with ranks.waiting_for_others() if split.degree > 1 else nullcontext():
                    answer = _compute(ranks, model, shared, split, embeds, windows)
                    wait_for(model.device)
            else:
                empty = windows[0][0].new_empty(count, *image)
                answer = ranks.take(team * split.degree, empty)
            rows = iter(answer)
            for share in shares:
                for row in share.answers:
                    velocities[share.window][row] = next(rows)
    return [v.to(home) for v in velocities]


def answer_call(ranks: Ranks, model: RowModel, shared: SharedCall, tensors: list[Tensor]) -> None:
    """Compute this rank's share of a call, in another rank than 0, and give it to rank 0."""
    embeds, *samples = tensors
    count = len(samples) // shared.num_windows
    windows = [samples[first : first + count] for first in range(0, len(samples), count)]
    split = _split(ranks, model, shared)
    if ranks.rank // split.degree >= len(split.shares):
        if split.degree > 1:
            ranks.group(split.degree)  # all must ask
        return
    answer = _compute(ranks, model, shared, split, embeds, windows)
    if ranks.rank % split.degree == 0:
        ranks.give(answer)


def _split(ranks: Ranks, model: RowModel, shared: SharedCall) -> Split:
    return split_call(
        shared.call.plan,
        shared.num_windows,
        at_a_time=shared.at_a_time,
        num_ranks=ranks.size,
        num_heads=model.num_heads,
    )


def _compute(
    ranks: Ranks,
    model: RowModel,
    shared: SharedCall,
    split: Split,
    embeds: Tensor,
    windows: Sequence[Window],
) -> Tensor:
    """Compute the rows that this rank's team answers for, [rows, F, C, H, W], share by share."""
    team = None
    if split.degree > 1:
        team = Team(
            group=ranks.group(split.degree),
            rank=ranks.rank % split.degree,
            size=split.degree,
            num_text=embeds.shape[1],
            num_image=model.num_image_tokens(windows[0][0].shape),
        )
    found = []
    for share in split.shares[ranks.rank // split.degree]:
        part = Part(share.rows, team)
        v = model(shared.call, embeds, *windows[share.window], part=part)
        found.append(v[list(share.answers)])
    return torch.cat(found)
