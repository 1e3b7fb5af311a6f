"""Options are declared once, and none of the settings lacks one."""

import re

import pytest
from typer.testing import CliRunner

from cogedit.cli import app
from cogedit.cli.flags import BESIDE_AN_EDIT, SETTINGS
from cogedit.config import resolve_settings
from cogedit.config.settings import setting_types


def help_of(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.stdout


def test_every_setting_is_an_option_and_the_other_way_round():
    assert set(SETTINGS) == set(setting_types())


@pytest.mark.parametrize(
    ("command", "present", "absent"),
    [
        ("load", ["--width", "--resize-mode"], ["--vae-tiling", "--num-inference-steps"]),
        ("encode", ["--width", "--vae-tiling"], ["--num-inference-steps"]),
        ("invert", ["--prompt", "--max-rows", "--inversion-iterations"], ["--seed", "--rows"]),
        ("export", ["--fps", "--crf", "--vae-tiling"], ["--width", "--prompt"]),
        ("inspect", [], ["--width"]),
        (
            "reconstruct",
            ["--prompt", "--seed", "--injection-strength", *BESIDE_AN_EDIT.values()],
            ["--fps"],
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
    assert groups[:4] == ["Arguments", "Options", "Edit", "Hold of the source"]
    assert groups[-1] == "Speed and memory"


def test_the_inversions_flags_keep_their_own_names_where_nothing_is_edited():
    assert "--source-prompt" not in help_of("invert")
    assert "--inversion-steps" not in help_of("invert")


@pytest.mark.parametrize("command", ["load", "encode", "invert", "reconstruct", "export", "edit"])
def test_help_says_what_each_option_does(command):
    for line in help_of(command).splitlines():
        if line.startswith("│ --"):
            assert len(line.strip("│ ").split("  ")[-1].strip()) > 5, line


def test_the_defaults_that_help_names_are_the_defaults(tmp_path):
    settings = resolve_settings({}, environ={}, cwd=tmp_path).settings
    named = {}
    for key, option in SETTINGS.items():
        found = re.search(r"Default: ([a-z]+|[0-9.]*[0-9])\.$", option.__metadata__[0].help)
        if found is not None:
            named[key] = found[1]
    assert {"reconstruct.seed", "reconstruct.start", "export.size"} <= set(named)
    for key, text in named.items():
        value = settings
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None:  # None follows from the rest of the run
            assert text == ("yes" if value is True else str(value).removesuffix(".0")), key


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
