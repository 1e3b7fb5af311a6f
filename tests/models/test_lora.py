"""LoRA files: four formats with one meaning, the same as diffusers', and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from loras import MODULES, RANK, diffusers, matrices
from pipelines import make_5b_like, make_15_like
from safetensors.torch import save_file

from cogedit.errors import ModelError
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.loading import load_transformer
from cogedit.models.lora import find_lora, fuse_loras
from cogedit.models.placement import store_weights
from cogedit.types import LoraFile

CPU = torch.device("cpu")
ALPHA = 2.0
DIFFSYNTH = {
    "transformer_blocks": "blocks",
    "to_out.0": "to_out",
    "ff.net.0.proj": "ff.0",
    "patch_embed.text_proj": "context_embedder",
}
COMFYUI = {
    "transformer_blocks": "blocks",
    ".attn1.to_out.0": ".attn_out",
    ".attn1.to_": ".",
    ".ff.net.0.proj": ".ff_proj",
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return make_5b_like(tmp_path_factory.mktemp("model") / "whole")


def loaded(folder, *loras, dtype=torch.float32, weights=None):
    """The transformer with LoRAs, and what is said of them."""
    checkpoint = find_checkpoint(str(folder))
    transformer = load_transformer(checkpoint, device=CPU, dtype=dtype)
    notes = fuse_loras(transformer, checkpoint, [LoraFile.read(lora) for lora in loras])
    if weights is not None:
        store_weights(transformer, weights)
    return transformer, notes


def named(made, prefix, infix=""):
    return {
        name.replace("transformer.", prefix, 1).replace(".weight", f"{infix}.weight"): tensor
        for name, tensor in diffusers(made).items()
    }


def kohya(made, alpha=None):
    parts = {}
    for module, (down, up) in made.items():
        name = f"lora_unet__{module.replace('.', '_')}"
        parts |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        parts |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return parts


def diffsynth(made):
    renamed = {}
    for module, pair in made.items():
        for theirs, ours in DIFFSYNTH.items():
            module = module.replace(theirs, ours)
        renamed[module] = pair
    return named(renamed, "", ".default")


def comfyui(made):
    renamed = {}
    for module, pair in made.items():
        for ours, theirs in COMFYUI.items():
            module = module.replace(ours, theirs)
        renamed[module] = pair
    return named(renamed, "diffusion_model.")


FORMATS = {
    "diffusers": diffusers,
    "peft": lambda made: named(made, "base_model.model."),
    "kohya": kohya,
    "diffsynth": diffsynth,
    "comfyui": comfyui,
    "diffsynth with diffusers' modules": lambda made: named(made, "", ".default"),
}


def states(transformer):
    return {name: tensor.clone() for name, tensor in transformer.state_dict().items()}


@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_the_weights_are_those_of_diffusers(pipeline, tmp_path, scale, alpha):
    file = tmp_path / "style.safetensors"
    said = {"transformer.r": RANK, "transformer.lora_alpha": alpha}
    metadata = {"lora_adapter_metadata": json.dumps(said)} if alpha else {}
    targets = list(MODULES)
    if alpha:
        metadata["lora_adapter_metadata"] = json.dumps(
            said | {"transformer.target_modules": targets}
        )
    save_file(diffusers(matrices(pipeline)), file, metadata)
    theirs = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=CogVideoXTransformer3DModel.from_pretrained(pipeline / "transformer"),
        scheduler=None,
    )
    theirs.load_lora_weights(str(tmp_path), weight_name=file.name)
    theirs.fuse_lora(lora_scale=scale)
    theirs.unload_lora_weights()
    expected = states(theirs.transformer)
    ours, notes = loaded(pipeline, f"{file}:{scale}")
    assert len(notes) == (alpha is not None or scale == 1)
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name
    plain, _ = loaded(pipeline)
    changed = {n for n, t in plain.state_dict().items() if not torch.equal(t, expected[n])}
    assert changed == {f"{module}.weight" for module in MODULES}


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "diffusers"])
def test_every_format_gives_the_same_weights(pipeline, tmp_path, form):
    made = matrices(pipeline)
    save_file(diffusers(made), tmp_path / "one.safetensors")
    save_file(FORMATS[form](made), tmp_path / "other.safetensors")
    one, _ = loaded(pipeline, tmp_path / "one.safetensors")
    other, _ = loaded(pipeline, tmp_path / "other.safetensors")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_alpha_by_tensor_by_metadata_and_beside_peft_are_one(pipeline, tmp_path):
    made = matrices(pipeline)
    (tmp_path / "peft").mkdir()
    save_file(kohya(made, ALPHA), tmp_path / "tensor.safetensors")
    save_file(diffusers(made), tmp_path / "said.safetensors", {"lora_alpha": str(ALPHA)})
    save_file(FORMATS["peft"](made), tmp_path / "peft" / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": 99, "alpha_pattern": {r"proj|to_\w+|.*": ALPHA}}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    files = ("tensor.safetensors", "said.safetensors", "peft/adapter_model.safetensors")
    made_by = [loaded(pipeline, tmp_path / file) for file in files]
    save_file(diffusers(made), tmp_path / "plain.safetensors")
    half, notes = loaded(pipeline, f"{tmp_path / 'plain.safetensors'}:{ALPHA / RANK}")
    assert notes == []
    for transformer, said in made_by:
        assert len(said) == 1
        assert f"{ALPHA / RANK:g}" in said[0]
        for name, tensor in half.state_dict().items():
            assert torch.equal(tensor, transformer.state_dict()[name]), name


@pytest.mark.parametrize(("rank", "scales"), [(RANK, ()), (128, (":0.5", ":0.0078"))])
def test_a_lora_without_alpha_is_said_to_be_added_whole(pipeline, tmp_path, rank, scales):
    """With the scales of those that CogVideo's own scripts train, which do not write it."""
    [(_, (down, up))] = matrices(pipeline, modules=["proj_out"]).items()
    made = {"proj_out": (torch.zeros(rank, down.shape[1]), torch.zeros(up.shape[0], rank))}
    save_file(diffusers(made), tmp_path / "style.safetensors")
    _, [said] = loaded(pipeline, tmp_path / "style.safetensors")
    assert "style.safetensors" in said
    assert str(rank) in said
    assert all(scale in said for scale in scales)
    assert ("SAT" in said) == bool(scales)


