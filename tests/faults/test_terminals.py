"""Streams and terminals that fail or go away: the run goes on, and its results are there."""

from __future__ import annotations

import os
import pty
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
from corpus import H264, make
from pipelines import TINY_MODEL

from cogedit.artifacts import verify_artifact

pytestmark = pytest.mark.faults

LOAD = ["load", "clip.mp4", *processes.SIZE, *TINY_MODEL]
EDIT = ["edit", "clip.mp4", "-p", "x", *processes.SIZE, *TINY_MODEL, "--num-inference-steps", "2"]
EDIT += ["-o", "films"]


def close_all() -> None:
    """As a parent process does that wants no output."""
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = None  # type: ignore[assignment,misc]


def close_output() -> None:
    os.close(1)


def close_notes() -> None:
    os.close(2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "clip.mp4", *H264)
    return tmp_path


def made(folder: Path) -> bool:
    """Whether the frames are there, and nothing that was printed is in their file."""
    paths = list(folder.glob("clip.cogedit/frames-*.safetensors"))
    return len(paths) == 1 and verify_artifact(paths[0]).kind == "frames"


@pytest.mark.parametrize("close", [close_all, close_output, close_notes])
def test_closed_streams(close: Callable[[], None], folder: Path, score: Any) -> None:
    with score("terminal: closed streams") as cases:
        code = processes.finish(processes.start(LOAD, folder, prepare=close))
        cases.case(code == 0 and made(folder), f"{close.__name__}: exit code {code}")
        printed = [(folder / name).read_text() for name in (processes.OUT, processes.LOG)]
        cases.case("Traceback" not in "".join(printed), f"{printed}")


@pytest.mark.parametrize(("stream", "expected"), [("stdout", 7), ("stderr", 0)])
def test_a_full_disk_below_a_stream(stream: str, expected: int, folder: Path, score: Any) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with score("terminal: a stream's disk is full") as cases:
        code = processes.finish(
            processes.start(LOAD, folder, stdout=full)
            if stream == "stdout"
            else processes.start(LOAD, folder, stderr=full)
        )
        cases.case(code == expected and made(folder), f"{stream}: exit code {code}")
        said = processes.log(folder) if stream == "stdout" else ""
        cases.case("Traceback" not in said, said)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_read_enough(stream: str, folder: Path, score: Any) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with score("terminal: a reader leaves") as cases:
        if stream == "stdout":
            process = processes.start(LOAD, folder, stdout=pipe)
            processes.wait_for(process, lambda: "wrote" in _said(folder))
        else:
            process = processes.start(LOAD, folder, stderr=pipe)
            processes.wait_for(process, lambda: bool(_read(reader)))
        os.close(reader)
        code = processes.finish(process)
        cases.case(code == 0 and made(folder), f"{stream}: exit code {code}")
        cases.case("Traceback" not in _said(folder), _said(folder))


def test_a_terminal_that_goes_away(folder: Path, score: Any) -> None:
    """In the middle of a bar, with the signal that a shell sends."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    terminal = Path(os.ttyname(theirs))
    with score("terminal: it goes away") as cases:
        process = processes.start(EDIT, folder, stdout=terminal, stderr=terminal)
        shown = bytearray()

        def is_inverting() -> bool:
            shown.extend(_read(ours))
            return b"inverting" in shown

        processes.wait_for(process, is_inverting)
        processes.send(process, signal.SIGHUP)
        os.close(theirs)
        os.close(ours)
        code = processes.finish(process)
        films = list(folder.glob("films/*.mp4"))
        cases.case(code == 0, f"exit code {code}")
        cases.case(made(folder) and len(films) == 1, f"{films}")


IMPORTING = """
import signal, sys
import cogedit.cli

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

del cogedit.cli.commands, sys.modules["cogedit.cli.commands"]
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["cogedit", "load", "clip.mp4"]
cogedit.cli.main()
"""


@pytest.mark.parametrize("module", ["cogedit.cli.commands", "cogedit.cli.tool_commands"])
def test_an_interrupt_while_the_program_starts(module: str, tmp_path: Path, score: Any) -> None:
    with score("terminal: Ctrl-C at the start") as cases:
        code = processes.finish(processes.start(IMPORTING.format(module=module), tmp_path))
        said = processes.log(tmp_path)
        cases.case(code == 130, f"exit code {code}")
        cases.case(said.startswith("interrupted") and "Traceback" not in said, said)


def _said(folder: Path) -> str:
    path = folder / processes.LOG
    return path.read_text() if path.exists() else ""


def _read(descriptor: int) -> bytes:
    """What is there to be read now."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
