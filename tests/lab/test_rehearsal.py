"""A rehearsal on a tiny model: what it runs, what it measures, and what it says of it."""

import json
import os
import signal
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import processes
import pytest

from cogedit.lab.observed import Line, Observed, observe
from cogedit.lab.published import MODELS
from cogedit.lab.rehearsal import main, make_clip
from cogedit.lab.rehearsal_stages import Rehearsal, Stage, plan_stages
from cogedit.lab.rehearsal_tables import Meter
from cogedit.media.probe import probe_stored
from cogedit.models.cost import TransformerSizes, inversion_work
from cogedit.models.geometry import TRAINED_FPS
from cogedit.types import InvertSettings


def options(**changed):
    given = {"size": (96, 64), "frames": 9, "num_inference_steps": 4, "memory": [16.0, 8.0]}
    return Namespace(**{**given, "vae_only": False, **changed})


def seen(*events, **changed):
    """A command that said one event a second."""
    lines = tuple(
        Line.read(float(second), event if isinstance(event, str) else json.dumps(event))
        for second, event in enumerate(events, 1)
    )
    given = {"exit_code": 0, "seconds": 10.0, "lines": lines, "stdout": "", "host_bytes": 0}
    return Observed(**{**given, **changed})


def step(number, doing="inverting"):
    return {"event": "step", "doing": doing, "step": number, "total": 4}


def test_what_a_command_said():
    found = seen(
        "a library warns",
        {"event": "note", "text": "wrote it"},
        {"event": "error", "message": "no", "hint": "do this"},
        "a library warns",
        stdout='{"outputs": [{"path": "a"}]}',
    )
    assert found.remarks == ["a library warns", "error: no (do this)"]
    assert found.notes == ["wrote it"]
    assert found.paths == (Path("a"),)
    assert found.silence == 6.0
    assert seen(stdout="text").paths == ()


def test_a_command_is_run_and_measured(tmp_path):
    found = observe(["--version"], folder=tmp_path, device_limit=None)
    assert found.exit_code == 0
    assert found.stdout.startswith("cogedit ")
    assert found.host_bytes > 1e6
    assert found.device_bytes is None
    assert observe(["no-such"], folder=tmp_path, device_limit=None).exit_code == 2


def test_its_clip_has_every_frame_at_the_model_s_rate(tmp_path):
    make_clip(tmp_path / "clip.mkv", options(frames=49))
    facts = probe_stored(tmp_path / "clip.mkv")
    assert (facts.num_frames, facts.width, facts.height) == (49, 96, 64)
    assert facts.fps == TRAINED_FPS


def test_steps_after_the_first_are_timed():
    """One a second: as many operations a second as a step has."""
    model = MODELS["tiny"]
    sizes, shape = TransformerSizes.of(model.transformer), (3, 8, 12)
    work = {"max_rows": 1, "injected": False}
    stages = [{"name": name, "work": work} for name in ("invert", "reconstruct")]
    dry = {"latent_shape": shape, "stages": stages, "transformer_bytes": 1000}
    dry |= {"dtype": "bf16", "device": "cpu"}
    call = inversion_work(InvertSettings(num_inference_steps=2), sizes, shape)
    product = 2 * call.flops.total / call.calls
    meter = Meter(dry, model, vae_parameters=500, num_steps=4, product=product)
    stage = Stage("invert", (), loop="inverting", estimate="invert")
    row = meter.row(stage, seen(step(1), step(2), step(3)))
    assert row.step_seconds == pytest.approx(1.0)
    assert row.share == pytest.approx(0.5)
    assert row.estimate is not None
    assert row.estimate > 1000
    assert meter.row(stage, seen(step(4))).share is None
    decoded = meter.row(Stage("export", (), estimate="decode"), seen())
    assert decoded.estimate is not None
    assert decoded.estimate > 1000
    nothing = Meter({}, model, vae_parameters=1, num_steps=4, product=1.0)
    assert nothing.row(stage, seen(step(1), step(2))).estimate is None


def test_more_is_run_on_a_cuda_device():
    names = {
        on_cuda: [stage.name for stage in plan_stages(options(), Path("v"), on_cuda=on_cuda)]
        for on_cuda in (False, True)
    }
    assert set(names[False]) < set(names[True])
    assert {"edit in 16 GB", "edit in 8 GB", "reconstruct, group"} <= set(names[True])
    assert {"invert, killed", "reconstruct, fp8", "edit"} <= set(names[False])
    alone = plan_stages(options(vae_only=True), Path("v"), on_cuda=True)
    assert [stage.name for stage in alone] == ["doctor", "dry run", "load", "encode", "decode"]


def test_what_cannot_run_is_skipped_with_its_reason(tmp_path):
    rehearsal = Rehearsal(tmp_path, [], on_cuda=False, ends=time.monotonic() + 30)
    rehearsal.run(Stage("encode", ("encode", "@load")))
    rehearsal.seen["invert"] = seen(seconds=60.0)
    rehearsal.run(Stage("edit", ("--version",), like=("invert",)))
    assert list(rehearsal.skipped) == ["encode", "edit"]
    assert "load" in rehearsal.skipped["encode"]
    assert "60 s" in rehearsal.skipped["edit"]
    assert not rehearsal.seen.keys() & {"encode", "edit"}


@pytest.mark.parametrize("given", [("--layers", "0"), ("--num-inference-steps", "2")])
def test_mistakes_end_with_a_sentence(given, tmp_path, capsys):
    assert main([*given, "--output", str(tmp_path / "out")]) == 2
    assert given[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def wait_once_for_the_kill():
    """Let the first run that has steps not be over before it is killed, after the second."""
    replace, is_first = os.replace, []

    def replacing(source, target):
        replace(source, target)
        if Path(target).name == "0001.safetensors" and not Path("begun").exists():
            Path("begun").touch()
            is_first.append(True)
        if Path(target).name == "0003.safetensors" and is_first:
            time.sleep(processes.HANGS)

    os.replace = replacing  # type: ignore[assignment]


@pytest.mark.slow
def test_a_whole_rehearsal(tmp_path, capsys, warm_python, monkeypatch):
    warm = partial(processes.start, prepare=wait_once_for_the_kill)
    monkeypatch.setattr(processes, "start", warm)
    given = ["--model", "tiny", "--device", "cpu", "--num-inference-steps", "8"]
    assert main([*given, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "rehearsal.json").read_text())
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == [
        *("doctor", "dry run", "load", "encode", "invert, killed", "invert, resumed"),
        *("reconstruct", "export", "reconstruct, fp8", "reconstruct, int8", "edit"),
    ]
    assert stages.pop("invert, killed")["seen"]["exit_code"] == -signal.SIGKILL
    assert all(stage["seen"]["exit_code"] == 0 for stage in stages.values())
    assert stages["reconstruct"]["share"] > 0
    equal = {one["ways"]: one["is_equal"] for one in found["made_twice"]}
    assert len(equal) == 4
    assert [ways for ways, is_equal in equal.items() if not is_equal] == [
        f"reconstruct, {weights}, and reconstruct" for weights in ("fp8", "int8")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"CogVideoX-tiny", "rehearsal.json"}
    assert "equal bits" in capsys.readouterr().out
