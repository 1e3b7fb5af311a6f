"""Layers that leave the source out, one after the other, against processors in the stock blocks."""

from dataclasses import replace

import pytest
import torch
from references import WrittenOut, written_out

from cogedit.diffusion.ddim import pred_original_sample
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.attention import Injection
from cogedit.models.layer_probe import (
    narrowest_window,
    probe_levels,
    probed_steps,
    short_edit,
)
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rotary import image_rotary_emb
from cogedit.types import ReconstructSettings, WindowPlan

PROMPT, CAPTION = "a blue cat", "a dog"
LEVELS = (99, 299, 499, 699, 899, 999)
SHAPE = (3, 16, 8, 12)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EMBEDS = {text: draw(1, 8, 32, seed=n) for n, text in enumerate(("", PROMPT, CAPTION))}
REFERENCE = Trajectory(draw(6, 1, *SHAPE, seed=5), draw(1, *SHAPE, seed=6), LEVELS)
SAMPLES = draw(6, 1, *SHAPE, seed=7)


@pytest.mark.parametrize("num_together", [1, 3, 14])
@pytest.mark.parametrize("layers", [(0, None), (1, 3), (1, 2)])
def test_a_layer_that_is_left_out_is_one_without_a_reference(golden_pipeline, layers, num_together):
    transformer = golden_pipeline.transformer
    settings = ReconstructSettings(
        PROMPT, injection_strength=(2.0, 0.5), injection_steps=(0.0, 0.9), injection_layers=layers
    )
    settings = short_edit(settings, len(LEVELS))
    table = golden_pipeline.scheduler.alphas_cumprod
    steps = []
    found = probe_levels(
        Predictor(transformer, table, EMBEDS),
        InvertedClips(REFERENCE, (CAPTION,)),
        settings,
        samples=SAMPLES,
        num_together=num_together,
        on_step=steps.append,
    )
    assert [(level.step, level.timestep) for level in found] == [(1, 899), (3, 499), (5, 99)]
    assert [(step.index, step.total, step.timestep) for step in steps] == [
        (0, 3, 899),
        (1, 3, 499),
        (2, 3, 99),
    ]
    middle = found[1]
    injection = Injection.of(settings, 2.0 - 1.5 * 3 / 6 / 0.9)
    assert middle.strength == pytest.approx(injection.strength)
    schedule = Schedule(tuple(table.double().tolist()), LEVELS[::-1])

    def clean(left_out):
        """x0^ of the edit's row beside the source's, with these layers attending to itself."""
        with written_out(transformer, (1,), injection), torch.no_grad():
            for number in left_out:
                transformer.transformer_blocks[number].attn1.processor = WrittenOut((), injection)
            v = transformer(
                hidden_states=torch.cat([SAMPLES[2], REFERENCE.at(499)]),
                encoder_hidden_states=torch.cat([EMBEDS[PROMPT], EMBEDS[CAPTION]]),
                timestep=torch.full((2,), 499),
                image_rotary_emb=image_rotary_emb(transformer, (3, 8, 12)),
                return_dict=False,
            )[0][:1]
        return pred_original_sample(v, SAMPLES[2], schedule=schedule, timestep=499)

    window = injection.window(3)
    kept, without = clean([]), clean(window)
    whole = (without - kept).norm()
    assert middle.whole == pytest.approx(float(whole / kept.norm()), rel=1e-3)
    expected = [float((clean([number]) - kept).norm() / whole) for number in window]
    assert middle.changes == pytest.approx(expected, rel=1e-2)
    assert max(middle.changes) > 0.1


def test_of_a_long_clip_the_first_window_is_probed(golden_pipeline):
    windows = WindowPlan(length=2, overlap=1, shift=0)
    table = golden_pipeline.scheduler.alphas_cumprod
    predictor = Predictor(golden_pipeline.transformer, table, EMBEDS)
    short = Trajectory(REFERENCE.samples[:, :, :2], REFERENCE.latents[:, :2], LEVELS)
    long = replace(REFERENCE, windows=windows)

    def probed(reference, samples):
        return probe_levels(
            predictor,
            InvertedClips(reference, (CAPTION,)),
            short_edit(ReconstructSettings(PROMPT), len(LEVELS)),
            samples=samples,
            num_together=14,
        )

    assert probed(long, SAMPLES) == probed(short, SAMPLES[:, :, :2])
    assert probed(long, SAMPLES) != probed(REFERENCE, SAMPLES)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        ((0.0, 1.0), 1.0, (1, 5, 9)),
        ((0.0, 0.6), 1.0, (1, 3, 5)),
        ((0.0, 1.0), (1.0, 0.0), (1, 5, 9)),
        ((0.0, 0.3), 1.0, (1, 2)),
        ((0.0, 0.1), 1.0, ()),  # the first alone
        ((0.5, 0.6), 1.0, (5,)),
        ((0.0, 1.0), 0.0, ()),
    ],
)
def test_the_steps_to_probe_at(steps, strength, expected):
    settings = ReconstructSettings(PROMPT, injection_strength=strength, injection_steps=steps)
    assert probed_steps(settings, Schedule((), tuple(range(10)))) == expected


def test_the_edit_to_probe_in_is_short():
    settings = ReconstructSettings(PROMPT, auto_mask=True)
    assert short_edit(settings, 51) == replace(settings, auto_mask=False, num_inference_steps=10)
    assert short_edit(settings, 4).num_inference_steps == 4
    assert short_edit(replace(settings, num_inference_steps=30), 51).num_inference_steps == 30


@pytest.mark.parametrize(
    ("changes", "share", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.5, (0, 2)),
        ([0.1, 0.2, 5.0, 3.0, 0.1], 0.8, (2, 4)),
        ([0.1, 0.1, 0.8], 0.8, (2, 3)),
        ([0.5, 0.0, 0.5], 0.8, (0, 3)),
        ([0.0, 0.0], 0.8, (0, 1)),
    ],
)
def test_the_narrowest_window(changes, share, expected):
    assert narrowest_window(changes, share) == expected
