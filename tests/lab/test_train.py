"""The recipe at tiny size: it learns, stops, goes on and ends in a pipeline that loads."""

import subprocess
import sys
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline

from cogedit.lab.components import (
    COARSE_PATCH_SIZE,
    PATCH_SIZE,
    export_pipeline,
    rotary_embeddings,
)
from cogedit.lab.train_transformer import TransformerTraining, train_transformer
from cogedit.lab.train_vae import LinearCodec, VaeTraining, frames_to_pixels, render_batch
from cogedit.media.metrics import MAX_PSNR
from cogedit.shapes import train_vae, world

VAE = VaeTraining(
    steps=4,
    batch_size=1,
    codec_steps=2,
    eval_every=2,
    eval_clips=2,
    block_out_channels=(16, 16, 16),
)
TRANSFORMER = TransformerTraining(
    steps=4,
    batch_size=4,
    num_clips=8,
    eval_every=2,
    eval_clips=8,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=32,
)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    train_vae.train_vae(VAE, out)
    return out


def weights(module):
    return torch.cat([param.detach().flatten() for param in module.parameters()])


def test_a_resumed_vae_run_is_the_same_run(vae_folder, tmp_path):
    assert (vae_folder / "vae-losses.png").stat().st_size > 1000
    whole = train_vae.train_vae(VAE, vae_folder)  # from its own last checkpoint: nothing to do
    train_vae.train_vae(replace(VAE, steps=2, decay_fraction=0.0), tmp_path / "b")
    resumed = train_vae.train_vae(replace(VAE, decay_fraction=0.0), tmp_path / "b")
    straight = train_vae.train_vae(replace(VAE, decay_fraction=0.0), tmp_path / "c")
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=1e-3, atol=1e-5)
    assert weights(whole).isfinite().all()
    latents = train_vae.encode_frames(whole, render_batch(range(8), "held_out"))
    assert latents.shape == (8, 3, 4, 16, 16)
    assert latents.std() == pytest.approx(1.0, abs=0.1)
    assert train_vae.decode_latents(whole, latents).shape == (8, 9, 64, 64, 3)


def test_a_resumed_transformer_run_is_the_same_run(vae_folder, tmp_path):
    constant = replace(TRANSFORMER, decay_fraction=0.0)
    for steps in (2, 4):
        resumed = train_transformer(
            replace(constant, steps=steps), vae_folder / "vae", out=tmp_path / "a"
        )
    straight = train_transformer(constant, vae_folder / "vae", out=tmp_path / "b")
    for part in ("transformer", "text_encoder"):
        torch.testing.assert_close(
            weights(getattr(resumed, part)), weights(getattr(straight, part)), rtol=1e-3, atol=1e-5
        )
    export_pipeline(straight, tmp_path / "pipeline")
    loaded = CogVideoXPipeline.from_pretrained(tmp_path / "pipeline", torch_dtype=torch.float32)
    frames = loaded(
        "a red circle",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        max_sequence_length=12,
        output_type="np",
    ).frames
    assert frames.shape == (1, 9, 64, 64, 3)
    assert np.isfinite(frames).all()
    cos, _ = rotary_embeddings(loaded, num_latent_frames=3, device="cpu")
    assert cos.shape == (192, 32)


def test_a_run_starts_from_the_blocks_of_a_coarse_one(vae_folder, tmp_path):
    coarse = replace(TRANSFORMER, steps=2, patch_size=COARSE_PATCH_SIZE, decay_fraction=0.0)
    trained = train_transformer(coarse, vae_folder / "vae", out=tmp_path / "coarse")
    # Its own step has no size: what is there is what was taken over.
    started = train_transformer(
        replace(TRANSFORMER, steps=1, lr=0.0),
        vae_folder / "vae",
        out=tmp_path / "fine",
        start_from=tmp_path / "coarse" / "transformer.pt",
    )
    for part in ("transformer.transformer_blocks", "transformer.norm_final", "text_encoder"):
        assert torch.equal(
            weights(attrgetter(part)(started)), weights(attrgetter(part)(trained))
        ), part
    assert started.transformer.config.patch_size == PATCH_SIZE == 2
    assert started.transformer.proj_out.out_features == 2 * 2 * 4


def test_two_replicas_train_one_model(tmp_path):
    """In a process of its own: forking needs one that has used a single thread."""
    code = """
import sys, torch
torch.set_num_threads(1)
from cogedit.lab.optim import Muon, WeightAverage
from cogedit.lab.replicas import run_replicas
model = torch.nn.Linear(4, 4)
torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
optimizers = [Muon([model.weight], 0.05), torch.optim.AdamW([model.bias], 0.05)]
average = WeightAverage(model, decay=0.5)
target = torch.arange(16.0).view(4, 4).cos()
def work(replica):
    generator = torch.Generator().manual_seed(replica.rank)
    for _ in range(150):
        x = torch.randn(16, 4, generator=generator)
        (model(x) - x @ target.T - 1).square().mean().backward()
        replica.average_gradients()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update(model, replica.owned)
        replica.wait()
run_replicas(2, work, module=model, optimizers=optimizers, average=average)
average.copy_to(model)
assert (model.weight - target).abs().max() < 0.1, model.weight - target
assert (model.bias - 1).abs().max() < 0.1, model.bias
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_failed_replica_is_an_error():
    code = """
import torch
torch.set_num_threads(1)
from cogedit.lab.replicas import run_processes
try:
    run_processes(2, lambda rank: 1 // rank)
except RuntimeError as error:
    assert "processes ended with [1, 0]" in str(error), error
else:
    raise SystemExit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert b"ZeroDivisionError" in done.stderr


def test_the_linear_codec_keeps_most_of_a_clip():
    frames = render_batch(range(32), "train")
    codec = LinearCodec(frames, spatial=4, temporal=4, channels=4)
    pixels = frames_to_pixels(render_batch(range(4), "held_out"))
    code = codec.encode(pixels)
    assert code.shape == (4, 4, 3, 16, 16)
    flat = code.permute(0, 2, 3, 4, 1).reshape(-1, 4)
    blocks = pixels.reshape(4, 3, 9, 16, 4, 16, 4).mean(dim=(4, 6))
    target = blocks[:, :, [0, 4, 8]].permute(0, 2, 3, 4, 1).reshape(-1, 3)
    design = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
    left = target - design @ torch.linalg.lstsq(design, target).solution
    assert left.square().mean() < 0.1 * target.var()


def test_pixels_and_frames_are_inverse():
    frames = world.render(world.sample_spec(0))[None]
    assert (train_vae.pixels_to_frames(frames_to_pixels(frames)) == frames).all()
    assert train_vae.psnr(frames, frames)[0] == MAX_PSNR
