"""Which model is meant, whether it is whole, and whether two are the same."""

import json
import shutil

import pytest
import torch
from hub import COMMIT, fill_cache, serve
from huggingface_hub import constants
from pipelines import GOLDEN_PIPELINE
from safetensors.torch import load_file, save_file

from cogedit.models.checkpoint import EMBEDDED, find_checkpoint

MODEL = "owner/tiny"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
T5 = "text_encoder/model.safetensors"


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def split(folder, shards=3):
    """Turn the transformer's weights into shards with an index."""
    weights = load_file(folder / TRANSFORMER)
    (folder / TRANSFORMER).unlink()
    weight_map = {
        name: f"diffusion_pytorch_model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(sorted(weights))
    }
    for shard in set(weight_map.values()):
        part = {name: weights[name] for name in weights if weight_map[name] == shard}
        save_file(part, folder / "transformer" / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_a_folder_describes_itself(folder):
    checkpoint = find_checkpoint(str(folder))
    assert (checkpoint.id, checkpoint.folder, checkpoint.revision) == ("tiny", folder, None)
    assert checkpoint.geometry.num_frames == 9
    assert checkpoint.scheduler_config["prediction_type"] == "v_prediction"
    assert find_checkpoint(str(folder)) == checkpoint


def test_a_folder_is_named_by_its_name_and_not_by_the_way_to_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_checkpoint(".").id == "tiny"


def test_shards_make_a_model(folder):
    split(folder)
    assert find_checkpoint(str(folder)).id == "tiny"


# --- half a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        T5,
        "transformer/config.json",
        TRANSFORMER,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_missing_file_is_named(folder, refused, file):
    (folder / file).unlink()
    assert file in refused(find_checkpoint, str(folder)).message


@pytest.mark.parametrize("component", ["scheduler", "text_encoder", "tokenizer", "vae"])
def test_a_missing_component_is_named(folder, refused, component):
    shutil.rmtree(folder / component)
    assert f"{component}/" in refused(find_checkpoint, str(folder)).message


def test_a_missing_shard_is_named(folder, refused):
    shard = split(folder)["proj_out.bias"]
    (folder / "transformer" / shard).unlink()
    assert f"transformer/{shard}" in refused(find_checkpoint, str(folder)).message


def test_a_tokenizer_without_vocabulary_is_refused(folder, refused):
    # transformers would make up a vocabulary in which every word is the unknown token.
    (folder / "tokenizer" / "tokenizer.json").unlink()
    message = refused(find_checkpoint, str(folder)).message
    assert "tokenizer.json" in message
    assert "spiece.model" in message


def test_an_empty_vocabulary_is_none(folder, refused):
    (folder / "tokenizer" / "tokenizer.json").write_bytes(b"")
    assert "spiece.model" in refused(find_checkpoint, str(folder)).message


def test_pickled_weights_are_no_weights(folder, refused):
    (folder / TRANSFORMER).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    assert ".bin" in refused(find_checkpoint, str(folder)).message


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-100], "985532"),
        (lambda data: data + b"x", "985633"),
        (lambda data: data[:1000], "1000"),
        (lambda data: b"", "safetensors"),
        (lambda data: b"PK\x03\x04" + data, "safetensors"),
        (lambda data: data.replace(b'"F32"', b'"F99"', 1), "safetensors"),
        (lambda data: data.replace(b'"F32"', b'"F64"', 1), "safetensors"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS",
        ),
    ],
)
@pytest.mark.parametrize("file", [TRANSFORMER])
def test_damaged_weights_are_refused(folder, refused, file, damage, says):
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    message = refused(find_checkpoint, str(folder)).message
    assert file in message
    assert says in message


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json"])
@pytest.mark.parametrize("text", ["", '{"a": 1', "[]", "\udcff"])
def test_a_damaged_configuration_is_refused(folder, refused, file, text):
    (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    assert file in refused(find_checkpoint, str(folder)).message


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": "../../elsewhere.safetensors"}])
def test_an_index_that_names_no_files_is_refused(folder, refused, weight_map):
    split(folder)
    edit_json(folder / INDEX, weight_map=weight_map)
    assert INDEX in refused(find_checkpoint, str(folder)).message


def test_two_sets_of_weights_are_refused(folder, refused):
    # diffusers would read the shards and transformers the single file.
    whole = (folder / TRANSFORMER).read_bytes()
    split(folder)
    (folder / TRANSFORMER).write_bytes(whole)
    message = refused(find_checkpoint, str(folder)).message
    assert TRANSFORMER in message
    assert INDEX in message


# --- another model --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CogVideoXFunControlPipeline", "WanPipeline", None])
def test_another_pipeline_is_refused(folder, refused, name):
    edit_json(folder / "model_index.json", _class_name=name)
    message = refused(find_checkpoint, str(folder)).message
    assert str(name) in message
    assert "CogVideoXPipeline" in message


@pytest.mark.parametrize(
    ("component", "found"),
    [
        ("vae", ["diffusers", "AutoencoderKLWan"]),
        ("text_encoder", ["transformers", "UMT5EncoderModel"]),
        ("transformer", ["diffusers", "WanTransformer3DModel"]),
    ],
)
def test_another_component_is_refused(folder, refused, component, found):
    edit_json(folder / "model_index.json", **{component: found})
    error = refused(find_checkpoint, str(folder))
    assert component in error.message
    assert found[1] in error.message


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    ["no-such-model", "a/b/c", "../tiny", "owner/", "./tiny", "owner/a..b", "owner/-tiny"],
)
def test_what_is_no_name_is_refused(tmp_path, monkeypatch, refused, model):
    monkeypatch.chdir(tmp_path)
    error = refused(find_checkpoint, model)
    assert repr(model) in error.message
    assert "--model" in error.hint


