"""A transformer in one file, in float32 or 8 bits, through all five commands, stopped once."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pipelines import make_pipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import read_artifact, read_record
from cogedit.cli import app
from cogedit.errors import Interrupted, ModelError

STEPS = 3
FILES = ("mine.safetensors", "fp8.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A clip, a pipeline, its transformer in two files, and the pipeline without the weights."""
    folder = tmp_path_factory.mktemp("files")
    whole = make_pipeline(folder / "whole", sample_width=12, use_rotary_positional_embeddings=True)
    shutil.copytree(whole, folder / "base")
    weights = folder / "base/transformer/diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    weights.rename(folder / FILES[0])
    stored = {
        name: tensor.to(torch.float8_e4m3fn if tensor.dim() == 2 else torch.bfloat16)
        for name, tensor in state.items()
    }
    save_file(stored, folder / FILES[1])
    make_video(folder / "clip.mp4", width=96, height=64, num_frames=9)
    return folder


def flags_of(home, workspace, file):
    """Options of every command; without a file, of the pipeline that is whole."""
    model = ["--model", home / "whole"]
    if file is not None:
        model = ["--model", home / "base", "--transformer", home / file]
    usual = ["--dtype", "fp32", "--device", "cpu", "--num-inference-steps", STEPS]
    return [*model, *usual, "--workspace", workspace]


def run(*words, code=0):
    """A command's last word on stdout, and what it said."""
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.stderr
    return Path((done.stdout.split() or [""])[-1]), done.stderr


def stopped(home, workspace, file, make):
    """Have a stage stop after its first step."""
    given = {
        "model": str(home / "base"),
        "dtype": "fp32",
        "device": "cpu",
        "workspace": workspace,
        "transformer_file": home / file,
        "invert.num_inference_steps": STEPS,
        "reconstruct.num_inference_steps": STEPS,
    }
    settings = cogedit.settings_for(home / "clip.mp4", given, environ={}, cwd=home).settings

    @contextmanager
    def progress(doing, total):
        yield lambda step: told.cancellation.request()

    told = cogedit.Run(progress=progress)
    with pytest.raises(Interrupted):
        make(settings, told)


def five_commands(home, workspace, file, *, stops=False):
    """What the commands make; with `stops`, the inversion and the edit are stopped and resumed."""
    flags = flags_of(home, workspace, file)
    frames, _ = run("load", home / "clip.mp4", *flags)
    latents, _ = run("encode", frames, *flags)
    if stops:
        stopped(
            home, workspace, file, lambda *given: cogedit.invert(latents, given[0], run=given[1])
        )
    trajectory, said = run("invert", latents, *flags)
    assert ("going on after step" in said) == stops
    if stops:
        stopped(
            home,
            workspace,
            file,
            lambda *given: cogedit.reconstruct(trajectory, "a cat", given[0], run=given[1]),
        )
    edit, said = run("reconstruct", trajectory, "-p", "a cat", *flags)
    assert ("going on after step" in said) == stops
    video, _ = run("export", edit, *flags, "-o", workspace / "cat.mp4")
    assert video.is_file()
    return trajectory, edit


@pytest.fixture(scope="module")
def made(home):
    """What the commands make, by file."""
    return {file: five_commands(home, home / f"of-{file}", file) for file in FILES}


@pytest.mark.parametrize("file", FILES)
def test_stopped_and_resumed_they_give_the_same_bytes(home, made, tmp_path, file):
    resumed = five_commands(home, tmp_path / "resumed", file, stops=True)
    assert [path.read_bytes() for path in made[file]] == [path.read_bytes() for path in resumed]
    record = read_record(resumed[0]).model
    assert (record.transformer, record.weights) == (file, None if file == FILES[0] else "fp8")


def test_a_file_and_its_folder_give_the_same_numbers(home, made, tmp_path):
    flags = flags_of(home, tmp_path, None)
    trajectory, _ = run("invert", home / "clip.mp4", *flags)
    own = trajectory, run("reconstruct", trajectory, "-p", "a cat", *flags)[0]
    for ours, theirs, name in zip(made[FILES[0]], own, ("trajectory", "latents"), strict=True):
        tensors = [read_artifact(path).tensors[name] for path in (ours, theirs)]
        assert torch.equal(*tensors)


def test_an_edit_needs_the_file_of_its_inversion(home, made, tmp_path):
    flags, (trajectory, _) = flags_of(home, tmp_path, FILES[0]), made[FILES[0]]
    without = [flag for flag in flags if flag not in ("--transformer", home / FILES[0])]
    edit = ("reconstruct", trajectory, "-p", "a cat", *without)
    _, said = run(*edit, code=ModelError.exit_code)
    assert FILES[0] in said
