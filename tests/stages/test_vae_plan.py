"""How the VAE runs follows from the memory that is free, is said, and is refused in time."""

import json
import re
import shlex
from dataclasses import replace
from functools import partial

import pytest
import torch
from accounting import LiveBytes
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as parts
from pipelines import GOLDEN_PIPELINE, settings_of
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import read_record
from cogedit.cli import app
from cogedit.cli.screen import Screen
from cogedit.cli.tables import show_estimate
from cogedit.errors import DeviceMemoryError
from cogedit.models import placement
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.cost import part_bytes
from cogedit.models.vae_cost import ON_CUDA, WAYS, VAESizes, vae_bytes
from cogedit.stages.recipe import read_recipe
from cogedit.tools.batch import batch
from cogedit.tools.batch_plan import BatchEdit

SHAPE = (3, 8, 12)
SIZE = {"load.width": 96, "load.height": 64, "load.max_num_frames": 9, "load.frame_rate": "spread"}
MODEL = ["--model", str(GOLDEN_PIPELINE), "--dtype", "fp32", "--device", "cpu"]
WHOLE, BY_FRAME, TILES, TILES_BY_FRAME = WAYS


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("c") / "clip.mp4", width=96, height=64, num_frames=9)


def settings_for(video, folder, **flags):
    return settings_of(video, model=str(GOLDEN_PIPELINE), workspace=folder, **SIZE, **flags)


def needs(direction, way):
    """Free memory in which a way of the tiny VAE just fits, in float32."""
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    sizes = VAESizes.of(checkpoint.vae_config)
    beside = vae_bytes(sizes, SHAPE, direction, way, item_size=4, device="cpu")
    weights = part_bytes(checkpoint, "vae", "fp32")
    return int((weights + beside) / (1 - placement.RESERVE)) + 2


class Told:
    def __init__(self):
        self.said = []
        self.run = cogedit.Run(notify=self.said.append)


def only(monkeypatch, num_bytes):
    """Have the device hold this many bytes, of which those of this process's models are taken."""
    monkeypatch.setattr(placement, "free_memory", lambda device: num_bytes)


@pytest.fixture(scope="module")
def latents(video):
    return cogedit.encode(video, settings_for(video, video.parent / "w")).path


@pytest.fixture(scope="module")
def normal(video, latents):
    """The recipe of a video that was decoded with room for everything."""
    settings = settings_for(video, video.parent / "w")
    return read_recipe(cogedit.export(latents, settings, output=video.with_name("a.mkv")).path)


@pytest.mark.parametrize("way", WAYS)
def test_the_fastest_way_that_fits_is_taken_and_said(
    video, latents, normal, tmp_path, monkeypatch, way
):
    settings, told = settings_for(video, tmp_path / "w"), Told()
    only(monkeypatch, needs("decode", way))
    shown = cogedit.export(latents, settings, output=tmp_path / "tight.mkv", run=told.run)
    assert read_recipe(shown.path).options["vae_tiling"] == way.in_tiles
    said = [text for text in told.said if text.startswith("decoding")]
    assert len(said) == (way != WHOLE)
    assert all(str(way) in text for text in said)
    if not way.in_tiles:
        assert read_recipe(shown.path) == normal
    # Whichever fitted then is the video that is wanted now.
    monkeypatch.undo()
    assert cogedit.export(latents, settings, output=tmp_path / "tight.mkv").reused


@pytest.mark.parametrize("way", WAYS)
def test_a_dry_run_says_how_the_vae_would_run(video, tmp_path, monkeypatch, way):
    only(monkeypatch, needs("decode", way))
    args = ["edit", video, "-p", "a cat", *flags_of(tmp_path / "w"), "--dry-run"]
    shown = invoke(*args)
    assert shown.exit_code == 0, shown.stderr
    [row] = [line for line in shown.stdout.splitlines() if line.startswith("VAE")]
    assert f"decode {way}, " in row
    found = json.loads(invoke(*args, "--json").stdout)["decode"]
    assert (found["way"], found["problem"]) == (str(way), None)
    assert found["num_bytes"] <= needs("decode", way)


def test_a_dry_run_says_that_the_vae_does_not_fit(video, tmp_path, monkeypatch, capsys):
    settings = settings_for(video, tmp_path / "w", decode_tiling=False)
    only(monkeypatch, needs("decode", TILES))
    found = cogedit.estimate(video, settings, prompts=["a cat"])
    assert found.decode.problem.startswith("decoding this clip takes about ")
    show_estimate(Screen(), "edit", found)
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("VAE")]
    assert found.decode.problem in row
    assert ON_CUDA not in row
    show_estimate(Screen(), "edit", replace(found, device="cuda"))
    assert ON_CUDA in capsys.readouterr().out


def test_what_is_asked_for_is_done(video, latents, tmp_path, monkeypatch):
    for tiling in (True, False):
        settings = settings_for(video, tmp_path / "w", decode_tiling=tiling)
        shown = cogedit.export(latents, settings, output=tmp_path / f"{tiling}.mkv")
        assert read_recipe(shown.path).options["vae_tiling"] is tiling
    only(monkeypatch, needs("decode", TILES))
    with pytest.raises(DeviceMemoryError) as caught:
        cogedit.export(latents, settings, output=tmp_path / "more.mkv")
    assert "--decode-tiling" in caught.value.hint


