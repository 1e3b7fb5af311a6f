"""A whole edit on a Mac's GPU, which has no float64 and shares no tensor with the CPU."""

import pytest
import torch
from macs import MPS, Mac, OnMac
from pipelines import GOLDEN_PIPELINE, decode_latents
from torch.nn import functional

from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import UsageError
from cogedit.models.auto_mask import find_masks
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.kernels import attention, attention_with_lse
from cogedit.models.loading import alphas_cumprod, load_text_encoder, load_transformer, load_vae
from cogedit.models.placement import check_weights
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.prompts import embed_prompts
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.models.vae import decode_pixels, encode_frames
from cogedit.types import InvertSettings, ReconstructSettings

CPU = torch.device("cpu")
FRAMES = 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EMBEDS = {text: draw(1, 16, 32, seed=number) for number, text in enumerate(("", "a cat"))}


def edited(checkpoint, device, edit):
    """The noise of an inversion and the result of an edit of a clip."""
    transformer = load_transformer(checkpoint, device=device, dtype=torch.float32)
    latents = draw(1, FRAMES, 16, 8, 16, seed=3)  # larger than what the model was made for
    model = Predictor(transformer, alphas_cumprod(checkpoint), EMBEDS)
    settings = InvertSettings(num_inference_steps=4)
    trajectory = invert_latents(model, latents.to(device), [settings])
    mask = find_masks(model, InvertedClips(trajectory), [edit])
    samples = edit_latents(model, InvertedClips(trajectory), [edit], mask=mask)
    # The same from a trajectory that is on the device.
    there = Trajectory(
        torch.stack([trajectory.at(t) for t in trajectory.timesteps]).to(device),
        trajectory.latents.to(device),
        trajectory.timesteps,
    )
    again = edit_latents(model, InvertedClips(there), [edit], mask=mask)
    assert torch.equal(again[-1].cpu(), samples[-1])
    return trajectory.noise, samples[-1]


DENOISE = {"start_noise": 0.3, "injection_strength": 1.3, "solver": "dpm++2m"}
FLOW = {
    "method": "flow",
    "injection_mode": "queries-keys",
    "injection_strength": 1.0,
    "start": "random",
}
MAPS = {"injection_mode": "image-queries-keys", "injection_strength": (1.0, 0.2)}


@pytest.mark.parametrize(
    ("kind", "edit"), [("pipeline_2b", DENOISE), ("pipeline_5b", FLOW), ("pipeline_15", MAPS)]
)
def test_an_inversion_and_an_edit(kind, edit, request):
    checkpoint = find_checkpoint(str(request.getfixturevalue(kind)))
    edit = ReconstructSettings(prompt="a cat", guidance_scale=2.0, **edit)
    expected = edited(checkpoint, CPU, edit)
    with Mac():
        found = edited(checkpoint, MPS, edit)
    for there, here in zip(found, expected, strict=True):
        assert not isinstance(there, OnMac)  # what waits and what is stored is in host memory
        assert torch.allclose(there, here, atol=1e-3)


def test_the_parts_before_and_after():
    checkpoint = find_checkpoint(str(GOLDEN_PIPELINE))
    frames = draw(9, 3, 32, 48).clamp(-1, 1)

    def both_ways(device):
        tokenizer, encoder = load_text_encoder(checkpoint, device=device, dtype=torch.float32)
        embeds = embed_prompts(["a cat"], tokenizer, encoder, max_text_seq_length=226).embeds[0]
        vae = load_vae(checkpoint, device=device, dtype=torch.float32)
        latents = encode_frames(vae, frames)
        assert embeds.device.type == latents.device.type == device.type
        pixels = torch.cat(list(decode_pixels(vae, latents))).float() / 255
        return embeds.cpu(), latents.cpu(), decode_latents(vae, latents), pixels

    expected = both_ways(CPU)
    with Mac():
        found = both_ways(MPS)
    for there, here in zip(found, expected, strict=True):
        assert not isinstance(there, OnMac)
        assert torch.allclose(there, here, atol=5e-3)  # a level of 255, and rounding


def test_attention_never_holds_all_logits(monkeypatch):
    """torch's own function does there, and is wrong from 2^32 of them on."""
    monkeypatch.setattr(functional, "scaled_dot_product_attention", None)
    q, k, v = (draw(1, 2, 40, 16, seed=seed).bfloat16() for seed in range(3))
    exact = (q.double() @ k.double().mT / 4).softmax(-1) @ v.double()
    with Mac():
        q, k, v = q.to(MPS), k.to(MPS), v.to(MPS)
        outs = attention(q, k, v).cpu(), attention_with_lse(q, k, v)[0].cpu()
    for out in outs:
        assert (out.double() - exact).norm() / exact.norm() < torch.finfo(torch.bfloat16).eps / 2


def test_weights_of_8_bit_floats_are_refused_before_they_are_loaded():
    with pytest.raises(UsageError, match=r"--weights fp8 .* mps") as caught:
        check_weights("fp8", device=MPS)
    assert caught.value.exit_code == 2
    check_weights("bf16", device=MPS)
    check_weights("int8", device=MPS, compile=True)


def test_this_mac_refuses_what_a_mac_refuses():
    with Mac():
        there = load_transformer(
            find_checkpoint(str(GOLDEN_PIPELINE)), device=MPS, dtype=torch.float32
        )
        assert there.device == MPS
        x = torch.zeros(2, device=MPS)
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(TypeError, match="float64"):
            torch.linspace(0, 1, 3, dtype=torch.float64, device="mps")
        with pytest.raises(RuntimeError, match="mps and on the cpu"):
            x + torch.zeros(2)
