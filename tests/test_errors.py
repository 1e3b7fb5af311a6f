"""Errors end with their exit code and one sentence that names what is wrong and what mends it."""

import json
import shutil
import signal

import pytest
import torch
from pipelines import TINY_MODEL, TINY_PIPELINE, tiny_artifacts
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from videos import ffmpeg, make_video

from cogedit.cli import app, main
from cogedit.errors import ModelError

SMALL = (*TINY_MODEL, "--max-num-frames", "9", "--frame-rate", "spread")


@pytest.fixture(scope="module")
def inverted(tmp_path_factory):
    """A folder with a video and everything up to its trajectory."""
    folder = tmp_path_factory.mktemp("inverted")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=12)
    return tiny_artifacts(video, {"load.max_num_frames": 9, "load.frame_rate": "spread"})


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Run a command that must fail; return its exit code and what it showed."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert not [p for p in tmp_path.rglob("*") if p.suffix in (".tmp", ".safetensors")]
        return result.exit_code, result.stderr.strip()

    return run


def test_videos_that_cannot_be_read(fail, tmp_path):
    (tmp_path / "notes.mp4").write_text("dear diary\n" * 100)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "song.mp4")
    for name in ("nothing.mp4", "notes.mp4", "song.mp4"):
        code, shown = fail("edit", name, "--prompt", "x", *SMALL)
        assert code == 3
        assert name in shown


@pytest.mark.parametrize(
    ("command", "hint"),
    [("invert", "`cogedit encode VIDEO`"), ("encode", "`cogedit load VIDEO`")],
)
def test_wrong_kind_of_artifact(fail, inverted, command, hint):
    code, shown = fail(command, inverted["trajectory"], *TINY_MODEL)
    assert code == 4
    assert inverted["trajectory"].name in shown
    assert hint in shown


def test_truncated_artifact(fail, inverted, tmp_path):
    damaged = tmp_path / "cut.bin"
    damaged.write_bytes(inverted["trajectory"].read_bytes()[:-100])
    code, shown = fail("reconstruct", damaged, "--prompt", "x", *TINY_MODEL)
    assert code == 4
    assert f"recomputes it: rm {damaged}" in shown


def test_wrong_model_for_the_artifact(fail, inverted, pipeline_2b):
    code, shown = fail(
        "reconstruct", inverted["trajectory"], "--prompt", "x", "--model", pipeline_2b
    )
    assert code == 4
    assert TINY_PIPELINE.name in shown
    assert "tiny-2b" in shown


def test_local_model_that_nobody_names(fail, inverted):
    code, shown = fail("reconstruct", inverted["trajectory"], "--prompt", "x")
    assert code == 5
    assert "--model" in shown


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["load", "VIDEO", "--width", 100, "--height", 64], 2, ["100", "96", "112"]),
        (["invert", "LATENTS", "--num-inference-steps", 0], 2, ["--num-inference-steps", "0"]),
        (["invert", "LATENTS", "--num-inference-steps", 1001], 2, ["1001", "1000"]),
        (["invert", "LATENTS", "--num-inference-steps", -3], 2, ["--num-inference-steps", "-3"]),
        (["invert", "LATENTS", "--num-inference-steps", 1], 2, ["2 inference steps"]),
        (["invert", "LATENTS", "--num-steps", 5], 2, ["--num-steps"]),
        (["invert", "LATENTS", "--width", 128], 2, ["--width", "128", "96", "cogedit encode"]),
        (["reconstruct", "TRAJECTORY", "-p", "bad\udcff"], 2, ["UTF-8"]),
        (["reconstruct", "TRAJECTORY", "-p", "x", "--injection-layers", "2:9"], 2, ["2:9", "0:2"]),
        (["load", "VIDEO", "-o", "a/b/c.bin", *SMALL[-2:]], 7, ["mkdir -p a/b"]),
    ],
    ids=lambda value: " ".join(map(str, value[:1] + value[-2:])) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_used(fail, inverted, args, code, named):
    places = {"VIDEO": "video", "LATENTS": "latents", "TRAJECTORY": "trajectory"}
    given = [inverted[places[arg]] if arg in places else arg for arg in args]
    found, shown = fail(*given, *TINY_MODEL)
    assert found == code
    for text in named:
        assert text in shown


def test_model_that_does_not_exist(fail, inverted):
    code, shown = fail("encode", inverted["video"], "--model", "CogVideoX-9000")
    assert code == 5
    assert "CogVideoX-9000" in shown


def test_device_that_is_not_there(fail, inverted):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    args = ("--model", TINY_PIPELINE, "--device", "cuda")
    code, shown = fail("encode", inverted["frames"], "-o", "z.latents", *args)
    assert code == 2
    assert "cuda" in shown


