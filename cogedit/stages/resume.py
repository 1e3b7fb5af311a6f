"""Keeps the steps of a long loop on disk, so that the same command goes on from the newest."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    StepRecord,
    Unfinished,
    forget_steps,
    read_last_step,
    read_steps,
    write_step,
)
from cogedit.artifacts.tensor_file import on_cpu
from cogedit.errors import CogeditError, Interrupted
from cogedit.stages.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from cogedit.diffusion.state import StepState


class StepKeeper:
    """Keeps steps while the loop goes on with the next one.

    Writing happens on a thread of its own: most of it is waiting for the disk. At most one step is
    under way, so a killed process loses two steps at most. Enter it around the loop; a wish to stop
    is granted after each step, and leaving waits until what was handed over is on disk.

    Args:
        unfinished: Where the steps are kept.
        names: Names of the tensors that the state of every step has; there may be more.
        shape: Of each of them.
        keep_all: Whether the result holds every step; else the newest two are kept.
        run: Whom to tell, and who may ask to stop.

    Attributes:
        done: The steps of an earlier run, from the first on, or the last alone.
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
        from cogedit.diffusion.state import StepState

        self._unfinished = unfinished
        self._run = run
        self._keep_all = keep_all
        root, makes = unfinished.root, unfinished.makes
        if keep_all:
            steps = read_steps(root, makes=makes, names=names, shape=shape)
        else:
            last = read_last_step(root, makes=makes, names=names, shape=shape)
            steps = [] if last is None else [last]
        self.done = [StepState(step.record.info, step.tensors) for step in steps]
        self._last = steps[-1].record if steps else None
        self._pending: Future[StepRecord] | None = None
        if self._last is not None:
            run.notify(f"going on after step {self._count} of {self._last.info.total}")

    @property
    def _count(self) -> int:
        return 0 if self._last is None else self._last.info.index + 1

    def __enter__(self) -> StepKeeper:
        with ExitStack() as stack:
            self._thread = stack.enter_context(ThreadPoolExecutor(1, "steps"))
            stack.enter_context(self._run.cancellation.between_steps())
            self._open = stack.pop_all()
        return self

    def keep(self, state: StepState) -> None:
        """Hand a step over, and stop if somebody asked to.

        Args:
            state: What the loop goes on from; it must not be changed any more.

        Raises:
            StorageError: The step before could not be written.
            Interrupted: Somebody asked to stop.
        """
        tensors = on_cpu(state.tensors)  # device work of this thread, not of the other
        self._wait()
        before = None if self._last is None else self._last.digest
        record = StepRecord(self._unfinished.makes, state.info, before)
        self._pending = self._thread.submit(self._write, tensors, record)
        self._run.cancellation.check(f"after step {state.info.index + 1} of {state.info.total}")

    def _write(self, tensors: Mapping[str, Tensor], record: StepRecord) -> StepRecord:
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
            # What the loop failed with comes first; without that, this is what happened.
            if error is None or isinstance(error, Interrupted):
                raise failed from error
        finally:
            self._open.__exit__(kind, error, trace)
        if isinstance(error, Exception) and not isinstance(error, Interrupted):
            self._tell()

    def _tell(self) -> None:
        if self._last is not None:
            kept = f"{self._count} of {self._last.info.total} steps are kept"
            self._run.notify(f"{kept}; the same command goes on from there")
