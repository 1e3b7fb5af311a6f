"""T5 comes, embeds and goes before the transformer; its embeddings stay on disk."""

import gc
import shutil

import pytest
import torch
from pipelines import GOLDEN_PIPELINE
from safetensors.torch import load_file, save_file
from videos import make_video

import cogedit
import cogedit.models.loading
from cogedit.artifacts import read_artifact
from cogedit.models.checkpoint import find_checkpoint
from cogedit.stages.model import transformer_record
from cogedit.stages.session import Parts

PROMPT = "a blue cat"


def settings_with(folder, **flags):
    given = {
        "model": str(GOLDEN_PIPELINE),
        "device": "cpu",
        "dtype": "fp32",
        "cache": folder / "cache",
        "load.width": 96,
        "load.height": 64,
        "load.max_num_frames": 9,
        "invert.num_inference_steps": 2,
        "reconstruct.guidance_scale": 1.0,
    }
    return cogedit.settings_for(None, given | flags, environ={}, cwd=folder).settings


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)


def parts_for(folder, said=None, **flags):
    settings = settings_with(folder, **flags)
    run = cogedit.Run(notify=[].append if said is None else said.append)
    return Parts(find_checkpoint(settings.model), settings, run=run)


def text_encoders():
    from transformers import T5EncoderModel

    return [thing for thing in gc.get_objects() if issubclass(type(thing), T5EncoderModel)]


class Alive:
    """Counts the text encoders that are alive when a part is loaded; loads it all the same."""

    def __init__(self, monkeypatch):
        self.at_transformer, self.loaded = [], []
        load_transformer = cogedit.models.loading.load_transformer
        load_text_encoder = cogedit.models.loading.load_text_encoder

        def transformer(*args, **kwargs):
            self.at_transformer.append(len(text_encoders()))
            return load_transformer(*args, **kwargs)

        def text_encoder(*args, **kwargs):
            tokenizer, encoder = load_text_encoder(*args, **kwargs)
            self.loaded.append(len(text_encoders()))
            return tokenizer, encoder

        monkeypatch.setattr(cogedit.models.loading, "load_transformer", transformer)
        monkeypatch.setattr(cogedit.models.loading, "load_text_encoder", text_encoder)


def test_t5_is_gone_before_the_transformer_comes(tmp_path, video, monkeypatch):
    before = len(text_encoders())  # other tests may hold one
    monkeypatch.chdir(tmp_path)
    alive = Alive(monkeypatch)
    settings = settings_with(tmp_path)
    inverted = cogedit.invert(video, settings)
    cogedit.reconstruct(inverted.path, [PROMPT], settings)
    cogedit.check_inversion(inverted.path, settings)
    assert alive.loaded == [before + 1, before + 1]  # the empty text, then the prompt
    assert alive.at_transformer == [before] * 3


def test_known_prompts_need_no_t5(tmp_path, video, monkeypatch):
    """Not even for another video: its files may be away."""
    monkeypatch.chdir(tmp_path)
    cogedit.edit(video, [PROMPT], settings_with(tmp_path))
    alive = Alive(monkeypatch)
    other = make_video(tmp_path / "other.mp4", width=96, height=64, num_frames=10)
    cogedit.edit(other, [PROMPT], settings_with(tmp_path))
    assert len(alive.at_transformer) == 2
    assert alive.loaded == []


def test_cached_embeddings_are_the_same_numbers(tmp_path):
    parts = parts_for(tmp_path, dtype="bf16")
    fresh, cached = parts.embed([PROMPT, ""]), parts.embed([PROMPT, ""])
    assert list(fresh) == list(cached) == [PROMPT, ""]
    for text in fresh:
        assert fresh[text].dtype == cached[text].dtype == torch.bfloat16
        assert torch.equal(fresh[text], cached[text])


def test_a_prompt_that_is_too_long_is_told_of_every_time(tmp_path):
    said = []
    parts = parts_for(tmp_path, said)
    long = PROMPT + " and snow" * 300
    parts.embed([long])
    parts.embed([long])
    assert len(said) == 2
    assert said[0] == said[1]
    assert "too long for this model" in said[0]


