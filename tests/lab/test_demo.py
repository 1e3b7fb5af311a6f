"""The demo, on a tiny pipeline with random weights and on the trained one."""

import shlex
from pathlib import Path

import pytest
from pipelines import make_pipeline
from typer.testing import CliRunner
from videos import read_back

from cogedit.cli import app
from cogedit.lab import demo, world
from cogedit.media.metrics import psnr
from cogedit.shapes import model_dir

needs_weights = pytest.mark.skipif(
    not (model_dir() / "model_index.json").is_file(),
    reason="the trained weights of the shapes model are not in this checkout",
)


def test_the_demo_writes_everything_it_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COGEDIT_INVERT_NUM_INFERENCE_STEPS", "oops")  # the demo takes no settings
    folder = make_pipeline(tmp_path / "model", use_rotary_positional_embeddings=True)
    paths = demo.run_demo(tmp_path / "demo", model=str(folder))
    assert len(paths) == 2 + len(demo.EDITS) + 1
    assert all(path.is_file() for path in paths)
    source = read_back(paths[0], width=world.WIDTH, height=world.HEIGHT)
    spec = world.sample_spec(demo.SEED, "held_out")
    assert psnr(source, world.render(spec)) > 30
    out = capsys.readouterr().out
    assert world.caption(spec) in out
    assert "an orange star" in out
    again = demo.run_demo(tmp_path / "demo", model=str(folder))
    assert again == paths


def test_the_demo_edits_change_the_clip():
    spec = world.sample_spec(demo.SEED, "held_out")
    for _, change in demo.EDITS:
        assert world.counterfactual(spec, change) != spec


def test_without_weights_the_demo_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "model_dir", lambda: tmp_path / "weights")
    assert demo.main(["--output", str(tmp_path / "demo")]) == 5
    assert "no trained weights" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@needs_weights
@pytest.mark.slow
def test_the_demo_with_the_trained_model(tmp_path, capsys, monkeypatch):
    assert demo.main(["--output", str(tmp_path / "demo")]) == 0
    captured = capsys.readouterr()
    paths = captured.out.splitlines()[-6:]
    assert paths[-1].endswith("contact-sheet.png")
    _, _, command = captured.err.splitlines()[-1].partition(": ")
    name, *arguments = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert (name, done.exit_code) == ("cogedit", 0)
    assert Path(done.stdout.strip()).is_file()
