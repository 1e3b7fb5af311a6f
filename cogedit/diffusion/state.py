"""What a loop over timesteps needs to continue after a step, in another process if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cogedit.progress import OnStep, StepInfo


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


def run_steps(
    states: Iterable[StepState],
    name: str,
    *,
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
) -> list[Tensor]:
    """Run a loop to its end and collect one tensor of every step.

    Args:
        states: The loop.
        name: Name of the tensor.
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: The steps that the loop continues from: all from the first on, or the last alone where
            not every step is returned.
        on_state: Called after every step with what a later run continues from.
        on_step: Called after every step.

    Returns:
        The tensors, in host memory: those of CogVideoX 1.5 take more than a gigabyte.
    """
    tensors = [state.tensors[name].cpu() for state in done]
    for state in states:
        tensor = state.tensors[name].cpu()
        tensors = [*tensors, tensor] if keep_steps else [tensor]
        if on_state is not None:
            on_state(state)
        if on_step is not None:
            on_step(state.info)
    return tensors
