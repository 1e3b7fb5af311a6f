"""What both trainings share: optimizers, learning rate, weight average, checkpoints, the loop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSchedule:
    """Length and learning rate of a run: it warms up, stays, and falls linearly to 0.

    Attributes:
        steps: Number of steps.
        minutes: End after this time instead, and let the learning rate follow the clock; None
            counts the steps. Two such runs are not equal.
        lr: Learning rate of both optimizers.
        warmup_steps: Steps of the rise, at most a twentieth of a run with `minutes`.
        decay_fraction: Share of the run, at the end, in which the rate falls.
        eval_every: Steps between two measurements and checkpoints.
    """

    steps: int
    minutes: float | None = None
    lr: float = 2e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.35
    eval_every: int = 500

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the run that is over, 0..1, after some steps and seconds."""
        return step / self.steps if self.minutes is None else seconds / (60 * self.minutes)

    def learning_rate(self, step: int, progress: float) -> float:
        """Return the learning rate of a step; resuming with another length changes only its end."""
        rise = (step + 1) / max(self.warmup_steps, 1)
        if self.minutes is not None:
            rise = max(rise, 20 * progress)
        fall = (1 - progress) / self.decay_fraction if self.decay_fraction else 1.0
        return self.lr * max(min(rise, fall, 1.0), 0.0)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), as large as AdamW's would be.

    The size is that of Liu et al., arXiv 2502.16982. torch's own Muon computes in bfloat16, which
    takes a CPU that has none in hardware ten times as long as all the rest of a step.

    Args:
        kernels: Weights of two or more axes; all but the first count as one.
        weight_decay: Decoupled weight decay.
        momentum: Share of the earlier gradients in their average.
    """

    def __init__(
        self, kernels: Iterable[nn.Parameter], *, weight_decay: float, momentum: float = 0.95
    ) -> None:
        defaults = {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(list(kernels), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step from the gradients that the weights hold."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                average = state.setdefault("average", torch.zeros_like(kernel))
                average.lerp_(kernel.grad, 1 - group["momentum"])
                update = kernel.grad.lerp(average, group["momentum"]).flatten(1)
                scale = 0.2 * math.sqrt(max(update.shape))
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                step = orthogonalized(update).view_as(kernel)
                kernel.add_(step, alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix close to 1: five Newton-Schulz iterations.

    Returns:
        [rows, columns] in the matrix's own number format; its singular values lie in 0.7..1.2.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp_min(1e-7)
    x = x.bfloat16() if has_fast_bfloat16(x.device) else x
    for _ in range(5):
        gram = x @ x.T
        # Jordan's coefficients: a polynomial that raises small singular values fast.
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = (x if wide is matrix else x.T).to(matrix)
    return result


class Optimizers:
    """Muon for matrices and convolution kernels, AdamW for the rest, at one learning rate.

    Args:
        kernels: Weights with two or more axes.
        others: All other weights.
        weight_decay: Decoupled weight decay of the kernels.
    """

    def __init__(
        self,
        kernels: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        weight_decay: float,
    ) -> None:
        self._muon = Muon(kernels, weight_decay=weight_decay)
        self._adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, lr: float) -> None:
        """Take one step from the gradients that the weights hold, and drop the gradients."""
        for optimizer in (self._muon, self._adamw):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, object]:
        """Return what `load_state_dict` takes."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: Mapping[str, dict[str, object]]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model, initially a copy.

    After n updates the decay is at most (1 + n) / (10 + n), so that the start is soon forgotten.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], count: int | Tensor) -> None:
        n = int(count) + 1
        torch._foreach_lerp_(list(averages), list(weights), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(update))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 in hardware; a CPU without is slower in it."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where that is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))


def train(
    model: nn.Module,
    optimizers: Optimizers,
    loss_of: Callable[[int, float], Tensor],
    *,
    schedule: TrainingSchedule,
    average_decay: float,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    checkpoint: Path,
) -> None:
    """Train a model, or continue from its checkpoint.

    Args:
        model: Trained in place; at the end it holds the averaged weights.
        optimizers: Of its weights.
        loss_of: The loss of a step, a scalar with gradients, from its number and the progress of
            the run in 0..1. Random draws follow from the number, so that a resumed run continues
            with the batches that it would have seen.
        schedule: Length and learning rate.
        average_decay: Decay of the weight average per step.
        evaluate: Held-out figures of the averaged model.
        checkpoint: The file; beside it, the figures are written as JSON of the same name.

    Raises:
        OSError: The checkpoint cannot be read or written.
        RuntimeError: It belongs to another model.
    """
    # Every batch has the same shapes: the fastest convolution is worth a search. CUDA alone.
    torch.backends.cudnn.benchmark = True
    average = average_of(model, average_decay)
    step, seconds = 0, 0.0
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizers.load_state_dict(state["optimizers"])
        step, seconds, history = state["step"], state["seconds"], state["history"]
    else:
        history.append({"step": 0, **evaluate(average.module)})
        logger.info("%s", history[0])
    started = time.monotonic() - seconds
    losses: list[Tensor] = []
    while (progress := schedule.progress(step, seconds)) < 1:
        loss = loss_of(step, progress)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(schedule.learning_rate(step, progress))
        average.update_parameters(model)
        losses.append(loss.detach())
        step, seconds = step + 1, time.monotonic() - started
        if step % 50 == 0:
            logger.info(
                "step %d  %.0f s  loss %.4f", step, seconds, torch.stack(losses[-50:]).mean()
            )
        if step % schedule.eval_every == 0 or schedule.progress(step, seconds) >= 1:
            mean = float(torch.stack(losses).mean())
            figures = {"step": step, "seconds": seconds, "loss": mean, **evaluate(average.module)}
            logger.info("%s", figures)
            history.append(figures)
            losses = []
            state = {
                "step": step,
                "seconds": seconds,
                "history": history,
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizers": optimizers.state_dict(),
            }
            save_checkpoint(checkpoint, state)
    model.load_state_dict(average.module.state_dict())


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Write a checkpoint and its history; an interrupted write never replaces a good file.

    Raises:
        OSError: A file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    partial.replace(path)
    path.with_suffix(".json").write_text(json.dumps(state["history"], indent=1) + "\n")


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return a checkpoint's averaged weights by their names in the model.

    Raises:
        OSError: The checkpoint cannot be read.
    """
    average = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    prefix = "module."
    return {n.removeprefix(prefix): weight for n, weight in average.items() if n.startswith(prefix)}
