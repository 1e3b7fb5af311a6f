"""Inversions and edits in windows against loops written out by hand."""

from dataclasses import replace

import pytest
import torch

from cogedit.diffusion.ddim import ddim_step, pred_original_sample
from cogedit.diffusion.flow_edit import noise_ratio
from cogedit.diffusion.latent_mask import difference_mask
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.windows import moves_windows
from cogedit.models.attention import Injection
from cogedit.models.auto_mask import find_masks, mask_levels
from cogedit.models.denoiser import Denoiser
from cogedit.models.forward import run_rows
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rows import EditPrompts
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.types import InvertSettings, ReconstructSettings, WindowPlan

TEXTS = ["a fox", "a dog", "blurred"]  # edit, source, negative
WINDOWS = WindowPlan(3, 1, 1)
WEIGHTS = {
    (0, 2): [[1, 1, 1 / 2], [1 / 2, 1, 1]],
    (0, 1, 2): [[1, 2 / 3, 1 / 4], [1 / 3, 1 / 2, 1 / 3], [1 / 4, 2 / 3, 1]],
}
"""Of the windows over 5 frames, where they lie at every other level, by hand."""


@pytest.fixture(scope="module")
def model(golden_pipeline):
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(len(TEXTS) + 1, 16, 32, generator=generator)
    embeds = {text: table[[k]] for k, text in enumerate([*TEXTS, ""])}
    noise = golden_pipeline.scheduler.alphas_cumprod
    return Predictor(golden_pipeline.transformer, noise, embeds)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 5, 16, 8, 12, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def inversion():
    return InvertSettings(prompt="a dog", num_inference_steps=6)


@pytest.fixture(scope="module")
def inverted(model, latents, inversion):
    return invert_latents(model, latents, [inversion], windows=WINDOWS)


@pytest.fixture(scope="module")
def edit(model):
    def run(reference, settings, **options):
        return edit_latents(model, InvertedClips(reference, ("a dog",)), [settings], **options)

    return run


def over_both(ask, *samples, timestep):
    """Ask about the windows of samples at a timestep, and join by hand."""
    starts = (0, 1, 2) if moves_windows(timestep) else (0, 2)
    joined = torch.zeros_like(samples[0])
    for start, weights in zip(starts, WEIGHTS[starts], strict=True):
        v = ask(*(sample[:, start : start + 3] for sample in samples))
        for k, weight in enumerate(weights):
            joined[:, start + k] += weight * v[:, k]
    return joined


def denoiser(model, prompts, **options):
    table = model.embeds_of(TEXTS)
    return Denoiser(model.transformer, embeds=table, prompts=[prompts], **options)


def visited(inverted, model, **subset):
    table = tuple(model.alphas_cumprod.double().tolist())
    return Schedule(table, tuple(reversed(inverted.timesteps))).subset(
        subset.get("steps"), start_step=0
    )


def test_an_inversion(model, latents, inversion):
    settings = replace(inversion, inverse="upstream")
    found = invert_latents(model, latents, [settings], windows=WINDOWS)
    one, x = denoiser(model, EditPrompts(1, None, 1, 1)), latents
    schedule = Schedule.trailing(model.alphas_cumprod, 6)
    for s, t in schedule.inversion_steps():
        v = over_both(lambda part, t=t: one.velocity(part, t), x, timestep=t)
        x = ddim_step(v, x, schedule=schedule, t_from=s, t_to=t)
        assert torch.allclose(found.at(t), x, atol=1e-4)
    assert {moves_windows(t) for t in schedule.timesteps} == {False, True}
    whole = invert_latents(model, latents, [settings])
    assert not torch.allclose(found.noise, whole.noise, atol=1e-2)


@pytest.mark.parametrize("windows", [WindowPlan(5, 2, 1), WindowPlan(13, 4, 4)])
def test_a_clip_that_one_window_holds_has_the_bits_of_one_pass(
    model, latents, inversion, edit, windows
):
    settings = ReconstructSettings("a fox", guidance_scale=3.0)
    alone = invert_latents(model, latents, [inversion])
    held = invert_latents(model, latents, [inversion], windows=windows)
    assert torch.equal(held.samples, alone.samples)
    assert torch.equal(edit(held, settings), edit(alone, settings))


@pytest.mark.parametrize("steps", [None, 3])
def test_an_edit_with_guidance_injection_and_mask(model, latents, inverted, edit, steps):
    settings = ReconstructSettings(
        "a fox",
        negative_prompt="blurred",
        guidance_scale=3.0,
        guidance_steps=(0.0, 0.7),
        guidance_reuse=0.0,
        injection_strength=1.0,
        injection_steps=(0.0, 0.5),
        num_inference_steps=steps,
    )
    mask = torch.zeros(5, 1, 8, 12)
    mask[1:4, :, 2:6, 3:9] = 1
    schedule = visited(inverted, model, steps=steps)
    one = denoiser(
        model,
        EditPrompts(0, 2, 1, 1),
        guidance_scale=3.0,
        guided=schedule.window(0.0, 0.7),
        injection=Injection.of(settings, 1.0),
    )
    x = inverted.noise
    with run_rows(model.transformer):
        for t, s in schedule.denoising_steps():
            samples = [x, inverted.at(t)] if t in schedule.window(0.0, 0.5) else [x]
            v = over_both(
                lambda *parts, t=t: one(parts[0], t, *parts[1:]).edit, *samples, timestep=t
            )
            x = ddim_step(v, x, schedule=schedule, t_from=t, t_to=s)
            x = mask * x + (1 - mask) * inverted.at(s)
    found = edit(inverted, settings, mask=mask)[-1]
    assert torch.allclose(found, x, atol=1e-4)
    assert not torch.allclose(found, edit(replace(inverted, windows=None), settings)[-1], atol=1e-2)


