"""Every weight comes from the files, in the dtype that was asked for, and nothing is shown."""

import io
import json
import logging

import diffusers
import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

from cogedit.errors import DeviceMemoryError
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.device import memory_guard
from cogedit.models.loading import (
    alphas_cumprod,
    load_text_encoder,
    load_transformer,
    load_vae,
)
from cogedit.tools.doctor import check_model

CPU = torch.device("cpu")
PARTS = {
    "transformer": (load_transformer, "transformer/diffusion_pytorch_model.safetensors"),
    "vae": (load_vae, "vae/diffusion_pytorch_model.safetensors"),
    "text_encoder": (load_text_encoder, "text_encoder/model.safetensors"),
}


def load(folder, part, dtype=torch.float32):
    loaded = PARTS[part][0](find_checkpoint(str(folder)), device=CPU, dtype=dtype)
    return loaded[1] if part == "text_encoder" else loaded


def change_weights(folder, part, change):
    """Rewrite the weights of a part after `change(weights, name of one in the middle)`."""
    path = folder / PARTS[part][1]
    weights = load_file(path)
    name = sorted(weights)[len(weights) // 2]
    change(weights, name)
    save_file(weights, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_those_of_the_file(folder, part):
    model = load(folder, part)
    weights = load_file(folder / PARTS[part][1])
    state = model.state_dict()
    assert set(weights) <= set(state)
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("part", PARTS)
def test_dtype(folder, part):
    model = load(folder, part, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_weight_is_named(folder, refused, part):
    name = change_weights(folder, part, lambda weights, name: weights.pop(name))
    error = refused(load, folder, part)
    assert part in error.message
    assert name in error.message
    assert error.hint


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_of_another_shape_is_named(folder, refused, part):
    def widen(weights, name):
        shapes.append(list(weights[name].shape))
        weights[name] = torch.zeros(3, *weights[name].shape)

    shapes = []
    name = change_weights(folder, part, widen)
    error = refused(load, folder, part)
    for named in (part, name, str([3, *shapes[0]]), str(shapes[0])):
        assert named in error.message


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_too_many_is_left_out(folder, part):
    def add(weights, name):
        weights["decoder.block.9.weight"] = torch.zeros(3)

    change_weights(folder, part, add)
    assert "decoder.block.9.weight" not in load(folder, part).state_dict()


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_shards_load_in_silence(folder, part, capfd):
    whole = load(folder, part)
    (folder / PARTS[part][1]).unlink()
    whole.save_pretrained(folder / part, max_shard_size="20KB" if part[1] == "e" else "200KB")
    assert len(list((folder / part).glob("*-of-*.safetensors"))) > 2
    capfd.readouterr()
    split = load(folder, part)
    assert capfd.readouterr() == ("", "")
    pairs = zip(whole.state_dict().values(), split.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_windows_has_no_memory_for_are_not_to_be_downloaded_again(
    folder, part, monkeypatch
):
    """As safetensors says it, where RAM and paging file are full."""
    error = OSError("The paging file is too small for this operation to complete. (os error 1455)")

    def refuse(*args, **options):
        raise error

    kinds = {
        "transformer": diffusers.CogVideoXTransformer3DModel,
        "vae": diffusers.AutoencoderKLCogVideoX,
        "text_encoder": transformers.T5EncoderModel,
    }
    monkeypatch.setattr(kinds[part], "from_pretrained", refuse)
    with pytest.raises(DeviceMemoryError, match="paging file"), memory_guard("loading it"):
        load(folder, part)


def test_the_libraries_talk_as_before_afterwards(folder, refused):
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
    change_weights(folder, "vae", lambda weights, name: weights.pop(name))
    for log in both:
        log.set_verbosity(logging.INFO)
        log.enable_progress_bar()
    try:
        refused(load, folder, "vae")
        assert [log.get_verbosity() for log in both] == [logging.INFO, logging.INFO]
        assert all(log.is_progress_bar_enabled() for log in both)
    finally:
        for log in both:
            log.set_verbosity(logging.WARNING)


# --- the scheduler --------------------------------------------------------------------------------


def scheduler(folder, **values):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return alphas_cumprod(find_checkpoint(str(folder)))


def test_the_table_ends_at_zero_snr_and_follows_the_shift(folder):
    plain = scheduler(folder)
    assert plain.shape == (1000,)
    assert plain.dtype == torch.float64
    assert plain[-1] == 0
    shifted = scheduler(folder, snr_shift_scale=3.0)
    assert plain[264] == pytest.approx(0.628, abs=1e-3)
    assert shifted[264] == pytest.approx(0.364, abs=1e-3)
    assert shifted[-1] == 0


def test_the_scheduler_is_ddim_whatever_the_checkpoint_names(folder):
    plain = scheduler(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "CogVideoXDPMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert torch.equal(scheduler(folder, _class_name="CogVideoXDPMScheduler"), plain)


@pytest.mark.parametrize(
    "its_own_sampling",
    [
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "linspace", "steps_offset": 1},
        {"clip_sample": True, "set_alpha_to_one": False},
    ],
)
def test_how_the_pipeline_samples_by_itself_is_not_read(folder, its_own_sampling):
    plain = scheduler(folder)
    assert torch.equal(scheduler(folder, **its_own_sampling), plain)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"prediction_type": "epsilon"}, ["'epsilon'", "'v_prediction'"]),
        ({"beta_schedule": "sigmoid"}, ["'sigmoid'", "scaled_linear"]),
        ({"num_train_timesteps": 1}, ["num_train_timesteps = 1", "2 or more"]),
        ({"beta_end": 0}, ["beta_end with 0", "above 0"]),
        ({"trained_betas": [0.1] * 7}, ["7 trained_betas", "expected 1000"]),
        ({"trained_betas": [0.1] * 999 + [1.5]}, ["with 1.5", "below 1"]),
    ],
)
def test_a_scheduler_without_levels_for_velocity_is_refused_before_anything(
    folder, refused, values, says
):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    error = refused(find_checkpoint, str(folder))
    assert all(part in error.message for part in says)
    assert "copy scheduler/" in error.hint
    assert check_model(str(folder), None).problem == error.message


