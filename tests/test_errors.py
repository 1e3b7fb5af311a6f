"""What a user reads when something is wrong: one sentence, what mends it, and an exit code."""

import json
import signal

import pytest
import torch
from pipelines import GOLDEN_MODEL, GOLDEN_PIPELINE, golden_artifacts
from typer.testing import CliRunner
from videos import ffmpeg, make_video

from cogedit.cli import app, main
from cogedit.errors import ModelError

SMALL = (*GOLDEN_MODEL, "--max-num-frames", "9")


@pytest.fixture(scope="module")
def inverted(tmp_path_factory):
    """A folder with a video and everything up to its trajectory."""
    folder = tmp_path_factory.mktemp("inverted")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=12)
    return golden_artifacts(video, {"load.max_num_frames": 9})


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Run a command that must fail and return (exit code, what it said)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert not [p for p in tmp_path.rglob("*") if p.suffix in (".tmp", ".safetensors")]
        return result.exit_code, result.stderr.strip()

    return run


def test_missing_file(fail):
    code, said = fail("load", "nothing.mp4", *SMALL)
    assert code == 3
    assert said.startswith("error: no such video: nothing.mp4")


def test_not_a_video(fail, tmp_path):
    (tmp_path / "notes.mp4").write_text("dear diary\n" * 100)
    code, said = fail("edit", "notes.mp4", "--prompt", "x", *SMALL)
    assert code == 3
    assert said.startswith("error: notes.mp4 is not a video")