def test_an_edit_whose_guidance_takes_over(model, inverted, edit):
    """The difference that a step takes over is that of the whole clip, joined."""
    settings = ReconstructSettings(
        "a fox",
        guidance_scale=3.0,
        guidance_steps=(0.0, 1.0),
        guidance_reuse=0.2,
        negative_prompt="blurred",
        injection_strength=0.0,
    )
    schedule = visited(inverted, model)
    given, without = (denoiser(model, EditPrompts(n, None, n, n)) for n in (0, 2))
    x, difference = inverted.noise, torch.zeros(1)
    for step, (t, s) in enumerate(schedule.denoising_steps()):
        v = over_both(lambda part, t=t: given.velocity(part, t), x, timestep=t)
        if step in (0, 1, 3, 5):
            u = over_both(lambda part, t=t: without.velocity(part, t), x, timestep=t)
            difference = v - u
        x = ddim_step(v + 2.0 * difference, x, schedule=schedule, t_from=t, t_to=s)
    found = edit(inverted, settings)[-1]
    assert torch.allclose(found, x, atol=1e-4)
    predicted = edit(inverted, replace(settings, guidance_reuse=0.0))[-1]
    assert not torch.allclose(found, predicted, atol=1e-2)


def test_a_flow(model, latents, inverted, edit):
    settings = ReconstructSettings(
        "a fox",
        method="flow",
        guidance_scale=3.0,
        guidance_steps=(0.0, 1.0),
        injection_strength=1.0,
        injection_steps=(0.0, 0.6),
    )
    schedule = visited(inverted, model)
    options = {"guidance_scale": 3.0, "injection": Injection.of(settings, 1.0)}
    one = denoiser(model, EditPrompts(0, 2, 1, 1), **options)
    source = denoiser(model, EditPrompts(1, None, 1, 1))
    settings = replace(settings, negative_prompt="blurred")
    offset = torch.zeros_like(latents)
    with run_rows(model.transformer):
        for t, s in schedule.denoising_steps():
            x_source = inverted.at(t)
            x_edit = x_source + schedule.alpha_cumprod(t) ** 0.5 * offset
            attends = t in schedule.window(*settings.injection_steps)
            samples = [x_edit, x_source] if attends else [x_edit]
            v = over_both(
                lambda *parts, t=t: one(parts[0], t, *parts[1:]).edit, *samples, timestep=t
            )
            u = over_both(lambda part, t=t: source.velocity(part, t), x_source, timestep=t)
            ends = {"schedule": schedule, "timestep": t}
            ahead = pred_original_sample(v, x_edit, **ends)
            ahead = ahead - pred_original_sample(u, x_source, **ends)
            ratio = noise_ratio(schedule, t, s)
            offset = ratio * offset + (1 - ratio) * ahead
    assert torch.allclose(edit(inverted, settings)[-1], latents + offset, atol=1e-4)


def test_a_flow_of_one_text_returns_the_source_bit_for_bit(inverted, edit):
    settings = ReconstructSettings("a dog", method="flow", guidance_scale=1.0)
    found = edit(inverted, replace(settings, injection_strength=0.0))
    assert all(torch.equal(sample, inverted.latents) for sample in found)


def test_an_automatic_mask(model, inverted):
    settings = ReconstructSettings("a fox", auto_mask=True, auto_mask_threshold=0.95)
    edit, source = (denoiser(model, EditPrompts(k, None, k, k)).velocity for k in (0, 1))
    differences = [
        over_both(lambda part, t=t: edit(part, t) - source(part, t), inverted.at(t), timestep=t)
        for t in mask_levels(inverted.timesteps)
    ]
    expected = difference_mask(differences, threshold=settings.auto_mask_threshold)
    found = find_masks(model, InvertedClips(inverted, ("a dog",)), [settings])
    assert torch.equal(found, expected)
    assert 0 < found.mean() < 1


def test_two_clips_at_once_are_two_clips(model, latents, inversion, inverted):
    both = torch.cat([latents.flip(1), latents])
    found = invert_latents(model, both, [inversion] * 2, windows=WINDOWS)
    assert torch.allclose(found.samples[:, 1:], inverted.samples, atol=1e-4)


def test_a_trajectory_keeps_its_windows(inverted):
    assert inverted.windows == WINDOWS
    assert inverted.repeated(3).windows == WINDOWS
