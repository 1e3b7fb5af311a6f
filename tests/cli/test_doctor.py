"""`cogedit doctor`: on this machine, and on machines where something is missing or broken."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from cogedit.models.checkpoint import EMBEDDED
from cogedit.tools import doctor
from cogedit.tools import memory_table as fits
from cogedit.tools.hardware import LIBRARIES, Device, Machine

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from cogedit.cli import main; sys.argv[0] = 'cogedit'; main()"


def run(*args, cwd, **environment):
    """Run the command in a process of its own, without settings from outside."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("COGEDIT_")}
    path = os.pathsep.join([*environment.pop("first_on_path", []), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "doctor", *args],
        env={**kept, "PYTHONPATH": path, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def here_found(tmp_path_factory):
    """What the command says of this machine with the embedded model, and an empty model cache."""
    folder = tmp_path_factory.mktemp("doctor")
    done = run("--json", "--model", "shapes", cwd=folder, HF_HOME=str(folder / "cache"))
    return done.returncode, json.loads(done.stdout)


def test_a_machine_that_can_edit(here_found):
    code, found = here_found
    assert (code, found["exit_code"], found["can_edit"]) == (0, 0, True)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert set(LIBRARIES) < set(by_name)
    assert {"python", "cpu", "ffmpeg", "decoder", "disk", "cache", "attention"} < set(by_name)
    assert by_name["torch"]["found"].startswith("2.")
    assert " GB free" in by_name["cpu"]["found"]
    assert by_name["model shapes"]["found"] == "embedded, all files there"
    assert all(finding["problem"] is None for finding in found["findings"])
    presets = [finding["found"] for finding in found["presets"]]
    assert len(presets) == 3
    assert all(text.startswith(("fits: ", "does not fit: ")) for text in presets)


def test_other_models_come_with_the_command_that_brings_them(here_found):
    models = {finding["name"]: finding for finding in here_found[1]["models"]}
    for name in ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b", "zai-org/CogVideoX1.5-5B"):
        assert models[f"model {name}"]["hint"] == f"hf download {name}"
        assert models[f"model {name}"]["exit_code"] == 5


def test_a_missing_model():
    missing = doctor._model("nobody/nothing", "main")
    assert missing.problem == "nobody/nothing is not in the local cache"
    assert missing.hint == "hf download nobody/nothing --revision main"
    found = doctor.Diagnosis("nobody/nothing", (doctor.Finding("disk", "room"), missing), ())
    assert (found.exit_code, found.problems) == (5, (missing,))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('libcudart.so.12: cannot open\\nshared object')", "libcudart.so.12"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named 'torch'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
def test_a_torch_that_is_broken_is_a_sentence(code, said, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    done = run("--model", "shapes", cwd=tmp_path, first_on_path=[str(tmp_path)])
    assert done.returncode == 2
    (problem,) = [line for line in done.stdout.splitlines() if "problem: torch" in line]
    assert said in problem
    assert "hint: pip install" in done.stdout


def test_an_ffmpeg_that_is_none(tmp_path):
    fake = tmp_path / "ffmpeg"
    for text, sentence in [
        ("#!/bin/sh\necho hello", "is no ffmpeg"),
        ("#!/bin/sh\necho ffmpeg version 1", "without libx264"),
    ]:
        fake.write_text(text)
        fake.chmod(0o755)
        finding = doctor_of_ffmpeg(fake)
        assert sentence in finding.problem
        assert finding.exit_code == 2
    finding = doctor_of_ffmpeg(tmp_path / "none")
    assert finding.exit_code == 2


def doctor_of_ffmpeg(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        return doctor._ffmpeg()


def test_devices_that_are_asked_for():
    cuda, cpu = Device("cuda:0", "a card", 10**10, 10**9), Device("cpu", "2 threads", 10**10, 1)
    machine = Machine((), (cuda, cpu), ("torch",), "12.8")
    assert doctor.device_for(machine, "auto") == cuda
    assert doctor.device_for(machine, "cuda") == cuda
    assert doctor.device_for(machine, "cpu") == cpu
    assert doctor.device_for(machine, "cuda:1") is None
    *shown, last = doctor._devices(machine, "cuda:1")
    assert shown[0].found == "a card, 1.0 GB of 10.0 GB free"
    assert last.name == "attention"
    (missing,) = [finding for finding in shown if finding.problem]
    assert missing.problem == "the device cuda:1 is not there: torch sees cuda:0, cpu"
    assert missing.exit_code == 2


def test_what_fits_into_a_device():
    needs = {need.preset: need for need in fits.needs_of_presets()}
    assert sorted(needs) == ["cogvideox-1.5-5b", "cogvideox-2b", "cogvideox-5b"]
    # 11.1 GB of weights; of 17,776 tokens of 3072 in bf16, 12 tensors of the row that runs and 2 of
    # each of 3 rows. Block by block there are two of 42 at once.
    need = needs["cogvideox-5b"]
    assert need.memory_bytes == pytest.approx(11.14e9 + (12 + 6) * 17776 * 3072 * 2, rel=1e-3)
    assert need.offloaded_bytes == pytest.approx(0.53e9 + (12 + 6) * 17776 * 3072 * 2, rel=1e-3)
    large = Device("cuda:0", "a card", 80 * 10**9, 40 * 10**9)
    middle = Device("cuda:0", "a card", 80 * 10**9, 12 * 10**9)
    small = Device("cuda:0", "a card", 80 * 10**9, 2 * 10**9)
    fitting = doctor._fits(need, large)
    assert fitting.problem is None
    assert fitting.found == "fits: about 13.1 GB for 49 frames of 720x480"
    offloaded = doctor._fits(need, middle)
    assert offloaded.problem is None
    assert offloaded.found.startswith("fits block by block (--offload group): about 2.5 GB")
    full = doctor._fits(need, small)
    assert full.exit_code == 6
    assert full.found.startswith("does not fit")
    assert "cuda:0 has 2.0 GB free" in full.problem
    # Blocks come one by one on a CUDA device alone.
    without = doctor._fits(need, Device("cpu", "a processor", 16 * 10**9, 12 * 10**9))
    assert without.exit_code == 6
    assert "takes about 13.1 GB" in without.problem


@pytest.mark.parametrize("model", sorted(fits.PUBLISHED))
def test_published_models_are_as_large_as_their_classes(model):
    published = fits.PUBLISHED[model]
    sizes = {field.name: getattr(published.sizes, field.name) for field in fields(published.sizes)}
    if sizes["patch_size_t"] == 1:
        sizes["patch_size_t"] = None
    frames, height, width = published.latent_shape
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel(
            **sizes,
            sample_height=height,
            sample_width=width,
            use_rotary_positional_embeddings=model != "zai-org/CogVideoX-2b",
            patch_bias=sizes["patch_size_t"] is None,
        )
    assert sum(p.numel() for p in transformer.parameters()) == published.parameters
    assert frames % (sizes["patch_size_t"] or 1) == 0


def test_a_full_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    assert doctor._disk(tmp_path / "not" / "yet" / "there").problem is None
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    finding = doctor._disk(tmp_path)
    assert finding.exit_code == 7
    assert "expected 1.0 GB or more" in finding.problem


def test_an_incomplete_model_folder(tmp_path):
    shutil.copytree(EMBEDDED["shapes"], tmp_path / "model")
    (tmp_path / "model" / "vae" / "config.json").unlink()
    finding = doctor._model(str(tmp_path / "model"), None)
    assert (finding.exit_code, finding.hint) == (5, "copy the folder again")
    assert "vae/config.json is missing" in finding.problem
