"""Arguments and files that nobody writes by hand: a sentence and a documented exit code."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import H264, make
from pipelines import TINY_MODEL, TINY_PIPELINE, tiny_artifacts
from soak import take_turns
from typer.testing import CliRunner, Result

from cogedit.artifacts import content_key, read_record
from cogedit.cli import app
from cogedit.config.settings import all_settings
from cogedit.errors import ModelError
from cogedit.models.checkpoint import find_checkpoint
from cogedit.schema import flag_name

pytestmark = pytest.mark.faults

SMALL = ("--width", "96", "--height", "64", "--max-num-frames", "1")
CODES = range(2, 9)


def run(*args: object, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=text)


def refused(result: Result, *codes: int) -> tuple[bool, str]:
    """Whether a command ended with one of these codes and a sentence, and what to say if not."""
    good = result.exit_code in codes and isinstance(result.exception, SystemExit)
    return good and bool(result.stderr), f"{result.exit_code} {result.exception!r}: {result.output}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    video = make(folder / "clip.mp4", *H264)
    flags = {"load.width": 96, "load.height": 64, "load.max_num_frames": 1}
    return tiny_artifacts(video, flags)


@pytest.fixture
def place(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the clip in it."""
    shutil.copy(made["video"], tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TOML_NUMBERS = ("9" * 5000, "0x" + "f" * 5000, "[" * 3000 + "]" * 3000)
NO_PATHS = ("a\0b", "\ud800x", "~nosuchuser/x", "x" * 5000, "gone/x", "/dev/zero", "pipe")

PATHS: list[tuple[str, ...]] = [
    ("load", "{}", *SMALL, *TINY_MODEL),
    ("edit", "{}", "-p", "x", *SMALL, *TINY_MODEL),
    ("invert", "{}", *SMALL, *TINY_MODEL, "--dry-run"),
    ("reconstruct", "{}", "-p", "x", *TINY_MODEL),
    ("export", "{}", *TINY_MODEL),
    ("inspect", "{}"),
    ("sweep", "{}", "-p", "x", "--vary", "strength=0,1", *TINY_MODEL),
    ("batch", "{}.csv"),
    ("compare", "{}", "clip.mp4", "-o", "row.mp4"),
    ("compare", "clip.mp4", "clip.mp4", "-o", "{}/row.mp4"),
    ("report", "{}", *TINY_MODEL),
    ("cache", "ls", "{}"),
    ("cache", "verify", "{}"),
    ("cache", "prune", "{}", "--dry-run"),
    ("config", "show", "--config", "{}/x.toml"),
    ("load", "clip.mp4", *SMALL, "--model", "{}/x/x"),
    ("load", "clip.mp4", *SMALL, *TINY_MODEL, "-o", "{}/x.safetensors"),
    ("load", "clip.mp4", *SMALL, *TINY_MODEL, "--workspace", "{}/x/x"),
    ("edit", "clip.mp4", "-p", "x", *SMALL, *TINY_MODEL, "--dry-run", "--mask", "{}.png"),
    ("edit", "clip.mp4", "-p", "x", *SMALL, *TINY_MODEL, "--source", "{}", "-o", "{}/x.mp4"),
]


def test_paths_that_no_file_has(place: Path, score: Any) -> None:
    """Two paths for each command, which take turns; in the soak all of them."""
    os.mkfifo("pipe")
    os.mkfifo("pipe.csv")
    os.mkfifo("pipe.png")
    with score("argument: path") as cases:
        for number, command in enumerate(PATHS):
            for path in take_turns(NO_PATHS, number, 2):
                result = run(*(part.format(path) for part in command))
                # A missing folder for artifacts is made.
                codes = (0, *CODES) if "--workspace" in command and path == "gone/x" else CODES
                good, said = refused(result, *codes)
                cases.case(good or result.exit_code in codes, f"{command[:2]} {path!r:.20}: {said}")


def test_numbers_of_hundreds_of_digits(place: Path, score: Any) -> None:
    """One of each kind for each setting, which take turns; in the soak all of them."""
    numbers = [
        key
        for key, setting in all_settings().items()
        if setting.type in (int, float) or "Fraction" in str(setting.type)
    ]
    with score("argument: number") as cases:
        for number, key in enumerate(numbers):
            table, _, name = key.rpartition(".")
            for digits in take_turns(("9" * 400, "-" + "9" * 5000), number, 1):
                flag = flag_name(key) if table != "invert" else f"--{name.replace('_', '-')}"
                command = "invert" if table == "invert" else "config show"
                source = ["clip.mp4"] if command == "invert" else []
                if table == "transformer":
                    command, source = "invert", ["clip.mp4"]
                good, said = refused(run(*command.split(), *source, f"{flag}={digits}"), 2)
                cases.case(good and len(said) < 1000, f"{flag}: {said:.300}")
            for value in take_turns(TOML_NUMBERS, number, 1):
                header = f"[{table}]\n" if table else ""
                Path("x.toml").write_text(f"{header}{name} = {value}\n")
                good, said = refused(run("config", "show", "--config", "x.toml"), 2)
                cases.case(good and len(said) < 1000, f"{key} = {value:.9}: {said:.300}")


def test_rows_of_a_batch(place: Path, score: Any) -> None:
    rows = [
        {"video": "\0"},
        {"video": "\ud800"},
        {"video": "~nosuchuser/x.mp4"},
        {"prompt": "\ud800"},
        {"output": "\0.mp4"},
        {"output": "\ud800.mp4"},
        {"mask": "\0.png"},
        {"workspace": "~nosuchuser"},
        {"workspace": "\0"},
        {"cache": "\ud800"},
        {"config": "./\0.toml"},
        {"model": "~nosuchuser/x"},
        {"model": "\0"},
        {"load.width": 10**400},
        {"reconstruct.guidance_scale": float("nan")},
        {"reconstruct.guidance_scale": float("inf")},
    ]
    with score("argument: row of a batch") as cases:
        for row in rows:
            Path("e.jsonl").write_text(json.dumps({"video": "clip.mp4", "prompt": "x"} | row))
            model = TINY_MODEL[2:] if "model" in row else TINY_MODEL
            good, said = refused(run("batch", "e.jsonl", "--dry-run", *SMALL, *model), 2, 5)
            cases.case(good, f"{row!r:.80}: {said}")


def test_a_home_folder(place: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    home = place / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))

    def shown(*args: str) -> dict[str, Any]:
        result = run("config", "show", "--json", *args)
        settings: dict[str, Any] = json.loads(result.stdout)["settings"]
        return {key: settings[key]["value"] for key in ("workspace", "cache")}

    expected = {"workspace": str(home / "w"), "cache": str(home / "c")}
    with score("argument: ~") as cases:
        cases.case(shown("--workspace=~/w", "--cache=~/c") == expected, "flag")
        for name, value in (("WORKSPACE", "~/w"), ("CACHE", "~/c")):
            monkeypatch.setenv(f"COGEDIT_{name}", value)
        cases.case(shown() == expected, "variable")
        for name in ("WORKSPACE", "CACHE"):
            monkeypatch.delenv(f"COGEDIT_{name}")
        (home / "x.toml").write_text('workspace = "~/w"\ncache = "~/c"\n')
        cases.case(shown("--config=~/x.toml") == expected, "TOML")
        done = run("load", "clip.mp4", *SMALL, *TINY_MODEL, "--output=~/f.safetensors")
        cases.case((home / "f.safetensors").is_file(), f"-o: {done.output}")
        row = {"video": "~/c.mp4", "prompt": "x", "workspace": "~/w", "output": "~/o.mp4"}
        shutil.copy("clip.mp4", home / "c.mp4")
        Path("e.jsonl").write_text(json.dumps(row))
        done = run("batch", "e.jsonl", "--dry-run", *SMALL, *TINY_MODEL)
        cases.case(done.exit_code == 0 and str(home / "c.mp4") in done.stdout, done.output)


