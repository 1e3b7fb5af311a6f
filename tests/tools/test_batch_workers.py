"""Workers: they make what one process makes, and outlive each other."""

import contextlib
import json
import pickle
import re
import signal
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import processes
import psutil
import pytest
import workers
from pipelines import TINY_MODEL, TINY_PIPELINE
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import append_line
from cogedit.cli import app
from cogedit.config import Settings, read_batch
from cogedit.errors import Interrupted, Terminated, UsageError, WorkerDied
from cogedit.tools import batch_local
from cogedit.tools.batch import RESULTS, batch
from cogedit.tools.batch_deaths import MAX_RETRIES
from cogedit.tools.batch_driver import Gone, Job, drive, ending, on_gpus
from cogedit.tools.batch_group import BatchResult, groups_of
from cogedit.tools.batch_local import LocalWorkers, start_local
from cogedit.tools.batch_plan import BatchEdit, plan_batch
from cogedit.tools.batch_shared import Heard, SharedList
from cogedit.types import TransformerSettings

FLAGS = {
    "model": str(TINY_PIPELINE),
    "dtype": "fp32",
    "device": "cpu",
    "invert.num_inference_steps": 4,
    "reconstruct.num_inference_steps": 4,
    "load.max_num_frames": 1,
}


def edits_of(*clips, settings=None):
    """Edits whose groups are the clips; a clip is its prompts."""
    return [
        BatchEdit(f"row {row}", Path(f"{row}.mp4"), prompt, None, None, settings or Settings())
        for row, prompts in enumerate(clips)
        for prompt in prompts
    ]


def driven(edits, make, *, number=2, run=None):
    """The outcomes of edits under local workers, as they come."""
    environments = [{"OMP_NUM_THREADS": "1"}] * number
    with (
        contextlib.closing(listed(edits)) as groups,
        ending(LocalWorkers(Job(Path.cwd(), make=make), environments)) as started,
    ):
        yield from drive(groups, started, run or cogedit.Run())


