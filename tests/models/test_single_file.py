"""A transformer or a VAE in one file, over a pipeline that has all the rest."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from pipelines import (
    make_2b_like,
    make_5b_like,
    make_15_i2v_like,
    make_15_like,
    make_i2v_like,
)
from safetensors.torch import load_file, save_file

from cogedit.errors import ModelError
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.loading import load_transformer, load_vae
from cogedit.models.placement import store_weights

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(
    scope="module",
    params=[make_2b_like, make_5b_like, make_15_like, make_i2v_like, make_15_i2v_like],
)
def kind(request, tmp_path_factory):
    """A pipeline, its transformer in a file, and the pipeline without the weights of it."""
    home = tmp_path_factory.mktemp(request.param.__name__)
    whole = request.param(home / "whole")
    return whole, *apart(whole, home)


def apart(whole, home):
    file = home / "mine.safetensors"
    shutil.copy(whole / "transformer" / WEIGHTS, file)
    base = home / "base"
    shutil.copytree(whole, base)
    (base / "transformer" / WEIGHTS).unlink()
    return file, base


@pytest.fixture
def tiny(tmp_path):
    whole = make_5b_like(tmp_path / "whole")
    return whole, *apart(whole, tmp_path)


def loaded(checkpoint, dtype=torch.float32):
    return load_transformer(checkpoint, device=CPU, dtype=dtype)


def inputs(config):
    generator = torch.Generator().manual_seed(1)
    tokens, text = config["max_text_seq_length"], config["text_embed_dim"]
    shape = (2, 2, config["in_channels"], config["sample_height"], config["sample_width"])
    rotary = None
    if config["use_rotary_positional_embeddings"]:
        patches = (shape[1] // (config["patch_size_t"] or 1)) * (shape[3] // 2) * (shape[4] // 2)
        angles = torch.randn(patches, config["attention_head_dim"], generator=generator)
        rotary = angles.cos(), angles.sin()
    return {
        "hidden_states": torch.randn(shape, generator=generator),
        "encoder_hidden_states": torch.randn(2, tokens, text, generator=generator),
        "timestep": torch.tensor([500, 500]),
        "image_rotary_emb": rotary,
        "ofs": None if config["ofs_embed_dim"] is None else torch.tensor([2.0]),
        "return_dict": False,
    }


@torch.no_grad()
def predict(transformer):
    return transformer(**inputs(transformer.config))[0]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_is_the_folder_that_it_was_made_from(kind, tmp_path, prefix, dtype):
    whole, file, base = kind
    named = {prefix + name: tensor for name, tensor in load_file(file).items()}
    save_file(named, tmp_path / "named.safetensors")
    own = find_checkpoint(str(whole))
    found = find_checkpoint(str(base), files=(("transformer", tmp_path / "named.safetensors"),))
    assert found.geometry == own.geometry
    assert found.num_parameters == own.num_parameters
    assert found.digest != own.digest
    assert found.takes_first_frame == own.takes_first_frame == ("i2v" in whole.parent.name)
    expected, made = loaded(own, dtype), loaded(found, dtype)
    parts = zip(
        [*expected.named_parameters(), *expected.named_buffers()],
        [*made.named_parameters(), *made.named_buffers()],
        strict=True,
    )
    for (name, tensor), (same, other) in parts:
        assert name == same
        assert torch.equal(tensor, other), name
    if dtype is torch.float32:
        # Kernels may round otherwise where the file begins at another place in memory.
        assert torch.allclose(predict(expected), predict(made), rtol=0, atol=1e-5)


def test_the_shapes_say_which_transformer_it_is(tiny, tmp_path):
    _, _, base = tiny
    sizes = {"num_attention_heads": 3, "attention_head_dim": 64, "num_layers": 3}
    with torch.random.fork_rng():
        made = CogVideoXTransformer3DModel(
            **sizes,
            in_channels=16,
            text_embed_dim=32,
            time_embed_dim=24,
            patch_size_t=2,
            patch_bias=False,
            ofs_embed_dim=8,
            use_rotary_positional_embeddings=True,
            max_text_seq_length=16,
        )
    save_file(made.state_dict(), tmp_path / "other.safetensors")
    found = find_checkpoint(str(base), files=(("transformer", tmp_path / "other.safetensors"),))
    for name in (*sizes, "time_embed_dim", "patch_size_t", "ofs_embed_dim"):
        assert found.transformer_config[name] == made.config[name], name
    assert loaded(found).state_dict().keys() == made.state_dict().keys()


@pytest.mark.parametrize(
    ("channels", "learned", "names", "mends"),
    [
        (32, False, "control", "CogVideoX-5b"),
        (33, False, "inpainting", "CogVideoX-5b"),
        (32, True, "I2V", "CogVideoX-5b-I2V"),
    ],
)
def test_a_transformer_of_another_task_is_refused_by_its_kind(
    tiny, tmp_path, channels, learned, names, mends
):
    whole, _, base = tiny
    config = json.loads((whole / "transformer" / "config.json").read_text())
    config |= {"in_channels": channels, "use_learned_positional_embeddings": learned}
    with torch.random.fork_rng():
        made = CogVideoXTransformer3DModel.from_config(config)
    save_file(made.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"other.safetensors.*{names}") as caught:
        find_checkpoint(str(base), files=(("transformer", tmp_path / "other.safetensors"),))
    words = caught.value.hint.split()
    assert words[words.index("--model") + 1] == f"zai-org/{mends}"


def test_a_text_to_video_transformer_is_refused_over_an_image_to_video_pipeline(tiny, tmp_path):
    _, file, _ = tiny
    _, base = apart(make_i2v_like(tmp_path / "i2v"), tmp_path / "i2v")
    with pytest.raises(ModelError, match=f"{file.name}.*text-to-video.*expected 32") as caught:
        find_checkpoint(str(base), files=(("transformer", file),))
    assert f"--model zai-org/CogVideoX-5b --transformer {file}" in caught.value.hint


def test_the_pipeline_is_that_of_the_file(tiny, tmp_path):
    _, file, base = tiny
    config = base / "transformer" / "config.json"
    sizes = {"num_attention_heads": 48, "attention_head_dim": 64}
    config.write_text(json.dumps(json.loads(config.read_text()) | sizes))
    wide = {
        name: torch.zeros(1920, *tensor.shape[1:]) if name == "patch_embed.proj.weight" else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(wide, tmp_path / "2b.safetensors")
    with pytest.raises(ModelError, match=r"CogVideoX-2B.*CogVideoX-5B"):
        find_checkpoint(str(base), files=(("transformer", tmp_path / "2b.safetensors"),))


def in_fp8(state):
    """As such files are: matrices in 8 bits, everything else in bf16."""
    return {
        name: tensor.to(torch.float8_e4m3fn if tensor.dim() == 2 else torch.bfloat16)
        for name, tensor in state.items()
    }


def test_8_bits_compute_as_diffusers_layerwise_casting_does(tiny, tmp_path):
    whole, file, base = tiny
    save_file(in_fp8(load_file(file)), tmp_path / "fp8.safetensors")
    found = find_checkpoint(str(base), files=(("transformer", tmp_path / "fp8.safetensors"),))
    assert found.files["transformer"].is_fp8
    ours = loaded(found)
    store_weights(ours, "fp8")
    theirs = CogVideoXTransformer3DModel.from_pretrained(whole / "transformer")
    theirs.load_state_dict({n: t.float() for n, t in in_fp8(theirs.state_dict()).items()})
    theirs.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert torch.allclose(predict(ours), predict(theirs.eval()), rtol=0, atol=1e-5)


def test_a_vae_in_a_file(tiny, tmp_path):
    whole, _, _ = tiny
    file = tmp_path / "vae.safetensors"
    shutil.copy(whole / "vae" / WEIGHTS, file)
    found = find_checkpoint(str(whole), files=(("vae", file),))
    made = load_vae(found, device=CPU, dtype=torch.float32).state_dict()
    expected = AutoencoderKLCogVideoX.from_pretrained(whole / "vae").state_dict()
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())


def lora(state):
    return {"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 32)}


def quantized(state):
    return state | {"transformer_blocks.0.attn1.to_q.weight": torch.ones(32, 18, dtype=torch.uint8)}


def without(state):
    return {name: t for name, t in state.items() if name != "transformer_blocks.1.ff.net.2.bias"}


def vae(state):
    return {"encoder.conv_in.conv.weight": torch.ones(2, 3, 3, 3, 3)}


def scaled(state):
    """As ComfyUI's files in 8 bits with a scale for each matrix are."""
    return in_fp8(state) | {"transformer_blocks.0.attn1.to_q.scale_weight": torch.ones(1)}