def test_bounds(place: Path, made: dict[str, Path], score: Any) -> None:
    seeds = ",".join(map(str, range(3000)))
    edit = ("reconstruct", made["trajectory"], "-p", "x", *TINY_MODEL)
    with score("argument: bound") as cases:
        for args in (
            ("export", made["frames"], "-o", "x.mp4", "--feather", 100000),
            ("export", made["frames"], "-o", "x.mp4", "--align-edges", 100000),
            (*edit, "--mask-dilation", 100000),
            (*edit, "--mask", f"0,0,{'9' * 5000},9"),
            (*edit, "--mask", f"0,0,9,9@0:{'9' * 5000}"),
            ("sweep", *edit[1:], "--vary", f"seed={seeds}", "--vary", f"start-step={seeds}"),
        ):
            good, said = refused(run(*args), 2)
            cases.case(good, f"{args[-2]}: {said:.300}")


def test_what_is_no_regular_file(place: Path, score: Any) -> None:
    commands = {
        "cogedit.toml": (2, ("config", "show")),
        "e.csv": (2, ("batch", "e.csv")),
        "m.png": (3, ("edit", "clip.mp4", "-p", "x", "--dry-run", *SMALL, *TINY_MODEL)),
    }
    with score("file: a pipe or a device") as cases:
        for name, (code, command) in commands.items():
            for prepare in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
                prepare(name)
                more = ("--mask", name) if name == "m.png" else ()
                good, said = refused(run(*command, *more), code)
                cases.case(good, f"{name}: {said}")
                Path(name).unlink()


