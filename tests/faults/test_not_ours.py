"""Files that are not cogedit's: no command removes, replaces or follows one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from chains import Chain
from corpus import H264, make
from PIL import Image
from pipelines import TINY_MODEL, TINY_PIPELINE, tiny_artifacts, tiny_settings
from typer.testing import CliRunner, Result

import cogedit
from cogedit.artifacts import Unfinished, content_key, read_record
from cogedit.artifacts.leases import Lease
from cogedit.cli import app
from cogedit.config import read_batch
from cogedit.errors import CogeditError
from cogedit.progress import ShowStep
from cogedit.tools.batch import batch
from cogedit.tools.batch_plan import plan_batch

pytestmark = pytest.mark.faults

WEIGHTS = safetensors.torch.save({"weight": torch.zeros(8)}, metadata={"format": "pt"})
SIZE = {"load.width": 96, "load.height": 64, "load.max_num_frames": 9, "load.frame_rate": "spread"}


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


# --- outputs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edited(made: dict[str, Path]) -> Path:
    """An edit of the video."""
    [written] = cogedit.reconstruct(made["trajectory"], "a cat", tiny_settings(made["video"], {}))
    return written.path


@pytest.fixture
def here(
    made: dict[str, Path], edited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with copies of everything that a run reads, and files of the user beside them."""
    monkeypatch.chdir(tmp_path)
    for kind, path in {**made, "edit": edited}.items():
        shutil.copy(path, "video.mp4" if kind == "video" else f"{kind[0]}.safetensors")
    Image.new("L", (96, 64), 255).save("mask.png")
    shutil.copy("video.mp4", "mask.mp4")
    Path("cogedit.toml").write_text("[export]\nsound = false\n")
    Path("mine.toml").write_text("[export]\nsound = true\n")
    Path("grid.json").write_text('{"mine": true}')
    Path("out-source.mp4").write_bytes(b"mine")
    Path("auto-mask.mp4").write_bytes(b"mine")
    Path("cat.csv").write_text("video,prompt,output\nvideo.mp4,a cat,mask.mp4\nmask.mp4,a dog,\n")
    Path("frames").mkdir()
    for number in range(3):
        Image.new("RGB", (96, 64)).save(f"frames/frame-{number:04d}.png")
    Path("linked").symlink_to("frames")
    shutil.copytree(TINY_PIPELINE, "model")
    return tmp_path


