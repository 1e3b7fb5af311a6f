"""Prompt embeddings on disk: what was written comes back, and nothing else does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogedit.artifacts.embeds import (
    EmbedsRecord,
    default_cache,
    embeds_path,
    find_embeds,
    write_embeds,
)
from cogedit.errors import ArtifactDamaged, StorageError

RECORD = EmbedsRecord(
    prompt="ein blauer Kater, très bleu",
    model="ab" * 32,
    dtype="bf16",
    device="cpu",
    max_text_seq_length=5,
    library="transformers 5",
)


@pytest.fixture
def embeds():
    return torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.fixture
def path(tmp_path, embeds):
    return write_embeds(tmp_path, embeds, replace(RECORD, truncated=3))


def test_what_was_written_comes_back(tmp_path, path, embeds):
    found, tensor = find_embeds(tmp_path, RECORD)
    assert torch.equal(tensor.bfloat16(), embeds)
    assert found.truncated == 3
    assert torch.equal(load_file(path)["prompt_embeds"], embeds.float())


def test_equal_embeddings_are_equal_bytes(tmp_path, path, embeds):
    again = write_embeds(tmp_path / "other", embeds, replace(RECORD, truncated=3))
    assert again.read_bytes() == path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another"},
        {"model": "cd" * 32},
        {"dtype": "fp32"},
        {"device": "cuda"},
        {"max_text_seq_length": 6},
        {"library": "transformers 6"},
    ],
)
def test_another_text_or_model_is_another_file(tmp_path, path, change):
    assert path.exists()
    assert find_embeds(tmp_path, replace(RECORD, **change)) is None


def test_no_byte_may_change(tmp_path, path):
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ArtifactDamaged):
            find_embeds(tmp_path, RECORD)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_file_is_refused(tmp_path, path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactDamaged, match=path.name):
        find_embeds(tmp_path, RECORD)


def test_embeddings_of_another_prompt_are_refused(tmp_path, path, embeds):
    other = write_embeds(tmp_path, embeds, replace(RECORD, prompt="another"))
    path.write_bytes(other.read_bytes())
    with pytest.raises(ArtifactDamaged, match="another prompt or model"):
        find_embeds(tmp_path, RECORD)


def test_a_folder_that_cannot_be_made(tmp_path, embeds):
    (tmp_path / "prompts").write_text("in the way")
    with pytest.raises(StorageError):
        write_embeds(tmp_path, embeds, RECORD)


def test_where_they_are_kept():
    assert default_cache({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/cogedit")
    assert default_cache({}) == Path.home() / ".cache" / "cogedit"
    assert embeds_path(Path("c"), RECORD).parent == Path("c/prompts")
