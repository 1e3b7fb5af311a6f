"""The pipeline that ships with the package."""

import json

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

from cogedit.lab import world
from cogedit.lab.codec import decode_clip, encode_clip
from cogedit.lab.edit_metrics import to_frames
from cogedit.lab.evaluate import accuracy, generate
from cogedit.lab.evaluate import main as evaluate
from cogedit.media.metrics import psnr
from cogedit.shapes import model_dir


@pytest.fixture(scope="module")
def pipeline():
    pipe = CogVideoXPipeline.from_pretrained(model_dir(), dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small():
    assert sum(file.stat().st_size for file in model_dir().rglob("*")) <= 20_000_000


def test_it_names_no_place_on_a_disk():
    for config in model_dir().rglob("*.json"):
        assert "_name_or_path" not in config.read_text(encoding="utf-8")


def test_the_scheduler_has_the_settings_of_5b(pipeline):
    assert isinstance(pipeline.scheduler, CogVideoXDDIMScheduler)
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert config.rescale_betas_zero_snr
    assert config.snr_shift_scale == 1.0
    assert pipeline.scheduler.alphas_cumprod[-1] == 0


def test_the_vae_keeps_frames_and_pictures(pipeline):
    specs = [world.sample_spec(seed, "held_out") for seed in range(8)]
    clips = [world.render(spec) for spec in specs]
    latents = torch.cat([encode_clip(pipeline.vae, clip) for clip in clips])
    assert latents.shape[1] == 3
    assert latents.std() == pytest.approx(1.0, abs=0.2)
    decoded = [to_frames(decode_clip(pipeline.vae, latent)) for latent in latents[:2].split(1)]
    assert np.mean([psnr(*pair) for pair in zip(decoded, clips[:2], strict=True)]) >= 32
    assert accuracy(decoded, specs[:2])["all"] == 1.0


def test_it_generates_what_the_caption_says(pipeline):
    specs = [world.sample_spec(seed, "held_out") for seed in range(4)]
    clips = generate(
        pipeline,
        [world.caption(spec) for spec in specs],
        guidance_scale=3.0,
        num_inference_steps=10,
    )
    assert clips[0].dtype == np.uint8
    result = accuracy(clips, specs)
    assert min(result[name] for name in ("color", "background", "motion")) >= 3 / 4
    # Of shapes the README of the folder has a share of 95 %, at more guidance and steps.
    assert result["shape"] >= 2 / 4


def test_the_evaluation_samples_with_either_solver(tmp_path, capsys):
    overlaps = {}
    for solver in ("ddim", "dpm"):
        path = tmp_path / f"{solver}.json"
        arguments = ["--clips", "1", "--guidance-scale", "2", "--num-inference-steps", "4"]
        assert evaluate([*arguments, "--solver", solver, "--json", str(path)]) == 0
        found = json.loads(path.read_text())
        assert (found["solver"], found["num_inference_steps"]) == (solver, 4)
        rows = found["rows"]
        assert list(rows) == ["rendered", "VAE round trip", "from noise, guidance 2"]
        assert rows["VAE round trip"]["all"] == 1.0
        overlaps[solver] = rows["from noise, guidance 2"]["shape_iou"]
    assert overlaps["ddim"] != overlaps["dpm"]  # the noise that one of them adds
    assert "from noise, guidance 2" in capsys.readouterr().out