RUN = ("--num-inference-steps", "2", *TINY_MODEL, "--workspace", "work")
MODEL_FILE = "model/vae/diffusion_pytorch_model.safetensors"
OUTPUTS = {
    "load over the configuration": "load video.mp4 -o cogedit.toml",
    "load over --config": "load video.mp4 --config mine.toml -o mine.toml",
    "reconstruct over its mask": "reconstruct t.safetensors -p x --mask mask.png -o mask.png",
    "reconstruct --auto-mask": "reconstruct t.safetensors -p x --auto-mask -o auto.safetensors",
    "reconstruct over weights": f"reconstruct t.safetensors -p x -o {MODEL_FILE}",
    "edit over its mask": "edit t.safetensors -p x --mask mask.mp4 -o mask.mp4",
    "edit over the source of a trajectory": "edit t.safetensors -p x -o video.mp4",
    "edit --with-source": "edit t.safetensors -p x --with-source -o out.mp4",
    "export over the source": "export e.safetensors -o video.mp4",
    "export over --source": "export e.safetensors --source video.mp4 -o video.mp4",
    "export --with-source": "export e.safetensors --with-source -o out.mp4",
    "images over those of others": "export f.safetensors --codec png -o frames",
    "images through a link": "export f.safetensors --codec png -o linked",
    "sweep with figures beside it": "sweep t.safetensors -p x --vary seed=1 -o grid.png",
    "batch over another row's video": "batch cat.csv",
    "compare of images over others": "compare e.safetensors e.safetensors --codec png -o frames",
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_force_replaces_what_was_named_and_nothing_else(name: str, here: Path, score: Any) -> None:
    command = OUTPUTS[name]
    before = contents(here)
    options = TINY_MODEL if command.startswith(("export", "compare", "load")) else RUN
    with score("not ours: replaced by --force") as cases:
        done = run(*command.split(), *options, "--force")
        after = {file: content for file, content in contents(here).items() if file in before}
        good = done.exit_code in (2, 7) and "Traceback" not in done.output and after == before
        cases.case(good, f"{name}: {done.exit_code} {done.output[-300:]}")


def test_own_images_and_figures_are_replaced(here: Path) -> None:
    """What is refused above is so because of whose it is."""
    for _ in range(2):
        done = run("export", "f.safetensors", "--codec", "png", "-o", "ours", "--force")
        assert done.exit_code == 0, done.output
    assert not list(here.glob(".cogedit-*"))
    Path("grid.json").unlink()
    sweep = ("sweep", "t.safetensors", "-p", "x", "--vary", "seed=1", "-o", "grid.png")
    for code, force in ((0, []), (2, []), (0, ["--force"])):
        assert run(*sweep, *RUN, *force).exit_code == code


# --- between the stages -----------------------------------------------------------------------


KINDS = ("frames", "latents", "trajectory")


class Intruder:
    """Lets something else happen in the middle of a run, once, when a loop of it begins."""

    def __init__(self, at: str, happens: Callable[[], object]) -> None:
        self._at, self._happens = at, happens
        self.results: list[object] = []

    @contextmanager
    def progress(self, doing: str, total: int) -> Iterator[ShowStep]:
        if self._at in doing and not self.results:
            self.results.append(self._happens())
        yield lambda step: None

    @property
    def run(self) -> cogedit.Run:
        return cogedit.Run(progress=self.progress)


def prune() -> list[str]:
    """Remove whatever may be; return the workspaces that are in use."""
    kinds = [option for kind in KINDS for option in ("--kind", kind)]
    said = json.loads(run("cache", "prune", "work", *kinds, "--unfinished", "--json").stdout)
    return list(said["in_use"])


def test_prune_between_the_stages(made: dict[str, Path], tmp_path: Path, score: Any) -> None:
    """As soon as a stage has written what the next one reads."""
    seen: list[object] = []

    def notify(text: str) -> None:
        if text.startswith("wrote work") and ".safetensors" in text:
            seen.append(prune())

    with score("not ours: removed from under a run") as cases, chdir(tmp_path):
        settings = tiny_settings(made["video"], {**SIZE, "workspace": Path("work")})
        cogedit.edit(made["video"], "a cat", settings, run=cogedit.Run(notify=notify))
        for number, kind in enumerate((*KINDS, "edit")):
            cases.case(seen[number : number + 1] == [["work"]], f"after {kind}: {seen}")
            cases.case(len(list(Path("work").glob(f"{kind}-*.safetensors"))) == 1, kind)
        cases.case(prune() == [], "afterwards it is free")


def test_prune_between_the_rows_of_a_batch(
    made: dict[str, Path], tmp_path: Path, score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(made["video"], "a.mp4")
    shutil.copy(made["video"], "b.mp4")
    rows = "video,prompt,workspace\na.mp4,a cat,work\nb.mp4,a dog,other\n"
    Path("edits.csv").write_text(rows)
    flags = {"model": str(TINY_PIPELINE), "dtype": "fp32", "device": "cpu", **SIZE}
    flags |= {"invert.num_inference_steps": 2}
    edits = plan_batch(read_batch("edits.csv"), flags)
    Path("work").mkdir()
    seen: list[object] = []

    def notify(text: str) -> None:
        if text.startswith("1 of 2 written"):
            seen.extend(prune())

    with score("not ours: removed from under a run") as cases:
        done = batch(edits, run=cogedit.Run(notify=notify))
        cases.case(seen == ["work"], f"{seen} {done}")


# --- two commands, one output -----------------------------------------------------------------


@pytest.mark.parametrize("leases", [True, False])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("output", ["out.mp4", "out.safetensors"])
def test_two_commands_with_one_output(
    output: str,
    force: bool,
    leases: bool,
    made: dict[str, Path],
    tmp_path: Path,
    score: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second begins in the middle of the first; with force it writes, and is not replaced."""
    monkeypatch.chdir(tmp_path)
    if not leases:  # everyone gets them, as if each process had been silent for too long
        monkeypatch.setattr(Lease, "take", lambda lease: True)
    stage = "edit" if output.endswith("mp4") else "reconstruct"
    second = [stage, made["trajectory"], "-p", "a dog", "-o", output, *RUN[2:]]
    intruder = Intruder("editing", lambda: run(*second, *(["--force"] if force else [])))
    settings = tiny_settings(made["video"], {"workspace": Path("work")})
    error = None
    try:
        getattr(cogedit, stage)(
            made["trajectory"], "a cat", settings, output=Path(output), run=intruder.run
        )
    except CogeditError as caught:
        error = caught
    [second_done] = intruder.results
    assert isinstance(second_done, Result)
    writes = force or not leases
    first_wins = second_done.exit_code == 2 and error is None
    second_wins = second_done.exit_code == 0 and error is not None and error.exit_code == 2
    [kept] = {
        path
        for path in (*Path("work").glob("edit-*.safetensors"), Path(output))
        if not path.name.endswith("mp4") and read_record(path, "edit").settings.prompt == "a cat"
    }
    shown = "a dog" if writes else "a cat"
    found = run("inspect", output, "--json").stdout
    with score("two commands, one output") as cases:
        good = (second_wins if writes else first_wins) and f'"prompt": "{shown}"' in found
        good = good and (error is None or str(kept) in str(error))
        good = good and not list(tmp_path.glob(".cogedit-*"))
        cases.case(good, f"{output} {force} {leases}: {second_done.output} {error!r}")
