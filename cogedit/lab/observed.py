"""A command in a process of its own: how long it took, what memory, and every word it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

import psutil

_ROOT = Path(__file__).parents[2]
_EVERY = 0.1
"""Seconds between two looks at the memory of a process."""


@dataclass(frozen=True)
class Line:
    """What a command said on stderr.

    Attributes:
        second: When, since its start.
        text: As it was said.
        event: Parsed; None if a library said it and not the command.
    """

    second: float
    text: str
    event: Mapping[str, object] | None

    @classmethod
    def read(cls, second: float, text: str) -> Line:
        """Parse a line of `--jsonl`."""
        try:
            event = json.loads(text)
        except ValueError:
            event = None
        return cls(second, text, event if isinstance(event, dict) else None)


@dataclass(frozen=True)
class Step:
    """When a loop finished a step, and which."""

    second: float
    number: int


@dataclass(frozen=True)
class Observed:
    """A command that has ended.

    Attributes:
        exit_code: Its own; negative is the signal that ended it.
        seconds: From its start to its end.
        lines: What it said, in order.
        stdout: Its result.
        host_bytes: Most memory of its own on the host, files that it mapped left out.
        device_bytes: Most bytes that torch reserved on the CUDA device; None if it was not asked,
            or could not answer.
        allocated_bytes: Of these in tensors.
        pinned_bytes: Most bytes of page-locked host memory.
    """

    exit_code: int
    seconds: float
    lines: tuple[Line, ...]
    stdout: str
    host_bytes: int
    device_bytes: int | None = None
    allocated_bytes: int | None = None
    pinned_bytes: int | None = None

    @property
    def result(self) -> Mapping[str, object]:
        """What it printed with `--json`; empty if it is not JSON."""
        try:
            found = json.loads(self.stdout)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it made or found made."""
        outputs = self.result.get("outputs")
        return tuple(Path(one["path"]) for one in outputs) if isinstance(outputs, list) else ()

    @property
    def silence(self) -> float:
        """The longest time without a word, in seconds."""
        times = [0.0, *(line.second for line in self.lines), self.seconds]
        return max(after - before for before, after in pairwise(times))

    def steps(self, doing: str) -> list[Step]:
        """The steps of the loops whose description begins with a word, such as "inverting"."""
        return [
            Step(line.second, int(str(line.event["step"])))
            for line in self.lines
            if line.event is not None
            and line.event.get("event") == "step"
            and str(line.event["doing"]).startswith(doing)
        ]

    @property
    def remarks(self) -> list[str]:
        """What libraries said, and errors with their hints."""
        said = []
        for line in self.lines:
            if line.event is None:
                said.append(line.text)
            elif line.event.get("event") == "error":
                hint = line.event.get("hint")
                said.append(f"error: {line.event['message']}" + (f" ({hint})" if hint else ""))
        return list(dict.fromkeys(said))

    @property
    def notes(self) -> list[str]:
        """The sentences that it said, each once."""
        events = (line.event for line in self.lines if line.event is not None)
        return list(dict.fromkeys(str(e["text"]) for e in events if e.get("event") == "note"))


def observe(
    arguments: Sequence[str],
    *,
    folder: Path,
    device_limit: int | None,
    kill_after: tuple[str, int] | None = None,
) -> Observed:
    """Run `cogedit ARGUMENTS` to its end.

    Args:
        arguments: Of the command, with `--jsonl`.
        folder: Its current directory.
        device_limit: Bytes of the CUDA device that it may take, 0 is all; None where it has none.
        kill_after: A loop and a number of its steps, after which the process is killed.
    """
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    limit = "cpu" if device_limit is None else str(device_limit)
    command = [sys.executable, "-P", "-m", "cogedit.lab.measured", str(report), limit, *arguments]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    lines: list[Line] = []
    printed: list[str] = []
    stdout, stderr = cast("tuple[IO[str], IO[str]]", (process.stdout, process.stderr))

    def listen() -> None:
        for text in stderr:
            lines.append(Line.read(time.monotonic() - started, text.rstrip("\n")))
            if kill_after is not None and _reached(lines[-1], *kill_after):
                process.kill()

    threads = [
        threading.Thread(target=listen),
        threading.Thread(target=lambda: printed.append(stdout.read())),
    ]
    for thread in threads:
        thread.start()
    try:
        host_bytes = _watch(process)
    finally:
        process.kill()  # nothing, unless the watch was interrupted
        for thread in threads:
            thread.join()
        stdout.close()
        stderr.close()
    seconds = time.monotonic() - started
    measured = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return Observed(
        exit_code=process.wait(),
        seconds=seconds,
        lines=tuple(lines),
        stdout="".join(printed),
        host_bytes=host_bytes,
        device_bytes=measured.get("reserved"),
        allocated_bytes=measured.get("allocated"),
        pinned_bytes=measured.get("pinned"),
    )


def _reached(line: Line, doing: str, step: int) -> bool:
    event = line.event or {}
    return event.get("doing") == doing and int(str(event.get("step", 0))) >= step


def _watch(process: subprocess.Popen[str]) -> int:
    """Wait for a process and return the most memory of its own that was seen."""
    most = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            memory = watched.memory_info()
            # On Linux, `shared` are the pages of files, which go when memory is asked for.
            most = max(most, memory.rss - getattr(memory, "shared", 0))
        except psutil.Error:  # it has just ended
            pass
        time.sleep(_EVERY)
    return most
