"""Saves the steps of a long loop, so that the same command resumes from the newest of them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from torch import Tensor

from cogedit.artifacts import (
    SavedSteps,
    StepRecord,
    Unfinished,
    forget_steps,
    read_last_step,
    read_steps,
    write_step,
)
from cogedit.artifacts.tensor_file import on_cpu
from cogedit.diffusion.state import StepState
from cogedit.errors import CogeditError, Interrupted, LeaseLost
from cogedit.stages.run import Run
from cogedit.wording import count_of


class ResumableLoop:
    """Saves steps while the loop computes the next one.

    A thread of its own writes them, since most of that is waiting for the disk. At most one step is
    being written, so a killed process loses at most two. Enter it around the loop: a requested stop
    takes effect after a step, and leaving waits until what was handed over is on disk.

    Args:
        names: Names of the tensors that the state of every step has, what is collected first; there
            may be more.
        shape: Of each of them.
        keep_all: Whether the result holds every step; else the newest two are kept.

    Attributes:
        infos: The steps of an earlier run, from the first on, or the last alone.
        done: The last of them, with what the loop goes on from.
    """

    def __init__(
        self,
        unfinished: Unfinished,
        *,
        names: tuple[str, ...],
        shape: tuple[int, ...],
        keep_all: bool,
        run: Run,
    ) -> None:
        self._unfinished = unfinished
        self._names = names
        self._run = run
        self._keep_all = keep_all
        root, makes = unfinished.root, unfinished.makes
        with run.wait("reading the steps that are kept"):
            if keep_all:
                # A solver looks back at most two steps.
                steps = read_steps(root, makes=makes, names=names, shape=shape, num_whole=2)
            else:
                last = read_last_step(root, makes=makes, names=names, shape=shape)
                steps = [] if last is None else [last]
        self.infos = [step.record.info for step in steps]
        self.done = [StepState(step.record.info, step.tensors) for step in steps if step.tensors]
        self._last = steps[-1].record if steps else None
        self._pending: Future[StepRecord] | None = None
        if self._last is not None:
            run.notify(f"going on after step {self._count} of {self._last.info.total}")

    @property
    def _count(self) -> int:
        return 0 if self._last is None else self._last.info.index + 1

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._thread = stack.enter_context(ThreadPoolExecutor(1, "steps"))
            stack.enter_context(self._run.cancellation.between_steps())
            self._open = stack.pop_all()
        return self

    def save(self, state: StepState) -> None:
        """Save a step, whose tensors must not change any more, and stop if that was requested.

        A StorageError says that the step before could not be written.
        """
        tensors = on_cpu(state.tensors)  # device work of this thread, not of the other
        self._wait()
        before = None if self._last is None else self._last.digest
        record = StepRecord(self._unfinished.makes, state.info, before)
        self._pending = self._thread.submit(self._write, tensors, record)
        self._run.cancellation.check(f"after step {state.info.index + 1} of {state.info.total}")

    def read_back(self) -> SavedSteps:
        """Wait for the last step, and return what all of them collect; it stays on disk.

        Raises:
            ValueError: Not every step is kept, or there is none.
        """
        self._wait()
        if not self._keep_all or self._last is None:
            raise ValueError("not every step is on disk")
        return SavedSteps(self._unfinished.root, self._last, self._names[0])

    def _write(self, tensors: Mapping[str, Tensor], record: StepRecord) -> StepRecord:
        self._unfinished.check_alone()  # else two chains would mix, which may differ in rounding
        written = write_step(self._unfinished.root, tensors, record)
        if not self._keep_all:
            forget_steps(self._unfinished.root, before=record.info.index - 1)
        return written

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._last = pending.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._wait()
        except CogeditError as failed:
            # An error of the loop itself comes first.
            if error is None or isinstance(error, Interrupted):
                raise failed from error
        finally:
            self._open.__exit__(kind, error, trace)
        told_elsewhere = isinstance(error, Interrupted | LeaseLost)
        failed_in_loop = isinstance(error, Exception) and not told_elsewhere
        if failed_in_loop and self._last is not None:
            kept = f"kept: {self._count} of {count_of(self._last.info.total, 'step')}"
            self._run.notify(f"{kept}; the same command goes on from there")
