"""The real command line in processes of its own, which start with the libraries loaded.

A fresh interpreter imports torch and diffusers for many seconds. Here a server process imports
them once and forks for every command, so that a command starts in milliseconds, with its own
folder, environment, output, exit code and signals, and can be killed like any other process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Client, Connection, Listener, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

OUT = "out.txt"
LOG = "log.txt"
SIZE = ("--width", "64", "--height", "64", "--max-num-frames", "9", "--frame-rate", "spread")

HANGS = 1200.0
"""Seconds after which a process is given up: far more than any needs on a busy machine."""

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["processes_preload"])

# Who starts a process looks after all of them. Of two threads that find one ended at the same time,
# one would be told 255, and not its exit code.
_ONE_LOOKS = threading.Lock()

_Environ = Mapping[str, str]
Prepare = Callable[[], None]
"""Called in the process before the command runs; a function at the top level of a module."""


@dataclass(frozen=True)
class Done:
    """What a process left when it ended."""

    returncode: int
    stdout: str
    stderr: str


def cogedit(*args: object, cwd: Path, code: int = 0, **environ: str) -> Done:
    """Run `cogedit ARGS` to its end; it must end with this exit code and without a traceback."""
    done = _captured([str(arg) for arg in args], cwd, environ)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def python(program: str, *, cwd: Path) -> Done:
    """Run the text of a Python program to its end; it must not fail."""
    done = _captured(program, cwd, {})
    assert done.returncode == 0, done.stderr
    return done


def start(
    work: Sequence[str] | str,
    cwd: Path,
    *,
    stdin: Path = Path(os.devnull),
    stdout: Path | None = None,
    stderr: Path | None = None,
    environ: Mapping[str, str] | None = None,
    prepare: Prepare | None = None,
) -> ForkServerProcess:
    """Start `cogedit` with these arguments, or a Python program that is given as its text.

    Output goes to `out.txt` and `log.txt` in the folder unless it is sent elsewhere. The
    environment is the caller's without its `COGEDIT_*`, and with `environ`; its interpreter is
    the caller's, too.
    """
    _ensure_server()
    kept = {name: text for name, text in os.environ.items() if not name.startswith("COGEDIT_")}
    process = _CONTEXT.Process(
        target=_work,
        args=(
            work if isinstance(work, str) else list(work),
            cwd,
            (
                stdin,
                cwd / OUT if stdout is None else stdout,
                cwd / LOG if stderr is None else stderr,
            ),
            kept | _ENVIRONMENT | dict(environ or {}),
            sys.executable,
            prepare,
        ),
        daemon=True,
    )
    with _ONE_LOOKS:
        process.start()
    return process


@cache
def _ensure_server() -> None:
    # The server of Python 3.11 does not take over `sys.path`. It loads everything.
    path = os.pathsep.join(path for path in sys.path if path and "without_decord" not in path)
    with patch.dict(os.environ, _ENVIRONMENT, PYTHONPATH=path):
        forkserver.ensure_running()


@contextmanager
def program(folder: Path) -> Iterator[Path]:
    """A folder to put on a shell's PATH: its `cogedit` is the warm one.

    So is its `python -m MODULE`. What kills the one that was started kills the warm one, whose
    exit code or signal it ends with.
    """
    address = str(folder / "socket")
    _ensure_server()  # here, and not in threads: it changes the environment for a moment
    for name in (_COGEDIT, _PYTHON):
        (folder / name).write_text(_CLIENT.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)

    def serve(connection: Connection, pid: int, cwd: str, args: list[str], env: _Environ) -> None:
        stdin, out, log = (Path(f"/proc/{pid}/fd/{number}") for number in range(3))
        name, *args = args
        work = args if Path(name).name == _COGEDIT else _module(args)
        with connection:
            done = start(work, Path(cwd), stdin=stdin, stdout=out, stderr=log, environ=env)
            if connection in wait([connection, done.sentinel]):
                done.kill()
            code = finish(done)
            with suppress(OSError):  # it was killed, and hears nothing
                connection.send(code)

    def accept(listener: Listener) -> None:
        while True:
            connection = listener.accept()
            try:
                call = connection.recv()
            except (EOFError, OSError):  # it was killed before it had said what to do
                continue
            if call is None:
                return
            threading.Thread(target=serve, args=(connection, *call), daemon=True).start()

    with Listener(address) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield folder
        finally:
            with Client(address) as connection:
                connection.send(None)
            thread.join()


@contextmanager
def warm_python(folder: Path) -> Iterator[None]:
    """What is started by `sys.executable -m MODULE` has the libraries loaded."""
    with program(folder), patch.object(sys, "executable", str(folder / _PYTHON)):
        yield


def _module(args: list[str]) -> str:
    """The program that the arguments of an interpreter name."""
    module, *args = args[args.index("-m") + 1 :]
    return _MODULE.format(args=[module, *args], module=module)


_COGEDIT, _PYTHON = "cogedit", "python"
_CLIENT = """#!{python} -ES
import os, signal, sys
from multiprocessing.connection import Client
with Client({address!r}) as connection:
    connection.send((os.getpid(), os.getcwd(), sys.argv, dict(os.environ)))
    code = connection.recv()
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
_MODULE = """
import runpy, sys
sys.argv = {args!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def run(args: Sequence[str], cwd: Path) -> int:
    """Run `cogedit ARGS` to its end and return its exit code; a signal is negative."""
    return finish(start(args, cwd))


def finish(process: ForkServerProcess, timeout: float = HANGS) -> int:
    """Wait for a process; kill it if it hangs."""
    wait([process.sentinel], timeout)
    with _ONE_LOOKS:
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError("the command hangs")
        return process.exitcode


def is_running(process: ForkServerProcess) -> bool:
    """Whether a process has not ended."""
    with _ONE_LOOKS:
        return process.is_alive()


def send(process: ForkServerProcess, signum: int) -> None:
    """Send a signal, unless the process has ended."""
    if is_running(process) and process.pid is not None:
        with suppress(ProcessLookupError):  # ended since that line
            os.kill(process.pid, signum)


def wait_for(process: ForkServerProcess, reached: Callable[[], bool]) -> bool:
    """Wait until something is reached; False if the process ended before."""
    end = time.monotonic() + HANGS
    while not reached():
        if not is_running(process) or time.monotonic() > end:
            return reached()
        time.sleep(0.005)
    return True


def log(cwd: Path) -> str:
    """What the last command that was started in a folder wrote to stderr."""
    return (cwd / LOG).read_text()


def _captured(work: Sequence[str] | str, cwd: Path, environ: Mapping[str, str]) -> Done:
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, OUT), Path(folder, LOG)
        code = finish(start(work, cwd, stdout=out, stderr=log, environ=environ))
        return Done(code, out.read_text(), log.read_text())


def _work(
    work: list[str] | str,
    cwd: Path,
    streams: tuple[Path, Path, Path],
    environ: Mapping[str, str],
    executable: str,
    prepare: Prepare | None,
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.executable = executable
    for descriptor, path in enumerate(streams):
        shared = path.is_relative_to("/proc")  # another process writes there, too
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if shared else os.O_TRUNC)
        flags = flags if descriptor else os.O_RDONLY
        target = os.open(path, flags | os.O_NOCTTY)
        os.dup2(target, descriptor)
        os.close(target)
    # As in the foreground of a shell, wherever the tests themselves run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare is not None:
        prepare()
    try:
        if isinstance(work, str):
            exec(compile(work, "program", "exec"), {"__name__": "__main__"})
        else:
            from cogedit.cli import main

            sys.argv = ["cogedit", *work]
            main()
    finally:  # the command has ended; what is left belongs to the tests
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
