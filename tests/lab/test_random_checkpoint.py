"""A checkpoint of random numbers is one in every other respect."""

import json

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from cogedit.lab import random_checkpoint
from cogedit.lab.published import MODELS
from cogedit.lab.random_checkpoint import make_checkpoint
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.geometry import Geometry
from cogedit.models.loading import load_text_encoder, load_transformer, load_vae
from cogedit.models.mistaken import check_kind
from cogedit.models.prompts import embed_prompts
from cogedit.tools.memory_table import PUBLISHED

CPU = torch.device("cpu")


def test_it_is_found_and_computes(tmp_path):
    model = MODELS["tiny"].with_layers(3)
    checkpoint = find_checkpoint(str(make_checkpoint(model, tmp_path)))
    assert checkpoint.id == "CogVideoX-tiny-3-layers"
    assert checkpoint.geometry.num_layers == 3
    tokenizer, encoder = load_text_encoder(checkpoint, device=CPU, dtype=torch.float32)
    texts = embed_prompts(
        ["a fox in the snow", ""], tokenizer=tokenizer, text_encoder=encoder, max_text_seq_length=32
    )
    assert not any(texts.truncated)
    assert all(bool(embeds.isfinite().all()) for embeds in texts.embeds)
    assert not torch.equal(*texts.embeds)
    vae = load_vae(checkpoint, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        decoded = vae.decode(torch.randn(1, 16, 2, 8, 12)).sample
    assert bool(decoded.isfinite().all())
    transformer = load_transformer(checkpoint, device=CPU, dtype=torch.float32)
    weights = [p.flatten()[:16] for p in transformer.parameters() if p.dim() == 2]
    assert len({tuple(weight.tolist()) for weight in weights}) == len(weights)


@pytest.mark.parametrize("name", ["5b-i2v", "1.5-i2v", "tiny-i2v"])
def test_models_that_take_a_first_frame(name):
    model = MODELS[name]
    check_kind(name, model.files()["model_index.json"])
    geometry = Geometry.of(model.vae, model.transformer)
    assert geometry.takes_first_frame
    assert (geometry.width, geometry.height, geometry.num_frames) == model.size
    assert geometry.has_fixed_size == (name != "1.5-i2v")


def test_a_second_call_takes_what_is_there(tmp_path):
    folder = make_checkpoint(MODELS["tiny"], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (tmp_path / "CogVideoX-tiny.unfinished").mkdir()  # of a run that was stopped
    assert make_checkpoint(MODELS["tiny"], tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_large_components_lie_in_several_files(tmp_path, monkeypatch):
    whole = find_checkpoint(str(make_checkpoint(MODELS["tiny"], tmp_path)))
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 40_000)
    folder = make_checkpoint(MODELS["tiny"], tmp_path / "other")
    assert len(list(folder.glob("transformer/*.safetensors"))) == 3
    assert find_checkpoint(str(folder)).num_parameters == whole.num_parameters
    load_transformer(find_checkpoint(str(folder)), device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("2b", "zai-org/CogVideoX-2b"),
        ("5b", "zai-org/CogVideoX-5b"),
        ("1.5", "zai-org/CogVideoX1.5-5B"),
        ("5b-i2v", "zai-org/CogVideoX-5b-I2V"),
        ("1.5-i2v", "zai-org/CogVideoX1.5-5B-I2V"),
    ],
)
def test_full_size_is_as_published(model, published):
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(dict(MODELS[model].transformer))
    count = sum(tensor.numel() for tensor in transformer.state_dict().values())
    assert count == PUBLISHED[published].num_parameters


@pytest.mark.parametrize(
    ("model", "file", "num_bytes"),
    [
        ("2b", "model_index.json", 411),
        ("5b", "scheduler/scheduler_config.json", 482),
        ("1.5", "vae/config.json", 871),
        ("5b-i2v", "model_index.json", 423),
        ("5b-i2v", "vae/config.json", 839),
        ("1.5-i2v", "model_index.json", 423),
        ("1.5-i2v", "transformer/config.json", 873),
    ],
)
def test_configurations_are_as_long_as_the_published_files(model, file, num_bytes):
    """Sizes that the Hub's pages list; the versions of diffusers in them are of one length."""
    text = json.dumps(MODELS[model].files()[file], indent=2, sort_keys=True) + "\n"
    assert len(text) == num_bytes
