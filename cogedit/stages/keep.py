"""Keeps the steps of a long loop on disk, so that the same command goes on from the newest."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from cogedit.artifacts import StepRecord, Unfinished, read_steps, write_step
from cogedit.artifacts.payload import on_cpu
from cogedit.errors import CogeditError, Interrupted
from cogedit.stages.run import Run

if TYPE_CHECKING:
    from cogedit.diffusion.state import StepState


class StepKeeper:
    """Keeps steps while the loop goes on with the next one.

    Writing happens on a thread of its own: most of it is waiting for the disk. At most one step is
    under way, so a killed process loses two steps at most. Enter it around the loop; a wish to stop
    is granted after each step, and leaving waits until what was handed over is on disk.

    Args:
        unfinished: Where the steps are kept.
        names: Names of the tensors of a step's state.
        shape: Of each of them.
        run: Whom to tell, and who may ask to stop.

    Attributes:
        done: The steps of an earlier run, from the first on.
    """

    def __init__(
        self, unfinished: Unfinished, *, names: tuple[str, ...], shape: tuple[int, ...], run: Run
    ) -> None:
        from cogedit.diffusion.state import StepState

        self._unfinished = unfinished
        self._run = run
        steps = read_steps(
            unfinished.root, content_key=unfinished.content_key, names=names, shape=shape
        )
        self.done = [StepState(step.record.info, step.tensors) for step in steps]
        self._last = steps[-1].record if steps else None
        self._pending: Future[StepRecord] | None = None
        if self._last is not None:
            run.say(f"going on after step {self._count} of {self._last.info.total}")

    @property
    def _count(self) -> int:
        return 0 if self._last is None else self._last.info.index + 1

    def __enter__(self) -> StepKeeper:
        with ExitStack() as stack:
            self._thread = stack.enter_context(ThreadPoolExecutor(1, "steps"))
            stack.enter_context(self._run.stop.granted())
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
        record = StepRecord(self._unfinished.content_key, state.info, before)
        self._pending = self._thread.submit(write_step, self._unfinished.root, tensors, record)
        self._run.stop.check(f"after step {state.info.index + 1} of {state.info.total}")

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
            self._run.say(f"{kept}; the same command goes on from there")
