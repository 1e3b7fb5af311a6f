"""Several workers on one batch: the queue of its groups, and what the workers tell.

A worker is a process that makes one group after the other and tells everything as it happens. Who
starts it, and how its words travel, differs (`batch_local`, `batch_ray`); the driver does not.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal, Protocol

from cogedit.cancellation import Cancellation
from cogedit.errors import Interrupted, UsageError
from cogedit.progress import RGBPicture, ShowStep, Step
from cogedit.stages.reconstruct import expect_prompts
from cogedit.stages.run import Run
from cogedit.stages.session import Session, use_session
from cogedit.tools.batch_deaths import Deaths
from cogedit.tools.batch_group import BatchResult, Group, make_group, result_of
from cogedit.tools.batch_plan import BatchEdit
from cogedit.tools.batch_shared import Heard, SharedList
from cogedit.types import ReconstructSettings


class Make(Protocol):
    """Makes the edits of a group; a function of a module, which another process can import."""

    def __call__(self, group: Group, *, run: Run, session: Session) -> Iterator[BatchResult]:
        """As `make_group`."""


@dataclass(frozen=True)
class Job:
    """What a worker knows before its first group.

    Attributes:
        folder: The current directory, to which paths are relative.
        options: All edits to come, whose prompts are embedded together.
        force: As in `Run`.
        inputs: As in `Run`.
        has_preview: Whether images of the edits are shown.
        make: Makes a group.
    """

    folder: Path
    options: tuple[ReconstructSettings, ...] = ()
    force: bool = False
    inputs: tuple[Path, ...] = ()
    has_preview: bool = False
    make: Make = make_group


@dataclass(frozen=True)
class Ready:
    """A worker waits for a group: it has started, or the one that it had is done."""


@dataclass(frozen=True)
class Said:
    """What a worker reports; `how` is a field of `Run`."""

    how: Literal["notify", "detail", "preview"]
    what: str | RGBPicture


@dataclass(frozen=True)
class Began:
    """A long loop begins; `number` names it in what is told later."""

    number: int
    doing: str
    total: int


@dataclass(frozen=True)
class Stepped:
    """A step of a long loop is done."""

    number: int
    step: Step


@dataclass(frozen=True)
class Ended:
    """A long loop is over."""

    number: int


@dataclass(frozen=True)
class Broken:
    """A worker met what no stage foresaw, a bug or a broken GPU, and ends."""

    error: Exception


@dataclass(frozen=True)
class Gone:
    """A worker is no more: it died, or ended as it was told."""

    why: str


Event = BatchResult | Ready | Said | Began | Stepped | Ended | Broken | Gone
Tell = Callable[[Event], None]


class Workers(Protocol):
    """Processes that work on one job, by number.

    Attributes:
        number: How many they are, or will be.
    """

    number: int

    def events(self) -> Iterable[tuple[int, Event]]:
        """Return what workers have told; wait for a second at most. `Gone` is the last of each."""

    def give(self, worker: int, group: Group) -> None:
        """Hand a group to a worker that is ready."""

    def renew(self, worker: int) -> None:
        """Start another worker in the place of one that is gone."""

    def stop(self, signum: int) -> None:
        """Ask every worker to end after its step."""

    def close(self) -> None:
        """Let every worker end after its step, and wait for that."""

    def kill(self) -> None:
        """End every worker at once."""


Start = Callable[[Job, Sequence[BatchEdit]], Workers]


def on_gpus(edits: Sequence[BatchEdit]) -> bool:
    """Return whether edits compute on GPUs, where there are any.

    Raises:
        UsageError: One GPU is named for all workers, or several for each edit.
    """
    devices = {edit.settings.device for edit in edits}
    for edit in edits:
        # On a CPU, if it is named, they are processes, which a worker may have.
        if edit.settings.transformer.gpus > 1 and edit.settings.device != "cpu":
            raise UsageError(
                f"--gpus is {edit.settings.transformer.gpus}, and each worker has one GPU",
                hint="leave --gpus out, or --workers and --engine",
            )
    for device in sorted(devices):
        if device.startswith("cuda:"):
            raise UsageError(
                f"--device is {device}, and each worker has a GPU of its own",
                hint="leave --device out; CUDA_VISIBLE_DEVICES says which GPUs are used",
            )
    return not devices.isdisjoint(("auto", "cuda"))


def work(job: Job, groups: Iterable[Group], tell: Tell, cancellation: Cancellation) -> None:
    """Make groups as they come, and tell what happens: the whole of a worker.

    It returns when there are no more, after the step in which `cancellation` asks for it, and
    after an error that is no outcome of an edit.
    """

    def say(how: Literal["notify", "detail", "preview"], what: str | RGBPicture) -> None:
        tell(Said(how, what))

    numbers = count()

    @contextmanager
    def progress(doing: str, total: int) -> Iterator[ShowStep]:
        number = next(numbers)
        tell(Began(number, doing, total))
        try:
            yield lambda step: tell(Stepped(number, step))
        finally:
            tell(Ended(number))

    @contextmanager
    def wait(doing: str, /, *, is_said: bool = False) -> Iterator[None]:
        if is_said:
            say("notify", doing)
        yield

    run = Run(
        force=job.force,
        notify=partial(say, "notify"),
        detail=partial(say, "detail"),
        progress=progress,
        wait=wait,
        preview=partial(say, "preview") if job.has_preview else None,
        cancellation=cancellation,
        inputs=job.inputs,
    )
    warnings.simplefilter("ignore")
    try:
        os.chdir(job.folder)
        with use_session(None) as session:
            expect_prompts(job.options, session)
            tell(Ready())
            for group in groups:
                for result in job.make(group, run=run, session=session):
                    tell(result)
                tell(Ready())
    except Interrupted:
        pass
    except OSError as error:  # a full disk, say: a sentence on the driver's side
        tell(Broken(error))
    except Exception:  # noqa: BLE001
        tell(Broken(RuntimeError(f"in a worker:\n{traceback.format_exc()}")))


def drive(shared: SharedList, workers: Workers, run: Run) -> Iterator[BatchResult | Heard]:
    """Hand the groups of a batch to workers; yield the outcomes as they come.

    A group whose worker died goes back into the queue without the edits that have an outcome, and
    another worker goes on from the steps on disk. After `MAX_RETRIES` its edits fail. A worker that
    dies with one group after the other, or as it starts, is not replaced while there are others.
    Other processes may share the list, with workers or without.

    Raises:
        Interrupted: A stop was requested, and every worker has ended after its step.
        WorkerDied: No worker starts, or nothing at all is made.
    """
    queue, busy, idle = deque[Group](), dict[int, Group](), set[int]()
    slots = {*range(workers.number)}  # of workers that are there, or start
    deaths, shown, is_stopping = Deaths(), _Shown(run), False
    with run.cancellation.between_steps(), run.wait("waiting for the workers"):
        while busy or (not is_stopping and (queue or not shared.is_empty)):
            for worker in () if is_stopping else sorted(idle):
                avoided = deaths.avoided(worker, (busy.keys() | idle) - {worker})
                group = _next(queue, shared, avoided)
                if group is not None and (failures := shared.given_up(group)):
                    yield from failures
                    shared.give_back(group)
                elif group is not None:
                    idle.discard(worker)
                    busy[worker] = group
                    workers.give(worker, group)
            yield from shared.heard()
            for worker, event in workers.events():
                if isinstance(event, BatchResult):
                    busy[worker] = busy[worker].without(event)
                    deaths.made(worker)
                    yield event
                elif isinstance(event, Ready):
                    if (group := busy.pop(worker, None)) is not None:
                        shared.give_back(group)
                    idle.add(worker)
                    deaths.begun(worker)
                elif isinstance(event, Broken):
                    deaths.explain(worker, event.error)
                    run.notify(str(event.error))
                elif isinstance(event, Gone):
                    shown.close(worker)
                    idle.discard(worker)
                    left = busy.pop(worker, None)
                    if is_stopping:
                        continue
                    why, others = deaths.add(worker, left, event.why), slots - {worker}
                    is_last = left is None and deaths.is_over(left) and not others
                    if is_last or deaths.are_all(workers.number):
                        raise deaths.error(left, why)
                    yield from _put_back(left, why, queue, deaths, run)
                    if left is not None and left not in queue:
                        shared.give_back(left)
                    if deaths.is_sick(worker) and others:
                        run.notify("a worker ended again and again; the others go on without it")
                        slots = others
                    elif len(queue) + (not shared.is_empty) > len(idle):
                        workers.renew(worker)
                    else:
                        slots = others
                else:
                    shown.show(worker, event)
            if run.cancellation.signum is not None and not is_stopping:
                is_stopping = True
                workers.stop(run.cancellation.signum)


def _next(queue: deque[Group], shared: SharedList, avoided: set[str]) -> Group | None:
    """The next group: one that a worker left, but for some, or one that no process has."""
    for group in queue:
        if group.numbers not in avoided:
            queue.remove(group)
            return group
    return shared.take()


def _put_back(
    group: Group | None, why: str, queue: deque[Group], deaths: Deaths, run: Run
) -> Iterator[BatchResult]:
    """Queue what a worker left that is gone; yield failures where that happened too often."""
    if group is None:
        run.notify(f"a worker ended before it had begun: {why}")
    elif deaths.is_over(group):
        error = deaths.error(group, why)
        yield from (result_of(edit, error) for edit in group.edits)
    elif group.edits:
        run.notify(f"{group.numbers}/{group.total} goes to another worker: {why}")
        queue.appendleft(group)


class _Shown:
    """The loops of all workers, as one display shows them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loops: dict[tuple[int, int], tuple[AbstractContextManager[ShowStep], ShowStep]] = {}

    def show(self, worker: int, event: Said | Began | Stepped | Ended) -> None:
        """Show what a worker told."""
        if isinstance(event, Said):
            show = getattr(self._run, event.how)
            if show is not None:
                show(event.what)
        elif isinstance(event, Began):
            loop = self._run.progress(event.doing, event.total)
            self._loops[worker, event.number] = loop, loop.__enter__()
        elif isinstance(event, Stepped):
            self._loops[worker, event.number][1](event.step)
        else:
            self._loops.pop((worker, event.number))[0].__exit__(None, None, None)

    def close(self, worker: int) -> None:
        """End the loops of a worker that is gone."""
        for key in [key for key in self._loops if key[0] == worker]:
            self._loops.pop(key)[0].__exit__(None, None, None)


@contextmanager
def ending(workers: Workers) -> Iterator[Workers]:
    """End all workers with the block: after their steps, and at once by a KeyboardInterrupt."""
    try:
        try:
            yield workers
        except KeyboardInterrupt:
            raise
        except BaseException:
            workers.close()
            raise
        workers.close()
    except KeyboardInterrupt:
        workers.kill()
        raise
