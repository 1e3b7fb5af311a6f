"""What both trainings share: the Muon optimizer, the learning rate and the weight average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch

# Coefficients of the quintic Newton-Schulz iteration: five rounds bring every singular value of a
# matrix of norm 1 close to 1 (Jordan et al., "Muon: an optimizer for hidden layers in neural
# networks", 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, *, iterations: int = 5) -> torch.Tensor:
    """Replace the singular values of matrices by numbers close to 1.

    Args:
        matrices: [N, rows, columns], any float dtype.
        iterations: Rounds of the Newton-Schulz iteration.

    Returns:
        Same shape and dtype.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    if tall:
        x = x.mT
    result: torch.Tensor = x.to(matrices.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised, for weights with two or more axes.

    Differs from `torch.optim.Muon` in two things that matter on a CPU: convolution kernels count
    as matrices [out, in x kernel], and matrices of one shape are orthogonalised in one batch.
    The update's root mean square is that of AdamW (factor 0.2 sqrt(max(rows, columns)), Liu et
    al., arXiv 2502.16982), so that both optimizers take the same learning rate.

    Args:
        params: The weights, each with two or more axes.
        lr: Learning rate; a group's `lr` may be changed between steps.
        momentum: Decay of the (Nesterov) momentum.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step from the gradients that the parameters hold."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]]
            by_shape = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                buffer = state["momentum_buffer"]
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(buffer, group["momentum"]).flatten(1)
                by_shape[update.shape].append((param, update))
            for shape, entries in by_shape.items():
                updates = orthogonalize(torch.stack([update for _, update in entries]))
                scale = 0.2 * max(shape) ** 0.5
                for (param, _), update in zip(entries, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update.view_as(param), alpha=-group["lr"] * scale)


def learning_rate_factor(
    step: int, steps: int, *, warmup_steps: int, decay_fraction: float
) -> float:
    """Warm up, stay, then fall linearly to 0: the schedule of both trainings.

    It needs the planned number of steps only for its last part, so a run can be resumed with
    another number.

    Args:
        step: Number of the step, from 0.
        steps: Planned number of steps.
        warmup_steps: Length of the linear rise.
        decay_fraction: Share of the steps, at the end, in which the rate falls.

    Returns:
        Factor in 0..1.
    """
    return scheduled_factor(
        step, step / steps, warmup_steps=warmup_steps, decay_fraction=decay_fraction
    )


def scheduled_factor(
    step: int, progress: float, *, warmup_steps: int, decay_fraction: float
) -> float:
    """Like `learning_rate_factor`, for a run whose end is not a number of steps.

    Args:
        step: Number of the step, from 0.
        progress: Share of the run that is over, 0..1.
        warmup_steps: Length of the linear rise.
        decay_fraction: Share of the run, at the end, in which the rate falls.

    Returns:
        Factor in 0..1.
    """
    rise = min(1.0, (step + 1) / max(warmup_steps, 1))
    fall = min(1.0, (1.0 - progress) / decay_fraction) if decay_fraction else float(progress < 1)
    return rise * max(fall, 0.0)


class WeightAverage:
    """Exponential moving average of a module's parameters.

    Args:
        module: The module; its parameters are read at every `update`.
        decay: Share that the average keeps per step. Early on it is lower, (1 + n) / (10 + n)
            after n steps, so that the random start is forgotten.
    """

    def __init__(self, module: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.num_updates = 0
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, owned: Sequence[bool] | None = None) -> None:
        """Take the module's present parameters into the average.

        Args:
            module: The module.
            owned: Which parameters to take, in their order (`Replica.owned`); None is all.
        """
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for index, (name, param) in enumerate(module.named_parameters()):
            if owned is None or owned[index]:
                self.average[name].lerp_(param, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Write the average into the module's parameters."""
        for name, param in module.named_parameters():
            param.copy_(self.average[name])

    def state_dict(self) -> dict[str, object]:
        """Return what `load_state_dict` takes."""
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a state that `state_dict` returned."""
        num_updates, average = state["num_updates"], state["average"]
        if not isinstance(num_updates, int) or not isinstance(average, dict):
            raise TypeError("not a state of WeightAverage")
        self.num_updates = num_updates
        for name, value in average.items():
            self.average[name].copy_(value)
