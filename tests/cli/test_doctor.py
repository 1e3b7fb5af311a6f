"""`cogedit doctor`: on this machine, and on machines where something is missing or broken."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from huggingface_hub import constants
from typer.testing import CliRunner

from cogedit.cli import app
from cogedit.errors import DeviceMemoryError
from cogedit.models.checkpoint import EMBEDDED
from cogedit.tools import doctor
from cogedit.tools.doctor import LIBRARIES, Device
from cogedit.tools.memory_table import PUBLISHED, memory_of_presets

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
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def here_found(tmp_path_factory):
    """What the command says of this machine with the embedded model, and an empty model cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("doctor"))
        patch.setattr(constants, "HF_HUB_CACHE", "cache")
        for name in [name for name in os.environ if name.startswith("COGEDIT_")]:
            patch.delenv(name)
        done = CliRunner().invoke(app, ["doctor", "--json", "--model", "shapes"])
    return done.exit_code, json.loads(done.stdout)


def test_a_machine_that_can_edit(here_found):
    code, found = here_found
    assert (code, found["exit_code"], found["can_edit"]) == (0, 0, True)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert set(LIBRARIES) < set(by_name)
    assert {"python", "cpu", "ffmpeg", "decord", "disk", "cache"} < set(by_name)
    assert by_name["torch"]["found"].startswith("2.")
    assert " GB free" in by_name["cpu"]["found"]
    assert all(finding["problem"] is None for finding in found["findings"])
    assert len(found["presets"]) == 5


def test_other_models_come_with_the_command_that_brings_them(here_found):
    models = {finding["name"]: finding for finding in here_found[1]["models"]}
    for name in ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b", "zai-org/CogVideoX1.5-5B"):
        assert models[f"model {name}"]["hint"].endswith(f"hf download {name}")
        assert models[f"model {name}"]["exit_code"] == 5


