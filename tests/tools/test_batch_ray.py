"""A Ray cluster of two nodes on this machine: what it makes, and what becomes of a lost node."""

import gc
import json
import os
import signal
import sys
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import workers
from hub import fill_cache
from huggingface_hub import constants
from pipelines import TINY_MODEL, TINY_PIPELINE
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.cli import app
from cogedit.config import Settings, read_batch
from cogedit.errors import Interrupted, ModelError, StorageError
from cogedit.tools.batch import RESULTS, batch
from cogedit.tools.batch_driver import Job, drive, ending
from cogedit.tools.batch_group import groups_of
from cogedit.tools.batch_nodes import missing_here, needed_for
from cogedit.tools.batch_plan import BatchEdit, plan_batch
from cogedit.tools.batch_ray import start_ray
from cogedit.tools.batch_shared import SharedList

# Ray leaves sockets and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

FLAGS = {
    "model": str(TINY_PIPELINE),
    "dtype": "fp32",
    "device": "cpu",
    "invert.num_inference_steps": 4,
    "reconstruct.num_inference_steps": 4,
    "load.max_num_frames": 1,
}


def edits_of(number, **settings):
    """So many edits of a clip each."""
    named = Settings(**{"model": str(TINY_PIPELINE), **settings})
    return [
        BatchEdit(f"row {row}", Path(f"{row}.mp4"), "x", None, None, named) for row in range(number)
    ]


def test_a_machine_shows_what_it_does_not_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edits = [replace(edit, output=tmp_path / "out" / "a.mp4") for edit in edits_of(2)]
    for edit in edits:
        edit.video.write_bytes(b"video")
    with needed_for(edits) as needed:
        assert missing_here(needed) == []
        [nonce] = tmp_path.glob(".cogedit-*")
        edits[1].video.write_bytes(b"another")
        [error] = missing_here(needed)
        assert isinstance(error, StorageError)
        assert str(edits[1].video) in error.message
        edits[1].video.unlink()
        nonce.unlink()
        [error] = missing_here(needed)
        assert isinstance(error, StorageError)
        assert str(tmp_path) in error.hint
        [(*named, digest)] = needed.models
        other = replace(needed, nonces=(), videos=(), models=((*named, digest[::-1]),))
        [error] = missing_here(other)
        assert isinstance(error, ModelError)
    assert not [*tmp_path.glob(".cogedit-*")]


PATIENT = {
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_health_check_timeout_ms": "600000",
    "RAY_worker_niceness": "0",
}
"""On a busy machine nothing is given up for lost, and nothing starves."""


@pytest.mark.slow
def test_without_an_address_ray_starts_here(tmp_path):
    make_video(tmp_path / "a.mp4", width=64, height=64, num_frames=9)
    (tmp_path / "edits.jsonl").write_text('{"video": "a.mp4", "prompt": "x"}')
    args = [*TINY_MODEL, "--num-inference-steps", "2", "--max-num-frames", "1"]
    args += ["--engine", "ray", "--json"]
    command = ("batch", "edits.jsonl", *args)
    done = processes.cogedit(*command, cwd=tmp_path, **PATIENT)
    assert [one["status"] for one in json.loads(done.stdout)["outputs"]] == ["written"]


NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory):
    """The cache of the Hub on the first node."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def nodes(hub_cache):
    """A cluster of two nodes with a CPU each; the second has no cache of the Hub."""
    from ray.cluster_utils import Cluster

    path = os.pathsep.join(filter(None, sys.path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        patch.setenv("HF_HUB_CACHE", str(hub_cache))
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def cluster(nodes, hub_cache):
    """Both nodes, whatever a test before has removed."""
    if not nodes.worker_nodes:
        nodes.add_node(**NODE, env_vars={"HF_HUB_CACHE": str(hub_cache / "none")})
    return nodes


@pytest.fixture(autouse=True)
def collected():
    """What Ray leaves open goes while its warnings are ignored."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.mark.slow
def test_every_actor_ends_after_its_step(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run, running), edits = workers.stopped_once_two_run(signal.SIGINT), edits_of(3)
    job = Job(tmp_path, make=workers.make_endlessly)
    started = start_ray(job, edits, number=None, address=cluster.address)
    shared = SharedList(groups_of(edits), Path(RESULTS), force=False)
    with pytest.raises(Interrupted), ending(started), closing(shared):
        [*drive(shared, started, run)]
    assert not running
    assert {path.name for path in tmp_path.iterdir()} == {"ended-1", "ended-2"}


@pytest.mark.slow
def test_a_node_without_the_model_is_named(cluster, hub_cache, tmp_path, monkeypatch):
    fill_cache(hub_cache, "some/model", TINY_PIPELINE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.chdir(tmp_path)
    edits = edits_of(1, model="some/model")
    with pytest.raises(ModelError) as caught:
        start_ray(Job(tmp_path), edits, number=None, address=cluster.address)
    assert caught.value.message.count("has no some/model") == 1
    assert "some/model" in caught.value.hint


@pytest.mark.slow
def test_12_edits_survive_a_node(cluster, tmp_path, monkeypatch):
    """It is lost between two results: of a worker killed in a step, see `test_batch_workers`."""
    clips = "abcd"
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
        for number, clip in enumerate(clips):
            path = tmp_path / name / f"{clip}.mp4"
            make_video(path, width=64, height=64, num_frames=9, fps=8 + number)
        rows = [f'{{"video": "{clip}.mp4", "prompt": ["x", "y", "z"]}}\n' for clip in clips]
        (tmp_path / name / "edits.jsonl").write_text("".join(rows))
    monkeypatch.chdir(tmp_path / "alone")
    alone = batch(plan_batch(read_batch("edits.jsonl"), FLAGS))
    monkeypatch.chdir(tmp_path / "together")
    said = []

    def notify(text):
        said.append(text)
        last = Path(workers.LAST).read_text() if Path(workers.LAST).exists() else ""
        if last and last in text and cluster.worker_nodes:
            [node] = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)

    def start(job, edits):
        job = replace(job, make=workers.make_noted_until_lost)
        return start_ray(job, edits, number=None, address=cluster.address)

    edits = plan_batch(read_batch("edits.jsonl"), FLAGS)
    done = batch(edits, start=start, run=cogedit.Run(notify=notify))
    assert not cluster.worker_nodes
    assert sum("goes to another worker" in text for text in said) == 1, said
    assert Counter(map(workers.elsewhere, done)) == Counter(map(workers.elsewhere, alone))
    assert len(Path(RESULTS).read_text().splitlines()) == 12
    assert workers.artifacts(Path.cwd()) == workers.artifacts(tmp_path / "alone")
    assert max(Counter(Path(workers.WRITES).read_text().split()).values()) == 1


def test_this_machine_chooses_no_model_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr("cogedit.stages.settings.cuda_present", lambda: False)
    monkeypatch.chdir(tmp_path)
    Path("edits.jsonl").write_text('{"video": "a.mp4", "prompt": "a red star"}')
    for engine, message in (("ray", "no model is named"), ("local", "a.mp4")):
        shown = CliRunner().invoke(app, ["batch", "edits.jsonl", "--engine", engine, "--dry-run"])
        assert message in shown.stderr + shown.stdout
        assert ("no model is named" in shown.stderr) == (engine == "ray")
    shown = CliRunner().invoke(
        app, ["batch", "edits.jsonl", "--engine", "ray", "--dry-run", *TINY_MODEL]
    )
    assert "no model is named" not in shown.stderr


def test_an_address_is_for_ray(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["batch", "-", "--address", "host:6379"], input="")
    assert shown.exit_code == 2
    assert "--engine ray" in shown.stderr
