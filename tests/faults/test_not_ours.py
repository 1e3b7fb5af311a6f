"""Files that are not cogedit's: no command removes, replaces or follows one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from chains import Chain
from corpus import H264, make
from pipelines import TINY_MODEL, tiny_artifacts, tiny_settings
from typer.testing import CliRunner, Result

import cogedit
from cogedit.artifacts import Unfinished, content_key, read_record
from cogedit.cli import app
from cogedit.errors import CogeditError

pytestmark = pytest.mark.faults

WEIGHTS = safetensors.torch.save({"weight": torch.zeros(8)}, metadata={"format": "pt"})
SIZE = {"load.width": 96, "load.height": 64, "load.max_num_frames": 9}


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video and its artifacts up to the inversion."""
    video = make(tmp_path_factory.mktemp("made") / "clip.mp4", *H264)
    return tiny_artifacts(video, SIZE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of another program, with names like ours."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("0001.safetensors", "model.safetensors", "config.json", "lock"):
        (folder / name).write_bytes(WEIGHTS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def link(model: Path, place: Path) -> None:
    place.symlink_to(model)


def copy(model: Path, place: Path) -> None:
    shutil.copytree(model, place)


PLACES = (
    "edit-0123456789ab.unfinished",
    "trajectory-0123456789ab.unfinished",
    "mine.unfinished",
    ".cogedit-0123456789abcdef",
    ".cogedit-mine",
)


@pytest.mark.parametrize("put", [link, copy])
def test_cache_prune(
    put: Callable[[Path, Path], None], model: Path, chain: Chain, tmp_path: Path, score: Any
) -> None:
    before = contents(model)
    with score("not ours: removed by cache prune") as cases:
        for name in PLACES:
            work = tmp_path / "work"
            work.mkdir()
            chain.copy("frames", work / "frames.safetensors")
            put(model, work / name)
            done = run("cache", "prune", "--damaged", "--unfinished", work)
            there = contents(work / name) if (work / name).exists() else {}
            good = done.exit_code == 0 and not done.stdout and there == contents(model) == before
            cases.case(good, f"{put.__name__} {name}: {done.output}")
            shutil.rmtree(work)


def test_a_stage_whose_folder_is_a_link(made: dict[str, Path], model: Path, score: Any) -> None:
    """To invert anew, and to reuse what is there, which cleans up behind a killed run."""
    before = contents(model)
    video = made["video"]
    key = content_key(read_record(made["trajectory"]))
    root = Unfinished.of(made["trajectory"].parent, "trajectory", [key]).root
    root.symlink_to(model)
    settings = tiny_settings(video, SIZE)
    with score("not ours: emptied by invert") as cases:
        for force in (False, True):
            refused = False
            try:
                cogedit.invert(video, settings, run=cogedit.Run(force=force))
            except CogeditError as error:
                refused = error.exit_code == 7 and str(root) in error.message
            cases.case(refused == force and contents(model) == before, f"force {force}")
    root.unlink()


def test_cache_verify(chain: Chain, tmp_path: Path, score: Any) -> None:
    """Nothing but damage is called damage."""
    newer = chain.paths["frames"].read_bytes().replace(b'"0.1.0', b'"9.1.0')
    files = {
        "lora.safetensors": WEIGHTS,
        "frames-0123456789ab.safetensors": WEIGHTS,
        "words.safetensors": b"words",
        "frames.safetensors": chain.paths["frames"].read_bytes(),
    }
    with score("not ours: called damaged") as cases:
        for name, content in files.items():
            work = tmp_path / name
            work.mkdir()
            (work / name).write_bytes(content)
            checked = run("cache", "verify", work)
            pruned = run("cache", "prune", "--damaged", work)
            good = (checked.exit_code, pruned.exit_code, pruned.stdout) == (0, 0, "")
            cases.case(good and (work / name).read_bytes() == content, name)
        (tmp_path / "really").mkdir()
        for name in ("frames.safetensors", "frames-0123456789ab.safetensors"):
            (tmp_path / "really" / name).write_bytes(newer if "-" not in name else b"")
        cases.case(run("cache", "verify", tmp_path / "really").exit_code == 4, "a damaged one")


RESULTS: dict[str, Callable[[Path], object]] = {
    "a video": lambda path: path.write_bytes(b"\0\0\0\x18ftypisom" * 50),
    "an artifact": lambda path: path.write_bytes(WEIGHTS),
    "text": lambda path: path.write_bytes(b"text\n"),
    "other JSON lines": lambda path: path.write_bytes(b'{"video": "a.mp4", "prompt": "a"}\n'),
    "a link": lambda path: path.symlink_to("other"),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/full"),
}


def state(path: str) -> tuple[int, ...]:
    """What a write would change; a read changes only the time of access."""
    status = os.lstat(path)
    return status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns


def test_batch_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edits.csv").write_text("video,prompt\nnone.mp4,a cat\n")
    Path("other").write_bytes(b"not ours")
    with score("not ours: written to by batch") as cases:
        for place in ("results.jsonl", "given"):
            for name, put in RESULTS.items():
                put(Path(place))
                before = state(place)
                given = ["--results", place] if place == "given" else []
                done = run("batch", "edits.csv", *TINY_MODEL, *given)
                good = done.exit_code in (2, 7) and place in done.stderr
                good = good and state(place) == before
                good = good and Path("other").read_bytes() == b"not ours"
                cases.case(good, f"{place}, {name}: {done.output}")
                Path(place).unlink()
        done = run("batch", "edits.csv", *TINY_MODEL, "--results", "edits.csv")
        cases.case(done.exit_code == 2 and "none" in Path("edits.csv").read_text(), "the edits")


def test_times_of_passes(made: dict[str, Path], tmp_path: Path, score: Any) -> None:
    """The inversion is what counts: it is made, and its time is noted nowhere."""
    with score("not ours: written to by a stage") as cases:
        for name in ("a link", "a pipe", "a device"):
            work = tmp_path / name.replace(" ", "-")
            work.mkdir()
            (work / "other").write_bytes(b"not ours")
            RESULTS[name](work / "runs.jsonl")
            settings = tiny_settings(made["video"], {**SIZE, "workspace": work})
            done = cogedit.invert(made["latents"], settings)
            good = done.path.exists() and (work / "other").read_bytes() == b"not ours"
            cases.case(good, name)
