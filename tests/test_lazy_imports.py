"""Nothing heavy is imported before something is computed: help, inspection and reuse are quick."""

import json
import os
import subprocess
import sys

import pytest
from pipelines import TINY_PIPELINE, tiny_settings
from videos import make_video

pytestmark = pytest.mark.usefixtures("decord")

HEAVY = {"torch", "diffusers", "transformers", "decord"}
NOT_FOR_HELP = {"cogedit.stages", "cogedit.artifacts"}
NOT_FOR_HELP |= {"numpy", "safetensors", "huggingface_hub", "PIL"}
"""What would make `--help` more than three times as slow as importing typer."""

REPORT = """
import json, sys
{body}
print(json.dumps(sorted(sys.modules)))
"""

COMMAND = """
from cogedit.cli import main
sys.argv = ["cogedit", *{args!r}]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""

SETTINGS = {
    "load": ["--width", "96", "--height", "64", "--max-num-frames", "9", "--frame-rate", "spread"],
    "invert": ["--num-inference-steps", "2"],
}


def python(body, cwd):
    """Run code in a fresh interpreter; return what it printed and the modules it loaded."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COGEDIT_")}
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(body=body)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, loaded = done.stdout.splitlines()
    return printed, set(json.loads(loaded)), done.stderr


def cogedit(*args, cwd):
    return python(COMMAND.format(args=[str(arg) for arg in args]), cwd)


def test_imports_are_light(tmp_path):
    modules = ["cogedit.cli", "cogedit.config", "cogedit.artifacts", "cogedit.models.checkpoint"]
    _, loaded, _ = python(f"import cogedit, {', '.join(modules)}", tmp_path)
    assert loaded > {"cogedit", *modules}
    assert not loaded & (HEAVY | {"safetensors", "huggingface_hub"})


def test_the_report_sees_what_is_loaded(tmp_path):
    _, loaded, _ = python("import cogedit.diffusion.ddim", tmp_path)
    assert "torch" in loaded


@pytest.mark.parametrize("args", [["--help"], ["edit", "--help"]])
def test_help_is_light(args, tmp_path):
    printed, loaded, _ = cogedit(*args, cwd=tmp_path)
    assert any("Usage:" in line for line in printed)
    found = loaded & (HEAVY | NOT_FOR_HELP)
    assert not found, "import these where the command runs, not at the top of its module"


def test_the_version_is_light(tmp_path):
    printed, loaded, _ = cogedit("--version", cwd=tmp_path)
    assert printed[0].startswith("cogedit ")
    # typer itself brings more to read an option than to show its help.
    assert not loaded & (HEAVY | {name for name in NOT_FOR_HELP if name.startswith("cogedit.")})


def test_every_public_name_comes_when_it_is_used(tmp_path):
    body = """
import cogedit
before = set(sys.modules)
assert set(cogedit.__all__) <= set(dir(cogedit))
for name in cogedit.__all__:
    assert getattr(cogedit, name) is getattr(cogedit, name), name
assert cogedit.edit.__module__ == "cogedit.stages.edit"
assert "cogedit.stages" in set(sys.modules) - before
try:
    cogedit.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError
"""
    _, loaded, _ = python(body, tmp_path)
    assert not loaded & HEAVY


MASK = "0,0,48,64"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a video and all its artifacts, made by the stages."""
    import cogedit

    folder = tmp_path_factory.mktemp("reuse")
    video = make_video(folder / "clip.mp4", width=96, height=64, num_frames=9)
    flags = {
        "load.width": 96,
        "load.height": 64,
        "load.max_num_frames": 9,
        "load.frame_rate": "spread",
        "reconstruct.guidance_scale": 1.0,
    }
    settings = tiny_settings(video, flags)
    cogedit.edit(video, ["a blue cat"], settings)
    cogedit.edit(video, ["a blue cat"], settings, mask=MASK)
    return folder


def options(command):
    """The options of a command that make the artifacts of `workspace`."""
    model = ["--model", TINY_PIPELINE, "--dtype", "fp32", "--device", "cpu"]
    own = {
        "invert": [*SETTINGS["load"], *SETTINGS["invert"]],
        # Beside an edit the plain name is the edit's own number of steps, which is another edit.
        "reconstruct": [*SETTINGS["load"], "--inversion-steps", "2"],
        "edit": [*SETTINGS["load"], "--inversion-steps", "2"],
    }[command]
    prompt = ["--prompt", "a blue cat", "--guidance-scale", "1"]
    return [*model, *own, *(prompt if command in {"reconstruct", "edit"} else [])]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("invert", []),  # which reuses what `load` and `encode` made
        ("reconstruct", []),
        ("edit", []),
        ("edit", ["--mask", MASK]),
    ],
)
def test_what_is_there_is_reused_without_torch(workspace, command, more):
    before = {path: path.stat().st_mtime_ns for path in (workspace / "clip.cogedit").iterdir()}
    printed, loaded, told = cogedit(command, "clip.mp4", *options(command), *more, cwd=workspace)
    assert len(printed) == 1
    assert not loaded & HEAVY, told
    after = {path: path.stat().st_mtime_ns for path in (workspace / "clip.cogedit").iterdir()}
    assert after == before


def test_inspect_is_light(workspace):
    (trajectory,) = (workspace / "clip.cogedit").glob("trajectory-*")
    printed, loaded, _ = cogedit("inspect", trajectory, cwd=workspace)
    assert any(trajectory.name in line for line in printed)
    assert not loaded & HEAVY
