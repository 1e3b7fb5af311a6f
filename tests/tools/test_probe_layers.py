"""probe-layers: a table of the layers, with nothing written but the inversion."""

import json

import pytest
from pipelines import TINY_MODEL
from typer.testing import CliRunner
from videos import make_video

from cogedit.cli import app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)
    return tmp_path


def probe(*words, code=0):
    small = ("--width", "96", "--height", "64", "--max-num-frames", "9", "--inversion-steps", "4")
    command = ("probe-layers", "clip.mp4", "-p", "a red fox", *TINY_MODEL, *small, *words)
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == code, done.output
    return done


def kinds(folder):
    return sorted(path.name.partition("-")[0] for path in folder.glob("clip.cogedit/*.safetensors"))


def test_a_table_and_json_of_the_layers(folder):
    planned = json.loads(probe("--dry-run", "--json").stdout)
    assert [stage["name"] for stage in planned["stages"]] == ["invert", "probe-layers"]
    assert not (folder / "clip.cogedit").exists()
    first = probe("--json", "--jsonl")
    found = json.loads(first.stdout)
    assert kinds(folder) == ["frames", "latents", "trajectory"]
    assert found["layers"] == [0, 1]
    assert found["num_steps"] == 4
    assert len(found["levels"]) == 3
    for level in found["levels"]:
        assert len(level["changes"]) == 2
        assert all(change > 0 for change in (level["whole"], *level["changes"]))
    means = [
        sum(level) / 3 for level in zip(*(one["changes"] for one in found["levels"]), strict=True)
    ]
    assert found["means"] == pytest.approx(means)
    events = [json.loads(line) for line in first.stderr.splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    [cost] = [note for note in notes if note.startswith("probe-layers: ")]
    calls = planned["stages"][1]["work"]["calls"]
    assert f"{calls} calls" in cost
    # The cost is said before the first step.
    is_cost = [event.get("text") == cost for event in events]
    is_step = [event["event"] == "step" for event in events]
    assert is_cost.index(True) < is_step.index(True)
    again = probe()
    assert [line.split()[0] for line in again.stdout.splitlines()] == ["0", "1"]
    assert "invert: " not in again.stderr
    assert kinds(folder) == ["frames", "latents", "trajectory"]


def test_the_layers_are_those_of_the_window(folder):
    assert json.loads(probe("--json", "--injection-layers", "1:END").stdout)["layers"] == [1]


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "flow"),
        ("--injection-strength", "0"),
        ("--injection-steps", "0:0.1"),
        ("--injection-layers", "0:9"),
        ("--num-inference-steps", "9"),
    ],
)
def test_what_leaves_nothing_to_probe_is_refused_before_anything_runs(folder, words):
    assert probe(*words, code=2).stderr.startswith("error: ")
    assert not (folder / "clip.cogedit").exists()