def test_a_file_is_no_model(folder, refused):
    assert TRANSFORMER in refused(find_checkpoint, str(folder / TRANSFORMER)).message


def test_a_folder_has_no_revisions(folder, refused):
    assert "v2" in refused(find_checkpoint, str(folder), "v2").message


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_that_is_missing(name, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(EMBEDDED, name, tmp_path / "weights")
    assert "install" in refused(find_checkpoint, name).hint


# --- the digest -----------------------------------------------------------------------------------


def test_the_digest_is_of_the_content(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    (other / "README.md").write_text("words")
    (other / "samples").mkdir()
    (other / "samples" / "prompts.json").write_text("{}")
    assert find_checkpoint(str(other)).digest == find_checkpoint(str(folder)).digest


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("scheduler/scheduler_config.json", {"snr_shift_scale": 3.0}),
        ("vae/config.json", {"scaling_factor": 1.0}),
        ("transformer/config.json", {"use_rotary_positional_embeddings": False}),
        ("tokenizer/tokenizer_config.json", {"extra_ids": 3}),
    ],
)
def test_another_configuration_is_another_model(folder, file, value):
    before = find_checkpoint(str(folder)).digest
    edit_json(folder / file, **value)
    assert find_checkpoint(str(folder)).digest != before


@pytest.mark.parametrize("file", [TRANSFORMER, T5, "vae/diffusion_pytorch_model.safetensors"])
def test_a_change_of_any_one_tensor_is_another_model(folder, file):
    """As of an adapter merged into a single matrix of a single layer."""
    weights = load_file(folder / file)
    digests = {find_checkpoint(str(folder)).digest}
    names = sorted(weights)[::5]
    for name in names:
        changed = weights[name] + 0.001 * torch.ones_like(weights[name])
        save_file(weights | {name: changed}, folder / file, metadata={"format": "pt"})
        digests.add(find_checkpoint(str(folder)).digest)
    assert len(digests) == 1 + len(names)


def test_a_low_rank_change_rounded_to_bfloat16_is_seen(folder):
    generator = torch.Generator().manual_seed(0)
    name = "transformer_blocks.1.ff.net.2.weight"
    weights = {k: v.bfloat16() for k, v in load_file(folder / TRANSFORMER).items()}
    save_file(weights, folder / TRANSFORMER)
    before = find_checkpoint(str(folder)).digest
    rows, columns = weights[name].shape
    up = torch.randn(rows, 1, generator=generator)
    down = torch.randn(1, columns, generator=generator)
    weights[name] = (weights[name].float() + 1e-4 * up @ down).bfloat16()
    save_file(weights, folder / TRANSFORMER)
    assert find_checkpoint(str(folder)).digest != before


# --- the hub, from its cache ----------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_cached_model_has_its_resolved_commit(cache):
    fill_cache(cache, MODEL, GOLDEN_PIPELINE)
    checkpoint = find_checkpoint(MODEL)
    assert (checkpoint.id, checkpoint.revision) == (MODEL, COMMIT)
    assert checkpoint.digest == find_checkpoint(str(GOLDEN_PIPELINE)).digest
    assert find_checkpoint(MODEL, download=False) == checkpoint


