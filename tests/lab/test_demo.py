"""The demo, on a tiny pipeline with random weights, and the command that it names."""

import io
import shlex
from contextlib import redirect_stdout
from functools import partial
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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline for the clips of the world."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return str(make_pipeline(folder, use_rotary_positional_embeddings=True))


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """The folder of a demo, and what it returned and printed."""
    folder, out = tmp_path_factory.mktemp("made") / "demo", io.StringIO()
    with redirect_stdout(out):
        paths = demo.run_demo(folder, model=model)
    return folder, paths, out.getvalue()


def test_the_demo_writes_everything_it_names(made):
    _, paths, out = made
    assert len(paths) == 2 + len(demo.EDITS) + 1
    assert all(path.is_file() for path in paths)
    source = read_back(paths[0], width=world.WIDTH, height=world.HEIGHT)
    spec = world.sample_spec(demo.SEED, "held_out")
    assert psnr(source, world.render(spec)) > 30
    assert world.caption(spec) in out
    assert "an orange star" in out


@needs_weights
def test_it_is_made_again_and_names_a_command_that_works(made, model, monkeypatch, capsys):
    folder, paths, _ = made
    monkeypatch.setenv("COGEDIT_INVERT_NUM_INFERENCE_STEPS", "oops")  # the demo takes no settings
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, model=model))
    assert demo.main(["--output", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-len(paths) :] == [str(path) for path in paths]
    _, _, command = captured.err.splitlines()[-1].partition(": ")
    name, *arguments = shlex.split(command)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COGEDIT_INVERT_NUM_INFERENCE_STEPS")
    done = CliRunner().invoke(app, [*arguments, "--num-inference-steps", "2"])
    assert (name, done.exit_code) == ("cogedit", 0)
    assert Path(done.stdout.strip()).is_file()


def test_the_demo_edits_change_the_clip():
    spec = world.sample_spec(demo.SEED, "held_out")
    for _, change in demo.EDITS:
        assert world.counterfactual(spec, change) != spec


def test_without_weights_the_demo_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "model_dir", lambda: tmp_path / "weights")
    assert demo.main(["--output", str(tmp_path / "demo")]) == 5
    assert "no trained weights" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
