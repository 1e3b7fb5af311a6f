"""`cogedit report` of edits by several models, and of files that are gone."""

import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import pytest
from hub import fill_cache
from huggingface_hub import constants
from pipelines import TINY_MODEL, TINY_PIPELINE, decode, decode_source
from typer.testing import CliRunner
from videos import make_video

import cogedit
import cogedit.shapes
from cogedit.artifacts import content_key, read_record
from cogedit.cli import app
from cogedit.media.metrics import psnr
from cogedit.stages.pass_times import FILE

FEW = ("--num-inference-steps", "2", "--guidance-scale", "1", "--device", "cpu")
SMALL = ("--width", "32", "--height", "32", "--max-num-frames", "5")
PROMPTS = ("a red star", "a green star", "a blue star")
MODELS = ("shapes", "shapes-i2v", "shapes")


def cogedit_in(folder, *args):
    """Run a command in a folder; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stderr


def edit(folder, prompt, *options):
    """Make an edit in the workspace `w`, and return its file."""
    before = set(folder.glob("w/edit-*"))
    cogedit_in(folder, "reconstruct", "clip.mp4", "-p", prompt, "--workspace", "w", *options)
    [made] = set(folder.glob("w/edit-*")) - before
    return made


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """A folder with the edits of a clip by two models, in turn; the edits."""
    folder = tmp_path_factory.mktemp("models")
    make_video(folder / "clip.mp4", width=64, height=64, num_frames=9, fps="8")
    said = ("--source-prompt", "it's a star", "--inversion-iterations", "auto", "--vae-tiling")
    own = {"shapes": said, "shapes-i2v": ()}
    edits = [
        edit(folder, prompt, "--model", model, *own[model], *SMALL, *FEW)
        for prompt, model in zip(PROMPTS, MODELS, strict=True)
    ]
    return folder, edits


@pytest.fixture
def copied(two_models, tmp_path):
    """A copy of that folder, to change; its workspace."""
    shutil.copytree(two_models[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "w"


def shown(workspace):
    """The keys of the edits on the page of a workspace, in order."""
    text = (workspace / "report.html").read_text()
    return re.findall(r'<article class="card" id="edit-(\w+)">', text)


def key_of(path):
    return content_key(read_record(path))[:12]


def decoded(stderr):
    return re.findall(r"^decoding (.*)$", stderr, re.MULTILINE)


def test_each_edit_is_decoded_by_the_model_that_made_it(two_models):
    folder, edits = two_models
    said = cogedit_in(folder, "report", "w")
    assert shown(folder / "w") == [key_of(path) for path in edits]
    assert "left out" not in said
    assert said.splitlines()[-1].startswith("wrote w/report.html (3 edits, ")
    # One model after the other, so that each is loaded once.
    assert decoded(said) == [edits[0].name, edits[2].name, edits[1].name]
    page = (folder / "w" / "report.html").read_text()
    for path in edits:
        trajectory = folder / "w" / f"trajectory-{key_of_inversion(path)}.safetensors"
        settings = cogedit.settings_for(path, environ={}, cwd=folder).settings
        value = psnr(decode(path, settings), decode_source(trajectory, settings))
        assert f"{value:.1f} dB" in page
    # Of each model, the VAE's round trip.
    for model in ("shapes", "shapes-i2v"):
        assert f"its round trip against the clip; {model}, fp32" in page


def key_of_inversion(path):
    return content_key(read_record(path).trajectory)[:12]


def test_a_model_that_was_named_leaves_the_others_out(two_models):
    folder, edits = two_models
    said = cogedit_in(folder, "report", "w", "--model", "shapes")
    assert shown(folder / "w") == [key_of(edits[0]), key_of(edits[2])]
    assert decoded(said) == [edits[0].name, edits[2].name]
    assert f"left out {edits[1].name}: {edits[1].name} was made with model shapes-i2v" in said
    assert said.splitlines()[-1].startswith("wrote w/report.html (2 of 3 edits, ")


def test_an_edit_of_a_single_file_leaves_the_others_in(copied):
    weights = Path(cogedit.shapes.__file__).parent / "weights" / "transformer"
    file = copied.parent / "mine.safetensors"
    shutil.copy(weights / "diffusion_pytorch_model.safetensors", file)
    tuned = ("--model", "shapes", "--transformer", file)
    own = edit(copied.parent, "a red circle", *tuned, *SMALL, *FEW)
    said = cogedit_in(copied.parent, "report", "w", "--model", "shapes")
    assert key_of(own) not in shown(copied)
    assert "--transformer FILE" in said
    assert said.splitlines()[-1].startswith("wrote w/report.html (2 of 4 edits, ")


def test_a_model_that_is_not_here_leaves_its_edits_out(copied):
    own = edit(copied.parent, "a cat", *TINY_MODEL, "--width", "96", "--height", "64", *FEW)
    said = cogedit_in(copied.parent, "report", "w")
    assert len(shown(copied)) == 3
    assert own.name not in decoded(said)
    [line] = [line for line in said.splitlines() if line.startswith(f"left out {own.name}: ")]
    assert "--model DIR" in line
    assert said.splitlines()[-1].startswith("wrote w/report.html (3 of 4 edits, ")
    # Where none is here, there is nothing to report.
    for path in copied.glob("*.safetensors"):
        if path.name.startswith("frames-") or read_record(path).model.id.startswith("shapes"):
            path.unlink()
    result = CliRunner().invoke(app, ["report", str(copied)])
    assert result.exit_code == 5
    assert "--model DIR" in result.stderr


def test_a_model_that_would_have_to_be_downloaded_leaves_its_edits_out(
    copied, tmp_path_factory, monkeypatch
):
    cache = tmp_path_factory.mktemp("hub")
    fill_cache(cache, "some/model", TINY_PIPELINE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    size = ("--width", "96", "--height", "64")
    own = edit(copied.parent, "a cat", "--model", "some/model", "--dtype", "fp32", *size, *FEW)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "another"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    said = cogedit_in(copied.parent, "report", "w")
    [line] = [line for line in said.splitlines() if line.startswith(f"left out {own.name}: ")]
    assert "some/model is not in the local cache" in line  # and nobody asked the Hub
    assert "hf download some/model" in line
    assert len(shown(copied)) == 3


def left_out_figures(stderr):
    return re.findall(r"^clip\.mp4: (.* left out .*)$", stderr, re.MULTILINE)


@pytest.mark.slow
def test_figures_whose_files_are_gone_are_named_with_the_commands_that_make_them(copied):
    gone = {
        path.name
        for kind in ("frames", "latents", "trajectory")
        for path in copied.glob(f"{kind}-*")
    }
    assert len(gone) == 5
    for name in gone:
        (copied / name).unlink()
    said = cogedit_in(copied.parent, "report", "w")
    sentences = left_out_figures(said)
    figures = [sentence.partition(" left out ")[0] for sentence in sentences]
    assert figures == [
        "PSNR and SSIM of the VAE are",
        *["PSNR, SSIM and warp error are", "the noise's standard deviation is"] * 2,
    ]
    assert {re.search(r"lack of (\S+):", sentence)[1] for sentence in sentences} == gone
    page = unescape((copied / "report.html").read_text())
    assert all(page.count(sentence) == 1 for sentence in sentences)
    assert len(shown(copied)) == 3
    assert " dB" not in page
    # They make the very files, in this order.
    for sentence in sentences:
        command = re.search(r"`cogedit (.*)`", sentence)[1]
        cogedit_in(copied.parent, *shlex.split(command), "--device", "cpu")
    assert gone <= {path.name for path in copied.iterdir()}
    said = cogedit_in(copied.parent, "report", "w")
    assert left_out_figures(said) == []
    assert " dB" in (copied / "report.html").read_text()


@pytest.mark.parametrize(
    ("kinds", "figures"),
    [
        (["latents"], []),  # the trajectory holds them
        (["trajectory"], ["the noise's standard deviation is"] * 2),
        (["frames"], ["PSNR and SSIM of the VAE are"]),
    ],
)
def test_what_is_not_needed_is_not_missed(copied, kinds, figures):
    for path in [path for kind in kinds for path in copied.glob(f"{kind}-*")]:
        path.unlink()
    said = left_out_figures(cogedit_in(copied.parent, "report", "w"))
    assert [sentence.partition(" left out ")[0] for sentence in said] == figures
    assert "Warp error" in (copied / "report.html").read_text()


def test_times_that_nobody_noted_are_missed_once(copied):
    (copied / FILE).unlink()
    said = left_out_figures(cogedit_in(copied.parent, "report", "w"))
    assert len(said) == 1
    assert said[0].startswith("time and residual of 3 edits and 2 inversions are left out")
    assert said[0] in unescape((copied / "report.html").read_text())
