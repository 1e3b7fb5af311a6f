"""stdout in every failure: empty, or one JSON object."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chains import Chain
from corpus import H264, make
from pipelines import TINY_MODEL, TINY_PIPELINE
from safetensors.torch import load_file, save_file
from soak import take_turns
from typer.testing import CliRunner

import cogedit
from cogedit.artifacts import read_artifact, write_artifact
from cogedit.cli import app

pytestmark = pytest.mark.faults

SMALL = ("--width", 96, "--height", 64, "--max-num-frames", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that can be wrong."""
    folder = tmp_path_factory.mktemp("failures")
    make(folder / "clip.mp4", *H264)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello\n" * 100)
    (folder / "list.mp4").write_text("#EXTM3U\nclip.mp4\n")
    given = {
        "model": str(TINY_PIPELINE),
        "dtype": "fp32",
        "device": "cpu",
        "workspace": folder / "work",
        "load.width": 96,
        "load.height": 64,
        "load.max_num_frames": 1,
        "invert.num_inference_steps": 2,
    }
    settings = cogedit.settings_for(folder / "clip.mp4", given, environ={}).settings
    made: dict[str, Any] = {
        "frames": cogedit.load(folder / "clip.mp4", settings),
        "latents": cogedit.encode(folder / "clip.mp4", settings),
        "trajectory": cogedit.invert(folder / "clip.mp4", settings),
    }
    for name, written in made.items():
        shutil.copy(written.path, folder / f"{name}.safetensors")
    good = (folder / "trajectory.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(good[:-9])
    (folder / "flipped.safetensors").write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    (folder / "foreign.safetensors").write_bytes(b"\x80\x04" + bytes(500))
    (folder / "broken.toml").write_text("[invert\n")
    (folder / "unknown.toml").write_text("[invert]\nsteps = 3\n")
    shutil.copytree(TINY_PIPELINE, folder / "nan")
    weights = folder / "nan" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.copytree(TINY_PIPELINE, folder / "incomplete")
    (folder / "incomplete" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    return folder


T, L, F = "trajectory.safetensors", "latents.safetensors", "frames.safetensors"

FAILURES: list[tuple[int, tuple[object, ...]]] = [
    (2, ("load",)),
    (2, ("nonsense",)),
    (2, ("load", "clip.mp4", "--nonsense")),
    (2, ("load", "clip.mp4", "--width", "wide", *TINY_MODEL)),
    (2, ("load", "clip.mp4", "--width", 100, "--height", 64, *TINY_MODEL)),
    (2, ("load", "clip.mp4", *SMALL, *TINY_MODEL, "--frame-sample-step", 0)),
    (2, ("load", "clip.mp4", "--config", "nonsense")),
    (2, ("load", "clip.mp4", "--config", "broken.toml")),
    (2, ("load", "clip.mp4", "--config", "unknown.toml")),
    (2, ("load", "clip.mp4", *SMALL, *TINY_MODEL, "-o", "clip.mp4", "--force")),
    (2, ("invert", L, *TINY_MODEL, "--num-inference-steps", 1)),
    (2, ("invert", L, *TINY_MODEL, "--width", 160)),
    (2, ("reconstruct", T, *TINY_MODEL, "-p", "x", "--injection-strength", 200)),
    (2, ("reconstruct", T, *TINY_MODEL, "-p", "x", "--num-inference-steps", 0)),
    (2, ("reconstruct", T, *TINY_MODEL, "-p", "x", "--mask", "1,2,3")),
    (2, ("reconstruct", T, *TINY_MODEL, "-p", "x", "-p", "y", "-o", "one.safetensors")),
    (2, ("sweep", T, *TINY_MODEL, "-p", "x", "--vary", "nonsense=1")),
    (2, ("export", F, "-o", "film.gif.txt")),
    (2, ("export", F, "--fps", "-1", "-o", "x.mp4")),
    (3, ("load", "missing.mp4", *SMALL, *TINY_MODEL)),
    (3, ("load", "empty.mp4", *SMALL, *TINY_MODEL)),
    (3, ("load", "text.mp4", *SMALL, *TINY_MODEL)),
    (3, ("load", "list.mp4", *SMALL, *TINY_MODEL)),
    (3, ("edit", "text.mp4", "-p", "x", *SMALL, *TINY_MODEL)),
    (3, ("invert", "text.mp4", *SMALL, *TINY_MODEL)),
    (3, ("load", ".", *SMALL, *TINY_MODEL)),
    (3, ("load", "clip.mp4", *SMALL, *TINY_MODEL, "--skip-frames-start", 99)),
    (3, ("reconstruct", T, *TINY_MODEL, "-p", "x", "--mask", "missing.png")),
    (4, ("inspect", "missing.safetensors")),
    (4, ("inspect", "cut.safetensors")),
    (4, ("inspect", "flipped.safetensors")),
    (4, ("inspect", "foreign.safetensors")),
    (4, ("inspect", "clip.mp4")),
    (4, ("encode", "foreign.safetensors", *TINY_MODEL)),
    (4, ("encode", L, *TINY_MODEL)),
    (4, ("invert", T, *TINY_MODEL)),
    (4, ("reconstruct", "cut.safetensors", "-p", "x", *TINY_MODEL)),
    (4, ("reconstruct", "flipped.safetensors", "-p", "x", *TINY_MODEL)),
    (4, ("export", "flipped.safetensors", *TINY_MODEL, "-o", "x.mp4")),
    (4, ("edit", "cut.safetensors", "-p", "x", *TINY_MODEL)),
    (4, ("reconstruct", T, "-p", "x", "--model", "shapes")),
    (5, ("load", "clip.mp4", "--model", "nonsense")),
    (5, ("encode", F, "--model", "nobody/nothing")),
    (5, ("encode", F, "--model", "incomplete")),
    (5, ("encode", F, "--model", "clip.mp4")),
    (5, ("encode", F, "--model", "work")),
    (7, ("load", "clip.mp4", *SMALL, *TINY_MODEL, "-o", "no/where.safetensors")),
    (7, ("export", F, "-o", "no/where.mp4")),
    (7, ("load", "clip.mp4", *SMALL, *TINY_MODEL, "--workspace", "clip.mp4")),
    (8, ("invert", "clip.mp4", *SMALL, "--model", "nan", "--device", "cpu")),
    (8, ("reconstruct", "clip.mp4", "-p", "x", *SMALL, "--model", "nan", "--device", "cpu")),
]


FORMS: list[tuple[str, ...]] = [(), ("--json",), ("--json", "--quiet"), ("--json", "-v")]


def test_failures(folder: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    """Every failure in one form of output, which take turns; in the soak in all of them."""
    monkeypatch.chdir(folder)
    with score("stdout: failure") as cases:
        for number, (code, args) in enumerate(FAILURES):
            for more in take_turns(FORMS, number, 1):
                result = CliRunner().invoke(app, [str(arg) for arg in (*args, *more)])
                name = f"{' '.join(map(str, args))[:80]}: {result.exit_code} {result.output[-300:]}"
                cases.case(result.exit_code == code, f"{name}, expected {code}")
                cases.case(_is_empty_or_an_object(result.stdout), name)
                cases.case("Traceback" not in result.stderr, name)
                cases.case(bool(result.stderr.strip()), f"{name}: says nothing")


def _is_empty_or_an_object(text: str) -> bool:
    return text == "" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 8, 12), (1, 1, 16, 4, 4), (2, 1, 16, 8, 12), (1, 3, 16, 8, 12)]
)
def test_latents_that_are_not_of_their_model(
    shape: tuple[int, ...],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: Any,
) -> None:
    """Every digest is right, and the shape is not what the model makes of the clip."""
    monkeypatch.chdir(tmp_path)
    latents = read_artifact(folder / L, "latents")
    path = tmp_path / "forged.safetensors"
    write_artifact(path, {"latents": torch.zeros(shape)}, latents.record)
    with score("artifact: forged shape") as cases:
        for command in (["invert"], ["reconstruct", "-p", "x"], ["export"]):
            result = CliRunner().invoke(app, [*command, str(path), *TINY_MODEL])
            said = f"{command} {shape}: {result.exit_code} {result.output} {result.exception!r}"
            both = f"{list(shape)}" in result.stderr and "[1, 1, 16, 8, 12]" in result.stderr
            cases.case(result.exit_code == 4 and both, said)


