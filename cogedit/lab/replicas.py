"""Several processes that train one model on a CPU, one core each.

One process with several threads waits at the end of every small operation for its slowest thread;
several processes with one thread wait for one another twice per step. The model, the optimizers'
state and the weight average lie in shared memory. After the backward pass each replica averages
the gradients of its own share of the parameters and updates these; nothing is sent around.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier

import torch

from cogedit.lab.optim import WeightAverage

# A replica that waits this long, in seconds, has lost the others.
_TIMEOUT = 900.0


class Replica:
    """One of the processes, as its own training loop sees it.

    Args:
        rank: Number of the process, from 0.
        size: How many there are.
        params: All parameters of the model, in the same order everywhere.
        gradients: [size, numbers] float32 in shared memory; None if there is one replica.
        barrier: Where the replicas wait for one another; None if there is one.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        params: Sequence[torch.nn.Parameter],
        gradients: torch.Tensor | None,
        barrier: Barrier | None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._params = params
        self._gradients = gradients
        self._barrier = barrier
        # Neighbours in the list often have the same shape: dealing them out one by one gives
        # every replica about the same work.
        self.owned = [index % size == rank for index in range(len(params))]

    def wait(self) -> None:
        """Wait until all replicas are here.

        Raises:
            threading.BrokenBarrierError: If one of them has failed.
        """
        if self._barrier is not None:
            self._barrier.wait(_TIMEOUT)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Turn the gradients into means over the replicas, for the parameters owned by this one.

        The others' gradients become None, so that an optimizer leaves those parameters alone.
        """
        if self._gradients is None:
            return
        offset = 0
        for param in self._params:
            row = self._gradients[self.rank, offset : offset + param.numel()]
            if param.grad is None:
                row.zero_()
            else:
                row.copy_(param.grad.flatten())
            offset += param.numel()
        self.wait()
        offset = 0
        for param, owned in zip(self._params, self.owned, strict=True):
            rows = self._gradients[:, offset : offset + param.numel()]
            param.grad = rows.mean(dim=0).view_as(param) if owned else None
            offset += param.numel()


def run_replicas(
    size: int,
    work: Callable[[Replica], None],
    *,
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: WeightAverage,
) -> None:
    """Run `work` in every replica and wait for all; afterwards the module is trained.

    Args:
        size: Number of replicas; 1 runs `work` here, with the threads that torch has.
        work: The training loop. Everything that it changes besides the arguments below stays in
            its own process.
        module: The model, on the CPU if there are several replicas.
        optimizers: Muon or AdamW.
        average: The average of the module's weights.

    Raises:
        RuntimeError: If a replica has failed; its traceback is on stderr.
    """
    params = [param for param in module.parameters() if param.requires_grad]
    if size == 1:
        work(Replica(0, 1, params=params, gradients=None, barrier=None))
        return
    _share(module, optimizers, average)
    gradients = shared_zeros(size, sum(param.numel() for param in params))
    barrier = multiprocessing.get_context("fork").Barrier(size)

    def start(rank: int) -> None:
        replica = Replica(rank, size, params=params, gradients=gradients, barrier=barrier)
        try:
            work(replica)
        except BaseException:
            barrier.abort()
            raise

    run_processes(size, start)


def run_processes(size: int, work: Callable[[int], None]) -> None:
    """Run `work(rank)` in forked processes of one torch thread each, and wait for all.

    Forking is safe only while this process itself has used no second thread in torch:
    `torch.set_num_threads(1)` before anything else.

    Args:
        size: Number of processes; 1 runs the work here, with the threads that torch has.
        work: Takes the number of the process, from 0; results go through shared memory.

    Raises:
        RuntimeError: If a process has failed; its traceback is on stderr.
    """
    if size == 1:
        work(0)
        return

    def start(rank: int) -> None:
        torch.set_num_threads(1)
        work(rank)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start, args=(rank,), daemon=True) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"processes ended with {[process.exitcode for process in processes]}")


def shared_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return zeros in memory that forked processes share."""
    return _move(torch.zeros(shape, dtype=dtype))


def _move(tensor: torch.Tensor) -> torch.Tensor:
    """Move a tensor into shared memory, in place."""
    return tensor.share_memory_()  # type: ignore[no-any-return, no-untyped-call]


def _share(
    module: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: WeightAverage,
) -> None:
    """Move everything that a step changes into shared memory, the optimizers' state included.

    The optimizers would create their state at the first step, each process its own.
    """
    module.share_memory()
    for optimizer in optimizers:
        adam = isinstance(optimizer, torch.optim.AdamW)
        names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
        for group in optimizer.param_groups:
            for param in group["params"]:
                state = optimizer.state[param]
                for name in names:
                    state.setdefault(name, torch.zeros_like(param))
                if adam:
                    state.setdefault("step", torch.zeros(()))
                for value in state.values():
                    _move(value)
    for value in average.average.values():
        _move(value)