def test_a_missing_model():
    missing = doctor.check_model("nobody/nothing", "main")
    assert "nobody/nothing" in missing.problem
    assert missing.hint.endswith("hf download nobody/nothing --revision main")
    found = doctor.Diagnosis("nobody/nothing", (doctor.Finding("disk", "room"), missing), ())
    assert (found.exit_code, found.problems) == (5, (missing,))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('libcudart.so.12: cannot open\\nshared object')", "libcudart.so.12"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named 'torch'"),
    ],
)
def test_a_torch_that_is_broken_is_a_sentence(code, said, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    done = run("--model", "shapes", cwd=tmp_path, first_on_path=[str(tmp_path)])
    assert done.returncode == 2
    (problem,) = [line for line in done.stdout.splitlines() if "problem: torch" in line]
    assert said in problem
    assert "pip install" in done.stdout


def test_an_ffmpeg_that_is_none(tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    assert doctor.check_ffmpeg().exit_code == 2  # there is no such file
    for text in ("#!/bin/sh\necho hello", "#!/bin/sh\necho ffmpeg version 1"):
        fake.write_text(text)
        fake.chmod(0o755)
        finding = doctor.check_ffmpeg()
        assert str(fake) in finding.problem
        assert finding.exit_code == 2


def test_the_requested_device():
    cuda, cpu = Device("cuda:0", "a card", 10**10, 10**9), Device("cpu", "2 threads", 10**10, 1)
    devices = [cuda, cpu]
    assert doctor.device_for(devices, "auto") == cuda
    assert doctor.device_for(devices, "cuda") == cuda
    assert doctor.device_for(devices, "cpu") == cpu
    assert doctor.device_for(devices, "cuda:1") is None
    first, *_ = findings = list(doctor.check_devices(devices, "cuda:1"))
    assert first.found == "a card, 1.0 GB of 10.0 GB free"
    (missing,) = [finding for finding in findings if finding.problem]
    assert all(name in missing.problem for name in ("cuda:1", "cuda:0", "cpu"))
    assert missing.exit_code == 2
    assert not [finding for finding in doctor.check_devices(devices, "cuda") if finding.problem]


@pytest.mark.parametrize(
    ("device", "capability", "said"),
    [
        ("cpu", None, "CPU"),
        ("cuda:0", (9, 0), "cuDNN"),
        ("cuda:0", (8, 6), "FlashAttention"),
        ("cuda:0", (7, 5), "memory-efficient"),
        ("mps", None, "float32"),
    ],
)
def test_what_a_device_attends_with(device, capability, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    findings = {finding.name: finding for finding in doctor.describe_computing(device, "bf16")}
    assert ("VAE memory" in findings) == device.startswith("cuda")
    assert findings["dtype"].found == "bf16"
    assert said in findings["attention"].found
    assert not any(finding.problem for finding in findings.values())
    lacks = findings.get("not on mps")
    assert (lacks is not None) == (device == "mps")
    if lacks is not None:
        assert all(flag in lacks.found for flag in ("--weights fp8", "--offload", "--compile"))


def test_what_fits_into_a_device():
    needs = {need.preset: need for need in memory_of_presets()}
    names = ("1.5-5b", "1.5-5b-i2v", "2b", "5b", "5b-i2v")
    assert sorted(needs) == [f"cogvideox-{name}" for name in names]
    # 11.1 GB of weights; of 17,776 tokens of 3072 in bf16, 26 tensors of the row that runs and 2 of
    # each of 3 rows. Block by block there are two of 42 at once.
    need = needs["cogvideox-5b"]
    assert need.resident_bytes == pytest.approx(11.14e9 + (26 + 6) * 17776 * 3072 * 2, rel=1e-3)
    assert need.offloaded_bytes == pytest.approx(0.53e9 + (26 + 6) * 17776 * 3072 * 2, rel=1e-3)
    large = Device("cuda:0", "a card", 80 * 10**9, 40 * 10**9)
    middle = Device("cuda:0", "a card", 80 * 10**9, 12 * 10**9)
    small = Device("cuda:0", "a card", 80 * 10**9, 2 * 10**9)
    fitting = doctor.fit(need, large)
    assert fitting.problem is None
    assert "14.6 GB for 49 frames of 720x480" in fitting.found
    offloaded = doctor.fit(need, middle)
    assert offloaded.problem is None
    assert "--offload group" in offloaded.found
    assert "4.0 GB" in offloaded.found
    full = doctor.fit(need, small)
    assert full.exit_code == 6
    assert "2.0 GB free" in full.problem
    # Blocks come one by one on a CUDA device alone.
    without = doctor.fit(need, Device("cpu", "a processor", 16 * 10**9, 12 * 10**9))
    assert without.exit_code == 6
    assert "14.6 GB" in without.problem


@pytest.mark.parametrize(
    ("name", "gigabytes", "encode", "decode"),
    [
        ("cuda:0", 8, "frame by frame", "in tiles"),
        ("cuda:0", 12, "at once", "frame by frame"),
        ("cuda:0", 16, "at once", "frame by frame"),
        ("cuda:0", 24, "at once", "at once"),
        ("cpu", 64, "at once", "at once"),
    ],
)
def test_how_the_vae_runs_on_a_device(name, gigabytes, encode, decode):
    [need] = [need for need in memory_of_presets() if need.preset == "cogvideox-5b"]
    device = Device(name, "a device", 10**11, gigabytes * 10**9)
    found = doctor.fit(need, device)
    assert found.problem is None
    assert re.search(rf"encode {encode} \(.* GB\), decode {decode} \(.* GB\)", found.found)
    # A CUDA device is allowed more than is counted.
    shown = [float(size) for size in re.findall(r"\(([\d.]+) GB\)", found.found)]
    assert (shown[0] > 7.1) == (name == "cuda:0" and encode == "at once")


def test_a_vae_that_does_not_fit_is_a_problem_with_what_helps():
    [need] = [need for need in memory_of_presets() if need.preset == "cogvideox-1.5-5b"]
    found = doctor.fit(need, Device("cuda:0", "a card", 12 * 10**9, 12 * 10**9))
    assert found.exit_code == 6
    assert "--vae-tiling" in found.hint
    for gigabytes in (1, 3):  # neither the transformer fits, nor the VAE in tiles
        found = doctor.fit(need, Device("cuda:0", "a card", 10**9, gigabytes * 10**9))
        assert found.hint.index("--max-num-frames") < found.hint.index("last resort")
        assert "most models were not trained" in found.hint


def test_a_vae_that_does_not_fit_in_tiles_either_says_what_else():
    [need] = [need for need in memory_of_presets() if need.preset == "cogvideox-1.5-5b"]
    with pytest.raises(DeviceMemoryError) as caught:
        need.plan_vae("encode", 10**9, "cuda")
    order = ["--vae-tiling", "--max-num-frames", "last resort", "--width"]
    assert order == sorted(order, key=caught.value.hint.index)


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_published_models_are_as_large_as_their_classes(model):
    published = PUBLISHED[model]
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
            use_learned_positional_embeddings=model == "zai-org/CogVideoX-5b-I2V",
            ofs_embed_dim=512 if model == "zai-org/CogVideoX1.5-5B-I2V" else None,
            patch_bias=sizes["patch_size_t"] is None,
        )
    weights = transformer.state_dict().values()
    assert sum(weight.numel() for weight in weights) == published.num_parameters
    assert frames % (sizes["patch_size_t"] or 1) == 0


def test_a_full_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    assert doctor.check_disk(tmp_path / "not" / "yet" / "there").problem is None
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10**6))
    finding = doctor.check_disk(tmp_path)
    assert finding.exit_code == 7
    assert "1.0 GB" in finding.problem


def test_an_incomplete_model_folder(tmp_path):
    shutil.copytree(EMBEDDED["shapes"], tmp_path / "model")
    (tmp_path / "model" / "vae" / "config.json").unlink()
    finding = doctor.check_model(str(tmp_path / "model"), None)
    assert finding.exit_code == 5
    assert "vae/config.json" in finding.problem
