"""A dry run: what it says is what the run does, and nothing is written."""

import importlib
import json

import pytest
from pipelines import TINY_MODEL, TINY_PIPELINE
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import read_artifact
from cogedit.cli import app
from cogedit.errors import CogeditError, UsageError

SMALL = ["--width", "96", "--height", "64", "--max-num-frames", "9", "--frame-rate", "spread"]
FLAGS = {
    "model": str(TINY_PIPELINE),
    "device": "cpu",
    "dtype": "fp32",
    "load.width": 96,
    "load.height": 64,
    "load.max_num_frames": 9,
    "load.frame_rate": "spread",
    "invert.num_inference_steps": 4,
}


@pytest.fixture
def video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)


def files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def settings_with(source, **changes):
    return cogedit.settings_for(source, FLAGS | changes, environ={}).settings


class Calls:
    """Counts the transformer's calls and rows, and lets them happen."""

    def __init__(self, monkeypatch):
        from diffusers import CogVideoXTransformer3DModel

        self.rows = []
        forward = CogVideoXTransformer3DModel.forward

        def counting(model, *args, **kwargs):
            self.rows.append(len(kwargs["hidden_states"]))
            return forward(model, *args, **kwargs)

        monkeypatch.setattr(CogVideoXTransformer3DModel, "forward", counting)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"invert.prompt": "a cat", "invert.guidance_scale": 2.0, "invert.inverse": "upstream"},
        {"reconstruct.injection_steps": (0.0, 0.5), "reconstruct.num_inference_steps": 2},
        {"reconstruct.auto_mask": True, "reconstruct.guidance_scale": 1.0},
    ],
)
def test_rows_and_calls_are_those_of_the_run(video, monkeypatch, changes):
    settings = settings_with(video, **{"invert.inversion_iterations": 1, **changes})
    prompts = ["a blue cat", "snow"]
    up, down = cogedit.estimate(video, settings, prompts=prompts).stages
    assert not up.is_least
    calls = Calls(monkeypatch)
    inverted = cogedit.invert(video, settings)
    assert (len(calls.rows), sum(calls.rows)) == (up.work.calls, up.work.rows)
    assert max(calls.rows) == up.work.max_rows
    calls.rows.clear()
    edits = cogedit.reconstruct(inverted.path, prompts, settings)
    assert (len(calls.rows), sum(calls.rows)) == (down.work.calls, down.work.rows)
    assert max(calls.rows) == down.work.max_rows
    assert inverted.path.stat().st_size == pytest.approx(up.disk_bytes, rel=0.1)
    assert not any(edit.reused for edit in edits)


def test_where_a_clip_says_how_often_it_is_corrected_the_estimate_is_the_least(video, monkeypatch):
    settings = settings_with(video)
    [up] = cogedit.estimate(video, settings).stages
    calls = Calls(monkeypatch)
    cogedit.invert(video, settings)
    assert up.is_least
    assert up.work.calls < len(calls.rows)  # random weights leap


def test_what_is_there_costs_nothing(video):
    settings = settings_with(video)
    assert cogedit.estimate(video, settings).earlier_bytes > 0
    inverted = cogedit.invert(video, settings)
    found = cogedit.estimate(video, settings, prompts=["a blue cat"])
    assert found.earlier_bytes == 0
    assert [stage.reused for stage in found.stages] == [1, 0]
    assert found.stages[0].seconds == found.stages[0].disk_bytes == 0
    assert found.stages[1].seconds > 0
    cogedit.reconstruct(inverted.path, ["a blue cat"], settings)
    found = cogedit.estimate(inverted.path, settings, prompts=["a blue cat"])
    assert [stage.reused for stage in found.stages] == [1, 1]
    assert found.seconds == found.disk_bytes == found.memory_bytes == 0
    both = cogedit.estimate(inverted.path, settings, prompts=["a blue cat", "snow"])
    assert both.stages[1].reused == 1
    again = cogedit.estimate(video, settings, run=cogedit.Run(force=True))
    assert again.stages[0].reused == 0