def test_a_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with score("argument: the current directory is gone") as cases:
        for command in (
            ("cache", "ls"),
            ("config", "show"),
            ("doctor",),
            ("load", "clip.mp4"),
            ("reconstruct", "-p", "x"),
            ("report",),
            ("batch", "e.csv"),
        ):
            good, said = refused(run(*command), 7)
            cases.case(good, f"{command}: {said}")


def test_memory_that_is_short(place: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    # By its module: the package has a function of that name.
    module = importlib.import_module("cogedit.stages.load")
    monkeypatch.setattr(module, "read_clip", lambda *args, **options: np.empty(2**60, np.uint8))
    with score("memory: frames do not fit") as cases:
        good, said = refused(run("load", "clip.mp4", *SMALL, *TINY_MODEL), 6)
        cases.case(good, said)
        Path("e.csv").write_text("video,prompt\nclip.mp4,x\n")
        done = run("batch", "e.csv", *SMALL, *TINY_MODEL, "--results", "results.jsonl")
        [line] = [json.loads(text) for text in Path("results.jsonl").read_text().splitlines()]
        cases.case(done.exit_code == 10 and line["exit_code"] == 6, f"{done.output} {line}")


def test_a_workspace_of_odd_files(place: Path, made: dict[str, Path], score: Any) -> None:
    """Times beyond the year 9999, links to nothing, and notes that are none."""
    workspace = place / "w"
    shutil.copytree(made["trajectory"].parent, workspace)
    trajectory = workspace / made["trajectory"].name
    key = content_key(read_record(trajectory))
    start = f'{{"content_keys": ["{key}"], "device": "cpu", "peak_bytes": null, "seconds": '
    (workspace / "runs.jsonl").write_text(
        "\n".join(
            [
                *(f"{start}{value}}}" for value in ("NaN", "Infinity", "1e999", "-1", "1e300")),
                *(f"{start}{value}}}" for value in ("9" * 5000, "[[1]]", '{"a": 1}', '"1"')),
                f'{start}1, "steps": [[1, 1e999, 1], [1, null, -1]]}}',
                f'{start}1, "more": {"[" * 5000}{"]" * 5000}}}',
                "[" * 100_000,
            ]
        )
    )
    (workspace / "x.safetensors").symlink_to("nowhere")
    (workspace / "y.safetensors").symlink_to("y.safetensors")
    os.mkfifo(workspace / "z.safetensors")
    with score("file: odd ones in a workspace") as cases:
        for seconds in (1e12, -1e12):
            os.utime(trajectory, (seconds, seconds))
            for command in (["cache", "ls", "w"], ["cache", "ls", "w", "--json"]):
                done = run(*command)
                cases.case(done.exit_code == 0, f"{done.output} {done.exception!r}")
        done = run("report", "w", *TINY_MODEL)
        cases.case(done.exit_code == 0, f"{done.output} {done.exception!r}")
        page = (workspace / "report.html").read_text()
        cases.case("x.safetensors" in page and "z.safetensors" in page, "not listed on the page")


CONFIGS = (
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
NULLABLE = {"architectures", "eos_token_id", "model_max_length", "num_decoder_layers"}
NULLABLE |= {"pad_token_id"}
FREE = {"transformers_version", "extra_special_tokens"}
"""Fields of these files that nothing is made of."""


def wrong_values(value: object) -> Iterator[object]:
    """Values that are wrong in place of a right one."""
    yield [[{"a": 1}]]
    if isinstance(value, bool):
        yield from ("yes", 1, None)
    elif isinstance(value, int | float):
        yield from ("text", "", -(10**30), {"a": {}}, True, None)
    elif isinstance(value, str):
        yield from (5, -1.5, False)
    elif isinstance(value, list):
        yield from ("text", 5, {"a": 1}, None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_PIPELINE, tmp_path / "model"))


def refusal(model: Path) -> str:
    """Why a model is refused; empty if it is not."""
    try:
        find_checkpoint(str(model))
    except ModelError as error:
        return error.message
    return ""


def test_fields_of_a_model(model: Path, score: Any) -> None:
    with score("model: a field of another type") as cases:
        for file in CONFIGS:
            right = json.loads((model / file).read_text())
            for key, value in right.items():
                if key.startswith("_") or key in FREE:
                    continue
                for wrong in wrong_values(value):
                    if wrong is None and key in NULLABLE:
                        continue
                    (model / file).write_text(json.dumps(right | {key: wrong}))
                    said = refusal(model)
                    good = file in said and key in said and "expected" in said
                    cases.case(good and len(said) < 500, f"{file} {key} = {wrong!r}: {said:.200}")
            (model / file).write_text(json.dumps(right))


@pytest.mark.parametrize("file", ["model_index.json", *CONFIGS])
def test_texts_in_place_of_a_configuration(file: str, model: Path, score: Any) -> None:
    with score("model: no configuration") as cases:
        for text in ("", "null", "[]", "{", "NaN", "[" * 100_000, '{"a":' * 100_000, "\0"):
            (model / file).write_text(text)
            said = refusal(model)
            cases.case(file in said and len(said) < 500, f"{text:.9}: {said:.200}")
        (model / file).write_text('{"a": ' + "9" * 5000 + "}")
        cases.case(file in refusal(model), "digits")


def test_a_tokenizer_that_panics(
    model: Path, place: Path, capfd: pytest.CaptureFixture[str], score: Any
) -> None:
    path = model / "tokenizer" / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))
    args = ("edit", "clip.mp4", "-p", "x", *SMALL, "--model", model, "--device", "cpu")
    with score("model: a tokenizer that panics") as cases:
        good, said = refused(run(*args, "--cache", place / "cache"), 5)
        cases.case(good and "tokenizer/" in said, said)
        written = capfd.readouterr().err
        cases.case("panicked" not in written, written)


