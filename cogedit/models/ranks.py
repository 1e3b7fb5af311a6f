"""Several processes with a device each that compute one clip, and how they talk.

Rank 0 is the process that a user started. It alone reads, plans, steps, speaks and writes, as it
does without the others, so it alone hears Ctrl-C and leaves steps behind. The others hold the
transformer and wait for its calls. What they are told goes through gloo on the CPU, which notices
at once when a process has ended; tensors go the way of their device, NCCL for CUDA.

A rank that fails leaves its error with all and ends, whatever the others wait for. Rank 0 then
raises that error as its own.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import MappingProxyType
from typing import cast

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from cogedit.errors import CogeditError, DeviceMemoryError, UsageError
from cogedit.models.device import is_out_of_memory, wait_for
from cogedit.models.messages import opened, sealed

_Told = tuple[object, list[tuple[torch.Size, torch.dtype]]]
"""A message, and shape and dtype of each tensor that comes with it."""

_FOREVER = timedelta(days=20)
"""Ranks wait while rank 0 decodes, or waits for a lock; gloo counts milliseconds in 32 bits."""

_TREE = sys.modules[CogeditError.__module__]
_ERROR = "error"
GRACE = 20.0
"""Seconds in which a rank that waits for one that has failed notices it by itself."""


class RankLost(Exception):
    """Another rank has ended."""


@contextmanager
def may_be_lost() -> Iterator[None]:
    """Turn the errors of a message to or from a rank that has ended into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RankLost from error


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Number of this one.
        size: How many there are.
        is_lost: Whether they cannot be talked to any more.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        run_id: str,
        processes: Sequence[subprocess.Popen[bytes]] = (),
        networks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.rank = rank
        self.size = size
        self.is_lost = False
        self._key = run_id.encode()
        self._store = store
        self._processes = processes
        self._groups: dict[int, dist.ProcessGroup] = {}
        self._networks = networks
        os.environ |= networks  # which groups read when they are made
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=_FOREVER,
        )

    @classmethod
    @functools.cache
    def launched(cls) -> Ranks:
        """Join the processes that torchrun has started; they are there once."""
        store, rank, size = next(rendezvous("env://", timeout=_FOREVER))
        return cls(store, rank, size, run_id=os.environ["TORCHELASTIC_RUN_ID"])

    @classmethod
    def start(cls, size: int) -> Ranks:
        """Start the other ranks on this machine, with the environment that torchrun gives.

        torchrun itself is not asked: its agent starts the first rank, too. It ends with 1 and a
        traceback whatever that rank ends with, and kills all of them 30 seconds after Ctrl-C.
        """
        if dist.is_initialized():
            raise UsageError(
                "this process computes on several GPUs already",
                hint="close its other session: torch has one group of processes at a time",
            )
        store, run_id = _store_of_this_machine(), f"cogedit-{secrets.token_hex(16)}"
        networks = _loopback()
        environ = os.environ | {
            "TORCHELASTIC_RUN_ID": run_id,
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # on a CPU sums depend on it
            **networks,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, size):
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "cogedit"],  # not one of the current folder
                    env=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # the terminal's Ctrl-C is for rank 0
                )
                processes.append(process)
            while store.add("ready", 0) < len(processes):
                if any(process.poll() is not None for process in processes):
                    raise _error_of(store)
                time.sleep(0.05)
            return cls(store, 0, size, run_id=run_id, processes=processes, networks=networks)
        except BaseException:
            _end(processes, grace=0)
            _forget(networks)
            raise

    @classmethod
    def follow(cls) -> Ranks:
        """Join as a rank that torchrun, or `start`, has started."""
        store, rank, size = next(rendezvous("env://", timeout=_FOREVER))
        threading.Thread(target=_end_with_store, args=(store,), daemon=True).start()
        store.add("ready", 1)
        return cls(store, rank, size, run_id=os.environ["TORCHELASTIC_RUN_ID"])

    def tell(self, message: object, *tensors: Tensor) -> None:
        """Tell all other ranks something, from rank 0."""
        described = [(tensor.shape, tensor.dtype) for tensor in tensors]
        data = bytearray(sealed((message, described), self._key))
        with may_be_lost():
            dist.broadcast(torch.tensor(len(data), device="cpu"), src=0)
            dist.broadcast(torch.frombuffer(data, dtype=torch.uint8), src=0)
            for tensor in tensors:
                dist.broadcast(tensor.contiguous(), src=0)

    def hear(self, device: torch.device | None = None) -> tuple[object, list[Tensor]]:
        """Wait for what rank 0 tells; tensors are put on a device.

        Raises:
            ValueError: It is not from this run.
        """
        length = torch.empty((), dtype=torch.int64, device="cpu")
        with may_be_lost():
            dist.broadcast(length, src=0)
            data = torch.empty(int(length), dtype=torch.uint8, device="cpu")
            dist.broadcast(data, src=0)
            message, described = cast("_Told", opened(data.numpy().tobytes(), self._key))
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in described]
            for tensor in tensors:
                dist.broadcast(tensor, src=0)
        return message, tensors

    def give(self, tensor: Tensor) -> None:
        """Give rank 0 a tensor that it waits for."""
        wait_for(tensor.device)  # what is said to be ready is, whoever fails from here on
        with may_be_lost():
            dist.send(torch.ones(1, device="cpu"), 0)
            dist.send(tensor.contiguous(), 0)

    def take(self, rank: int, empty: Tensor) -> Tensor:
        """Wait, in rank 0, for a tensor of another rank, and fill an empty one with it."""
        with may_be_lost(), self.waiting_for_others():
            # First by gloo: NCCL would wait for one that has ended.
            dist.recv(torch.empty(1, device="cpu"), rank)
            dist.recv(empty, rank)
            wait_for(empty.device)
        return empty

    def group(self, degree: int) -> dist.ProcessGroup:
        """Return this rank's team of so many; every rank must ask. An idle one gets any."""
        if degree not in self._groups:
            teams = [
                dist.new_group(list(range(first, first + degree)), timeout=_FOREVER)
                for first in range(0, self.size - degree + 1, degree)
            ]
            self._groups[degree] = teams[min(self.rank // degree, len(teams) - 1)]
        return self._groups[degree]

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Raise in rank 0 the error of a rank that fails while the block runs.

        However the block fails, messages may be half sent then, and none is sent any more.
        """
        try:
            yield
        except RankLost as lost:
            self.is_lost = True
            raise _error_of(self._store) from lost
        except BaseException:
            self.is_lost = True
            raise

    @contextmanager
    def waiting_for_others(self) -> Iterator[None]:
        """End the process where another rank fails and this one waits for it for ever in the block.

        A kernel of NCCL does, and Python behind it; and so does whoever waits for a rank of which
        such a kernel waits for a third.
        """
        done = threading.Event()
        threading.Thread(target=self._end_with_error, args=(done,), daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def fail(self, error: BaseException) -> None:
        """Leave this rank's error with all."""
        said: dict[str, object] = {"rank": self.rank, "kind": None, "hint": None}
        if isinstance(error, CogeditError):
            # Of one of our own tree: some have a class of their own below it.
            kinds = [kind for kind in type(error).__mro__ if kind.__module__ == _TREE.__name__]
            said |= {"kind": kinds[0].__name__, "hint": error.hint}
            said["message"] = f"{error.message} (rank {self.rank})"
        else:
            said["message"] = "".join(traceback.format_exception(error))
        with suppress(RuntimeError):
            self._store.set(_ERROR, json.dumps(said))

    def close(self) -> None:
        """Let the other ranks end, in rank 0."""
        if not self.is_lost:
            with suppress(RankLost):
                self.tell(None)
        _end(self._processes, grace=0 if self.is_lost else GRACE)
        self.is_lost = True
        dist.destroy_process_group()
        _forget(self._networks)

    def _end_with_error(self, done: threading.Event) -> None:
        """End the process with the error of another, unless it is done before."""
        while not done.wait(1):
            with suppress(RuntimeError):
                has_ended = any(process.poll() is not None for process in self._processes)
                if (has_ended or self._store.check([_ERROR])) and not done.wait(GRACE):
                    error = _error_of(self._store)
                    _end(self._processes, grace=0)
                    os.write(2, f"error: {error}\n".encode())
                    os._exit(error.exit_code if isinstance(error, CogeditError) else 1)


def _forget(variables: Iterable[str]) -> None:
    """Take variables out of the environment, which other users of torch in this process read."""
    for name in variables:
        os.environ.pop(name, None)


def _loopback() -> dict[str, str]:
    """Return the variables that keep what ranks of one machine say off its networks."""
    names = [
        name
        for name, places in psutil.net_if_addrs().items()
        if any(place.address == "127.0.0.1" for place in places)
    ]
    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {key: names[0] for key in variables if names and key not in os.environ}


def _store_of_this_machine() -> TCPStore:
    """Make a store that no other machine reaches: by itself it would listen on all networks."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=_FOREVER,
        master_listen_fd=listener.detach(),
    )


def _end(processes: Sequence[subprocess.Popen[bytes]], *, grace: float) -> None:
    """Wait for processes that were told to end, and kill those that do not."""
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        process.kill()
        process.wait()


def _end_with_store(store: Store) -> None:
    """End the process when the one that keeps the store has ended, whatever this one waits for."""
    with suppress(RuntimeError):
        while True:
            time.sleep(1)
            store.check([_ERROR])
    os._exit(0)


def _error_of(store: Store) -> Exception:
    """Return the error that a rank has left, or leaves within seconds."""
    with suppress(RuntimeError):
        until = time.monotonic() + 5
        # Not by `wait`, which says a warning of its own where there is none.
        while not store.check([_ERROR]) and time.monotonic() < until:
            time.sleep(0.05)
        if store.check([_ERROR]):
            said = json.loads(store.get(_ERROR))
            if said["kind"] is not None:
                kind: type[CogeditError] = vars(_TREE)[said["kind"]]
                return kind(said["message"], hint=said["hint"])
            return RuntimeError(f"rank {said['rank']} failed:\n{said['message']}")
    return DeviceMemoryError(
        "a process that computed for this one has ended without a word",
        hint="where memory runs out, the system kills one: each holds all weights in host memory "
        "while it loads, so fewer --gpus need less",
    )