def listed(edits):
    """The list of some edits, which nobody shares."""
    return SharedList(groups_of(edits), Path(RESULTS), force=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_workers_make_the_bytes_of_one_process_though_one_is_killed(
    tmp_path, monkeypatch, warm_python
):
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
        for number, clip in enumerate("abc"):
            path = tmp_path / name / f"{clip}.mp4"
            make_video(path, width=64, height=64, num_frames=9, fps=8 + number)
        rows = [f'{{"video": "{clip}.mp4", "prompt": ["x", "y"]}}\n' for clip in "abc"]
        (tmp_path / name / "edits.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path / "alone")
    alone = batch(plan_batch(read_batch("edits.jsonl"), FLAGS))
    monkeypatch.chdir(tmp_path / "together")
    said = []
    environments = [{"OMP_NUM_THREADS": "1"}] * 2

    def start(job, edits):
        return LocalWorkers(
            Job(job.folder, job.options, make=workers.make_killed_once), environments
        )

    run = cogedit.Run(notify=said.append)
    done = batch(plan_batch(read_batch("edits.jsonl"), FLAGS), start=start, run=run)
    assert sum("goes to another worker" in text for text in said) == 1
    assert Path(workers.KILLED).exists()
    assert workers.artifacts(Path.cwd()) == workers.artifacts(tmp_path / "alone")
    assert Counter(map(workers.elsewhere, done)) == Counter(map(workers.elsewhere, alone))
    lines = map(json.loads, Path(RESULTS).read_text().splitlines())
    assert Counter(BatchResult(**line) for line in lines) == Counter(done)
    assert {*Counter(Path(workers.WRITES).read_text().split()).values()} == {1}
    assert sum("going on after step" in text for text in said) == 1


@pytest.mark.parametrize(
    ("num_gpus", "number", "threads", "gpus"),
    [(0, 2, {"3"}, {""}), (2, None, {"8"}, {"3", "GPU-5"})],
)
def test_workers_run_side_by_side_each_with_its_share(
    folder, monkeypatch, num_gpus, number, threads, gpus
):
    monkeypatch.setattr(batch_local, "num_cuda_devices", lambda: num_gpus)
    monkeypatch.setattr(batch_local, "num_cpus", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if num_gpus:
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    job, edits = Job(folder, make=workers.make_together), edits_of("x", "y")
    with ending(start_local(job, edits, number=number)) as started:
        done = [*drive(listed(edits), started, cogedit.Run())]
    assert len(done) == 2
    found = [{*values} for values in zip(*(one.path.split(":") for one in done), strict=True)]
    assert found[:2] == [threads, gpus]
    assert len(found[2]) == 2  # processes


def test_a_group_that_other_processes_died_with_is_given_to_no_worker(folder):
    edits = edits_of("x", "y")
    for _ in range(1 + MAX_RETRIES):
        workers.die_with_the_first(groups_of(edits), Path(RESULTS))
    done = {one.row: one for one in driven(edits, workers.make_nothing, number=1)}
    assert (done["row 0"].status, done["row 0"].is_of_machine) == ("failed", False)
    assert "processes ended without a word" in done["row 0"].error
    assert done["row 1"].status == "written"
    assert not [*folder.glob(".cogedit-*")]


def test_more_workers_than_gpus_are_refused(folder, monkeypatch):
    monkeypatch.setattr(batch_local, "num_cuda_devices", lambda: 2)
    with pytest.raises(UsageError, match="3"):
        start_local(Job(folder), edits_of("x"), number=3)
    with pytest.raises(UsageError, match="cuda:1"):
        start_local(Job(folder), edits_of("x", settings=Settings(device="cuda:1")), number=2)


def test_several_gpus_for_an_edit_are_refused_where_each_worker_has_one():
    settings = Settings(transformer=TransformerSettings(gpus=2))
    with pytest.raises(UsageError, match="--gpus is 2"):
        on_gpus(edits_of("x", settings=settings))
    assert not on_gpus(edits_of("x", settings=replace(settings, device="cpu")))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--workers", "3"], "--workers is 3.*2 GPUs"),
        (["--workers", "2", "--device", "cuda:1"], "--device is cuda:1"),
        (["--engine", "ray", "--device", "cuda:1"], "--device is cuda:1"),
        (["--workers", "auto", "--gpus", "2"], "--gpus is 2"),
        (["--engine", "ray", "--gpus", "2"], "--gpus is 2"),
    ],
)
def test_a_dry_run_refuses_workers_that_would_not_start(folder, monkeypatch, flags, named):
    monkeypatch.setattr(batch_local, "num_cuda_devices", lambda: 2)
    (folder / "edits.csv").write_text("video,prompt\nclip.mp4,x\n")
    given = ["batch", "edits.csv", "--model", str(TINY_PIPELINE), *flags]
    for more in ([], ["--dry-run"]):
        shown = CliRunner().invoke(app, [*given, *more])
        assert shown.exit_code == UsageError.exit_code, shown.stderr
        assert re.search(named, shown.stderr)


def test_a_group_that_kills_its_workers_fails_and_the_others_are_made(folder, warm_python):
    said = []
    run = cogedit.Run(notify=said.append)
    edits = edits_of("x", ["y", "kill", "z"], "w")
    done = {(one.row, one.prompt): one for one in driven(edits, workers.make_nothing, run=run)}
    assert len(done) == 5
    failed = {key for key, one in done.items() if one.status == "failed"}
    assert failed == {("row 1", "kill"), ("row 1", "z")}
    assert {done[key].exit_code for key in failed} == {WorkerDied.exit_code}
    assert f"signal {signal.SIGKILL:d}" in done["row 1", "kill"].error
    assert sum("another worker" in text for text in said) == MAX_RETRIES


def test_what_another_process_holds_comes_last(folder):
    edits = edits_of("x", "y", "z")
    other = listed(edits)
    held = other.take()
    outcomes = driven(edits, workers.make_nothing)
    assert {next(outcomes).row, next(outcomes).row} == {"row 1", "row 2"}
    made = BatchResult("row 0", "0.mp4", "x", "written", "0-x.mp4", key=edits[0].key)
    append_line(Path(RESULTS), json.dumps(asdict(made)).encode())
    other.give_back(held)
    assert [*outcomes] == [Heard(made)]
    assert [path.name for path in folder.iterdir()] == [RESULTS]


def test_workers_that_cannot_start_end_the_batch(folder):
    started = LocalWorkers(Job(folder), [{"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere"}])
    with pytest.raises(WorkerDied), ending(started):
        [*drive(listed(edits_of("x")), started, cogedit.Run())]


def test_what_no_stage_foresaw_costs_the_edits_that_it_hits(folder, warm_python):
    """A bug, or a GPU that breaks: its traceback is said, and others try in its place."""
    said = []
    run = cogedit.Run(notify=said.append)
    done = {
        one.row: one for one in driven(edits_of("x", ["break"], "y"), workers.make_nothing, run=run)
    }
    assert done["row 1"].exit_code == WorkerDied.exit_code
    assert done["row 1"].is_of_machine, "another may have more memory"
    assert done["row 0"].status == done["row 2"].status == "written"
    assert sum("Traceback" in text and "make_nothing" in text for text in said) == MAX_RETRIES + 1


def test_a_worker_that_dies_again_and_again_leaves_the_edits_to_others(folder, warm_python):
    said = []
    run = cogedit.Run(notify=said.append)
    edits = edits_of(*"stuvwxyz")
    job = Job(folder, make=workers.make_unless_sick)
    environments = [{"OMP_NUM_THREADS": "1", "SICK": "1"}, {"OMP_NUM_THREADS": "1"}]
    with ending(LocalWorkers(job, environments)) as started:
        done = [*drive(listed(edits), started, run)]
    assert Counter(one.status for one in done) == {"written": len(edits)}
    assert 0 < sum("goes to another worker" in text for text in said) <= MAX_RETRIES + 1


@pytest.mark.parametrize(
    ("signum", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)]
)
def test_every_worker_ends_after_its_step(folder, warm_python, signum, error):
    run, running = workers.stopped_once_two_run(signum)
    with pytest.raises(error):
        [*driven(edits_of("x", "y", "z"), workers.make_endlessly, run=run)]
    assert not running
    assert {path.name for path in folder.iterdir()} == {"ended-1", "ended-2"}


