"""The real command line in processes of its own, which start with the libraries loaded.

A server process imports torch and diffusers once and forks for every command, so that a command
starts in milliseconds and can be killed like any other process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

LOG = "log.txt"
SIZE = ("--width", "64", "--height", "64", "--max-num-frames", "9")
MODEL = ("--model", "shapes", "--device", "cpu", "--dtype", "fp32")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["processes_preload"])

Prepare = Callable[[], None]
"""Called in the process before the command runs, at the top level of a module."""


def start(args: Sequence[str], cwd: Path, *, prepare: Prepare | None = None) -> ForkServerProcess:
    """Start `cogedit ARGS` in a folder; stdout goes to `out.txt`, stderr to `log.txt` there."""
    # The server of Python 3.11 does not take over `sys.path`.
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with patch.dict(os.environ, environment):
        process = _CONTEXT.Process(target=_command, args=(list(args), cwd, prepare), daemon=True)
        process.start()
    return process


def run(args: Sequence[str], cwd: Path, *, prepare: Prepare | None = None) -> int:
    """Run `cogedit ARGS` to its end and return its exit code; a signal is negative."""
    return finish(start(args, cwd, prepare=prepare))


def finish(process: ForkServerProcess, timeout: float = 300) -> int:
    """Wait for a process; kill it if it hangs."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError("the command hangs")
    return process.exitcode


def send(process: ForkServerProcess, signum: int) -> None:
    """Send a signal, unless the process has ended."""
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signum)


def wait_for(process: ForkServerProcess, reached: Callable[[], bool], timeout: float = 120) -> bool:
    """Wait until something is reached; False if the process ended before."""
    end = time.monotonic() + timeout
    while not reached():
        if not process.is_alive() or time.monotonic() > end:
            return reached()
        time.sleep(0.005)
    return True


def log(cwd: Path) -> str:
    """What the last command said."""
    return (cwd / LOG).read_text()


def _command(args: list[str], cwd: Path, prepare: Prepare | None) -> None:
    os.chdir(cwd)
    for name in [name for name in os.environ if name.startswith("COGEDIT_")]:
        del os.environ[name]
    with _into(cwd / LOG, 2), _into(cwd / "out.txt", 1):
        # As in the foreground of a shell, wherever the tests themselves run.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prepare is not None:
            prepare()
        from cogedit.cli import main

        sys.argv = ["cogedit", *args]
        try:
            main()
        finally:  # the command has ended; what is left belongs to the tests
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def _into(path: Path, descriptor: int):
    """Send a descriptor to a file, for child processes too."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, descriptor)
    os.close(target)
    yield
    (sys.stdout if descriptor == 1 else sys.stderr).flush()