def test_a_convolution_and_a_matrix_over_two_frames(pipeline, tmp_path):
    for number, folder in enumerate((pipeline, make_15_like(tmp_path / "15"))):
        [(module, (down, up))] = matrices(folder, modules=["patch_embed.proj"]).items()
        conv = up.reshape(*up.shape, *(1 for _ in down.shape[2:]))
        file = tmp_path / f"{number}.safetensors"
        save_file(kohya({module: (down, conv)}), file)
        plain, fused = loaded(folder)[0], loaded(folder, file)[0]
        weight = plain.state_dict()[f"{module}.weight"]
        expected = weight + torch.einsum("or,r...->o...", up, down)
        assert torch.allclose(fused.state_dict()[f"{module}.weight"], expected, atol=1e-5)


def test_two_loras_add_up(pipeline, tmp_path):
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"{seed}.safetensors")
        save_file(diffusers(matrices(pipeline, seed=seed)), files[-1])
    plain = states(loaded(pipeline)[0])
    first, second = (states(loaded(pipeline, file)[0]) for file in files)
    both = states(loaded(pipeline, f"{files[0]}:0.5", f"{files[1]}:2")[0])
    for name, tensor in plain.items():
        expected = tensor + 0.5 * (first[name] - tensor) + 2 * (second[name] - tensor)
        assert torch.allclose(both[name], expected, atol=1e-4), name
    again, _ = loaded(pipeline)
    for name, tensor in plain.items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("weights", [None, "fp8", "int8"])
def test_the_sum_is_rounded_once(pipeline, tmp_path, weights):
    """As the merged model in float32 would be, in the dtype of the run and stored in fewer bits."""
    file = tmp_path / "style.safetensors"
    save_file(diffusers(matrices(pipeline)), file)
    merged = make_5b_like(tmp_path / "merged")
    loaded(pipeline, file)[0].save_pretrained(merged / "transformer")
    expected, _ = loaded(merged, dtype=torch.bfloat16, weights=weights)
    ours, _ = loaded(pipeline, file, dtype=torch.bfloat16, weights=weights)
    assert [type(module) for module in ours.modules()] == [type(m) for m in expected.modules()]
    stored = expected.state_dict()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == stored[name].dtype
        assert torch.equal(tensor.float(), stored[name].float()), name


def test_the_digest_is_of_what_it_does(pipeline, tmp_path):
    made = matrices(pipeline)
    digests = []
    for name, content, metadata in (
        ("a.safetensors", diffusers(made), None),
        ("b.safetensors", diffusers(made), None),
        ("c.safetensors", diffusers(made), {"lora_alpha": "1"}),
        ("d.safetensors", diffusers(matrices(pipeline, seed=1)), None),
    ):
        save_file(content, tmp_path / name, metadata)
        digests.append(find_lora(tmp_path / name).digest)
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def with_more(**more):
    def make(made):
        return diffusers(made) | {name.replace("__", "."): torch.ones(2) for name in more}

    return make