def test_a_second_signal_ends_every_worker_at_once(folder):
    seen = set()

    @contextlib.contextmanager
    def progress(doing, total):
        def on_step(step):
            seen.add(int(doing))
            if len(seen) == 2:
                raise KeyboardInterrupt  # as the handler of the second signal

        yield on_step

    with pytest.raises(KeyboardInterrupt):
        [*driven(edits_of("x", "y"), workers.make_stuck, run=cogedit.Run(progress=progress))]
    assert not [pid for pid in seen if psutil.pid_exists(pid)]


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_worker_ends_with_who_is_killed_in_the_middle_of_a_word(folder, is_begun):
    [group] = groups_of(edits_of("x"))
    job = pickle.dumps(Job(folder, make=workers.make_nothing))
    said = job + pickle.dumps(group)[:-9] if is_begun else job[:-9]
    Path("said").write_bytes(said)
    serve = "from cogedit.tools import batch_local; batch_local.serve()"
    assert processes.finish(processes.start(serve, folder, stdin=folder / "said")) == 0
    assert processes.log(folder) == ""


@pytest.mark.parametrize("printed", ["I am ready", "The library"])
def test_what_a_library_prints_while_it_is_imported_is_no_message(folder, monkeypatch, printed):
    """Of the second, pickle would read some letters as the length of what follows."""
    Path("sitecustomize.py").write_text(f"print({printed!r}, flush=True)")
    monkeypatch.syspath_prepend(folder)
    started = LocalWorkers(Job(folder, make=workers.make_nothing), [{}])
    told = (event for _ in range(600) for event in started.events())  # waits for a second each
    worker, gone = next(told)
    started.close()
    assert (worker, type(gone)) == (0, Gone)
    assert printed[:5] in gone.why


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_is_auto_or_from_1(folder, number):
    (folder / "edits.jsonl").write_text('{"video": "a.mp4", "prompt": "x"}')
    args = ["batch", "edits.jsonl", *TINY_MODEL, f"--workers={number}"]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 2
    assert number in shown.stderr