FILES = (
    "model_index.json",
    *CONFIGS,
    "tokenizer/tokenizer.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/more.json",
)
INSTEAD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a file without end": lambda path: (path.touch(), os.truncate(path, 2**38)),
}


def test_files_of_a_model_that_are_none(model: Path, score: Any) -> None:
    with score("model: a pipe, a device or no end") as cases:
        for file in FILES:
            path = model / file
            content = path.read_bytes() if path.exists() else None
            for name, make_instead in INSTEAD.items():
                path.unlink(missing_ok=True)
                make_instead(path)
                said = refusal(model)
                cases.case(file in said, f"{file} is {name}: {said}")
            path.unlink()
            if content is not None:
                path.write_bytes(content)


HEADERS = (
    b'{"a":' * 100_000,
    b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":["x"],"data_offsets":["a","b"]}}',
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
    b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,NaN]}}',
    b'{"a":{"dtype":"F32","shape":[0.5],"data_offsets":[0,2]}}',
    b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[' + b"3," * 50_000 + b'3],"data_offsets":[0,4]}}',
    b'{"a":5}',
    b"[]",
)


def test_headers_of_weights(model: Path, score: Any) -> None:
    file = "vae/diffusion_pytorch_model.safetensors"
    with score("model: a header of another form") as cases:
        for header in HEADERS:
            (model / file).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
            cases.case(file in refusal(model), f"{header[:60]!r}")
