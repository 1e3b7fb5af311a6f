"""Flags of earlier and later stages: what an artifact was made with may be said again."""

import contextlib

import pytest
from typer.testing import CliRunner
from videos import make_video

from cogedit.cli import app

SAME = ["--model", "shapes", "--device", "cpu", "--width", "64", "--height", "64"]
SAME += [
    "--max-num-frames",
    "9",
    "--frame-rate",
    "spread",
    "--num-inference-steps",
    "2",
    "--inversion-iterations",
    "1",
]
SAME += ["--source-prompt", "a red square", "--guidance-steps", "0:1", "--seed", "3"]
SAME += ["--no-vae-tiling", "--crf", "20", "--compile"]


def run(*args):
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "999"})


def test_the_same_flags_go_to_every_stage(tmp_path):
    make_video(tmp_path / "clip.mp4", width=64, height=64, num_frames=9)
    flags = [flag for flag in SAME if flag != "--compile"]  # which takes a minute
    made = "clip.mp4"
    with contextlib.chdir(tmp_path):
        for stage in ("load", "encode", "invert", "reconstruct", "export"):
            prompt = ["-p", "a blue square"] if stage == "reconstruct" else []
            shown = run(stage, made, *flags, *prompt)
            assert shown.exit_code == 0, shown.stderr
            made = shown.stdout.strip()
            idle = [line for line in shown.stderr.splitlines() if line.startswith("no effect")]
            assert ("--seed" in "".join(idle)) == (stage in ("load", "encode", "invert"))
        [trajectory] = tmp_path.glob("*.cogedit/trajectory-*")
        again = run("invert", "clip.mp4", *flags)
        assert again.stdout.strip() == str(trajectory.relative_to(tmp_path))


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("frames", ["--width", "16", "--height", "8", "--frame-sample-step", "2"]),
        ("trajectory", ["--width", "16", "--inversion-steps", "5", "--resize-mode", "crop"]),
        ("edit", ["--inversion-steps", "5", "--num-inference-steps", "5", "--solver", "ddim"]),
        ("edit", ["--num-inference-steps", "auto", "--guidance-scale", "5.0", "--seed", "7"]),
        ("edit", ["--injection-layers", "0:end", "--no-auto-mask"]),
        ("trajectory", ["--seed", "7", "--low-levels", "auto"]),
        ("trajectory", ["--start", "0"]),
        ("trajectory", ["--start", "0f"]),
        ("latents", ["--vae-span", "81"]),
        ("edit", ["--vae-span", "all"]),
    ],
)
def test_a_repeated_value_is_accepted(chain, kind, flags):
    shown = run("config", "show", chain.paths[kind], *flags)
    assert shown.exit_code == 0, shown.stderr


@pytest.mark.parametrize(
    ("kind", "flags", "found", "again"),
    [
        ("frames", ["--width", "32"], ("--width is 32", "16"), "load clip.mp4 --width 32"),
        ("latents", ["--width", "32"], ("--width is 32", "16"), "encode clip.mp4 --width 32"),
        (
            "trajectory",
            ["--inversion-steps", "6"],
            ("--inversion-steps is 6", "5"),
            "invert clip.mp4 --num-inference-steps 6",
        ),
        (
            "trajectory",
            ["--frame-sample-step", "auto"],
            ("--frame-sample-step is auto", "2"),
            "invert clip.mp4 --frame-sample-step auto",
        ),
        (
            "edit",
            ["--num-inference-steps", "4"],
            ("--num-inference-steps is 4", "5"),
            "--num-inference-steps 4",
        ),
        (
            "trajectory",
            ["--start", "1:02"],
            ("--start is 62", "without it (default: the beginning of the video)"),
            "invert clip.mp4 --start 62",
        ),
        ("edit", ["--auto-mask"], ("--auto-mask is yes", "no"), "--auto-mask"),
        ("edit", ["--start-noise", "0.5", "--seed", "4"], ("--start-noise is 0.5", "auto"), "0.5"),
    ],
)
def test_another_value_is_refused_with_both(chain, kind, flags, found, again):
    shown = run("config", "show", chain.paths[kind], *flags)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    for text in (*found, str(chain.paths[kind]), again):
        assert text in shown.stderr


@pytest.mark.parametrize("command", ["load", "encode", "invert", "reconstruct", "export"])
def test_flags_of_other_stages_are_taken_and_not_listed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = ["-p", "x"] if command == "reconstruct" else []
    taken = run(command, "missing.mp4", *SAME, *prompt)
    assert "No such option" not in taken.stderr
    assert taken.exit_code == (4 if command == "export" else 3)
    others = {"load": "--seed", "encode": "--crf", "invert": "--source-prompt"}
    others |= {"reconstruct": "--crf", "export": "--width"}
    assert others[command] not in run(command, "--help").stdout


def test_what_is_no_setting_belongs_to_its_own_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_edits = {"--mask": ["x"], "--first-frame": ["x"], "--preview": [], "--save-trajectory": []}
    of_exports = {"--source": ["x"], "--with-source": []}
    prompt = {"--prompt": ["x"]}  # before an edit the inversion's, which is a setting
    taken = dict.fromkeys(("load", "encode", "invert"), prompt)
    taken |= {"reconstruct": prompt | of_edits, "export": of_exports}
    for command, own in taken.items():
        for flag, value in (prompt | of_edits | of_exports).items():
            shown = run(command, "missing.mp4", flag, *value)
            assert ("No such option" in shown.stderr) == (flag not in own), (command, flag)


def test_a_clip_that_skips_frames_begins_after_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=64, height=64, num_frames=12)
    made = run("load", "clip.mp4", *SAME, "--skip-frames-start", "3").stdout.strip()
    assert run("config", "show", made, "--start", "3f").exit_code == 0
    refused = run("config", "show", made, "--start", "0")
    assert refused.exit_code == 2
    assert "--start is 0" in refused.stderr
    assert "was made with 3f" in refused.stderr


def test_of_two_names_for_one_setting_the_exact_one_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=64, height=64, num_frames=9)
    flags = [*SAME[:-1], "--inversion-steps", "3"]
    assert run("invert", "clip.mp4", *flags).exit_code == 0
    [made] = tmp_path.glob("*.cogedit/trajectory-*")
    assert run("config", "show", made, "--inversion-steps", "3").exit_code == 0
