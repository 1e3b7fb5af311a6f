"""Workers of a batch in a Ray cluster: plain actors, one for each GPU, or for each CPU.

Ray places them and notices when one dies. It repeats nothing by itself: the driver has the queue.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from cogedit.cancellation import Cancellation
from cogedit.errors import CogeditError, UsageError, first_line
from cogedit.tools.batch_driver import Event, Gone, Job, on_gpus, work
from cogedit.tools.batch_group import Group, groups_of
from cogedit.tools.batch_nodes import Needed, needed_for
from cogedit.tools.batch_plan import BatchEdit
from cogedit.version import __version__

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

_STORE_BYTES = 100 * 2**20
"""Ray's shared memory on this machine, where Ray is started for a batch: only words pass it."""


class _Actor:
    """A worker; the driver asks it again and again what there is to tell."""

    def __init__(self, job: Job) -> None:
        self._told: SimpleQueue[Event] = SimpleQueue()
        self._groups: SimpleQueue[Group | None] = SimpleQueue()
        self._cancellation = Cancellation()
        threading.Thread(target=self._work, args=(job,), daemon=True).start()

    def _work(self, job: Job) -> None:
        try:
            work(job, iter(self._groups.get, None), self._told.put, self._cancellation)
        finally:
            self._told.put(Gone("it has ended"))

    def give(self, group: Group) -> None:
        self._groups.put(group)

    def stop(self, signum: int) -> None:
        self._cancellation.request(signum)
        self._groups.put(None)

    def told(self) -> list[Event]:
        """Wait for something to tell, and return all that there is."""
        events = [self._told.get()]
        with suppress(Empty):
            while True:
                events.append(self._told.get_nowait())
        return events


class RayWorkers:
    """Actors in a cluster.

    Args:
        job: What they work on.
        number: How many.
        resources: What each needs, as Ray's options.
        ending: Closed when the last has ended.
    """

    def __init__(
        self, job: Job, number: int, resources: Mapping[str, float], *, ending: ExitStack
    ) -> None:
        import ray

        self.number = number
        self._job = job
        self._ending = ending
        self._class = ray.remote(_Actor).options(
            scheduling_strategy="SPREAD", max_concurrency=3, max_restarts=0, **resources
        )
        self._actors: dict[int, ActorHandle] = {}
        self._asked: dict[ObjectRef, int] = {}
        self._begun: set[int] = set()
        for worker in range(number):
            self.renew(worker)

    def renew(self, worker: int) -> None:
        """Start an actor in the place of one that is gone, where and when the cluster has room."""
        self._actors[worker] = self._class.remote(self._job)
        self._ask(worker)

    def _ask(self, worker: int) -> None:
        self._asked[self._actors[worker].told.remote()] = worker

    def events(self) -> Iterator[tuple[int, Event]]:
        """Yield what actors have told, after a second at most."""
        import ray

        if not self._asked:
            return
        answered, _ = ray.wait([*self._asked], num_returns=1, timeout=1)
        for ref in answered:
            worker = self._asked.pop(ref)
            try:
                events: list[Event] = ray.get(ref)
            except ray.exceptions.RayError as error:
                events = [Gone(_why(error))]
            self._begun.add(worker)
            if isinstance(events[-1], Gone):
                # One that only cannot be reached would go on beside the next.
                self._kill(worker)
            else:
                self._ask(worker)
            yield from ((worker, event) for event in events)

    def give(self, worker: int, group: Group) -> None:
        """Hand a group to an actor."""
        self._actors[worker].give.remote(group)

    def stop(self, signum: int) -> None:
        """Ask every actor to end after its step."""
        for ref, worker in [*self._asked.items()]:
            if worker in self._begun:
                self._actors[worker].stop.remote(signum)
            else:  # there was no room for it so far
                del self._asked[ref]
                self._kill(worker)

    def close(self) -> None:
        """Let every actor end after its step, wait for that, and leave the cluster."""
        self.stop(signal.SIGINT)
        while self._asked:
            for _ in self.events():
                pass
        self._ending.close()

    def kill(self) -> None:
        """End every actor at once, and leave the cluster."""
        for worker in self._actors:
            self._kill(worker)
        self._ending.close()

    def _kill(self, worker: int) -> None:
        import ray

        self._begun.discard(worker)
        ray.kill(self._actors[worker])


