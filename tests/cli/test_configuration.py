"""`cogedit config show` and completion of the shell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cogedit.cli import app
from cogedit.config import all_settings, preset_names, resolve_settings

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from cogedit.cli import main; sys.argv[0] = 'cogedit'; main()"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory, and no setting in the environment."""
    for name in [name for name in os.environ if name.startswith("COGEDIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(*args):
    result = CliRunner().invoke(app, ["config", "show", *args])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def origins(*args):
    """Value and origin of every setting, as the columns show them."""
    rows, table = {}, ""
    for line in show("--origin", *args).splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif line:
            text, _, origin = line.rpartition("  # ")
            name, _, value = text.strip("# ").partition(" ")
            rows[table + name] = (value.removeprefix("= ").strip(), origin)
    return rows


def test_every_source_of_a_value_is_named(here, monkeypatch):
    (here / "cogedit.toml").write_text("[export]\ncrf = 20\n[load]\nwidth = 96\n")
    monkeypatch.setenv("COGEDIT_RECONSTRUCT_SEED", "7")
    rows = origins("--config", "upstream", "--model", "shapes", "--guidance-scale", "3")
    assert set(rows) == set(all_settings())
    assert rows["reconstruct.guidance_scale"] == ("3.0", "flag")
    assert rows["invert.guidance_scale"] == ("6.0", "preset upstream")
    assert rows["reconstruct.seed"] == ("7", "environment variable COGEDIT_RECONSTRUCT_SEED")
    assert rows["export.crf"] == ("20", "cogedit.toml")
    assert rows["load.width"] == ("96", "cogedit.toml")
    assert rows["load.height"] == ("64", "model shapes")
    assert rows["revision"] == ("is not set", "default")
    assert rows["reconstruct.injection_layers"] == ('"0:END"', "preset upstream")


@pytest.mark.parametrize(
    "args",
    [
        ("--model", "shapes"),
        *(("--config", name, "--model", "zai-org/CogVideoX-5b") for name in preset_names()),
        ("--model", "zai-org/CogVideoX-2b", "--fps", "24000/1001", "--injection-layers", "2:5"),
        ("--model", "zai-org/CogVideoX-5b", "--source-prompt", 'a "b"\\ \t\x7f é [c] # d'),
        ("--model", "zai-org/CogVideoX-5b", "--workspace", "a b", "--revision", "auto"),
    ],
)
@pytest.mark.parametrize("origin", [(), ("--origin",)])
def test_what_is_shown_is_a_cogedit_toml_that_gives_the_same(here, args, origin):
    shown = show(*args, *origin)
    (here / "cogedit.toml").write_text(shown)
    assert show() == show(*args)
    resolved = resolve_settings({}, environ={}, cwd=here)
    assert {resolved.origins[key] for key in all_settings()} <= {"cogedit.toml", "default"}


def test_json_has_the_same(here):
    found = json.loads(show("--json", "--model", "zai-org/CogVideoX-5b"))
    assert found["preset"] == "cogvideox-5b"
    assert list(found["settings"]) == list(all_settings())
    assert found["settings"]["load.width"] == {"value": 720, "origin": "preset cogvideox-5b"}
    assert found["settings"]["reconstruct.guidance_steps"]["value"] == "0.1:0.8"


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[reconstruct]\nguidence_scale = 3", "did you mean `reconstruct.guidance_scale`?"),
        ("[recontruct]\nseed = 3", "did you mean `reconstruct`?"),
        ("seed = 3", "did you mean `reconstruct.seed`?"),
        ("modle = 'shapes'", "did you mean `model`?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(here, toml, sentence):
    (here / "cogedit.toml").write_text(toml)
    result = CliRunner().invoke(app, ["config", "show"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert sentence in result.stderr


def run(*args, environment=None, program=MAIN, cwd):
    """Run the command line in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(line, cwd):
    words = line.split()
    last = len(words) - (not line.endswith(" "))
    environment = {
        "_COGEDIT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(last),
    }
    return run(environment=environment, cwd=cwd).split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cogedit edit --config ", preset_names()),
        ("cogedit edit --config up", ["upstream"]),
        ("cogedit config show --dtype ", ["auto", "bf16", "fp16", "fp32"]),
        ("cogedit edit --device c", ["cuda", "cpu"]),
        ("cogedit load --resize-mode p", ["pad"]),
        ("cogedit invert --model s", ["shapes", "shapes-i2v"]),
        ("cogedit con", ["config"]),
    ],
)
def test_the_shell_completes_commands_presets_and_words(line, words, here):
    assert complete(line, here) == words


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_completion_is_shown_and_installed(shell, file, here):
    environment = {"HOME": str(here), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = run("--show-completion", shell, environment=environment, cwd=here)
    assert "_COGEDIT_COMPLETE=complete_" in script
    run("--install-completion", shell, environment=environment, cwd=here)
    assert (here / file).read_text().strip()


@pytest.mark.parametrize(
    "command",
    [
        ["edit", "clip.mp4", "--prompt", "x", "--inversion-steps", "0"],
        ["batch", "edits.csv", "--inversion-steps", "0"],
        ["invert", "clip.mp4", "--num-inference-steps", "0"],
        ["edit", "clip.mp4", "--prompt", "x", "--num-inference-steps", "0"],
    ],
)
def test_a_value_is_refused_by_the_flag_that_gave_it(here, command):
    (here / "clip.mp4").write_bytes(b"no video")
    (here / "edits.csv").write_text("video,prompt\nclip.mp4,x\n")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert f"{command[-2]} is 0" in result.stderr
