"""Anchored flow: exact where nothing is edited, and right on a model whose answer is known."""

import math

import pytest
import torch
from schedules import gaussian, pulls_to, schedule_of

from cogedit.diffusion.flow_edit import flow_edit, noise_ratio, noised_source
from cogedit.diffusion.schedule import CLEAN
from cogedit.models.steps import run_steps


def edits(edit, source, z0, schedule, **options):
    """The edit after each step, between the models of an edit and of its source."""

    def model(x_edit, x_source, timestep):
        return edit(x_edit, timestep), source(x_source, timestep)

    offsets = run_steps(flow_edit(model, z0, schedule, **options), "offset")
    return [z0 + offset for offset in offsets]


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
@pytest.mark.parametrize("steps", [5, 28, 50])
def test_the_same_model_on_both_sides_returns_the_source_bit_for_bit(steps, solver):
    schedule, z0 = schedule_of(steps), gaussian(0)
    model = pulls_to(schedule, gaussian(1))
    source_at = noised_source(z0, schedule, seeds=[3])
    samples = edits(model, model, z0, schedule, source_at=source_at, solver=solver)
    assert len(samples) == steps
    assert all(torch.equal(sample, z0) for sample in samples)


def test_it_moves_by_the_difference_of_what_the_two_models_expect():
    """Between two Gaussians of one width the flow is the shift of their means, whatever z0 is."""
    schedule, z0 = schedule_of(50), gaussian(0)
    source, target = gaussian(1), gaussian(2)
    edited = edits(
        pulls_to(schedule, target),
        pulls_to(schedule, source),
        z0,
        schedule,
        source_at=noised_source(z0, schedule, seeds=[3]),
    )[-1]
    assert torch.allclose(edited - z0, target - source, atol=1e-4)


def test_the_flow_too_is_of_second_order_when_asked():
    """Where the source lies on its own ODE, the edit solves the other's, from the same noise."""
    source, target, noise = gaussian(1), gaussian(2), gaussian(3)

    def error(steps, solver):
        schedule = schedule_of(steps)

        def source_at(timestep):
            a = schedule.alpha_cumprod(timestep)
            return math.sqrt(a) * source + math.sqrt(a * 0.25 + 1 - a) * noise

        edited = edits(
            pulls_to(schedule, target, variance=0.09),
            pulls_to(schedule, source),
            source_at(CLEAN),
            schedule,
            source_at=source_at,
            solver=solver,
        )[-1]
        return float((edited - (target + 0.3 * noise)).square().mean().sqrt())

    assert error(125, "dpm++2m") > 3 * error(250, "dpm++2m")
    assert error(125, "ddim") < 2 * error(250, "ddim")


def test_outside_a_mask_every_sample_is_the_source_s():
    schedule, z0 = schedule_of(10), gaussian(0)
    mask = torch.zeros(3, 1, 4, 4)
    mask[1, :, :2] = 1
    samples = edits(
        pulls_to(schedule, gaussian(2)),
        pulls_to(schedule, gaussian(1)),
        z0,
        schedule,
        source_at=noised_source(z0, schedule, seeds=[3]),
        mask=mask,
    )
    inside = mask.bool().expand_as(z0)
    for sample in samples:
        assert torch.equal(sample[~inside], z0[~inside])
    assert not torch.allclose(samples[-1][inside], z0[inside], atol=0.1)


def test_ratio_of_noise_levels():
    schedule = schedule_of(10)
    assert noise_ratio(schedule, 999, 899) == 0  # sigma is infinite at t = 999
    assert noise_ratio(schedule, 99, CLEAN) == 0
    for t, s in schedule.denoising_steps()[1:-1]:
        sigma_t, sigma_s = (
            math.sqrt((1 - schedule.alpha_cumprod(u)) / schedule.alpha_cumprod(u)) for u in (t, s)
        )
        assert noise_ratio(schedule, t, s) == pytest.approx(sigma_s / sigma_t)


def test_fresh_noise_is_the_seeds_and_the_levels_alone():
    schedule, z0 = schedule_of(10), gaussian(0)
    at = noised_source(z0, schedule, seeds=[1])
    assert torch.equal(at(499), noised_source(z0, schedule, seeds=[1])(499))
    assert not torch.equal(at(499), noised_source(z0, schedule, seeds=[2])(499))
    both = noised_source(torch.cat([z0, z0]), schedule, seeds=[2, 1])
    assert torch.equal(both(499)[1:], at(499))
    state = torch.get_rng_state()
    at(99)
    assert torch.equal(torch.get_rng_state(), state)
