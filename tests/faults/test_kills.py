"""Killed, terminated and interrupted at random moments: the same command then ends as if never."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import pytest
from pipelines import TINY_MODEL
from soak import SOAK
from videos import make_video

from cogedit.artifacts import UNFINISHED_SUFFIX, newest_step

pytestmark = pytest.mark.faults

KILLS = 100 if SOAK else 5
"""Of SIGKILL, over all stages in turn."""

STOPS = 25 if SOAK else 1
"""Of each signal that asks to stop."""
COMMAND = [
    "edit",
    "clip.mp4",
    "--prompt",
    "a blue circle on a white background",
    "--workspace",
    "w",
    *TINY_MODEL,
    *processes.SIZE,
    "--num-inference-steps",
    "12",
]
STAGES = ("load", "encode", "invert", "reconstruct", "export")
MAKES = (
    "frames-*.safetensors",
    "latents-*.safetensors",
    "trajectory-*.safetensors",
    "edit-*.safetensors",
    "*.mp4",
)


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run left, and how long each of its stages took, in seconds."""

    folder: Path
    seconds: dict[str, float]

    def results(self, folder: Path) -> dict[str, bytes]:
        """The finished files of a run by name; hidden ones are what a kill left half written."""
        found = [path for pattern in MAKES for path in (folder / "w").glob(pattern)]
        return {path.name: path.read_bytes() for path in found if not path.name.startswith(".")}


def made(folder: Path, stage: str) -> bool:
    pattern = MAKES[STAGES.index(stage)]
    return any(not path.name.startswith(".") for path in (folder / "w").glob(pattern))


def before(stage: str) -> str | None:
    return STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    make_video(folder / "clip.mp4", width=64, height=64, num_frames=9)
    assert processes.run(["load", "clip.mp4", *processes.SIZE, *TINY_MODEL], folder) == 0
    shutil.rmtree(folder / "clip.cogedit")  # the server is warm now
    process = processes.start(COMMAND, folder)
    start, seconds = time.monotonic(), {}
    for stage in STAGES:
        assert processes.wait_for(process, lambda stage=stage: made(folder, stage))
        seconds[stage], start = time.monotonic() - start, time.monotonic()
    assert processes.finish(process) == 0, processes.log(folder)
    return Whole(folder, seconds)


def begun(folder: Path, stage: str) -> bool:
    """Whether a run that was started in a stage is past what was there already."""
    if stage == "load":
        return True
    if stage == "export":
        log = folder / processes.LOG
        return log.exists() and "w/edit-" in log.read_text()
    kind = MAKES[STAGES.index(stage)].partition("*")[0]
    return any((folder / "w").glob(f"{kind}*{UNFINISHED_SUFFIX}"))


def start_in(stage: str, whole: Whole, folder: Path) -> Any:
    """Start the command where the stages before this one are done, and wait until it runs."""
    (folder / "w").mkdir(parents=True)
    shutil.copy(whole.folder / "clip.mp4", folder / "clip.mp4")
    for pattern in MAKES[: STAGES.index(stage)]:
        for path in (whole.folder / "w").glob(pattern):
            shutil.copy(path, folder / "w")
    return processes.start(COMMAND, folder)


def hit(
    whole: Whole, tmp_path: Path, *, signum: int, stage: str, chance: random.Random
) -> tuple[Path, int]:
    """Send a signal at a random moment of a stage; again and earlier, if it was over by then.

    However much longer the stage once took, when the machine was busy.
    """
    for attempt in range(30):
        folder = tmp_path / f"{stage}-{chance.getrandbits(32):08x}"
        process = start_in(stage, whole, folder)
        processes.wait_for(process, lambda folder=folder: begun(folder, stage))
        time.sleep(chance.random() * whole.seconds[stage] * 0.7**attempt)
        processes.send(process, signum)
        code = processes.finish(process)
        if code != 0:
            return folder, code
        shutil.rmtree(folder)
    raise AssertionError(f"{stage} was always over before the signal")


def problem(whole: Whole, folder: Path) -> str | None:
    """What is wrong after the same command has run again; None if nothing is."""
    code = processes.run(COMMAND, folder)
    said = processes.log(folder)
    if code != 0 or "Traceback" in said:
        return f"exit code {code}: {said[-500:]}"
    if whole.results(folder) != whole.results(whole.folder):
        return "the results differ"
    if left := sorted(path.name for path in (folder / "w").glob(f"*{UNFINISHED_SUFFIX}")):
        return f"left behind: {left}"
    return None