@pytest.mark.parametrize("auto", [False, True])
def test_an_edit_with_a_mask_holds_more(video, auto):
    settings = settings_with(
        video, **{"reconstruct.auto_mask": auto, "reconstruct.auto_mask_threshold": 0.01}
    )
    mask = None if auto else "16,16,64,48"
    for keep in (False, True):
        options = {"mask": mask, "save_trajectory": keep}
        found = cogedit.estimate(video, settings, prompts=["a blue cat"], **options)
        [edit] = cogedit.reconstruct(
            video, "a blue cat", settings, **options, run=cogedit.Run(force=True)
        )
        tensors = read_artifact(edit.path, "edit").tensors.values()
        assert found.stages[1].disk_bytes == sum(tensor.nbytes for tensor in tensors)


def test_the_same_prompt_twice_is_one_edit(video):
    settings = settings_with(video)
    one = cogedit.estimate(video, settings, prompts=["a blue cat"])
    two = cogedit.estimate(video, settings, prompts=["a blue cat"] * 2)
    assert two.stages[1].work == one.stages[1].work
    edits = cogedit.reconstruct(video, ["a blue cat"] * 2, settings)
    assert two.stages[1].artifacts == len(edits)
    assert two.stages[1].reused == sum(edit.reused for edit in edits)


def test_the_estimate_of_a_grid_is_what_the_sweep_does(video, tmp_path, monkeypatch):
    settings = settings_with(video, **{"reconstruct.auto_mask_threshold": 0.01})
    inverted = cogedit.invert(video, settings).path
    cogedit.reconstruct(inverted, "snow", settings)
    module = importlib.import_module("cogedit.stages.reconstruct")
    monkeypatch.setattr(module, "MAX_VALUES", 2 * 3 * 16 * 8 * 12)  # two edits in a pass
    before, prompts = files(tmp_path), ["a blue cat", "snow", "a fox"]
    vary = ["auto-mask=false,true", "num-inference-steps=4,auto"]  # auto means all 4 steps
    found = cogedit.estimate(inverted, settings, prompts=prompts, vary=vary).stages[1]
    assert files(tmp_path) == before
    calls = Calls(monkeypatch)
    swept = cogedit.sweep(inverted, prompts, settings, vary=vary)
    assert (len(calls.rows), sum(calls.rows)) == (found.work.calls, found.work.rows)
    assert max(calls.rows) == found.work.max_rows
    assert found.artifacts == len(swept.edits) == 12
    written = [edit.path for edit in swept.edits if not edit.reused]
    assert found.reused == 12 - len(written) == 12 - 5
    tensors = [t for path in written for t in read_artifact(path, "edit").tensors.values()]
    assert found.disk_bytes == sum(tensor.nbytes for tensor in tensors)
    again = cogedit.estimate(video, settings, prompts=prompts, vary=vary)
    assert [stage.reused for stage in again.stages] == [1, 12]
    assert again.seconds == again.disk_bytes == 0


def test_equal_cells_of_a_clip_that_is_not_inverted_are_one_edit(video):
    vary = ["num-inference-steps=2,4,auto,2", "seed=0,1"]  # no noise is drawn
    said = []
    run = cogedit.Run(notify=said.append)
    options = {"prompts": "a cat", "vary": vary, "run": run}
    found = cogedit.estimate(video, settings_with(video), **options).stages[1]
    assert (found.reused, found.artifacts) == (6, 8)
    assert found.work.calls == 2 + 4
    assert any("seed has no effect" in line for line in said)


def test_a_mask_that_the_run_refuses_is_refused(video):
    for mask in ("gone.png", "0,0,200,20"):
        with pytest.raises(CogeditError, match=mask):
            cogedit.estimate(video, settings_with(video), prompts=["a cat"], mask=mask)


NOTE = "--source-prompt says what the source shows"


