"""The parts that an experiment of one's own is made of refuse what they would pass over."""

import re

import pytest
import torch
from diffusers import CogVideoXPipeline
from pipelines import TINY_PIPELINE, settings_of
from safetensors.torch import load_file
from videos import make_video

import cogedit
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import ArtifactMismatch, UsageError
from cogedit.models.attention import Injection
from cogedit.models.denoiser import Denoiser
from cogedit.models.rows import EditPrompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "replace"}, "mode is 'replace', expected one of concatenate, queries-keys"),
        ({"tokens": "text"}, "tokens is 'text', expected one of all, image, own-text"),
        ({"strength": -1.0}, "strength is -1.0, expected at least 0"),
        ({"strength": float("nan")}, "strength is nan, expected at least 0"),
        ({"strength": float("inf")}, "strength is inf, expected at least 0"),
        ({"strength": 2.0, "mode": "queries-keys"}, "at most 1 with queries-keys"),
        ({"recentering": 1.5}, "recentering is 1.5, expected 0 to 1"),
    ],
)
def test_an_injection_that_no_layer_knows_is_refused(options, message):
    """Each was taken for another one, or for none."""
    with pytest.raises(UsageError, match=re.escape(message)):
        Injection(**options)


@pytest.fixture(scope="module")
def transformer():
    return CogVideoXPipeline.from_pretrained(TINY_PIPELINE, dtype=torch.float32).transformer


def test_a_denoiser_takes_one_sample_for_each_edit(transformer):
    """Of more it would leave out the last."""
    embeds, sample = torch.zeros(2, 64, 32), torch.zeros(1, 3, 16, 8, 12)
    denoiser = Denoiser(transformer, embeds=embeds, prompts=[EditPrompts(1, 0, 0, 0)])
    assert denoiser(sample, 999).edit.shape == sample.shape
    with pytest.raises(UsageError, match="found 2 samples, expected one for each of 1 edit"):
        denoiser(torch.cat([sample, sample]), 999)
    with pytest.raises(UsageError, match="has the prompt 2, and there are 2, from 0"):
        Denoiser(transformer, embeds=embeds, prompts=[EditPrompts(1, 2, 0, 0)])


def test_a_trajectory_is_made_of_its_file(tmp_path):
    """With `safetensors` alone, whose timesteps are a tensor."""
    video = make_video(tmp_path / "clip.mp4", num_frames=9)
    read = load_file(cogedit.invert(video, settings_of(video)).path)
    samples, latents, timesteps = (read[key] for key in ("trajectory", "latents", "timesteps"))
    trajectory = Trajectory(samples, latents, timesteps)
    assert trajectory.timesteps == tuple(timesteps.tolist())
    assert torch.equal(trajectory.at(int(timesteps[1])), samples[1])
    with pytest.raises(ArtifactMismatch, match="has 2 samples, expected 3"):
        Trajectory(samples[:2], latents, timesteps)
