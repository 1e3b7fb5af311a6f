"""Several processes on one workspace: no torn read, and no work done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
from pipelines import TINY_MODEL
from soak import SOAK
from videos import make_video

from cogedit.artifacts import UNFINISHED_SUFFIX, verify_artifact
from cogedit.artifacts.leases import SILENCE
from cogedit.errors import ArtifactError

pytestmark = pytest.mark.faults

ROUNDS = 20 if SOAK else 1
PROCESSES = 4
COMMAND = ["invert", "clip.mp4", "--workspace", "w", *TINY_MODEL, *processes.SIZE]
COMMAND += ["--num-inference-steps", "30", "--json"]


def no_locks() -> None:
    """Locks that everyone gets at once, as on some network file systems."""
    import fcntl

    fcntl.flock = lambda descriptor, operation: None  # type: ignore[assignment]


def no_leases() -> None:
    """Leases that everyone gets at once, as if each process had been silent for too long."""
    from cogedit.artifacts.leases import Lease

    Lease.take = lambda self: True  # type: ignore[method-assign]


def stop_after(step: int) -> None:
    """Stop this process, which then holds its lease, with so many steps on the disk."""
    replace = os.replace

    def stopping(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        if Path(target).name == f"{step:04}.safetensors":
            os.kill(os.getpid(), signal.SIGSTOP)

    os.replace = stopping  # type: ignore[assignment]


def stop_after_five_steps() -> None:
    stop_after(5)


def watch_shortly_and_stop_after_twelve_steps() -> None:
    """A silent holder need not be watched for long; what has taken over from it stops as well."""
    from cogedit.artifacts import leases

    leases.HEARTBEAT = 0.05
    stop_after(12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clip and what one process makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    make_video(folder / "clip.mp4", width=64, height=64, num_frames=9)
    assert processes.run(COMMAND, folder) == 0, processes.log(folder)
    return folder


def fresh(whole: Path, folder: Path) -> list[Path]:
    """Folders of several processes over one clip and one workspace."""
    (folder / "w").mkdir(parents=True)
    places = [folder / f"{number}" for number in range(PROCESSES)]
    for place in places:
        place.mkdir()
        shutil.copy(whole / "clip.mp4", place)
        (place / "w").symlink_to(folder / "w")
    return places


def read_all(workspace: Path) -> tuple[int, list[str]]:
    """Verify every artifact that is there: how many were read, and which could not be."""
    count, torn = 0, []
    for path in workspace.glob("*.safetensors"):
        count += 1
        try:
            verify_artifact(path)
        except ArtifactError as error:
            torn.append(str(error))
    return count, torn


def results(workspace: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workspace.glob("*.safetensors")}


def wrote(place: Path) -> bool:
    """Whether the command that ran here made the trajectory itself."""
    [output] = json.loads((place / processes.OUT).read_text())["outputs"]
    return not output["reused"]


@pytest.mark.parametrize("prepare", [None, no_locks, no_leases])
def test_four_processes_and_a_reader(
    whole: Path, tmp_path: Path, score: Any, prepare: Callable[[], None] | None
) -> None:
    kind = f", {prepare.__name__.replace('_', ' ')}" if prepare else ""
    with score(f"four processes{kind}: torn reads") as cases:
        for number in range(ROUNDS):
            folder = tmp_path / f"round-{number}"
            places = fresh(whole, folder)
            running = [processes.start(COMMAND, place, prepare=prepare) for place in places]
            while any(map(processes.is_running, running)):
                count, torn = read_all(folder / "w")
                for name in torn:
                    cases.case(False, name)
                for _ in range(count - len(torn)):
                    cases.case(True, "read")
                time.sleep(0.05)
            said = [processes.log(place) for place in places]
            codes = [processes.finish(process) for process in running]
            cases.case(codes == [0] * PROCESSES, f"exit codes {codes}: {said}")
            cases.case(results(folder / "w") == results(whole / "w"), "the results differ")
            left = sorted(path.name for path in (folder / "w").glob(f"*{UNFINISHED_SUFFIX}"))
            cases.case(not left, f"left behind: {left}")
            if prepare is not no_leases and not any(codes):
                writers = [place for place in places if wrote(place)]
                cases.case(len(writers) == 1, f"the trajectory was made {len(writers)} times")


def steps(folder: Path) -> int:
    return len(list((folder / "w").glob(f"trajectory-*{UNFINISHED_SUFFIX}/0*.safetensors")))


def waiting(place: Path) -> bool:
    """Whether the command that runs here waits for another."""
    log = place / processes.LOG
    return log.exists() and "w/trajectory" in log.read_text()


def test_when_the_holder_is_killed_the_others_go_on(whole: Path, tmp_path: Path) -> None:
    places = fresh(whole, tmp_path)
    holder = processes.start(COMMAND, places[0], prepare=stop_after_five_steps)
    assert processes.wait_for(holder, lambda: steps(tmp_path) == 5)
    others = [processes.start(COMMAND, place) for place in places[1:]]
    assert processes.wait_for(holder, lambda: all(map(waiting, places[1:])))
    processes.send(holder, signal.SIGKILL)
    assert processes.finish(holder) == -signal.SIGKILL
    assert [processes.finish(process) for process in others] == [0, 0, 0]
    [writer] = [place for place in places[1:] if wrote(place)]
    assert "going on after step 5 of" in processes.log(writer)
    assert results(tmp_path / "w") == results(whole / "w")
    assert not list((tmp_path / "w").glob(f"*{UNFINISHED_SUFFIX}"))


def test_a_stopped_holder_that_comes_back_does_no_harm(whole: Path, tmp_path: Path) -> None:
    """It writes nothing into the chain of the process that has taken over, and waits for it."""
    places = fresh(whole, tmp_path)
    holder = processes.start(COMMAND, places[0], prepare=stop_after_five_steps)
    assert processes.wait_for(holder, lambda: steps(tmp_path) == 5)
    [file] = (tmp_path / "w").glob(f"*{UNFINISHED_SUFFIX}/lease/*")
    silent = file.stat().st_mtime - 2 * SILENCE
    os.utime(file, (silent, silent))
    other = processes.start(COMMAND, places[1], prepare=watch_shortly_and_stop_after_twelve_steps)
    assert processes.wait_for(other, lambda: steps(tmp_path) == 12)
    assert "going on after step 5 of" in processes.log(places[1])
    processes.send(holder, signal.SIGCONT)
    assert processes.wait_for(holder, lambda: waiting(places[0]))
    assert steps(tmp_path) == 12
    processes.send(other, signal.SIGCONT)
    assert [processes.finish(holder), processes.finish(other)] == [0, 0]
    assert [wrote(place) for place in places[:2]] == [False, True]
    assert results(tmp_path / "w") == results(whole / "w")
    assert not list((tmp_path / "w").glob(f"*{UNFINISHED_SUFFIX}"))


# --- a list that processes share --------------------------------------------------------------

CLIPS = 6 if SOAK else 4
BATCH = ["batch", "edits.csv", "--workspace", "w", *TINY_MODEL, *processes.SIZE]
BATCH += ["--num-inference-steps", "8"]


def log_writes() -> None:
    """Write down every file that gets its name here, and every video that is hashed."""
    from cogedit.media import files, images

    replace, link, digest, hashed = os.replace, os.link, files.file_digest, set[Path]()

    def naming(move: Callable[[str | Path, str | Path], None]) -> Callable[..., None]:
        def moving(source: str | Path, target: str | Path) -> None:
            move(source, target)
            with Path("writes.txt").open("a") as file:
                file.write(f"{Path(target).name}\n")

        return moving

    def hashing(path: Path) -> str:
        if path not in hashed:  # else it is known
            hashed.add(path)
            with Path("hashed.txt").open("a") as file:
                file.write(f"{path.name}\n")
        return digest(path)

    os.replace, os.link = naming(replace), naming(link)  # type: ignore[assignment]
    images.file_digest = hashing  # type: ignore[assignment,attr-defined]


def die_at_the_next_step() -> None:
    """End as by the system's kill for want of memory, when a step of an inversion is saved."""
    replace = os.replace

    def dying(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        if re.fullmatch(r"\d{4}\.safetensors", Path(target).name):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying  # type: ignore[assignment]


def log_writes_and_stop_after_five_steps() -> None:
    log_writes()
    stop_after(5)


@pytest.fixture(scope="module")
def list_of_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of two edits of each clip, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("list")
    for number in range(CLIPS):
        make_video(folder / f"{number}.mp4", width=64, height=64, num_frames=9, fps=f"{8 + number}")
    rows = [f"{number}.mp4,a {prompt}" for number in range(CLIPS) for prompt in ("cat", "dog")]
    (folder / "edits.csv").write_text("\n".join(["video,prompt", *rows]))
    assert processes.run(BATCH, folder) == 0, processes.log(folder)
    return folder


def start_batch(whole: Path, folder: Path, number: int, prepare: processes.Prepare) -> Any:
    """Start one of the processes, in a folder of its own with the list and the workspace."""
    place = folder / f"{number}"
    place.mkdir(parents=True)
    (folder / "w").mkdir(exist_ok=True)
    for path in (*whole.glob("*.mp4"), whole / "edits.csv", folder / "w"):
        (place / path.name).symlink_to(path)
    return processes.start(BATCH, place, prepare=prepare)


def check_shared(whole: Path, folder: Path, cases: Any) -> None:
    """Everything is there, each artifact and video was written once, and nothing else is left."""
    made = {path.name: path.read_bytes() for path in (whole / "w").glob("*-*")}
    found = {path.name: path.read_bytes() for path in (folder / "w").glob("*-*")}
    cases.case(found == made, "the results differ")
    lines = [path.read_text().splitlines() for path in folder.glob("*/writes.txt")]
    count = Counter(name for names in lines for name in names)
    cases.case(all(count[name] == 1 for name in made), f"written more than once: {count}")
    told = [json.loads(line) for line in (folder / "w/results.jsonl").read_text().splitlines()]
    written = Counter(one["key"] for one in told if one["status"] == "written")
    cases.case([*written.values()] == [1] * 2 * CLIPS, f"results: {told}")
    cases.case({one["status"] for one in told} <= {"written", "reused"}, f"results: {told}")
    left = {path.name for path in (folder / "w").iterdir()} - {*made}
    cases.case(left == {"results.jsonl", "runs.jsonl"}, f"left behind: {left}")


def test_four_processes_share_a_list(list_of_clips: Path, tmp_path: Path, score: Any) -> None:
    with score("four processes share a list") as cases:
        for number in range(ROUNDS):
            folder = tmp_path / f"{number}"
            running = [start_batch(list_of_clips, folder, n, log_writes) for n in range(PROCESSES)]
            codes = [processes.finish(process) for process in running]
            said = [processes.log(folder / f"{n}") for n in range(PROCESSES)]
            cases.case(codes == [0] * PROCESSES, f"exit codes {codes}: {said}")
            outputs = {(folder / f"{n}" / processes.OUT).read_text() for n in range(PROCESSES)}
            shown = [sorted(text.splitlines()) for text in outputs]
            cases.case(all(len({*one}) == 2 * CLIPS for one in shown), f"outputs {shown}")
            check_shared(list_of_clips, folder, cases)
            hashed = Counter(
                name for path in folder.glob("*/hashed.txt") for name in path.read_text().split()
            )
            lines = (folder / "w/results.jsonl").read_text().splitlines()
            taken = Counter(json.loads(line)["video"] for line in lines)
            both = {name: 2 * count for name, count in hashed.items()}
            cases.case(both == taken, f"hashed: {hashed}, two lines each who took one: {taken}")


def test_a_group_whose_process_is_killed_is_finished_by_another(
    list_of_clips: Path, tmp_path: Path, score: Any
) -> None:
    with score("a process that shares a list is killed") as cases:
        dead = start_batch(list_of_clips, tmp_path, 0, log_writes_and_stop_after_five_steps)
        assert processes.wait_for(dead, lambda: steps(tmp_path) == 5)
        other = start_batch(list_of_clips, tmp_path, 1, log_writes)
        told = tmp_path / "w" / "results.jsonl"

        def others_are_done() -> bool:
            return told.exists() and len(told.read_text().splitlines()) == 2 * (CLIPS - 1)

        assert processes.wait_for(other, others_are_done)
        cases.case(steps(tmp_path) == 5, "what another process holds comes last")
        processes.send(dead, signal.SIGKILL)
        assert processes.finish(dead) == -signal.SIGKILL
        assert processes.finish(other) == 0, processes.log(tmp_path / "1")
        said = processes.log(tmp_path / "1")
        cases.case("going on after step 5 of" in said, said)
        check_shared(list_of_clips, tmp_path, cases)


def test_a_clip_that_kills_every_process_does_not_end_the_list(
    list_of_clips: Path, tmp_path: Path, score: Any
) -> None:
    """After four deaths its edits fail, the others are made, and the next run tries it again."""
    with score("a clip kills every process of a list") as cases:
        for number in range(4):
            dead = start_batch(list_of_clips, tmp_path, number, die_at_the_next_step)
            cases.case(processes.finish(dead) == -signal.SIGKILL, processes.log(tmp_path / "0"))
        after = start_batch(list_of_clips, tmp_path, 4, None)
        code, said = processes.finish(after), processes.log(tmp_path / "4")
        cases.case(code == 10, said)
        lines = (tmp_path / "w/results.jsonl").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        failed = [one for one in told if one["status"] == "failed"]
        cases.case({one["video"] for one in failed} == {"0.mp4"}, f"failed: {failed}")
        cases.case({one["exit_code"] for one in failed} == {9}, f"failed: {failed}")
        cases.case(len(told) == 2 * CLIPS, f"results: {told}")
        cases.case(steps(tmp_path) == 4, "its steps stay")
        again = start_batch(list_of_clips, tmp_path, 5, None)
        code, said = processes.finish(again), processes.log(tmp_path / "5")
        cases.case(code == 0, said)
        cases.case("going on after step 4 of" in said, said)
        made = {path.name: path.read_bytes() for path in (list_of_clips / "w").glob("*-*")}
        found = {path.name: path.read_bytes() for path in (tmp_path / "w").glob("*-*")}
        cases.case(found == made, "the results differ")
        left = {path.name for path in (tmp_path / "w").iterdir()} - {*made}
        cases.case(left == {"results.jsonl", "runs.jsonl"}, f"left behind: {left}")
