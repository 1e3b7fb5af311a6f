"""Second order where the answer is known, and first order wherever there is nothing to go by."""

import math
from itertools import pairwise

import pytest
import torch
from schedules import pulls_to, schedule_of

from cogedit.diffusion.ddim import ddim_step
from cogedit.diffusion.denoise import denoise, keep_outside
from cogedit.diffusion.multistep import extrapolation_weight, solver_step
from cogedit.diffusion.schedule import CLEAN
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.steps import run_steps

SHIFTS = [1.0, 3.0]


def gaussian(seed):
    noise = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return noise.double()


def sample(*args, **options):
    """The sample after each step."""
    return run_steps(denoise(*args, **options), "sample")


def error(solver, steps, shift=1.0, variance=0.25):
    """Distance from the solution of a Gaussian's ODE: x0 = mean + sqrt(variance) noise."""
    schedule, target, noise = schedule_of(steps, shift), gaussian(1), gaussian(0)
    model = pulls_to(schedule, target, variance)
    exact = target + math.sqrt(variance) * noise
    found = sample(model, noise, schedule, solver=solver)[-1]
    return float((found - exact).square().mean().sqrt())


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("variance", [0.25, 2.0])
def test_the_error_falls_fourfold_when_the_steps_are_doubled(shift, variance):
    errors = [error("dpm++2m", steps, shift, variance) for steps in (62, 125, 250, 500)]
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(3.0 < ratio < 5.0 for ratio in ratios), ratios
    assert ratios[-1] == pytest.approx(4, abs=0.5)
    first_order = [error("ddim", steps, shift, variance) for steps in (125, 250)]
    assert first_order[0] / first_order[1] < 2.3


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", [5, 10, 25, 50])
def test_it_is_nearer_than_ddim_at_equal_calls(steps, shift):
    assert error("dpm++2m", steps, shift) < 0.8 * error("ddim", steps, shift)


def test_half_the_calls_do_better_than_ddim():
    assert error("dpm++2m", 10) < error("ddim", 20)
    assert error("dpm++2m", 25) < error("ddim", 50)


def test_the_weight_is_the_exact_mean_of_log_alpha_over_the_step():
    """Against the integral of the module's docstring by numbers."""
    schedule = schedule_of(20)
    for before, t, s in ((949, 899, 849), (499, 449, 399), (149, 99, 49)):
        angles = torch.linspace(schedule.angle(s), schedule.angle(t), 20001, dtype=torch.float64)
        density = 1 / angles.sin().square()
        log_alpha = angles.cos().log()
        mean = torch.trapezoid(density * log_alpha, angles) / torch.trapezoid(density, angles)
        at, was = (0.5 * math.log(schedule.alpha_cumprod(u)) for u in (t, before))
        expected = float((mean - at) / (at - was))
        assert extrapolation_weight(schedule, before, t, s) == pytest.approx(expected, rel=1e-5)


def test_the_weight_at_the_ends():
    schedule = schedule_of(10)
    assert schedule.alpha_cumprod(999) == 0
    assert extrapolation_weight(schedule, 999, 899, 799) == 0
    assert extrapolation_weight(schedule, 899, 799, 799) == 0
    # The last step takes x0^ as it would be at the clean sample.
    low, lower = (math.log(schedule.alpha_cumprod(t)) for t in (199, 99))
    expected = (0 - lower) / (lower - low)
    assert extrapolation_weight(schedule, 199, 99, CLEAN) == pytest.approx(expected)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_first_steps_are_ddim_s_and_zero_snr_divides_nothing(shift):
    schedule, noise = schedule_of(6, shift), gaussian(0)
    model = pulls_to(schedule, gaussian(1))
    ddim, second = (sample(model, noise, schedule, solver=s) for s in ("ddim", "dpm++2m"))
    assert torch.equal(second[0], ddim[0])
    assert torch.allclose(second[1], ddim[1])  # w = 0 after zero SNR
    assert not torch.allclose(second[2], ddim[2], atol=1e-3)
    assert all(torch.isfinite(sample).all() for sample in second)


