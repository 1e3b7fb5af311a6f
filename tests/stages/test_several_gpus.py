"""One clip on several ranks, which on a CPU are processes: the same results as in one process."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import processes
import psutil
import pytest
import torch
from loras import write_lora
from pipelines import TINY_MODEL, TINY_PIPELINE, make_15_i2v_like, small_settings
from videos import make_video

import cogedit
from cogedit.artifacts import UNFINISHED_SUFFIX, newest_step, read_artifact, read_record
from cogedit.errors import DeviceMemoryError, Interrupted, ModelError, UsageError
from cogedit.progress import StepInfo
from cogedit.stages import Session

STEPS = 4
SHORT = {"load.max_num_frames": 9, "load.width": 80, "load.height": 48}
"""One window: 45 tokens of the image, which do not divide by 2."""
LONG = {"load.max_num_frames": 17}
"""Two windows or three."""
ROWS = {"transformer.max_rows": 1}
"""Rows one by one, as a large clip has them; the tiny one would have all in one chunk."""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(
        tmp_path_factory.mktemp("gpus") / "clip.mp4", width=80, height=48, num_frames=17
    )


@pytest.fixture(scope="module")
def session():
    """One that keeps its second process from test to test."""
    with Session() as kept:
        yield kept


def settings_of(video, workspace, *flags, gpus=1, model=TINY_PIPELINE):
    given = {
        "model": str(model),
        "load.frame_rate": "source",
        "invert.num_inference_steps": STEPS,
        "workspace": workspace,
        "transformer.gpus": gpus,
    }
    for more in flags:
        given |= more
    return small_settings(video, **given)


@pytest.fixture
def both(video, session, tmp_path):
    """Makes artifacts in one process and in two; returns their tensors, of the same name."""

    def make(stage, kind, name, *flags):
        found = []
        for gpus in (1, 2):
            folder = tmp_path / str(gpus)
            made = stage(settings_of(video, folder, *flags, gpus=gpus), session)
            assert not any(written.reused for written in made)
            found.append([(w.path.name, read_artifact(w.path, kind).tensors[name]) for w in made])
        names, tensors = ([[pair[k] for pair in one] for one in found] for k in (0, 1))
        assert names[0] == names[1]
        return [torch.stack(one) for one in tensors]

    return make


def inversion(video):
    return lambda settings, session: [cogedit.invert(video, settings, session=session)]


def edits(video):
    return lambda settings, session: cogedit.reconstruct(
        video, ["a fox", "a dog"], settings, session=session
    )


def test_the_windows_of_an_inversion(video, both):
    one, two = both(inversion(video), "trajectory", "trajectory", LONG)
    assert torch.equal(one, two)


def test_the_tokens_of_the_one_row_of_an_inversion(video, both):
    one, two = both(inversion(video), "trajectory", "trajectory", SHORT)
    assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"reconstruct.injection_strength": 0.5, "reconstruct.injection_layers": (1, None)},
        {"reconstruct.method": "flow", "reconstruct.reference_prompt": "inversion"},
    ],
)
def test_rows_of_edits_with_their_references(video, both, flags):
    one, two = both(edits(video), "edit", "latents", SHORT, ROWS, flags)
    assert torch.equal(one, two)


def test_rows_of_edits_from_a_first_frame(video, both, tmp_path):
    model = {"model": str(make_15_i2v_like(tmp_path / "tiny"))}
    one, two = both(edits(video), "edit", "latents", SHORT, ROWS, model)
    assert torch.allclose(one, two, atol=1e-4)


def test_windows_and_rows_of_edits_with_a_lora_under_an_automatic_mask(video, both, tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", TINY_PIPELINE)
    flags = {"reconstruct.auto_mask": True, "lora": [f"{lora}:0.5"]}
    one, two = both(edits(video), "edit", "latents", LONG, ROWS, flags)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"reconstruct.injection_recentering": 0.0, "reconstruct.injection_strength": 0.5},
        {"reconstruct.injection_mode": "queries-keys", "reconstruct.injection_strength": 1.0},
        {"reconstruct.injection_mode": "image-queries-keys", "reconstruct.injection_strength": 1.0},
    ],
)
def test_the_tokens_of_rows_that_run_at_once(video, both, flags):
    one, two = both(edits(video), "edit", "latents", SHORT, flags)
    assert torch.allclose(one, two, atol=1e-5)


class Killed(BaseException):
    """What no stage catches."""


def doing(after, act):
    """A run that acts after a step."""

    @contextmanager
    def progress(doing, total):
        def on_step(info):
            if isinstance(info, StepInfo) and info.index + 1 == after:
                act(run)

        yield on_step

    run = cogedit.Run(progress=progress)
    return run


def kill(run):
    raise Killed


def stop(run):
    run.cancellation.request(signal.SIGINT)


def kept(workspace):
    [folder] = workspace.glob(f"*{UNFINISHED_SUFFIX}")
    return newest_step(folder).info.index + 1


@pytest.mark.parametrize(
    ("numbers", "act", "error"), [((1, 2), stop, Interrupted), ((2, 1), kill, Killed)]
)
def test_another_number_of_ranks_goes_on(video, session, tmp_path, numbers, act, error):
    whole = cogedit.invert(video, settings_of(video, tmp_path / "one", LONG), session=session).path
    first, second = (settings_of(video, tmp_path / "w", LONG, gpus=gpus) for gpus in numbers)
    with pytest.raises(error):
        cogedit.invert(video, first, run=doing(2, act), session=session)
    assert kept(tmp_path / "w") >= 1
    assert cogedit.invert(video, second, session=session).path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"device": "cuda:0"}, "cuda:0 is one GPU"),
        ({"device": "mps"}, "--gpus is 2.*0 CUDA devices"),
    ],
)
def test_more_gpus_than_there_are_are_refused(video, tmp_path, flags, found):
    with pytest.raises(UsageError, match=found):
        cogedit.invert(video, settings_of(video, tmp_path / "w", SHORT, flags, gpus=2))
    assert not list(tmp_path.glob("w/*.safetensors"))


def test_windows_has_nothing_for_several_gpus(video, tmp_path, monkeypatch):
    monkeypatch.setattr("cogedit.stages.model.IS_WINDOWS", True)
    with pytest.raises(UsageError, match=r"--gpus is 2.*Windows"):
        cogedit.invert(video, settings_of(video, tmp_path / "w", SHORT, gpus=2))


def others():
    """The other ranks of this process."""
    return [p for p in psutil.Process().children() if p.cmdline()[-2:] == ["-m", "cogedit"]]


STARTS = """
import json, os, psutil
from cogedit.models.ranks import Ranks

