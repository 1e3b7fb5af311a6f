"""Fixtures that more than one folder of tests uses."""

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main
import typer.testing

# What is large is imported in the fixtures: where workers run the tests, one process more reads
# this and runs none.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Also in processes that tests start: two threads of each worker's would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
# Some hundred processes would each compile the package, and every worker rewrite all assertions.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Prompt embeddings of the tests stay out of the user's cache.
CACHE = tempfile.TemporaryDirectory(prefix="cogedit-tests-")
os.environ["XDG_CACHE_HOME"] = CACHE.name
# Here and in processes of their own, tests read by ffmpeg: see `decord`.
sys.modules["decord"] = None  # type: ignore[assignment]
WITHOUT_DECORD = str(Path(__file__).with_name("without_decord"))
PLACES = os.environ.get("PYTHONPATH", "").split(os.pathsep)
PLACES = [place for place in PLACES if place not in ("", WITHOUT_DECORD)]
os.environ["PYTHONPATH"] = os.pathsep.join([WITHOUT_DECORD, *PLACES])
sys.path = [WITHOUT_DECORD, *(place for place in sys.path if place != WITHOUT_DECORD)]
if sys.modules.get("peft", sys) is None:  # where several processes share the tests
    del sys.modules["peft"]
# Every call of a `CliRunner` makes all commands and options anew: a tenth of a second.
typer.testing._get_command = cache(typer.main.get_command)  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from chains import Chain

PROMPT = "a blue cat running in snow"


@pytest.fixture(scope="module", autouse=True)
def short_collections():
    """Let the collector pass over what libraries and pytest keep anyway.

    Every session that ends collects: a tenth of a second or more each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def decord():
    """Let decord read what it reads as ffmpeg does, as for a user.

    Other tests read by ffmpeg alone: the process that imports decord takes five times as long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "decord")
        patch.setenv("PYTHONPATH", os.pathsep.join(PLACES))
        patch.setattr(sys, "path", [place for place in sys.path if place != WITHOUT_DECORD])
        yield


@pytest.fixture(scope="session")
def golden():
    """The upstream script's numbers on the golden pipeline."""
    from pipelines import GOLDEN
    from safetensors.torch import load_file

    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def golden_pipeline():
    """The golden pipeline in float32."""
    import torch
    from diffusers import CogVideoXPipeline
    from pipelines import GOLDEN_PIPELINE

    return CogVideoXPipeline.from_pretrained(GOLDEN_PIPELINE, dtype=torch.float32)


@pytest.fixture(scope="session")
def pipeline_2b(tmp_path_factory):
    """Folder of a tiny pipeline with 2B's traits."""
    from pipelines import make_2b_like

    return make_2b_like(tmp_path_factory.mktemp("models") / "tiny-2b")


@pytest.fixture(scope="session")
def pipeline_5b(tmp_path_factory):
    """Folder of a tiny pipeline with 5B's traits."""
    from pipelines import make_5b_like

    return make_5b_like(tmp_path_factory.mktemp("models") / "tiny-5b")


@pytest.fixture(scope="session")
def pipeline_15(tmp_path_factory):
    """Folder of a tiny pipeline with 1.5's traits."""
    from pipelines import make_15_like

    return make_15_like(tmp_path_factory.mktemp("models") / "tiny-1.5")


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> "Chain":
    """A small chain of artifacts, which tests do not change."""
    from chains import make_chain

    return make_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def warm_python(tmp_path_factory):
    """Modules that are started in processes of their own save the imports of a fresh one."""
    import processes

    with processes.warm_python(tmp_path_factory.mktemp("bin")):
        yield


@pytest.fixture
def listing() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder, hidden ones too, with its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return read


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: the others then fill both workers to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the score table of the fault suite: passed and total of every row.

    Here and not beside the suite: where workers run the tests, the process that prints reads no
    other conftest than this.
    """
    rows: dict[str, tuple[int, int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, value in report.user_properties:
                if name == "score":
                    row, passed, total = value
                    before = rows.get(row, (0, 0))
                    rows[row] = (before[0] + passed, before[1] + total)
    if rows:
        terminalreporter.section("fault suite")
        width = max(map(len, rows))
        for row, (passed, total) in sorted(rows.items()):
            terminalreporter.write_line(f"{row:<{width}}  {passed:>6} of {total}")