def with_more(state):
    return state | {"local_facial_extractor.weight": torch.ones(2)}


def twice(state):
    name = "transformer_blocks.0.attn1.to_q.weight"
    return state | {"blocks.0.q.weight": state[name].clone()}


def other_text(state):
    return state | {"patch_embed.text_proj.weight": torch.ones(32, 48)}


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (lora, "LoRA"),
        (quantized, "quantized"),
        (without, r"transformer_blocks\.1\.ff\.net\.2\.bias"),
        (vae, "vae weights"),
        (other_text, "width 48"),
        (scaled, r"scales.*to_q\.scale_weight"),
        (with_more, "local_facial_extractor"),
        (twice, "twice"),
        (lambda state: {"model.weight": torch.ones(2)}, "another model"),
    ],
)
def test_what_is_no_transformer_is_refused_by_what_it_is(tiny, tmp_path, changed, names):
    _, file, base = tiny
    save_file(changed(load_file(file)), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=names):
        find_checkpoint(str(base), files=(("transformer", tmp_path / "other.safetensors"),))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"PK\3\4", "pickled"),
        (b"\0" * 100, "safetensors"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tiny, tmp_path, content, names):
    _, _, base = tiny
    file = tmp_path / "some.file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=names):
        find_checkpoint(str(base), files=(("transformer", file),))


