"""How worker processes make groups in tests; imported there, so it imports little."""

import os
import pickle
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import cogedit
from cogedit.artifacts import write_artifact
from cogedit.progress import Step
from cogedit.tools.batch_group import BatchResult, make_group

WRITES = "writes.txt"
"""Names of the artifacts that `make_noted` wrote, in the current directory."""
KILLED = "killed.txt"
LAST = "last.txt"


def die_with_the_first(groups, results):
    """A process that is killed while it holds the first group of a shared list.

    Videos of groups lie in the current directory. What the process writes beside that is removed.
    """
    import processes

    program = f"""
import os, pickle, signal
from pathlib import Path
from cogedit.tools.batch_shared import SharedList
SharedList(pickle.loads({pickle.dumps(groups)!r}), Path({str(results)!r}), force=False).take()
os.kill(os.getpid(), signal.SIGKILL)
"""
    devnull = Path(os.devnull)
    dead = processes.start(program, Path.cwd(), stdout=devnull, stderr=devnull)
    assert processes.finish(dead) == -signal.SIGKILL


def make_nothing(group, *, run, session):
    """Every edit is made at once; its path says with which threads and GPU, and by whom."""
    run.notify(f"{group.numbers} begins")
    seen = [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
    for edit in group.edits:
        if edit.prompt == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if edit.prompt == "break":
            raise ZeroDivisionError("what no stage foresaw")
        path = ":".join([*seen, str(os.getpid())])
        yield BatchResult(edit.where, str(edit.video), edit.prompt, "written", path)


def make_unless_sick(group, *, run, session):
    """A sick worker dies with all that it gets; the others take longer than it does."""
    if "SICK" in os.environ:
        Path("sick").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while not Path("sick").exists() and int(group.numbers) > 1:
        time.sleep(0.01)
    yield from make_nothing(group, run=run, session=session)


def make_together(group, *, run, session):
    """Groups 1 and 2 go on when both are there."""
    Path(f"here-{group.numbers}").touch()
    while not all(Path(f"here-{number}").exists() for number in (1, 2)):
        time.sleep(0.01)
    yield from make_nothing(group, run=run, session=session)


def make_endlessly(group, *, run, session):
    """A loop that only a request to stop ends."""
    with run.progress(group.numbers, 10**9) as on_step, run.cancellation.between_steps():
        for number in range(10**9):
            on_step(Step(number, 10**9))
            time.sleep(0.01)
            if run.cancellation.signum is not None:
                Path(f"ended-{group.numbers}").touch()
            run.cancellation.check(f"after step {number}")
    yield from make_nothing(group, run=run, session=session)


def make_stuck(group, *, run, session):
    """A step that never ends."""
    with run.progress(str(os.getpid()), 1) as on_step:
        on_step(Step(0, 1))
        while True:
            time.sleep(1)
    yield from make_nothing(group, run=run, session=session)


def make_noted(group, *, run, session):
    """The real thing, which notes what it writes."""

    def noted(path, *args, **kwargs):
        record = write_artifact(path, *args, **kwargs)
        with Path(WRITES).open("a") as file:
            file.write(f"{Path(path).name}\n")
        return record

    with patch("cogedit.stages.run.write_artifact", noted):
        yield from make_group(group, run=run, session=session)


def make_noted_until_lost(group, *, run, session):
    """As `make_noted`; nothing is made before two groups have begun.

    Where there is no cache of the Hub, the path of the first edit is in a file before it is told,
    and nothing is made after it: else it would depend on the moment of the loss what is there.
    """
    Path(f"here-{group.numbers}").touch()
    while len([*Path().glob("here-*")]) < 2:
        time.sleep(0.01)
    for result in make_noted(group, run=run, session=session):
        is_lost_next = result.error is None and not Path(os.environ["HF_HUB_CACHE"]).exists()
        if is_lost_next:
            Path(LAST).write_text(str(result.path))
        yield result
        if is_lost_next:
            time.sleep(1200)  # far longer than it takes to lose it
            raise TimeoutError("the node is still there")


def make_killed_once(group, *, run, session):
    """As `make_noted`, and once killed in the middle of an inversion."""

    @contextmanager
    def progress(doing, total):
        with run.progress(doing, total) as show:

            def on_step(step):
                show(step)
                if "invert" in doing and step.index == 2:
                    with suppress(FileExistsError):  # of another, which was at this step, too
                        Path(KILLED).touch(exist_ok=False)
                        os.kill(os.getpid(), signal.SIGKILL)

            yield on_step

    yield from make_noted(group, run=replace(run, progress=progress), session=session)


def stopped_once_two_run(signum):
    """A run that asks to stop in a step of the second loop, and what runs."""
    running = set()

    @contextmanager
    def progress(doing, total):
        running.add(doing)

        def on_step(step):
            if len(running) == 2:
                run.cancellation.request(signum)

        yield on_step
        running.remove(doing)

    run = cogedit.Run(progress=progress)
    return run, running


def artifacts(folder):
    """The bytes of all artifacts and videos; journals have times in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.glob("*.cogedit/*")
        if path.suffix in (".safetensors", ".mp4")
    }


def elsewhere(result):
    """A result without its key, in which the folder is."""
    return replace(result, key=None)