def test_output_that_holds_something_else(fail, inverted, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, shown = fail("load", inverted["video"], "-o", "thesis.txt", *SMALL)
    assert code == 2
    assert "thesis.txt" in shown
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_no_trajectory_here(fail):
    code, shown = fail("reconstruct", "--prompt", "x")
    assert code == 2
    assert "`cogedit invert VIDEO`" in shown


def test_nan_in_the_model(fail, tmp_path, inverted):
    """A checkpoint with one bad weight stops at the first step, by name, with exit code 8."""
    folder = tmp_path / "nan-pipeline"
    shutil.copytree(TINY_PIPELINE, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copy(inverted["video"], tmp_path / "clip.mp4")
    result = CliRunner().invoke(app, ["invert", "clip.mp4", *SMALL, "--model", str(folder)])
    assert result.exit_code == 8
    assert "step 1 (timestep" in result.stderr
    assert not list(tmp_path.glob("clip.cogedit/trajectory-*"))


def test_tiles_of_the_decoder_are_no_matter_of_the_past(inverted, fail, tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled")
    out = folder / "tiled.mp4"
    work = ("--workspace", folder / "work")
    sheet = ("-o", folder / "sheet.png", "--vary", "strength=0,1", "-p", "x")
    for args in (
        ("export", inverted["latents"], "-o", out),
        ("invert", inverted["latents"], "--check", "--num-inference-steps", 2, *work),
        ("sweep", inverted["trajectory"], *sheet, *work),
        ("report", inverted["trajectory"].parent, "-o", folder / "page.html"),
    ):
        given = [str(a) for a in (*args, *TINY_MODEL, "--decode-tiling")]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.stderr
    assert out.is_file()
    for command in ("export", "invert"):
        code, shown = fail(command, inverted["latents"], *TINY_MODEL, "--vae-tiling")
        assert code == 2
        assert "--decode-tiling" in shown


@pytest.mark.parametrize(
    ("place", "code", "text"),
    [("out.webm", 2, ".webm"), ("notes", 7, "notes")],
)
def test_an_output_that_can_hold_no_video(inverted, fail, tmp_path, place, code, text):
    (tmp_path / "notes").write_text("mine")
    work = ("--workspace", tmp_path / "work")
    found, shown = fail(
        "edit", inverted["video"], "-p", "x", "-o", tmp_path / place, *SMALL, *TINY_MODEL, *work
    )
    assert found == code
    assert text in shown
    assert not (tmp_path / "work").exists()


def test_a_file_where_a_folder_is_needed(inverted, fail, tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "edits.csv").write_text(f"video,prompt\n{inverted['video']},x\n")
    (tmp_path / "page-videos").write_text("mine")
    page = ("-o", tmp_path / "page.html", "--beside")
    for args in (
        ("batch", tmp_path / "edits.csv", "--workspace", tmp_path / "notes", *SMALL),
        ("report", inverted["trajectory"].parent, *page),
    ):
        code, shown = fail(*args, *TINY_MODEL)
        assert code == 7
        assert "notes" in shown or "page-videos" in shown


def test_the_newest_trajectory_is_looked_for_where_the_settings_say(
    inverted, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COGEDIT_WORKSPACE", str(inverted["trajectory"].parent))
    result = CliRunner().invoke(app, ["reconstruct", "-p", "x", "-o", "e.bin", *TINY_MODEL])
    assert result.exit_code == 0, result.stderr
    assert str(inverted["trajectory"]) in result.stderr


def test_markup_and_control_characters_are_shown_as_they_are(fail):
    code, shown = fail("load", "[bold]red[/bold]\x1b[31m.mp4", *SMALL)
    assert code == 3
    assert "[bold]red[/bold]\\x1b[31m.mp4" in shown


def test_debug_shows_the_traceback_of_an_expected_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["load", "no\x1b[31mthing.mp4", "--debug", *SMALL])
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "\x1b" not in result.stderr
    assert "\nerror: " in result.stderr


def test_a_bug_keeps_its_traceback(monkeypatch, inverted):
    def broken(*args, **kwargs):
        raise RuntimeError("unexpected")

    monkeypatch.setattr("cogedit.stages.load", broken)
    result = CliRunner().invoke(app, ["load", str(inverted["video"]), *SMALL])
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_interrupt_is_130(monkeypatch, inverted):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("cogedit.stages.load", interrupted)
    result = CliRunner().invoke(app, ["load", str(inverted["video"]), *SMALL])
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted: ")


def test_json_prints_nothing_on_failure(fail):
    code, shown = fail("load", "nothing.mp4", "--json", *SMALL)
    assert code == 3
    with pytest.raises(json.JSONDecodeError):
        json.loads(shown)


@pytest.fixture
def ctrl_c_interrupts():
    """Python's own handler, which is not there where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_a_library_that_makes_another_error_of_an_interrupt_is_130_too(inverted, monkeypatch):
    def interrupted(*args, **kwargs):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ModelError("the weights cannot be loaded") from error

    monkeypatch.setattr("cogedit.stages.load", interrupted)
    result = CliRunner().invoke(app, ["load", str(inverted["video"]), *SMALL])
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_interrupt_before_the_command_runs_is_130_too(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("cogedit.cli.commands.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("interrupted: ")