def test_a_control_model_is_no_image_to_video_model(tmp_path):
    """They take as many channels: by a tensor that image-to-video models have besides."""
    for make, missing in (
        (make_i2v_like, "patch_embed.pos_embedding"),
        (make_15_i2v_like, "ofs_embedding.linear_1.weight"),
    ):
        home = tmp_path / make.__name__
        file, base = apart(make(home / "whole"), home)
        start = missing.partition(".linear")[0]
        kept = {name: t for name, t in load_file(file).items() if not name.startswith(start)}
        save_file(kept, home / "control.safetensors")
        with pytest.raises(ModelError, match=f"control.safetensors.*{missing}.*control model"):
            find_checkpoint(str(base), files=(("transformer", home / "control.safetensors"),))


COMFYUI = {
    "time_embedding.linear": "time_embedding_linear",
    "ofs_embedding.linear": "ofs_embedding_linear",
    "transformer_blocks": "blocks",
    ".attn1.to_out.0": ".attn_out",
    ".attn1.to_": ".",
    ".attn1.norm": ".norm",
    ".ff.net.0.proj": ".ff_proj",
    ".ff.net.2": ".ff_out",
}
"""Names of ComfyUI's own CogVideoX, by those of diffusers."""


def as_comfyui(state):
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in COMFYUI.items():
            name = name.replace(ours, theirs)
        renamed[f"model.diffusion_model.{name}"] = tensor
    return renamed


def test_names_of_comfyui_are_read(kind, tmp_path):
    _, file, base = kind
    state = load_file(file)
    named = as_comfyui(state)
    assert not any("attn1" in name or ".net." in name for name in named)
    save_file(named, tmp_path / "comfy.safetensors")
    made = loaded(
        find_checkpoint(str(base), files=(("transformer", tmp_path / "comfy.safetensors"),))
    ).state_dict()
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], tensor.float()) for name, tensor in state.items())
