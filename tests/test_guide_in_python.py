"""What the README and the guide show in Python runs as it is written, and prints nothing else."""

import re
import shutil
from pathlib import Path

import pytest
from pipelines import TINY_PIPELINE
from videos import make_video

import cogedit

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "cogedit" / "guide").glob("*.md"))]
SHOWN = {page: FENCE.findall(page.read_text()) for page in PAGES}
SHOWN = {page: blocks for page, blocks in SHOWN.items() if blocks}


@pytest.fixture
def folder(here, monkeypatch):
    """A folder with the videos of the guide, where the tiny model is chosen by variables."""
    for name in ("bear", "dog"):
        make_video(here / f"{name}.mp4", width=96, height=64, num_frames=10)
    chosen = {"MODEL": TINY_PIPELINE, "DTYPE": "fp32", "DEVICE": "cpu", "CACHE": here / "cache"}
    chosen |= {"LOAD_MAX_NUM_FRAMES": 9, "INVERT_NUM_INFERENCE_STEPS": 3}
    for name, value in chosen.items():
        monkeypatch.setenv(f"COGEDIT_{name}", str(value))
    return here


@pytest.mark.parametrize("page", SHOWN, ids=[page.name for page in SHOWN])
def test_what_is_shown_runs(page, folder, capfd):
    names: dict[str, object] = {}
    if page.name == "files.md":  # it reads an edit, of which it shows a name
        settings = cogedit.settings_for("bear.mp4").settings
        [edit] = cogedit.reconstruct("bear.mp4", "a cat", settings)
        shutil.copy(edit.path, edit.path.with_name("edit-0123456789ab.safetensors"))
    for block in SHOWN[page]:
        exec(compile(block, page.name, "exec"), names)
    printed = capfd.readouterr()
    assert printed.err == ""
    if page.name != "python.md":
        assert printed.out == ""


def test_the_guide_shows_something():
    assert {page.name for page in SHOWN} >= {"README.md", "python.md", "files.md"}