ranks = Ranks.start(2)
own = psutil.Process()
connections = [one for process in (own, *own.children()) for one in process.net_connections()]
meant = "GLOO_SOCKET_IFNAME" in os.environ
ranks.close()
left = "GLOO_SOCKET_IFNAME" in os.environ
listening = sorted({one.laddr.ip for one in connections if one.status == "LISTEN"})
print(json.dumps([listening, meant, left]))
"""


def test_ranks_meet_where_no_other_machine_reaches_and_run_nothing_of_the_folder(tmp_path):
    """The current one may be somebody else's, with a clip and a `cogedit.toml`."""
    for name in ("cogedit", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({name + '.ran'!r}, 'w')")
    command = [sys.executable, "-P", "-c", STARTS]
    # Without what ranks of this process may have set.
    environ = {name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True
    )
    assert not list(tmp_path.glob("*.ran"))
    assert json.loads(done.stdout) == [["127.0.0.1"], True, False]
    assert "terminate called" not in done.stderr  # the other one ends in order


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_with_its_error(
    video, session, tmp_path, monkeypatch, warm_python
):
    settings = settings_of(video, tmp_path / "w", SHORT, gpus=2)
    cogedit.invert(video, settings, session=session)
    with pytest.raises(UsageError, match="several GPUs already"), Session() as second:
        cogedit.invert(video, settings, run=cogedit.Run(force=True), session=second)
    assert len(others()) == 1
    shutil.copytree(TINY_PIPELINE, tmp_path / "model")
    monkeypatch.chdir(tmp_path)  # where the other process is not
    with pytest.raises(ModelError, match=r"model.* \(rank 1\)") as raised:
        cogedit.invert(
            video, settings_of(video, Path("w"), LONG, gpus=2, model="./model"), session=session
        )
    assert raised.value.exit_code == 5

    def end_the_other(run):
        [rank], [other] = multiprocessing.active_children(), others()
        rank.kill()  # what was started ends after it
        other.wait()

    settings = settings_of(video, tmp_path / "killed", LONG, gpus=2)
    with pytest.raises(DeviceMemoryError):
        cogedit.invert(video, settings, run=doing(2, end_the_other), session=session)
    assert kept(tmp_path / "killed") == 2
    alone = [settings_of(video, tmp_path / name, LONG) for name in ("killed", "alone")]
    resumed, whole = (cogedit.invert(video, one, session=session).path for one in alone)
    assert resumed.read_bytes() == whole.read_bytes()
    session.close()
    assert not others()


STUCK = """
import subprocess, sys, time
import torch
from torch import distributed
from torch.distributed import TCPStore
from cogedit.errors import DeviceMemoryError
from cogedit.models import ranks
from cogedit.models.ranks import Ranks
ranks.GRACE = 0.1
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
other = subprocess.Popen([sys.executable, "-c", ""])
alone = Ranks(store, 0, 1, run_id="r", processes=[other] if KILLED else [])
distributed.recv = lambda *given: time.sleep(1e6)
with alone.calling():
    if not KILLED:
        alone.fail(DeviceMemoryError("no memory", hint="take less"))
    WAIT
"""
IN_A_KERNEL = "with alone.waiting_for_others(): time.sleep(1e6)"
FOR_A_TENSOR = "alone.take(1, torch.empty(1))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waits", "killed", "said"),
    [
        (IN_A_KERNEL, False, "error: no memory (rank 0) (take less)\n"),
        (FOR_A_TENSOR, False, "error: no memory (rank 0) (take less)\n"),
        (
            FOR_A_TENSOR,
            True,
            "error: a process that computed for this one has ended without a",
        ),
    ],
    ids=["in a kernel", "for a tensor", "killed without a word"],
)
def test_a_process_that_waits_for_a_failed_rank_for_ever_ends_with_its_error(
    tmp_path, waits, killed, said
):
    stuck = processes.start(STUCK.replace("KILLED", str(killed)).replace("WAIT", waits), tmp_path)
    assert processes.finish(stuck) == DeviceMemoryError.exit_code
    assert processes.log(tmp_path).startswith(said)


