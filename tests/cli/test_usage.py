"""Mistakes on the command line: what the parser says of them, and how it helps."""

import json
import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cogedit.cli import app


def said_of(*args):
    result = CliRunner().invoke(app, args, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["sweep", "a.mp4"], "Missing option '--vary'.", "`cogedit sweep --help`"),
        (["edit", "a.mp4", "--promt", "a cat"], "No such option: --promt", "`cogedit edit --help`"),
        (["edi", "a.mp4"], "No such command 'edi'. Did you mean 'edit'?", "`cogedit --help`"),
        (["load", "a.mp4", "--width"], "requires an argument", None),
    ],
)
def test_mistakes_are_events_where_events_are_asked_for(args, message, hint):
    [line] = said_of(args[0], "--jsonl", *args[1:]).splitlines()
    event = json.loads(line)
    assert (event["event"], event["exit_code"]) == ("error", 2)
    assert message in event["message"]
    assert event["hint"] == (hint and f"{hint} lists its options")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["load", "a.mp4", "--width", "fifty"], ["--width", "fifty", "a whole number"]),
        (["load", "a.mp4", "--width", "1.5"], ["--width", "1.5", "a whole number"]),
        (["load", "a.mp4", "--width", ""], ["--width", "a whole number"]),
        (
            ["edit", "a.mp4", "-p", "a cat", "--guidance-scale", "much"],
            ["--guidance-scale", "much", "a number"],
        ),
        (
            ["compare", "a.mp4", "b.mp4", "-o", "c.mp4", "--layout", "wip"],
            ["--layout", "wip", "one of row, column, wipe, sheet"],
        ),
        (
            ["cache", "prune", "--kind", "edit", "--kind", "edits"],
            ["--kind", "edits", "one of frames, latents, trajectory, edit"],
        ),
        (["load", "a.mp4", "--width", "\x1b[2K"], ["--width", "\\x1b[2K"]),
    ],
)
def test_a_value_of_a_wrong_type_is_named_beside_what_was_expected(
    args, named, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shown = said_of(*args)
    for text in [*named, "expected"]:
        assert text in shown


@pytest.mark.parametrize("layers", ["0-21", "0:21:42"])
def test_pairs_are_checked_in_the_same_words(layers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = said_of("edit", "a.mp4", "-p", "a cat", "--injection-layers", layers)
    for text in ("--injection-layers", layers, "expected"):
        assert text in said


def test_a_file_that_is_taken_for_an_option_is_to_be_written_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "./" not in said_of("edit", "-my.mp4", "-p", "a cat")
    (tmp_path / "-my.mp4").touch()
    assert "The file -my.mp4 is written ./-my.mp4" in said_of("edit", "-my.mp4", "-p", "a cat")
    [line] = said_of("edit", "--jsonl", "-my.mp4", "-p", "a cat").splitlines()
    assert "./-my.mp4" in json.loads(line)["message"]


def commands_below(command, path=()):
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands_below(below, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*one, id=" ".join(one[0])) for one in commands_below(get_command(app))],
)
def test_names_of_options_are_whole_on_a_terminal_of_80_columns(path, command):
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).stdout
    listed = [param for param in command.params if not getattr(param, "hidden", False)]
    names = {name for param in listed for name in [*param.opts, *param.secondary_opts]}
    cut = {
        name
        for name in names
        if name.startswith("-") and not re.search(rf"[ │]{name}(?![\w-])", shown)
    }
    assert not cut


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["edit", "", "-p", "a cat"], "VIDEO"),
        (["invert", ""], "LATENTS|FRAMES|VIDEO"),
        (["reconstruct", "", "-p", "a cat"], "TRAJECTORY"),
        (["report", ""], "WORKSPACE"),
        (["cache", "ls", ""], "WORKSPACE"),
        (["config", "show", ""], "VIDEO|ARTIFACT"),
        (["batch", ""], "EDITS.toml"),
        (["edit", "a.mp4", "-p", "a cat", "--output="], "--output"),
        (["edit", "a.mp4", "-p", "a cat", "--first-frame", ""], "--first-frame"),
        (["edit", "a.mp4", "-p", "a cat", "--source", ""], "--source"),
        (["edit", "a.mp4", "-p", "a cat", "--mask", ""], "--mask"),
        (["edit", "a.mp4", "-p", "a cat", "--workspace", ""], "--workspace"),
        (["edit", "a.mp4", "-p", "a cat", "--cache", ""], "--cache"),
        (["edit", "a.mp4", "-p", "a cat", "--lora", ""], "--lora"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(args, named, tmp_path, monkeypatch):
    """A script's variable that was never set would write there, or read its pictures."""
    monkeypatch.chdir(tmp_path)
    assert named in said_of(*args)
    assert not list(tmp_path.iterdir())
