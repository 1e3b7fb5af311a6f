"""Options are declared once, and none of the settings lacks one."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cogedit
from cogedit.cli import app
from cogedit.cli.flags import BESIDE_AN_EDIT, flag_for
from cogedit.cli.options_page import options_page
from cogedit.config import all_settings


def help_of(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.stdout


def test_every_setting_is_an_option_of_edit():
    shown = help_of("edit")
    for key in all_settings():
        assert f" {flag_for(key, ('reconstruct',))} " in shown, key


def test_every_choice_is_explained():
    for setting in all_settings().values():
        for word in setting.choices:
            assert re.search(rf"\b{re.escape(word)}\b", setting.text), (setting.key, word)


def test_every_setting_is_described():
    for setting in all_settings().values():
        assert setting.text.endswith("."), setting.key
        assert setting.default_text not in ("", "None"), setting.key
        assert setting.read(setting.default, is_text=False) == setting.default


def test_the_committed_options_page_is_current():
    """`python -m cogedit.cli.options_page` writes it again."""
    page = Path(cogedit.__file__).parent / "guide" / "options.md"
    assert page.read_text(encoding="utf-8") == options_page()


@pytest.mark.parametrize(
    ("command", "present", "absent"),
    [
        ("load", ["--width", "--resize-mode"], ["--vae-tiling", "--num-inference-steps"]),
        ("frame", ["--width", "--resize-mode", "--at"], ["--vae-tiling"]),
        ("encode", ["--width", "--vae-tiling"], ["--num-inference-steps"]),
        (
            "invert",
            ["--prompt", "--max-rows", "--inversion-iterations"],
            ["--seed", "--reference-rows"],
        ),
        ("export", ["--fps", "--crf", "--decode-tiling"], ["--width", "--prompt", "--vae-tiling"]),
        ("inspect", [], ["--width"]),
        (
            "reconstruct",
            ["--prompt", "--seed", "--injection-strength", *BESIDE_AN_EDIT.values()],
            ["--crf"],
        ),
        ("edit", ["--prompt", "--seed", "--fps", "--width"], ["--save-trajectory"]),
    ],
)
def test_options_of_the_commands(command, present, absent):
    shown = help_of(command)
    common = ["--json", "--debug"]
    if command != "inspect":  # which computes nothing
        common += ["--model", "--device", "--workspace", "--config", "--force"]
    for flag in [*common, *present]:
        assert f" {flag} " in shown, flag
    for flag in absent:
        assert f" {flag} " not in shown, flag


def test_what_is_asked_for_most_often_comes_first():
    groups = re.findall(r"^╭─ ([A-Z][\w ]*?) ─", help_of("edit"), re.MULTILINE)
    assert groups[:4] == ["Arguments", "Options", "Edit", "Attention to the source"]
    assert groups[-1] == "Speed and memory"


def test_the_inversions_flags_keep_their_own_names_where_nothing_is_edited():
    assert "--source-prompt" not in help_of("invert")
    assert "--inversion-steps" not in help_of("invert")


@pytest.mark.parametrize("command", ["load", "encode", "invert", "reconstruct", "export", "edit"])
def test_help_says_what_each_option_does(command):
    for line in help_of(command).splitlines():
        if line.startswith("│ --"):
            assert len(line.strip("│ ").split("  ")[-1].strip()) > 5, line


def test_defaults_are_shown():
    shown = " ".join(help_of("edit").replace("│", " ").split())
    for text in ("Default: 42.", "Default: 0.1:0.8.", "Default: 0:END.", "Default: yes."):
        assert text in shown


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--width", "x"], "--width is x"),
        (["--width", "0"], "--width is 0"),
        (["--injection-steps", "0.5"], "--injection-steps is 0.5"),
        (["--fps", "1/0"], "--fps is 1/0"),
        (["--resize-mode", "zoom"], "'--resize-mode'"),
    ],
)
def test_a_wrong_value_is_named_by_its_flag(flags, named):
    result = CliRunner().invoke(app, ["config", "show", *flags], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert named in result.stderr


@pytest.mark.parametrize("command", [[], ["edit"], ["cache", "prune"], ["config", "show"]])
def test_flags_take_no_value_in_help(command):
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "120"}).stdout
    assert "--help" in shown
    assert "bool" not in shown


def test_a_newcomers_commands_come_first():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    listed = re.findall(r"^│ ([a-z]+) ", shown, re.MULTILINE)
    assert listed[:2] == ["edit", "doctor"]
    assert len(listed) == len(set(listed)) > 10


def test_what_the_embedded_model_knows_is_said_where_nobody_chose_it(tmp_path, monkeypatch):
    monkeypatch.setattr("cogedit.stages.settings.cuda_present", lambda: False)
    result = CliRunner().invoke(app, ["load", str(tmp_path / "no.mp4")])
    assert "model shapes, which knows moving shapes only: this machine has no CUDA" in result.stderr


def test_start_is_a_time_and_its_words_of_0_1_0_are_still_the_noise(tmp_path):
    def origins(*flags):
        args = ["config", "show", "--json", *flags]
        result = CliRunner().invoke(app, args, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)
        found = shown.get("settings", shown)
        return [found[key]["value"] for key in ("load.start", "reconstruct.start")]

    assert origins("--start", "1:02.5") == ["62.5", "inverted"]
    assert origins("--start", "random") == [None, "random"]
    assert origins("--start-from", "random", "--start", "3") == ["3", "random"]
