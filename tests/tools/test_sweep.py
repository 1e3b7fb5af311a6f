"""A grid of settings on one contact sheet."""

import json

import pytest
from PIL import Image
from pipelines import TINY_MODEL, TINY_PIPELINE
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.cli import app
from cogedit.errors import UsageError
from cogedit.tools.grid import edits_of, parse_grid


def test_grid():
    cells = parse_grid(["strength=0.25,1", "start-step=0,5,10"])
    assert len(cells) == 6
    assert cells[0] == {"injection_strength": 0.25, "start_step": 0}
    assert cells[1] == {"injection_strength": 0.25, "start_step": 5}
    assert cells[5] == {"injection_strength": 1.0, "start_step": 10}
    (cell,) = parse_grid(["--injection-steps=0.0:0.5"])
    assert cell == {"injection_steps": (0.0, 0.5)}
    assert parse_grid([]) == ({},)


@pytest.mark.parametrize(
    ("vary", "named"),
    [
        (["strenght=1"], "injection-strength"),
        (["guidence-scale=2"], "did you mean guidance-scale"),  # and not source-guidance-scale
        (["steps=0.0:1.0"], "injection-steps"),
        (["strength"], "--vary strength=VALUE"),
        (["strength="], "--vary strength=VALUE"),
        (["strength=200"], "--injection-strength"),
        (["seed=1,x"], "--seed"),
        (["seed=1", "seed=2"], "seed"),
        (["seed=" + ",".join(map(str, range(15))), "start-step=" + "0," * 14 + "0"], "225"),
    ],
)
def test_grids_that_mean_nothing(vary, named):
    with pytest.raises(UsageError) as caught:
        parse_grid(vary)
    assert named in str(caught.value)


MODES = "injection-mode=concatenate,queries-keys"


@pytest.mark.parametrize(
    ("given", "vary", "strengths"),
    [
        ({}, [MODES], [(2.5, 0.0), 1.0]),
        ({"reconstruct.injection_strength": 0.5}, [MODES], [0.5, 0.5]),
        ({}, [MODES, "strength=0.25"], [0.25, 0.25]),
        # What was chosen is not replaced: the sweep refuses it, as an edit would.
        ({}, [MODES, "injection-strength=2.5:0"], [(2.5, 0.0)] * 2),
        ({"reconstruct.injection_strength": 2.0}, [MODES], [2.0, 2.0]),
    ],
)
def test_a_mode_in_a_grid_brings_its_strength(given, vary, strengths):
    flags = {"model": str(TINY_PIPELINE), **given}
    settings = cogedit.settings_for(None, flags, environ={}).settings
    edits = edits_of("a cat", settings, parse_grid(vary), mask=None, first_frame=None)
    assert [edit.injection_mode for edit in edits] == ["concatenate", "queries-keys"]
    assert [edit.injection_strength for edit in edits] == strengths


def test_a_prompt_that_is_no_text_is_refused(tmp_path):
    settings = cogedit.settings_for(None, {"model": str(TINY_PIPELINE)}, environ={}).settings
    for prompts, shown in ((["a cat", 1.5], "1.5"), ([None], "None"), (None, "None"), (7, "7")):
        with pytest.raises(UsageError, match=shown):
            cogedit.sweep(tmp_path / "clip.mp4", prompts, settings, vary="strength=1")


def edits_in(folder):
    """When each edit was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.cogedit/edit-*")}


def test_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)
    model = ["--model", str(TINY_PIPELINE), "--dtype", "fp32", "--device", "cpu"]
    vary = ["--vary", "strength=0.5,1", "--vary", "start-from=random,inverted"]
    args = ["sweep", "clip.mp4", "-p", "a cat", "-p", "a dog", *vary, "--num-inference-steps", "2"]
    args += ["--inversion-steps", "4"]
    result = CliRunner().invoke(app, [*args, *model, "-o", "sheet.png"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == ["sheet.png", "sheet.json"]
    # Two prompts of two rows of two pictures, each 96x64.
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width > 2 * 96
    assert height > 4 * 64
    edits = json.loads((tmp_path / "sheet.json").read_text())["edits"]
    assert [edit["settings"]["prompt"] for edit in edits] == ["a cat"] * 4 + ["a dog"] * 4
    assert [edit["settings"]["start"] for edit in edits] == ["random", "inverted"] * 4
    assert all(edit["mean_change"] > 0 and edit["psnr_to_source"] < 60 for edit in edits)
    assert all((tmp_path / "clip.cogedit" / edit["path"]).is_file() for edit in edits)

    again = CliRunner().invoke(app, [*args, *model, "-o", "sheet.png"])
    assert again.exit_code == 2
    assert "sheet.png" in again.stderr
    elsewhere = CliRunner().invoke(app, [*args, *model])
    assert elsewhere.exit_code == 0, elsewhere.stderr
    assert elsewhere.stderr.count("reused") == 8 + 3

    # What the error advises draws the sheet anew, and computes none of the edits again.
    assert "--force" in again.stderr
    before = edits_in(tmp_path)
    (tmp_path / "sheet.png").write_bytes(b"an old sheet")
    forced = CliRunner().invoke(app, [*args, *model, "-o", "sheet.png", "--force"])
    assert forced.exit_code == 0, forced.stderr
    assert Image.open(tmp_path / "sheet.png").size == (width, height)
    assert edits_in(tmp_path) == before
    dry = [*args, *model, "-o", "sheet.png", "--force", "--dry-run", "--json"]
    shown = CliRunner().invoke(app, dry)
    assert shown.exit_code == 0, shown.stderr
    assert [stage["reused"] for stage in json.loads(shown.stdout)["stages"]] == [True, 8]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--vary", "strenght=1"], "strenght"),
        (["--vary", "seed=" + ",".join(map(str, range(201)))], "201"),
        (["--vary", "injection-layers=0:2,7:END"], "7:END"),
        (["--vary", "start-step=0,60"], "60"),
        (["--vary", "num-inference-steps=99"], "99"),
        (["--vary", "seed=1", "--mask", "missing.png"], "missing.png"),
        (["--vary", "auto-mask=false,true", "--mask", "16,16,64,48"], "--auto-mask"),
        (["--vary", "seed=1", "--mask", "0,0,900,20"], "0,0,900,20"),
        (["--vary", "seed=1", "--first-frame", "clip.mp4"], "no first frame"),
        (["--vary", "seed=1", "--window-overlap", "1000"], "1000"),
        (["--vary", "seed=1", "-o", "sheet.jpg"], "sheet.jpg"),
        (["--vary", "seed=1", "-o", "taken.png"], "taken.png"),
        (["--vary", "seed=1", "-o", "other.png"], "other.json"),
    ],
)
def test_a_dry_run_refuses_what_the_sweep_would(tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)
    for name in ("taken.png", "other.json"):
        (tmp_path / name).write_bytes(b"mine")
    before = sorted(tmp_path.iterdir())
    args = ["sweep", "clip.mp4", "-p", "a cat", *TINY_MODEL, *options]
    for dry in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, [*args, *dry])
        assert result.exit_code in (2, 3, 4), result.stderr
        assert named in result.stderr
        if "--mask" not in options:  # whether it lies in the clip shows when that is loaded
            assert sorted(tmp_path.iterdir()) == before


def test_a_sheet_is_a_png(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"sheet\.jpg"):
        cogedit.sweep(
            "clip.mp4",
            "a cat",
            cogedit.settings_for(None, {"model": str(TINY_PIPELINE)}, environ={}).settings,
            vary=["seed=1,2"],
            output=tmp_path / "sheet.jpg",
        )