def wide(made):
    name = "transformer_blocks.1.attn1.to_q"
    return diffusers(made | {name: (torch.ones(RANK, 48), torch.ones(48, RANK))})


def half(made):
    return {name: t for name, t in diffusers(made).items() if "proj_out.lora_B" not in name}


def ranks(made):
    return diffusers(made | {"proj_out": (torch.ones(3, 32), torch.ones(64, 4))})


def adapters(made):
    return named(made, "", ".default") | {n: t.clone() for n, t in named(made, "", ".x").items()}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (wide, r"transformer_blocks\.1\.attn1\.to_q .*\[48, 48\].*\[32, 32\]"),
        (lambda made: kohya({"transformer_blocks.7.attn1.to_q": made["proj_out"]}), "blocks_7"),
        (lambda made: diffusers({"blocks.0.self_attn.q": made["proj_out"]}), r"self_attn\.q"),
        (with_more(proj_out__lora_magnitude_vector=1), "DoRA"),
        (with_more(lora_unet_x__dora_scale=1), "DoRA"),
        (with_more(lora_unet_x__hada_w1_a=1), "LoHa"),
        (with_more(lora_unet_x__lokr_w1=1), "LoKr"),
        (with_more(lora_te_encoder__alpha=1), "text encoder"),
        (with_more(text_encoder__x__lora_A__weight=1), "text encoder"),
        (with_more(proj_out__diff_b=1), r"proj_out\.diff_b"),
        (with_more(norm_final__weight=1), r"norm_final\.weight"),
        (half, "proj_out"),
        (with_more(proj_out__alpha=2), r"alpha \[2\] for proj_out"),
        (ranks, r"\[64, 4\].*\[3, 32\]"),
        (adapters, "several adapters"),
        (lambda made: {}, "another model, or none"),
        (lambda made: {"proj_out.weight": torch.ones(2, 2)}, "transformer weights"),
        (lambda made: {"encoder.conv_in.conv.weight": torch.ones(2)}, "vae weights"),
        (
            lambda made: {n: t.to(torch.uint8) for n, t in diffusers(made).items()},
            "U8",
        ),
    ],
)
def test_what_is_no_lora_of_the_model_is_refused_by_what_it_is(pipeline, tmp_path, make, names):
    file = tmp_path / "other.safetensors"
    save_file(make(matrices(pipeline)), file)
    with pytest.raises(ModelError, match=names) as refused:
        find_lora(file).fit(find_checkpoint(str(pipeline)))
    assert str(file) in str(refused.value)
    assert refused.value.hint


def test_metadata_that_means_something_else_is_refused(pipeline, tmp_path):
    other: tuple[str, ...]
    other = '{"lora_alpha": "much"}', '{"lora_alpha": "inf"}', '{"alpha_pattern": {"*to_q": 2}}'
    other += "[" * 100_000, '{"alpha_pattern": {"([a-z_0-9.]+)+!": 1}}'
    other += (f'{{"alpha_pattern": {{"{".*" * 12}!": 1}}}}',)  # neither is ever matched through
    for number, said in enumerate(('{"use_dora": true}', "[1", *other)):
        file = tmp_path / f"{number}.safetensors"
        save_file(diffusers(matrices(pipeline)), file, {"lora_adapter_metadata": said})
        with pytest.raises(ModelError, match=file.name):
            find_lora(file)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"PK\3\4", "pickled"),
        (b"\0" * 100, "safetensors"),
        (b"version https://git-lfs", "LFS"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content, names):
    file = tmp_path / "some.file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=names):
        find_lora(file)


def test_a_folder_is_refused_with_the_file_in_it(pipeline, tmp_path, monkeypatch):
    save_file(diffusers(matrices(pipeline)), tmp_path / "style.safetensors")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path()):
        with pytest.raises(ModelError) as refused:
            find_lora(folder)
        assert str(folder / "style.safetensors") in str(refused.value.hint)


def test_a_scale_that_is_no_decimal_number_is_named(pipeline, tmp_path):
    file = tmp_path / "style.safetensors"
    save_file(diffusers(matrices(pipeline)), file)
    with pytest.raises(ModelError) as caught:
        find_lora(LoraFile.read(f"{file}:1/2").path)
    assert f"{file}:0.5" in caught.value.hint
    assert "1/2" in caught.value.hint