@pytest.mark.parametrize("timesteps", [[999, 499], [0, 0], [-1, 999], [499, 5000]])
def test_timesteps_that_no_inversion_visits(
    timesteps: list[int],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    trajectory = read_artifact(folder / T, "trajectory")
    path = tmp_path / "forged.safetensors"
    tensors = {**trajectory.tensors, "timesteps": torch.tensor(timesteps)}
    write_artifact(path, tensors, trajectory.record)
    with score("artifact: forged timesteps") as cases:
        result = CliRunner().invoke(app, ["reconstruct", str(path), "-p", "x", *TINY_MODEL])
        cases.case(result.exit_code == 4, f"{timesteps}: {result.exit_code} {result.output}")


def test_a_mismatch_names_both_values(
    folder: Path,
    pipeline_2b: Path,
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: Any,
) -> None:
    """Of model, revision, size, steps and scheduler: what the artifact has and what is asked."""
    monkeypatch.chdir(folder)
    other = tmp_path / TINY_PIPELINE.name  # the same name, another scheduler
    shutil.copytree(TINY_PIPELINE, other)
    config = other / "scheduler" / "scheduler_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"beta_end": 0.5}))
    hub = chain.paths["trajectory"]  # of zai-org/CogVideoX-5b, revision c0ffee
    expected: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
        "model": (
            ("reconstruct", T, "-p", "x", "--model", pipeline_2b),
            (TINY_PIPELINE.name, "tiny-2b"),
        ),
        "revision": (
            ("reconstruct", hub, "-p", "x", *TINY_MODEL),
            ("zai-org/CogVideoX-5b@c0ffee", TINY_PIPELINE.name),
        ),
        "scheduler": (
            ("reconstruct", T, "-p", "x", "--model", other),
            ("beta_end", str(settings["beta_end"]), "0.5"),
        ),
        "size": (
            ("invert", L, *TINY_MODEL, "--width", 160),
            ("160", "96"),
        ),
        "steps": (
            ("reconstruct", T, "-p", "x", *TINY_MODEL, "--num-inference-steps", 7),
            ("7", "2"),
        ),
    }
    with score("mismatch: both values named") as cases:
        for name, (args, values) in expected.items():
            result = CliRunner().invoke(app, [str(arg) for arg in args])
            said = result.stderr.splitlines()
            message = next((line for line in said if line.startswith("error: ")), "")
            good = result.exit_code in (2, 4) and all(value in message for value in values)
            cases.case(good, f"{name}: {result.exit_code} {result.output} {result.exception!r}")