def test_a_scheduler_that_does_not_say_what_is_predicted_means_epsilon(folder, refused):
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["prediction_type"]
    path.write_text(json.dumps(config))
    assert "'epsilon'" in refused(find_checkpoint, str(folder)).message


def test_measured_betas_may_end_in_noise(folder):
    betas = [0.01] * 999 + [1.0]
    table = scheduler(folder, trained_betas=betas, rescale_betas_zero_snr=False)
    assert table.shape == (1000,)
    assert table[-1] == 0


# --- the tokenizer --------------------------------------------------------------------------------

SENTENCES = ["a blue cat running in snow", "a red square on the green field", "the lazy dog jumps"]


@pytest.fixture(scope="module")
def spiece():
    """A SentencePiece model as T5's: pad 0, end 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=48,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def ship_spiece(folder, spiece):
    """Make the tokenizer folder like those of the published checkpoints."""
    extra = [f"<extra_id_{i}>" for i in range(100)]
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = folder / "tokenizer"
    for path in tokenizer.iterdir():
        path.unlink()
    (tokenizer / "spiece.model").write_bytes(spiece)
    special = names | {"additional_special_tokens": extra}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(special))
    config = special | {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": 226,
        "clean_up_tokenization_spaces": True,
        "sp_model_kwargs": {},
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_vocabulary_by_sentencepiece_alone(folder, spiece):
    ship_spiece(folder, spiece)
    tokenizer, _ = load_text_encoder(find_checkpoint(str(folder)), device=CPU, dtype=torch.float32)
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    for text in [*SENTENCES, "", "a  blue   cat!", "ünknown", "cat,cat", "<extra cat"]:
        assert tokenizer(text).input_ids == [*reference.encode(text), 1]
    padded = tokenizer("a blue cat", padding="max_length", max_length=226).input_ids
    assert padded[: padded.index(1) + 1] == [*reference.encode("a blue cat"), 1]
    assert set(padded[padded.index(1) + 1 :]) == {0}


def test_another_vocabulary_is_another_model(folder, spiece):
    ship_spiece(folder, spiece)
    before = find_checkpoint(str(folder)).digest
    (folder / "tokenizer" / "spiece.model").write_bytes(spiece.replace(b"<unk>", b"<UNK>"))
    assert find_checkpoint(str(folder)).digest != before


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("spiece.model", b"version https://git-lfs.github.com/spec/v1\n"),
        ("spiece.model", b"\n"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[]"),
    ],
)
def test_a_damaged_vocabulary_is_refused(folder, refused, spiece, capfd, file, data):
    ship_spiece(folder, spiece)
    (folder / "tokenizer" / file).write_bytes(data)
    error = refused(load, folder, "text_encoder")
    assert "tokenizer/" in error.message
    assert error.hint
    assert capfd.readouterr().err == ""