def test_encoding_in_tiles_is_asked_for_and_never_chosen(video, tmp_path, monkeypatch):
    settings, told = settings_for(video, tmp_path / "w"), Told()
    only(monkeypatch, needs("encode", BY_FRAME))
    latents = cogedit.encode(video, settings, run=told.run)
    assert sum("frame by frame" in text for text in told.said) == 1
    assert latents.record.settings.vae_tiling is False
    only(monkeypatch, needs("encode", TILES))
    with pytest.raises(DeviceMemoryError) as caught:
        cogedit.encode(video, settings, run=cogedit.Run(force=True))
    assert "--vae-tiling" in caught.value.hint
    tiled = replace(settings, encode=replace(settings.encode, vae_tiling=True))
    assert cogedit.encode(video, tiled).record.settings.vae_tiling is True


@pytest.mark.parametrize("call", [cogedit.edit, partial(cogedit.sweep, vary=["seed=1"])])
def test_an_inversion_that_could_not_be_decoded_is_not_begun(call, video, tmp_path, monkeypatch):
    work = tmp_path / "w"
    settings = settings_for(video, work, decode_tiling=False)
    cogedit.encode(video, settings)
    only(monkeypatch, needs("decode", TILES))
    with pytest.raises(DeviceMemoryError) as caught:
        call(video, "a cat", settings)
    assert caught.value.exit_code == 6
    assert not list(work.glob("trajectory-*"))


def test_a_batch_begins_no_inversion_that_could_not_be_decoded(video, tmp_path, monkeypatch):
    work = tmp_path / "w"
    settings = settings_for(video, work, decode_tiling=False)
    cogedit.encode(video, settings)
    only(monkeypatch, needs("decode", TILES))
    edit = BatchEdit("row 1 of e.csv", video, "a cat", None, None, settings)
    [done] = batch([edit], results=tmp_path / "results.jsonl")
    assert done.exit_code == DeviceMemoryError.exit_code
    assert not list(work.glob("trajectory-*"))


def test_an_edit_that_exists_is_decoded_only_where_its_video_is_missing(
    video, tmp_path, monkeypatch
):
    settings = settings_for(video, tmp_path / "w", decode_tiling=False)
    made = cogedit.edit(video, "a cat", settings)
    only(monkeypatch, 0)
    assert [one.path for one in cogedit.edit(video, "a cat", settings)] == [made[0].path]


def limited(monkeypatch, part, limit):
    """Give a part of the VAE a memory of this many bytes; with more, it raises torch's error."""
    forward = part.forward

    def on_a_small_device(self, *args, **kwargs):
        with LiveBytes(limit):
            return forward(self, *args, **kwargs)

    monkeypatch.setattr(part, "forward", on_a_small_device)


def flags_of(work):
    flags = [f"--{key.partition('.')[2].replace('_', '-')}={value}" for key, value in SIZE.items()]
    return [*flags, "--workspace", str(work), "--inversion-steps", "2", *MODEL]


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_after_a_failed_decode_the_hint_is_a_command_that_works(video, tmp_path, monkeypatch):
    work = tmp_path / "w"
    limited(monkeypatch, parts.CogVideoXDecoder3D, needs("decode", TILES))
    failed = invoke("edit", video, "-p", "a cat", *flags_of(work))
    assert failed.exit_code == 6
    [edit] = work.glob("edit-*.safetensors")
    assert read_record(edit, "edit").settings.prompt == "a cat"
    [command] = re.findall(r"cogedit export .*", failed.stderr)
    words = shlex.split(command)
    assert words[2:4] == [str(edit), "--decode-tiling"]
    shown = invoke(*words[1:])
    assert shown.exit_code == 0, shown.stderr
    [video] = work.glob("edit-*.mp4")
    assert read_recipe(video).options["vae_tiling"] is True


def test_after_a_failed_encode_the_hint_is_a_flag_that_works(video, tmp_path, monkeypatch):
    limited(monkeypatch, parts.CogVideoXEncoder3D, needs("encode", TILES))
    args = ["edit", video, "-p", "a cat", *flags_of(tmp_path / "w")]
    failed = invoke(*args)
    assert failed.exit_code == 6
    assert "--vae-tiling" in failed.stderr
    assert "--offload" not in failed.stderr
    shown = invoke(*args, "--vae-tiling")
    assert shown.exit_code == 0, shown.stderr


def fills_up(*args, **kwargs):
    torch.empty(2**62, dtype=torch.uint8)  # what torch itself raises


@pytest.mark.parametrize(
    ("owner", "name", "helps"),
    [
        ("cogedit.models.denoiser.Denoiser", "velocity", "--offload group"),
        ("transformers.T5EncoderModel", "forward", "--offload group"),
    ],
)
def test_other_stages_name_what_helps_them(video, tmp_path, monkeypatch, owner, name, helps):
    monkeypatch.setattr(f"{owner}.{name}", fills_up)
    args = ["edit", video, "-p", tmp_path.name, *flags_of(tmp_path / "w")]
    failed = invoke(*args, "--cache", tmp_path / "cache")
    assert failed.exit_code == 6
    assert helps in failed.stderr
    assert "tiling" not in failed.stderr