def test_sound_only(fail, tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", tmp_path / "song.mp4")
    code, said = fail("load", "song.mp4", *SMALL)
    assert code == 3
    assert "song.mp4 holds sound but no video stream" in said


def test_wrong_kind_of_artifact(fail, inverted):
    code, said = fail("invert", inverted["trajectory"], *GOLDEN_MODEL)
    assert code == 4
    assert "holds a trajectory, expected latents" in said
    assert "hint: make it with `cogedit encode VIDEO`" in said


def test_truncated_artifact(fail, inverted, tmp_path):
    damaged = tmp_path / "cut.bin"
    damaged.write_bytes(inverted["trajectory"].read_bytes()[:-100])
    code, said = fail("reconstruct", damaged, "--prompt", "x", *GOLDEN_MODEL)
    assert code == 4
    assert "is truncated: it has" in said
    assert "cogedit invert" in said


def test_wrong_model_for_the_artifact(fail, inverted, pipeline_2b):
    code, said = fail(
        "reconstruct", inverted["trajectory"], "--prompt", "x", "--model", pipeline_2b
    )
    assert code == 4
    assert "was made with model pipeline (" in said
    assert "this run uses tiny-2b (" in said


def test_local_model_that_nobody_names(fail, inverted):
    code, said = fail("reconstruct", inverted["trajectory"], "--prompt", "x")
    assert code == 5
    assert "made with the local model pipeline" in said
    assert "hint: name the folder with --model DIR" in said


def test_bad_size(fail, inverted):
    code, said = fail("load", inverted["video"], "--width", 100, "--height", 64, *GOLDEN_MODEL)
    assert code == 2
    assert said == (
        "error: width 100 does not suit this model: it must be a multiple of 16; nearest: 96 or 112"
    )


@pytest.mark.parametrize("steps", ["0", "1001", "-3"])
def test_bad_step_count(fail, inverted, steps):
    code, said = fail("invert", inverted["latents"], "--num-inference-steps", steps, *GOLDEN_MODEL)
    assert code == 2
    assert said == f"error: --num-inference-steps is {steps}, expected 1 to 1000"


def test_one_step_cannot_be_inverted(fail, inverted):
    code, said = fail("invert", inverted["latents"], "--num-inference-steps", 1, *GOLDEN_MODEL)
    assert code == 2
    assert "at least 2 inference steps" in said


def test_unknown_option_in_a_config(fail, inverted, tmp_path):
    (tmp_path / "cogedit.toml").write_text("[invert]\nnum_inference_step = 5\n")
    code, said = fail("invert", inverted["latents"], *GOLDEN_MODEL)
    assert code == 2
    assert "unknown key `invert.num_inference_step` in cogedit.toml" in said
    assert "hint: did you mean `invert.num_inference_steps`?" in said


def test_unknown_flag(fail, inverted):
    code, said = fail("invert", inverted["latents"], "--num-steps", 5)
    assert code == 2
    assert "No such option" in said


def test_flag_of_a_stage_that_is_past(fail, inverted):
    code, said = fail("invert", inverted["latents"], "--width", 96, *GOLDEN_MODEL)
    assert code == 2
    assert "--width has no effect" in said
    assert "is past `load`" in said


def test_model_that_does_not_exist(fail, inverted):
    code, said = fail("encode", inverted["video"], "--model", "CogVideoX-9000")
    assert code == 5
    assert "There is no model 'CogVideoX-9000'" in said


def test_device_that_is_not_there(fail, inverted):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    args = ("--model", GOLDEN_PIPELINE, "--device", "cuda")
    code, said = fail("encode", inverted["frames"], "-o", "z.latents", *args)
    assert code == 2
    assert "The device cuda is not there" in said


def test_folder_that_is_missing(fail, inverted):
    code, said = fail("load", inverted["video"], "-o", "a/b/c.bin", *SMALL)
    assert code == 7
    assert said.splitlines()[-1] == "hint: make it: mkdir -p a/b"


def test_output_that_holds_something_else(fail, inverted, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, said = fail("load", inverted["video"], "-o", "thesis.txt", *SMALL)
    assert code == 2
    assert "thesis.txt exists and is no artifact of this run" in said
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_no_trajectory_here(fail):
    code, said = fail("reconstruct", "--prompt", "x")
    assert code == 2
    assert "`cogedit invert VIDEO`" in said


def test_layers_beyond_the_model(fail, inverted):
    code, said = fail(
        "reconstruct",
        inverted["trajectory"],
        "--prompt",
        "x",
        "--injection-layers",
        "2:9",
        "-o",
        "e.bin",
        *GOLDEN_MODEL,
    )
    assert code == 2
    assert "injection_layers is 2:9; pipeline has layers 0:3" in said


def test_nan_in_the_model(fail, tmp_path, inverted):
    """A checkpoint with one bad weight stops at the first step, by name, with exit code 8."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan-pipeline"
    shutil.copytree(GOLDEN_PIPELINE, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copy(inverted["video"], tmp_path / "clip.mp4")
    result = CliRunner().invoke(
        app,
        ["invert", "clip.mp4", "--model", str(folder), "--device", "cpu", "--max-num-frames", "9"],
    )
    assert result.exit_code == 8
    assert "the inverted sample holds" in result.stderr
    assert "at step 1 (timestep 19)" in result.stderr
    assert not list(tmp_path.glob("clip.cogedit/trajectory-*"))


def test_a_prompt_of_another_encoding(fail, inverted):
    code, said = fail("reconstruct", inverted["trajectory"], "-p", "bad\udcff", *GOLDEN_MODEL)
    assert code == 2
    assert "is not UTF-8" in said


def test_tiling_is_no_matter_of_the_past_where_something_is_decoded(
    inverted, fail, tmp_path, tmp_path_factory
):
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
        given = [str(a) for a in (*args, *GOLDEN_MODEL, "--vae-tiling")]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.stderr
    assert out.is_file()
    code, said = fail("invert", inverted["latents"], *work, *GOLDEN_MODEL, "--vae-tiling")
    assert code == 2
    assert "--vae-tiling has no effect" in said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--num-inference-steps", 9, "--inversion-steps", 5], "asks for 9 steps; the inversion"),
        (["--start-step", 4, "--inversion-steps", 4], "start_step is 4; the edit has 4 steps"),
    ],
)
def test_steps_that_no_inversion_has_are_refused_before_it(inverted, fail, tmp_path, options, text):
    work = ("--workspace", tmp_path / "work")
    for dry in ((), ("--dry-run",)):
        code, said = fail(
            "edit", inverted["video"], "-p", "x", *SMALL, *options, *GOLDEN_MODEL, *work, *dry
        )
        assert code == 2
        assert text in said
    assert not list(tmp_path.glob("work/trajectory-*"))


def test_what_a_sweep_cannot_use_is_refused_before_the_inversion(inverted, fail, tmp_path):
    work = ("--workspace", tmp_path / "work")
    for options, code in (
        (("--mask", "missing.png", "--vary", "strength=0,1"), 3),
        (("--vary", "injection-layers=0:99"), 2),
        (("--vary", "num-inference-steps=99"), 2),
    ):
        found, _ = fail(
            "sweep", inverted["video"], "-p", "x", *options, *SMALL, *GOLDEN_MODEL, *work
        )
        assert found == code
    assert not list(tmp_path.glob("work/trajectory-*"))


@pytest.mark.parametrize(
    ("place", "code", "text"),
    [("out.webm", 2, "the suffix .webm does not go with h264"), ("notes", 7, "it is a file")],
)
def test_an_output_that_can_hold_no_video(inverted, fail, tmp_path, place, code, text):
    (tmp_path / "notes").write_text("mine")
    work = ("--workspace", tmp_path / "work")
    found, said = fail(
        "edit", inverted["video"], "-p", "x", "-o", tmp_path / place, *SMALL, *GOLDEN_MODEL, *work
    )
    assert found == code
    assert text in said
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
        code, said = fail(*args, *GOLDEN_MODEL)
        assert code == 7
        assert "cannot write" in said


def test_the_newest_trajectory_is_looked_for_where_the_settings_say(
    inverted, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COGEDIT_WORKSPACE", str(inverted["trajectory"].parent))
    result = CliRunner().invoke(app, ["reconstruct", "-p", "x", "-o", "e.bin", *GOLDEN_MODEL])
    assert result.exit_code == 0, result.stderr
    assert str(inverted["trajectory"]) in result.stderr


def test_markup_and_control_characters_are_shown_as_they_are(fail):
    code, said = fail("load", "[bold]red[/bold]\x1b[31m.mp4", *SMALL)
    assert code == 3
    assert "[bold]red[/bold]\\x1b[31m.mp4" in said


def test_debug_shows_the_traceback_of_an_expected_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["load", "nothing.mp4", "--debug", *SMALL])
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "error: no such video: nothing.mp4" in result.stderr


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
    code, said = fail("load", "nothing.mp4", "--json", *SMALL)
    assert code == 3
    with pytest.raises(json.JSONDecodeError):
        json.loads(said)


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
