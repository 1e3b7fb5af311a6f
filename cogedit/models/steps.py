"""Runs a loop of the mathematics, and collects what it makes in host memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from cogedit.diffusion.state import OnState, StepState
from cogedit.progress import OnStep


def run_steps(
    states: Iterable[StepState],
    name: str,
    *,
    keep_steps: bool = True,
    done: Sequence[StepState] = (),
    on_state: OnState | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Run a loop to its end and collect one tensor of every step.

    A step's tensor is copied to its place in host memory as it comes: all of them take more than a
    gigabyte for CogVideoX 1.5, and nothing of an earlier step stays on the device.

    Args:
        states: The loop.
        name: Name of the tensor.
        keep_steps: Return every step; False returns the last alone, for less memory.
        done: The steps that the loop continues from: all from the first on, or the last alone where
            not every step is returned.
        on_state: Called after every step with what a later run continues from.
        on_step: Called after every step.

    Returns:
        The tensors, in host memory, [N, B, F, C, H, W]; N is 1 without `keep_steps`.

    Raises:
        ValueError: The loop has no step.
    """
    first = done[-1].info.index + 1 if done else 0
    kept: Tensor | None = None
    for state in chain(done, states):
        tensor, info = state.tensors[name], state.info
        if kept is None:
            kept = torch.empty(info.total if keep_steps else 1, *tensor.shape, dtype=tensor.dtype)
        kept[info.index if keep_steps else 0].copy_(tensor)
        if info.index < first:
            continue
        if on_state is not None:
            on_state(state)
        if on_step is not None:
            on_step(info)
    if kept is None:
        raise ValueError("a loop without steps")
    return kept
