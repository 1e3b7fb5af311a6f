"""What people have in place of a pipeline is named, and the hint is what mends it."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hub import COMMIT, fill_cache
from huggingface_hub import constants
from pipelines import GOLDEN_PIPELINE
from safetensors.torch import load_file, save_file

from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.hub import fetch_command

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
WEIGHTS = (TRANSFORMER, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
NEW, FORMER = "zai-org/CogVideoX-2b", "THUDM/CogVideoX-2b"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def named_by(error):
    """The settings of a hint that are the options of a command."""
    words = shlex.split(error.hint.partition("--")[1] + error.hint.partition("--")[2].rstrip("?"))
    options = dict(zip(words[::2], words[1::2], strict=True))
    return options.get("--model"), options.get("--revision")


# --- another kind ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CogVideoXFunControlPipeline", "control"),
        ("CogVideoX_Fun_Pipeline_Inpaint", "inpainting"),
    ],
)
def test_a_pipeline_of_another_kind_is_refused_by_its_kind(folder, refused, name, kind):
    edit_json(folder / "model_index.json", _class_name=name)
    error = refused(find_checkpoint, str(folder))
    assert kind in error.message
    assert name in error.message


@pytest.mark.parametrize(("channels", "kind"), [(32, "I2V"), (33, "Fun"), (48, "control")])
def test_a_transformer_of_other_channels_is_refused_by_its_kind(folder, refused, channels, kind):
    edit_json(folder / "transformer/config.json", in_channels=channels)
    error = refused(find_checkpoint, str(folder))
    assert kind in error.message
    assert f" {channels} channels" in error.message
    assert "expected 16" in error.message


def test_an_image_to_video_pipeline_takes_twice_the_channels(folder, refused):
    edit_json(folder / "model_index.json", _class_name="CogVideoXImageToVideoPipeline")
    error = refused(find_checkpoint, str(folder))
    assert "text-to-video" in error.message
    assert "16 channels" in error.message
    assert "expected 32" in error.message
    assert named_by(error) == ("zai-org/CogVideoX-5b", None)


def test_a_video_to_video_pipeline_has_the_same_parts(folder):
    before = find_checkpoint(str(folder)).digest
    edit_json(folder / "model_index.json", _class_name="CogVideoXVideoToVideoPipeline")
    assert find_checkpoint(str(folder)).digest == before


# --- other weights --------------------------------------------------------------------------------


def test_a_variant_is_renamed_by_the_hint(folder, refused):
    before = find_checkpoint(str(folder)).digest
    for file in WEIGHTS:
        (folder / file).rename((folder / file).with_suffix(".fp16.safetensors"))
    error = refused(find_checkpoint, str(folder))
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in error.message
    subprocess.run(error.hint, shell=True, check=True)
    assert find_checkpoint(str(folder)).digest == before


def test_a_variant_in_shards_is_renamed_by_the_hint(folder, refused):
    weights = load_file(folder / TRANSFORMER)
    (folder / TRANSFORMER).unlink()
    stem, names = folder / "transformer" / "diffusion_pytorch_model", sorted(weights)
    weight_map = {}
    for shard in range(2):
        file = stem.with_name(f"{stem.name}.fp16-{shard + 1:05}-of-00002.safetensors")
        weight_map |= dict.fromkeys(names[shard::2], file.name)
        save_file({name: weights[name] for name in names[shard::2]}, file)
    index = stem.with_name(f"{stem.name}.safetensors.index.fp16.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    error = refused(find_checkpoint, str(folder))
    assert index.name in error.message
    subprocess.run(error.hint, shell=True, check=True)
    assert find_checkpoint(str(folder)).num_parameters == (
        find_checkpoint(str(GOLDEN_PIPELINE)).num_parameters
    )


def test_pickled_weights_are_saved_again_by_the_hint(folder, refused):
    for file in WEIGHTS:
        name = file.replace("text_encoder/", "text_encoder/pytorch_")
        torch.save(load_file(folder / file), (folder / name).with_suffix(".bin"))
        (folder / file).unlink()
    error = refused(find_checkpoint, str(folder))
    assert "transformer/diffusion_pytorch_model.bin" in error.message
    trust, _, command = error.hint.partition(": ")
    assert trust == "if you trust whoever made them"
    command, _, option = command.partition(", then --model ")
    exec(shlex.split(command)[2], {})
    found = find_checkpoint(*shlex.split(option))
    assert (
        found.num_parameters["transformer"]
        == (find_checkpoint(str(GOLDEN_PIPELINE)).num_parameters["transformer"])
    )


def test_an_adapter_that_transformers_would_add_in_silence(folder, refused):
    (folder / "text_encoder" / "adapter_config.json").write_text("{}")
    error = refused(find_checkpoint, str(folder))
    assert "text_encoder/adapter_config.json" in error.message
    assert "move" in error.hint


def test_hints_are_pasted_as_one_word(folder, tmp_path, refused):
    (tmp_path / "hub" / "models--cogvideox--x;touch y").mkdir(parents=True)
    assert refused(find_checkpoint, str(tmp_path / "hub")).hint == "--model 'cogvideox/x;touch y'"
    command = fetch_command("owner/model", "0; curl x|sh #")
    assert shlex.split(command)[-3:] == ["owner/model", "--revision", "0; curl x|sh #"]


# --- other places ---------------------------------------------------------------------------------


def test_one_part_and_one_file_of_a_pipeline_lead_to_it(folder, refused):
    for place in ("transformer", "vae", TRANSFORMER, "model_index.json"):
        error = refused(find_checkpoint, str(folder / place))
        assert named_by(error) == (str(folder), None)


def test_parts_alone_are_named(folder, tmp_path, refused):
    alone = shutil.copytree(folder / "transformer", tmp_path / "alone")
    error = refused(find_checkpoint, str(alone))
    assert "transformer" in error.message
    assert "hf download" in error.hint
    file = shutil.copy(folder / TRANSFORMER, tmp_path / "single.safetensors")
    assert f"--transformer {file}" in refused(find_checkpoint, str(file)).hint


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_lora_weights.safetensors", "LoRA"),
        ("cogvideox-5b-q4.gguf", "GGUF"),
        ("1000/mp_rank_00_model_states.pt", "SAT"),
        ("transformer/1000/mp_rank_00_model_states.pt", "SAT"),
        (None, "empty"),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path, refused, file, says):
    folder = tmp_path / "other"
    folder.mkdir()
    if file is not None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    error = refused(find_checkpoint, str(folder))
    assert says in error.message
    assert error.hint


# --- names of the Hub -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("half", "whole"),
    [
        ("CogVideoX-5b", "zai-org/CogVideoX-5b"),
        ("cogvideox-2b", "zai-org/CogVideoX-2b"),
        ("CogVideoX1.5-5b", "zai-org/CogVideoX1.5-5B"),
        ("my-finetune", "owner/my-finetune"),
        ("shape", "shapes"),
    ],
)
def test_half_a_name_is_completed(cache, refused, half, whole):
    fill_cache(cache, "owner/my-finetune", GOLDEN_PIPELINE)
    assert named_by(refused(find_checkpoint, half)) == (whole, None)


@pytest.mark.parametrize(("named", "cached"), [(NEW, FORMER), (FORMER, NEW)])
def test_the_same_model_of_the_owners_other_name_is_used(cache, named, cached):
    fill_cache(cache, cached, GOLDEN_PIPELINE)
    found = find_checkpoint(named, download=False)
    assert (found.id, found.revision) == (cached, COMMIT)
    assert find_checkpoint(named, COMMIT).id == cached


def test_a_model_that_is_there_is_not_replaced_by_the_owners_other_name(cache):
    for name in (NEW, FORMER):
        fill_cache(cache, name, GOLDEN_PIPELINE)
        assert find_checkpoint(name).id == name


def test_a_folder_above_its_snapshots_leads_to_the_snapshot(cache, refused):
    fill_cache(cache, NEW, GOLDEN_PIPELINE)
    fill_cache(cache, NEW, GOLDEN_PIPELINE, commit="e" * 40, refs=())
    repository = cache / "models--zai-org--CogVideoX-2b"
    error = refused(find_checkpoint, str(repository))
    model, _ = named_by(error)
    found = find_checkpoint(model)
    assert (found.id, found.revision) == (NEW, COMMIT)
    assert named_by(refused(find_checkpoint, str(cache))) == (NEW, None)


def test_a_snapshot_outside_of_the_cache_is_a_folder(tmp_path):
    fill_cache(tmp_path / "elsewhere", NEW, GOLDEN_PIPELINE)
    snapshot = tmp_path / "elsewhere" / "models--zai-org--CogVideoX-2b" / "snapshots" / COMMIT
    assert find_checkpoint(str(snapshot)).revision is None


@pytest.mark.parametrize("revision", [None, COMMIT[:7]])
def test_a_commit_of_the_cache_is_named_whole(cache, refused, revision):
    fill_cache(cache, NEW, GOLDEN_PIPELINE, refs=())
    for download in (True, False):
        error = refused(find_checkpoint, NEW, revision, download=download)
        assert named_by(error) == (None, COMMIT)
    assert find_checkpoint(NEW, COMMIT).revision == COMMIT


def test_a_download_is_named_with_the_variable_that_forbids_it(refused):
    error = refused(find_checkpoint, NEW)
    assert "HF_HUB_OFFLINE" in error.message
    assert error.hint == f"HF_HUB_OFFLINE=0 hf download {NEW}"


# --- number formats -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "name"), [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")]
)
def test_the_number_format_of_most_weights_is_known(folder, stored, name):
    weights = {
        key: value.to(getattr(torch, stored))
        for key, value in load_file(folder / TRANSFORMER).items()
    }
    weights["proj_out.bias"] = weights["proj_out.bias"].float()
    save_file(weights, folder / TRANSFORMER)
    assert find_checkpoint(str(folder)).stored_dtype == name


def test_a_path_of_a_hint_may_be_pasted(tmp_path, refused):
    folder = Path(shutil.copytree(GOLDEN_PIPELINE, tmp_path / "it's a model"))
    assert named_by(refused(find_checkpoint, os.fspath(folder / "vae"))) == (str(folder), None)