def test_a_cached_revision_by_tag_and_by_commit(cache, folder):
    other = "f" * 40
    edit_json(folder / "scheduler" / "scheduler_config.json", snr_shift_scale=3.0)
    fill_cache(cache, MODEL, GOLDEN_PIPELINE)
    fill_cache(cache, MODEL, folder, commit=other, refs=["v2"])
    by_tag, by_commit = find_checkpoint(MODEL, "v2"), find_checkpoint(MODEL, other)
    assert by_tag == by_commit
    assert by_tag.revision == other
    assert by_tag.scheduler_config["snr_shift_scale"] == 3.0
    assert find_checkpoint(MODEL).revision == COMMIT
    assert find_checkpoint(MODEL, COMMIT).scheduler_config["snr_shift_scale"] == 1.0


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize(("revision", "flag"), [(None, ""), ("v2", " --revision v2")])
def test_a_model_that_is_not_cached_offline(cache, refused, download, revision, flag):
    error = refused(find_checkpoint, MODEL, revision, download=download)
    assert MODEL in error.message
    assert error.hint == f"HF_HUB_OFFLINE=0 hf download {MODEL}{flag}"


@pytest.mark.parametrize("file", ["vae/config.json", TRANSFORMER, "tokenizer/tokenizer.json"])
def test_a_model_that_is_cached_in_part_offline(cache, refused, file):
    fill_cache(cache, MODEL, GOLDEN_PIPELINE, leave_out=[file])
    for download in (True, False):
        error = refused(find_checkpoint, MODEL, download=download)
        assert MODEL in error.message
        assert error.hint == f"HF_HUB_OFFLINE=0 hf download {MODEL}"


def test_another_pipeline_in_the_cache_is_not_asked_for_again(cache, folder, refused):
    edit_json(folder / "model_index.json", _class_name="WanPipeline")
    fill_cache(cache, MODEL, folder)
    for download in (True, False):
        assert "is a WanPipeline" in refused(find_checkpoint, MODEL, download=download).message


# --- the hub, over the network --------------------------------------------------------------------


@pytest.fixture
def hub(cache, folder, monkeypatch):
    """A hub with the golden pipeline and files that cogedit has no use for."""
    (folder / "README.md").write_text("words")
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (folder / "samples").mkdir()
    (folder / "samples" / "clip.safetensors").write_bytes(b"big")
    errors = {
        "owner/gated": (403, "GatedRepo"),
        "owner/none": (401, "RepoNotFound"),
        "owner/down": (500, "InternalError"),
    }
    with serve(MODEL, folder, **errors) as (hub, address):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield hub


def test_a_model_is_downloaded_once(hub, refused):
    checkpoint = find_checkpoint(MODEL)
    assert checkpoint.revision == COMMIT
    assert checkpoint.digest == find_checkpoint(str(GOLDEN_PIPELINE)).digest
    assert hub.fetched == {
        path.relative_to(GOLDEN_PIPELINE).as_posix()
        for path in GOLDEN_PIPELINE.rglob("*")
        if path.is_file()
    }
    hub.asked.clear()
    assert find_checkpoint(MODEL) == checkpoint
    assert find_checkpoint(MODEL, COMMIT) == checkpoint
    assert hub.asked == []


def test_a_model_that_is_cached_in_part_is_completed(hub, cache, folder):
    fill_cache(cache, MODEL, GOLDEN_PIPELINE, leave_out=["vae/config.json"])
    assert find_checkpoint(MODEL).revision == COMMIT
    assert "vae/config.json" in hub.fetched


def test_nothing_is_asked_where_a_download_is_not_wanted(hub, cache, refused):
    refused(find_checkpoint, MODEL, download=False)
    fill_cache(cache, MODEL, GOLDEN_PIPELINE, leave_out=["vae/config.json"])
    refused(find_checkpoint, MODEL, download=False)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("model", "revision", "says", "mends"),
    [
        ("owner/gated", None, "gated", "hf auth login"),
        ("owner/none", None, "private", "hf auth login"),
        (MODEL, "v9", "'v9'", "commit"),
        ("owner/down", None, "cannot be reached", "hf download owner/down"),
    ],
)
def test_what_the_hub_refuses(hub, refused, model, revision, says, mends):
    error = refused(find_checkpoint, model, revision)
    assert model in error.message
    assert says in error.message
    assert mends in error.hint


def test_a_hub_that_does_not_answer(hub, monkeypatch, refused):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refused(find_checkpoint, MODEL)
    assert MODEL in error.message
    assert error.hint.startswith(f"hf download {MODEL}")
