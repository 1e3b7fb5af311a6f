"""The mask that the model finds."""

from dataclasses import replace

import pytest
import torch

from cogedit.models.auto_mask import find_masks, mask_levels
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.sampling import invert_latents
from cogedit.types import InvertSettings, ReconstructSettings

PROMPT = "a blue cat running in snow"


@pytest.fixture(scope="module")
def predictor(golden, golden_pipeline):
    table = golden_pipeline.scheduler.alphas_cumprod
    embeds = {"": golden["negative_prompt_embeds"], PROMPT: golden["prompt_embeds"]}
    return Predictor(golden_pipeline.transformer, table, embeds)


@pytest.fixture(scope="module")
def inverted(golden, predictor):
    both = torch.cat([golden["latents"], golden["latents"].flip(-1)])
    settings = [InvertSettings(num_inference_steps=10, inverse="upstream")] * 2
    return InvertedClips(invert_latents(predictor, both, settings), ("", ""))


def find(predictor, inverted, *prompts, **changes):
    settings = [replace(ReconstructSettings(prompt), **changes) for prompt in prompts]
    return find_masks(predictor, inverted, settings)


def test_levels_are_the_trajectory_s_own():
    assert mask_levels(range(0, 1000, 100)) == (400, 500, 600)  # each once
    assert mask_levels(list(range(19, 1000, 20))) == (419, 499, 599, 699)
    assert mask_levels([999]) == (999,)


def test_a_mask_per_clip(predictor, inverted):
    tight = {"auto_mask_threshold": 0.8, "mask_dilation": 0}
    found = find(predictor, inverted, PROMPT, "", **tight)
    assert found.shape == (2, 3, 1, 8, 12)
    assert set(found[0].unique().tolist()) == {0.0, 1.0}
    assert not found[1].any()  # the text it was inverted under
    alone = find(predictor, inverted, PROMPT, PROMPT, **tight)
    assert torch.equal(alone[0], found[0])
    assert not torch.equal(alone[1], found[0])


def test_threshold_and_dilation_are_the_settings(predictor, inverted):
    def area(**changes):
        return float(find(predictor, inverted, PROMPT, PROMPT, **changes)[0].mean())

    narrow = area(auto_mask_threshold=0.8, mask_dilation=0)
    assert 0 < narrow < area(auto_mask_threshold=0.5, mask_dilation=0)
    assert narrow < area(auto_mask_threshold=0.8, mask_dilation=1)
