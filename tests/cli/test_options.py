"""Options are declared once, and none of the settings lacks one."""

import pytest
from typer.testing import CliRunner

from cogedit.cli import app
from cogedit.cli.options import BESIDE_AN_EDIT, SETTINGS
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
        ("inspect", ["--json"], ["--width"]),
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
    common = ["--model", "--device", "--workspace", "--config", "--force", "--json", "--debug"]
    for flag in [*common, *present]:
        assert f" {flag} " in shown, flag
    for flag in absent:
        assert f" {flag} " not in shown, flag


def test_the_inversions_flags_keep_their_own_names_where_nothing_is_edited():
    assert "--source-prompt" not in help_of("invert")
    assert "--inversion-steps" not in help_of("invert")


@pytest.mark.parametrize("command", ["load", "encode", "invert", "reconstruct", "export", "edit"])
def test_help_says_what_each_option_does(command):
    for line in help_of(command).splitlines():
        if line.startswith("│ --"):
            assert len(line.strip("│ ").split("  ")[-1].strip()) > 5, line
