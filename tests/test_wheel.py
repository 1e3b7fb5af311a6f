"""The built wheel: everything that an installation needs, and no training or benchmark."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cogedit

PACKAGE = Path(cogedit.__file__).parent
ROOT = PACKAGE.parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling builds the wheel"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def run(*arguments, site, cwd):
    """Run a module of the unpacked wheel, away from the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COGEDIT_")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment | {"PYTHONPATH": str(site)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    """The files below a folder, without compiled ones."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_it_holds_the_package_and_the_presets_but_not_the_lab(site):
    package = {name for name in files(PACKAGE) if not name.startswith("lab/")}
    presets = {f"configs/{name}" for name in files(ROOT / "configs")}
    assert files(site / "cogedit") == package | presets
    assert not (site / "cogedit" / "lab").exists()


def test_the_command_line_runs_from_it(site, tmp_path):
    shown = run(
        *("cogedit", "config", "show", "--origin", "--config", "cogvideox-2b"),
        site=site,
        cwd=tmp_path,
    )
    assert "zai-org/CogVideoX-2b" in shown
    assert "# preset cogvideox-2b" in shown