def test_a_missing_source_prompt_is_said_unless_all_is_reused(video):
    guided = {"reconstruct.unconditional": "source"}
    settings, said = settings_with(video, **guided), []
    run = cogedit.Run(notify=said.append)

    def notes(call, *args):
        said.clear()
        call(*args, prompts="a cat", run=run)
        return [note for note in said if NOTE in note]

    def make(source, settings, *, prompts, run):
        return cogedit.reconstruct(source, prompts, settings, run=run)

    [note] = notes(cogedit.estimate, video, settings)
    assert notes(cogedit.estimate, video, settings_with(video)) == []
    assert (
        notes(cogedit.estimate, video, settings_with(video, **{"invert.prompt": "a"} | guided))
        == []
    )
    assert notes(make, video, settings) == [note]
    for source in (video, cogedit.invert(video, settings).path):
        assert notes(cogedit.estimate, source, settings) == []
        assert notes(make, source, settings) == []
    assert notes(
        make, video, settings_with(video, **guided | {"reconstruct.guidance_scale": 2.0})
    ) == [note]


def test_nothing_is_written(video, tmp_path):
    before = files(tmp_path)
    cogedit.estimate(video, settings_with(video), prompts=["a blue cat"])
    assert files(tmp_path) == before


def test_what_cannot_run_is_refused(video):
    with pytest.raises(UsageError, match="prompt"):
        cogedit.estimate(video, settings_with(video), prompts=[])
    with pytest.raises(UsageError, match="7:END"):
        bad = settings_with(video, **{"reconstruct.injection_layers": (7, None)})
        cogedit.estimate(video, bad, prompts=["a cat"])


@pytest.mark.parametrize("command", ["invert", "reconstruct", "edit", "sweep"])
def test_the_command_prints_an_estimate_and_writes_nothing(video, tmp_path, command):
    before = files(tmp_path)
    prompt = [] if command == "invert" else ["--prompt", "a blue cat"]
    prompt += ["--vary", "strength=0.5,1"] if command == "sweep" else []
    args = [command, str(video), *TINY_MODEL, *SMALL, *prompt, "--dry-run"]
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout
    found = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert (found["command"], found["dry_run"], found["outputs"]) == (command, True, [])
    names = ["invert", "reconstruct"] if prompt else ["invert"]
    assert [stage["name"] for stage in found["stages"]] == names
    assert found["num_tokens"] == 64 + 3 * 4 * 6
    assert found["stages"][0]["work"]["flops"]["linear"] > 0
    assert files(tmp_path) == before


def test_an_estimate_for_several_gpus(video):
    settings = {n: settings_with(video, **{"transformer.gpus": n}) for n in (1, 2)}
    alone, two = (cogedit.estimate(video, settings[n]) for n in (1, 2))
    assert (alone.num_gpus, two.num_gpus) == (1, 2)
    [one], [divided] = alone.stages, two.stages
    assert divided.work.flops == one.work.flops == one.work.busiest
    assert divided.work.busiest.total == one.work.flops.total / 2
    args = ["invert", str(video), *TINY_MODEL, *SMALL, "--dry-run", "--gpus"]
    assert "2 GPUs" in CliRunner().invoke(app, [*args, "2"]).stdout
    refused = CliRunner().invoke(app, [*args, "2", "--device", "cuda:1"])
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_model_that_is_not_here_is_not_downloaded(video):
    shown = CliRunner().invoke(
        app, ["invert", str(video), "--model", "zai-org/CogVideoX-5b", "--dry-run"]
    )
    assert shown.exit_code == 5
    assert "zai-org/CogVideoX-5b" in shown.stderr


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["-p", "b", "-o", "out.mp4"], 2, "-o"),
        (["-o", "gone/out.mp4"], 7, "gone"),
        (["--composite", "source"], 2, "--composite source"),
        (["--num-inference-steps", "9", "--inversion-steps", "5"], 2, "9"),
        (["--start-step", "4", "--inversion-steps", "4"], 2, "start_step"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(video, tmp_path, options, code, named):
    before = files(tmp_path)
    args = ["edit", str(video), *TINY_MODEL, *SMALL, "-p", "a cat", *options]
    for dry in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, [*args, *dry])
        assert result.exit_code == code
        assert named in result.stderr
    assert files(tmp_path) == before