COMMAND = ["invert", "clip.mp4", "--workspace", "w", *TINY_MODEL, "--frame-rate", "source"]
COMMAND += ["--max-num-frames", "17", "--num-inference-steps"]


@pytest.fixture
def folder(video, tmp_path):
    shutil.copy(video, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(video):
    """The bytes of 30 steps in one process."""
    alone = [*COMMAND, "30", "--workspace", "alone"]
    made = processes.cogedit(*alone, cwd=video.parent).stdout.strip()
    return (video.parent / made).read_bytes()


def slow_after_three_steps():
    """Write a step a second from the fourth on: the run is not over before it is ended."""
    replace = os.replace

    def replacing(source, target):
        if re.fullmatch(r"\d{4}\.safetensors", Path(target).name) and Path(target).name > "0004":
            time.sleep(1)
        replace(source, target)

    os.replace = replacing  # type: ignore[assignment]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_command_that_ends_early_takes_the_other_ranks_along(
    folder, whole, warm_python, signum, code
):
    command = [*COMMAND, "30"]
    started = processes.start([*command, "--gpus", "2"], folder, prepare=slow_after_three_steps)
    steps = folder / "w"
    assert processes.wait_for(
        started, lambda: any(steps.glob(f"trajectory-*{UNFINISHED_SUFFIX}/0003*"))
    )
    [other] = psutil.Process(started.pid).children()
    processes.send(started, signum)
    assert processes.finish(started) == code
    other.wait(processes.HANGS)
    assert "Traceback" not in processes.log(folder)
    assert kept(steps) >= 2
    done = processes.cogedit(*command, cwd=folder)
    assert (folder / done.stdout.strip()).read_bytes() == whole


@pytest.mark.slow
def test_torchrun_starts_the_same(folder, warm_python):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "cogedit", *COMMAND, "3"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_record(folder / done.stdout.strip(), "trajectory").windows is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code"), [(["--version"], 0), ([*COMMAND, "3", "--gpus", "3"], UsageError.exit_code)]
)
def test_two_processes_of_torchrun_speak_once(folder, args, code):
    """As it starts them, in their environment."""
    with socket.socket() as kept:
        # The port is nobody else's while this holds it, and that of a store that reuses addresses.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = str(kept.getsockname()[1])
        environ = {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [
            processes.start(
                args,
                folder,
                stdout=folder / f"{rank}.out",
                stderr=folder / f"{rank}.log",
                environ=environ | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in (0, 1)
        ]
        assert [processes.finish(one) for one in ranks] == [code, 0]
    said = [(folder / f"{rank}.{name}").read_text() for rank in (0, 1) for name in ("out", "log")]
    assert said[2:] == ["", ""]
    assert ("torchrun started 2 processes" in said[1]) == (code != 0)
    assert ("cogedit" in said[0]) == (code == 0)
