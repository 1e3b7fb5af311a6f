"""What a loop over noise levels needs to go on after a step, in another process if need be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogedit.types import OnStep, StepInfo


@dataclass(frozen=True)
class StepState:
    """A finished step.

    Given back to the loop that made it, together with all steps before it, it continues with the
    same numbers, bit for bit.

    Attributes:
        info: Which step.
        tensors: By name what the loop goes on from, each [B, F, C, H, W] float32.
    """

    info: StepInfo
    tensors: Mapping[str, Tensor]


OnState = Callable[[StepState], None]
"""Called after every step, before `on_step`."""


def on_device(done: Sequence[StepState], device: torch.device) -> list[StepState]:
    """Return the same steps with their tensors on a device."""
    return [
        StepState(state.info, {name: kept.to(device) for name, kept in state.tensors.items()})
        for state in done
    ]


def steps_after(
    done: Sequence[StepState], steps: Sequence[tuple[int, int]]
) -> list[tuple[int, tuple[int, int]]]:
    """Number the steps of a loop from 0 and leave out those up to the last that is done."""
    first = done[-1].info.index + 1 if done else 0
    return list(enumerate(steps))[first:]


def tell(state: StepState, on_state: OnState | None, on_step: OnStep | None) -> None:
    """Hand a finished step on: first what can be kept of it, then the news."""
    if on_state is not None:
        on_state(state)
    if on_step is not None:
        on_step(state.info)
