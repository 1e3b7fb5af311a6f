"""Workers of a batch on this machine: one process each, with a GPU or a share of the CPUs."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO

from cogedit.cancellation import Cancellation
from cogedit.errors import UsageError
from cogedit.models.hardware import num_cuda_devices
from cogedit.platforms import OWN_SESSION
from cogedit.tools.batch_driver import Event, Gone, Job, on_gpus, work
from cogedit.tools.batch_group import Group, groups_of
from cogedit.tools.batch_plan import BatchEdit
from cogedit.wording import count_of

_CUT_SHORT = (EOFError, OSError, pickle.UnpicklingError)
"""What reading a word raises whose speaker has ended, maybe in the middle of it."""

_GREETING = b"\0cogedit\n"
"""A worker's first bytes: a library that printed before them is no one to listen to."""


class LocalWorkers:
    """Processes that are spoken to through their standard input and output.

    Args:
        job: What they work on.
        environments: Variables of each, above those of this process.
    """

    def __init__(self, job: Job, environments: Sequence[Mapping[str, str]]) -> None:
        self.number = len(environments)
        self._job = job
        self._environments = environments
        self._told: SimpleQueue[tuple[int, Event]] = SimpleQueue()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for worker in range(len(environments)):
            self.renew(worker)

    def renew(self, worker: int) -> None:
        """Start a process in the place of one that is gone."""
        if (gone := self._processes.get(worker)) is not None:
            _hang_up(gone)
        # A session of its own: the terminal's Ctrl-C is for the process that the user started.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cogedit.tools.batch_local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                **self._environments[worker],
            },
            **OWN_SESSION,
        )
        self._processes[worker] = process
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()
        self._send(worker, self._job)

    def _listen(self, worker: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as told, suppress(*_CUT_SHORT):
            if not _GREETING.startswith(greeting := told.read(len(_GREETING))):
                process.kill()  # or both would wait for ever
                process.wait()
                why = f"process {process.pid} printed {greeting!r} while it started"
                self._told.put((worker, Gone(why)))
                return
            while True:
                self._told.put((worker, pickle.load(told)))
        code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        self._told.put((worker, Gone(f"process {process.pid} {how}")))

    def _send(self, worker: int, message: Job | Group | int) -> None:
        stdin = self._processes[worker].stdin
        assert stdin is not None
        with suppress(OSError):  # it is gone, which is told
            stdin.write(pickle.dumps(message))
            stdin.flush()

    def events(self) -> Iterator[tuple[int, Event]]:
        """Yield what the processes have told, after a second at most."""
        with suppress(Empty):
            yield self._told.get(timeout=1)
            while True:
                yield self._told.get_nowait()

    def give(self, worker: int, group: Group) -> None:
        """Hand a group to a process."""
        self._send(worker, group)

    def stop(self, signum: int) -> None:
        """Ask every process to end after its step."""
        for worker in self._processes:
            self._send(worker, signum)

    def close(self) -> None:
        """Let every process end after its step, and wait for that."""
        self.stop(signal.SIGINT)
        for process in self._processes.values():
            process.wait()
            _hang_up(process)

    def kill(self) -> None:
        """End every process at once."""
        for process in self._processes.values():
            process.kill()
            process.wait()
            _hang_up(process)


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(OSError):  # it did not take all that was sent
            process.stdin.close()


def start_local(job: Job, edits: Sequence[BatchEdit], *, number: int | None) -> LocalWorkers:
    """Start workers on this machine.

    Args:
        job: What they work on.
        edits: All edits of the batch.
        number: How many; None is one for each GPU, or one without.

    Raises:
        UsageError: As `check_local`.
    """
    num_gpus = check_local(edits, number=number)
    number = min(number or max(1, num_gpus), len(groups_of(edits)))
    if not num_gpus:
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, num_cpus() // number)))
        return LocalWorkers(job, [{"OMP_NUM_THREADS": threads}] * number)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(index) for index in range(num_gpus)]
    return LocalWorkers(job, [{"CUDA_VISIBLE_DEVICES": name} for name in names[:number]])


def check_local(edits: Sequence[BatchEdit], *, number: int | None) -> int:
    """Return on how many GPUs workers would be here; the arguments are those of `start_local`.

    Raises:
        UsageError: There are fewer GPUs than workers, or some are named for them.
    """
    num_gpus = num_cuda_devices() if on_gpus(edits) else 0
    if num_gpus and number is not None and number > num_gpus:
        raise UsageError(
            f"--workers is {number}, and this machine has {count_of(num_gpus, 'GPU')}: each worker "
            "needs one",
            hint="--workers auto starts one for each",
        )
    return num_gpus


def num_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve() -> None:
    """Work for the process that started this one, until it or the work ends."""
    # What a library prints must not come between the messages.
    heard, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(OSError):  # without anyone who hears it, the end of `heard` stops us
        told.write(_GREETING)
        told.flush()
    # A scheduler's SIGTERM reaches all processes; the one that started this one says what to do.
    # Not SIG_IGN, which ffmpeg would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _hear_nothing)
    lock, cancellation = threading.Lock(), Cancellation()
    groups: SimpleQueue[Group | None] = SimpleQueue()

    def tell(event: Event) -> None:
        with lock, suppress(OSError):  # likewise
            told.write(pickle.dumps(event))
            told.flush()

    try:
        job = pickle.load(heard)
    except _CUT_SHORT:
        return
    hearing = threading.Thread(target=_hear, args=(heard, groups, cancellation))
    hearing.start()
    work(job, iter(groups.get, None), tell, cancellation)
    if cancellation.signum is None:  # it is broken, and would wait for more words
        os._exit(1)
    hearing.join()


def _hear(heard: IO[bytes], groups: SimpleQueue[Group | None], cancellation: Cancellation) -> None:
    """Pass on groups, and the request to stop: a signal's number, or the end of the input."""
    while True:
        try:
            message = pickle.load(heard)
        except _CUT_SHORT:
            message = signal.SIGTERM
        if isinstance(message, Group):
            groups.put(message)
            continue
        cancellation.request(message)
        groups.put(None)
        return


def _hear_nothing(signum: int, frame: FrameType | None) -> None:
    """Leave a signal to the process that started this one."""


if __name__ == "__main__":
    serve()