def test_a_constant_estimate_of_the_clean_sample_is_reached_exactly():
    schedule, target, noise = schedule_of(7), gaussian(1), gaussian(0)
    model = pulls_to(schedule, target, variance=0.0)
    samples = sample(model, noise, schedule, solver="dpm++2m")
    assert torch.allclose(samples[-1], target, atol=1e-12)
    for (_, s), x in zip(schedule.denoising_steps(), samples, strict=True):
        a = schedule.alpha_cumprod(s)
        expected = math.sqrt(a) * target + math.sqrt(1 - a) * noise
        assert torch.allclose(x, expected, atol=1e-12)


def test_a_step_to_its_own_level_changes_nothing():
    schedule, x, v = schedule_of(10), gaussian(0), gaussian(1)
    options = {"solver": "dpm++2m", "schedule": schedule}
    moved, before = solver_step(v, x, None, t_from=899, t_to=799, **options)
    stayed, _ = solver_step(v, moved, before, t_from=799, t_to=799, **options)
    assert torch.allclose(stayed, moved, atol=1e-12)


def test_a_subset_that_starts_below_the_noisiest_level():
    schedule = schedule_of(50)
    z0, eps = gaussian(1), gaussian(0)

    def distance(solver):
        coarse = schedule.subset(10, start_step=3)
        a = coarse.alpha_cumprod(coarse.timesteps[0])
        start = math.sqrt(a) * z0 + math.sqrt(a * 0.25 + 1 - a) * eps
        exact = z0 + 0.5 * eps
        found = sample(pulls_to(coarse, z0), start, coarse, solver=solver)[-1]
        return float((found - exact).abs().max())

    assert distance("dpm++2m") < 0.5 * distance("ddim")


def test_a_step_where_the_model_changes_is_ddim_s():
    """Across the end of a window the last two predictions are of two models."""
    schedule, noise = schedule_of(8), gaussian(0)
    early, late = pulls_to(schedule, 3 * gaussian(1)), pulls_to(schedule, gaussian(2))
    window = schedule.window(0.0, 0.5)
    restarts = schedule.changes(window)
    assert restarts == {schedule.timesteps[4]}

    def model(x, timestep):
        return (early if timestep in window else late)(x, timestep)

    samples = sample(model, noise, schedule, solver="dpm++2m", restarts=restarts)
    t, s = schedule.denoising_steps()[4]
    expected = ddim_step(late(samples[3], t), samples[3], schedule=schedule, t_from=t, t_to=s)
    assert torch.allclose(samples[4], expected)
    unaware = sample(model, noise, schedule, solver="dpm++2m")
    assert not torch.allclose(unaware[4], expected, atol=0.1)


def test_changes_of_windows():
    schedule = schedule_of(10)
    half, middle = schedule.window(0, 0.5), schedule.window(0.3, 0.7)
    at = schedule.timesteps
    assert schedule.changes() == schedule.changes(schedule.window(0, 1)) == frozenset()
    assert schedule.changes(half, middle) == {at[3], at[5], at[7]}


def test_a_mask_keeps_the_source_outside_exactly():
    schedule = schedule_of(10)
    path = Trajectory.of(torch.stack([gaussian(i) for i in range(2, 12)]), gaussian(1), schedule)
    mask = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    mask[:, :, 1:3] = 1
    samples = sample(
        pulls_to(schedule, gaussian(20)),
        gaussian(0),
        schedule,
        solver="dpm++2m",
        constrain=keep_outside(mask, path),
    )
    outside = ~mask.bool().expand_as(path.latents)
    for (_, s), x in zip(schedule.denoising_steps(), samples, strict=True):
        assert torch.equal(x[outside], path.at(s)[outside])
    assert not torch.allclose(samples[-1], path.latents, atol=0.1)
