"""What a loop over timesteps needs to continue after a step, in another process if need be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cogedit.progress import StepInfo


@dataclass(frozen=True)
class StepState:
    """A finished step.

    Given back to the loop that made it, together with all steps before it, the loop continues with
    the same results, bit for bit.

    Attributes:
        info: Which step.
        tensors: By name what the loop continues from, each [B, F, C, H, W] float32.
    """

    info: StepInfo
    tensors: Mapping[str, Tensor]


OnState = Callable[[StepState], None]
"""Called after every step, before `on_step`."""


def steps_after(
    done: Sequence[StepState], steps: Sequence[tuple[int, int]]
) -> list[tuple[int, tuple[int, int]]]:
    """Number the steps of a loop from 0 and leave out those up to the last that is done."""
    first = done[-1].info.index + 1 if done else 0
    return list(enumerate(steps))[first:]