def test_killed_at_random_moments(whole: Whole, tmp_path: Path, score: Any) -> None:
    chance = random.Random(None if SOAK else 6)
    with score("kill -9, then the same command again") as cases:
        for number in range(KILLS):
            stage = STAGES[number % len(STAGES)]
            folder, code = hit(whole, tmp_path, signum=signal.SIGKILL, stage=stage, chance=chance)
            found = f"exit code {code}" if code != -signal.SIGKILL else problem(whole, folder)
            cases.case(found is None, f"{folder.name}: {found}")
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_asked_to_stop_at_random_moments(
    whole: Whole, tmp_path: Path, score: Any, signum: int, code: int
) -> None:
    chance = random.Random(None if SOAK else signum)
    with score(f"{signal.Signals(signum).name}, then the same command again") as cases:
        for number in range(STOPS):
            # From the inversion on, which is the first that takes long.
            stage = STAGES[(number + 2) % len(STAGES)]
            folder, found_code = hit(whole, tmp_path, signum=signum, stage=stage, chance=chance)
            said = processes.log(folder)
            output = (folder / "out.txt").read_text()
            # Before its first line it ends as any program does; a shell shows the same code.
            too_early = found_code in (code, -signum) and not said
            if (found_code != code and not too_early) or "Traceback" in said or output:
                found: str | None = f"exit code {found_code}, {output!r}: {said[-300:]}"
            else:
                found = problem(whole, folder)
            cases.case(found is None, f"{folder.name}: {found}")
            shutil.rmtree(folder)


LONG = ["invert", "clip.mp4", "--workspace", "w", *TINY_MODEL, *processes.SIZE]
LONG += ["--num-inference-steps", "400"]


def steps_in(folder: Path) -> int:
    return len(list((folder / "w").glob(f"trajectory-*{UNFINISHED_SUFFIX}/*.safetensors")))


def kept_in(folder: Path) -> int:
    [root] = (folder / "w").glob(f"trajectory-*{UNFINISHED_SUFFIX}")
    step = newest_step(root)
    assert step is not None
    return step.info.index + 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_ends_the_step(
    whole: Whole, tmp_path: Path, signum: int, code: int
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(whole.folder / "clip.mp4", folder)
    process = processes.start(LONG, folder)
    assert processes.wait_for(process, lambda: steps_in(folder) >= 3)
    processes.send(process, signum)
    assert processes.finish(process) == code
    stopped = re.search(r"step (\d+) of 400", processes.log(folder))
    assert stopped, processes.log(folder)
    assert kept_in(folder) == int(stopped.group(1)) >= 3


def endless_steps() -> None:
    """Make a step of the first tenth of the timesteps quick and one after it endless."""
    from cogedit.models.denoiser import Denoiser

    velocity = Denoiser.velocity

    def endless(self: Denoiser, sample: Any, timestep: int) -> Any:
        if timestep > 100:
            Path("endless").touch()
            # In short pieces: a signal just before one long sleep would not end that.
            while True:
                time.sleep(0.02)
        return velocity(self, sample, timestep)

    Denoiser.velocity = endless  # type: ignore[method-assign]


def test_the_second_signal_stops_at_once(whole: Whole, tmp_path: Path) -> None:
    """In the middle of a step that would never end."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(whole.folder / "clip.mp4", folder)
    process = processes.start(LONG, folder, prepare=endless_steps)
    assert processes.wait_for(process, lambda: (folder / "endless").exists())
    before = processes.log(folder)
    processes.send(process, signal.SIGTERM)
    assert processes.wait_for(process, lambda: processes.log(folder) != before)
    processes.send(process, signal.SIGTERM)
    assert processes.finish(process) == 143
    assert kept_in(folder) > 10


@pytest.mark.skipif(not SOAK, reason="three fresh interpreters; the server's are killed above")
def test_a_process_of_its_own_that_is_killed(whole: Whole, tmp_path: Path, score: Any) -> None:
    """The same without the server: the installed program, its imports and its end."""
    chance = random.Random()
    with score("kill -9 of the installed program") as cases:
        for stage in ("encode", "invert", "reconstruct"):
            folder = tmp_path / stage
            folder.mkdir()
            shutil.copy(whole.folder / "clip.mp4", folder)
            arguments = [sys.executable, "-m", "cogedit", *COMMAND]
            with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.DEVNULL) as process:
                while not made(folder, before(stage) or "") and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(chance.random() * whole.seconds[stage])
                process.kill()
            found = problem(whole, folder)
            cases.case(found is None, f"{stage}: {found}")