def start_ray(
    job: Job, edits: Sequence[BatchEdit], *, number: int | None, address: str | None
) -> RayWorkers:
    """Start workers in a Ray cluster, once all of its nodes have what the edits need.

    Args:
        job: What they work on.
        edits: All edits of the batch.
        number: How many; None is one for each GPU of the cluster, or without any for each CPU.
        address: HOST:PORT of the cluster's head; None is the cluster that this machine belongs
            to, or without one this machine alone.

    Raises:
        UsageError: There is no Ray, or no such cluster, or a node has another cogedit, or GPUs are
            named for the workers.
        StorageError: A node does not see the videos, or where the edits go.
        ModelError: A node does not have the model.
    """
    is_on_gpus, ending = on_gpus(edits), ExitStack()
    try:
        ending.enter_context(_connected(address))
        import ray

        total = ray.cluster_resources()
        kind = "GPU" if is_on_gpus and total.get("GPU", 0) >= 1 else "CPU"
        with needed_for(edits) as needed:
            _check_nodes(needed, kind)
        number = min(number or int(total.get(kind, 1)), len(groups_of(edits)))
        resources = {"num_cpus": 1, "num_gpus": int(kind == "GPU")}
        return RayWorkers(job, number, resources, ending=ending)
    except BaseException:
        ending.close()
        raise


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Be the driver of a cluster, which is started here if there is none and none was named."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray", hint="pip install 'cogedit[ray]'") from error
    if ray.is_initialized():
        yield
        return
    if address is not None and "://" in address:
        raise UsageError(
            f"--address is {address}, expected HOST:PORT",
            hint="run cogedit on a node of the cluster: it writes the results itself",
        )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _init(address)
        with suppress(ValueError):  # not in the main thread, where Ray sets none either
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)
        # It prints what happens to its workers to stdout, which is for the results.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
            yield
    finally:
        ray.shutdown()


def _init(address: str | None) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        # "auto" also finds a cluster among the processes of this machine, and remembers the first
        # one for the life of this process: a second session may be led to one that has ended.
        ray.init(address=address or "auto", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        named = address or os.environ.get("RAY_ADDRESS")
        if named:
            raise UsageError(
                f"there is no Ray cluster at {named}: {first_line(error)}",
                hint=f"start a node here: ray start --address {named}",
            ) from error
        ray.init(
            address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet
        )


def _check_nodes(needed: Needed, kind: str) -> None:
    """Have every node that may get a worker show that it has what is needed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look(needed))
    asked: list[tuple[str, ObjectRef]] = []  # a machine may be several nodes, of one name
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get(kind, 0) >= 1:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            asked.append((name, look.options(scheduling_strategy=strategy).remote(__version__)))
    problems: list[tuple[str, CogeditError]] = []
    for name, ref in asked:
        try:
            answer: list[CogeditError] | str | None = ray.get(ref)
        except ray.exceptions.RayError as error:
            answer = [UsageError(f"cannot run cogedit: {_why(error)}")]
        if answer is None or isinstance(answer, str):
            found = "no cogedit" if answer is None else f"cogedit {answer}"
            hint = "install the same version in the environment of every node's Ray"
            answer = [UsageError(f"has {found}, expected {__version__}", hint=hint)]
        problems += [(name, error) for error in answer]
    if problems:
        first = problems[0][1]
        text = "; ".join(f"{name} {error.message}" for name, error in problems)
        raise type(first)(text, hint=first.hint)


def _look(needed: Needed) -> Callable[[str], list[CogeditError] | str | None]:
    """Make a function that a node without cogedit, or with another one, can run, too.

    A function in a function travels as its code; what it needs is pickled by itself.
    """
    import pickle

    words = pickle.dumps(needed)

    def look(version: str) -> list[CogeditError] | str | None:
        try:
            from cogedit.version import __version__ as found
        except ImportError:
            return None
        if found != version:
            return found
        from cogedit.tools.batch_nodes import missing_here

        return missing_here(pickle.loads(words))

    return look


def _why(error: Exception) -> str:
    """Say in a few words why an actor or a node did not answer."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    because = re.search(r"is dead because (.+?)[.:]", text)
    if because is not None:
        memory = "memory monitor" in text or "out of memory" in text.lower()
        return because[1] + (", for want of memory" if memory else "")
    return text.strip().splitlines()[-1] if text.strip() else first_line(error)