def test_words_that_the_model_does_not_know_are_told_of_every_time(tmp_path):
    said = []
    parts = parts_for(tmp_path, said)
    for _ in range(2):
        parts.embed([PROMPT, "a red Zebra"])
    sentence = (
        "the model does not know these words of the prompt 'a red Zebra': 'Zebra'; "
        "only the others count"
    )
    assert said == [sentence, sentence]


def test_a_damaged_embedding_is_told_of_and_made_again(tmp_path):
    said = []
    parts = parts_for(tmp_path, said)
    good = parts.embed([PROMPT])[PROMPT]
    (path,) = (tmp_path / "cache" / "prompts").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert torch.equal(parts.embed([PROMPT])[PROMPT], good)
    assert path.read_bytes() == content
    [sentence] = said
    assert str(path) in sentence
    assert sentence.endswith("the prompt is embedded again")


def test_a_cache_that_cannot_be_written_does_not_end_the_run(tmp_path):
    said = []
    (tmp_path / "cache").write_text("in the way")
    assert parts_for(tmp_path, said).embed([PROMPT])[PROMPT].shape == (1, 226, 32)
    assert any("is not kept" in sentence for sentence in said)


def test_another_model_has_its_own_embeddings(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN_PIPELINE, folder)
    weights = folder / "text_encoder" / "model.safetensors"
    doubled = {name: 2 * one for name, one in load_file(weights).items()}
    save_file(doubled, weights, {"format": "pt"})
    first = parts_for(tmp_path).embed([PROMPT])[PROMPT]
    second = parts_for(tmp_path, model=str(folder)).embed([PROMPT])[PROMPT]
    assert not torch.equal(first, second)
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 2


@pytest.mark.parametrize("weights", ["fp8", "int8"])
def test_stored_weights_are_part_of_what_the_transformer_made(
    tmp_path, video, monkeypatch, weights
):
    monkeypatch.chdir(tmp_path)
    whole = cogedit.invert(video, settings_with(tmp_path))
    stored = cogedit.invert(video, settings_with(tmp_path, weights=weights))
    assert (whole.record.model.weights, stored.record.model.weights) == (None, weights)
    assert stored.path != whole.path
    assert stored.record.latents == whole.record.latents  # the VAE has none of it
    a, b = (read_artifact(one.path, "trajectory").tensors["trajectory"] for one in (whole, stored))
    assert 0 < (a - b).norm() / a.norm() < 0.5  # random weights, rounded to 3 bits
    # What goes on from it keeps to it.
    found = cogedit.settings_for(stored.path, {"model": str(GOLDEN_PIPELINE)}, environ={})
    assert found.settings.weights == weights


def test_weights_in_the_dtype_itself_are_no_other_weights(tmp_path):
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    plain, named = (
        transformer_record(checkpoint, settings_with(tmp_path, dtype="bf16", weights=weights))
        for weights in (None, "bf16")
    )
    assert plain == named


def test_stored_weights_take_less_memory(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, stored = (
        cogedit.estimate(video, settings_with(tmp_path, weights=weights))
        for weights in (None, "fp8")
    )
    assert whole.transformer_bytes == 4 * stored.transformer_bytes
    assert stored.memory_bytes < whole.memory_bytes


@pytest.mark.parametrize("offload", ["auto", "none", "model", "group"])
def test_offload_changes_nothing_on_the_cpu(tmp_path, video, monkeypatch, offload):
    monkeypatch.chdir(tmp_path)
    said = []
    settings = settings_with(tmp_path, offload=offload)
    written = cogedit.invert(video, settings, run=cogedit.Run(notify=said.append))
    assert any("--offload" in one for one in said) == (offload in ("model", "group"))
    # Where the weights were is no part of what was made.
    again = cogedit.invert(video, settings_with(tmp_path))
    assert again.reused
    assert again.path == written.path
