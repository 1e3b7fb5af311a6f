"""Inversion: exact where it can be, and better than upstream where it cannot."""

import math

import pytest
import torch
from schedules import gaussian, schedule_of

from cogedit.diffusion.denoise import denoise
from cogedit.diffusion.invert import (
    MAX_FURTHER,
    NOISY,
    TOLERANCE,
    invert_consistent,
    invert_upstream,
)
from cogedit.diffusion.midpoint import invert_midpoint
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import ArtifactMismatch, NumericalError, UsageError
from cogedit.models.steps import run_steps

STEPS = [7, 10, 15, 28, 50, 61]


def oracle(schedule, z0, eps):
    """v along the straight path between one clean sample and one noise; it depends on t alone."""

    def model(sample, timestep):
        a = schedule.alpha_cumprod(timestep)
        return a**0.5 * eps - (1 - a) ** 0.5 * z0

    return model


def wavy(schedule):
    """A smooth model that does depend on the sample, like a trained one."""

    def model(sample, timestep):
        a = schedule.alpha_cumprod(timestep)
        return a**0.5 * torch.tanh(1.5 * sample) + 0.3 * torch.sin(2 * sample.flip(-1))

    return model


def leaping(schedule):
    """A model that towards noise decides by a clip's mean whether it is light or dark."""

    def model(sample, timestep):
        light = torch.tanh(30 * sample.mean(dim=(1, 2, 3, 4), keepdim=True))
        return 0.3 * torch.sin(sample) - math.sin(schedule.angle(timestep)) ** 12 * light

    return model


def invert(
    model, z0, schedule, *, loop=invert_consistent, done=(), on_state=None, on_step=None, **options
):
    """The trajectory of an inversion."""
    states = loop(model, z0, schedule, done=done, **options)
    samples = run_steps(states, "sample", done=done, on_state=on_state, on_step=on_step)
    return Trajectory.of(samples, z0, schedule)


def sample(model, noise, schedule):
    """The sample after each step."""
    return run_steps(denoise(model, noise, schedule), "sample")


def error_of_round_trip(inverted, model, schedule):
    back = sample(model, inverted.noise, schedule)[-1]
    return float((back - inverted.latents).abs().max())


@pytest.mark.parametrize("snr_shift_scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", STEPS)
def test_inverse_then_forward_with_an_oracle_is_the_identity(steps, snr_shift_scale):
    schedule = schedule_of(steps, snr_shift_scale)
    z0, eps = gaussian(0), gaussian(1)
    model = oracle(schedule, z0, eps)
    inverted = invert(model, z0, schedule)
    assert torch.allclose(inverted.noise, eps, atol=1e-5)
    assert error_of_round_trip(inverted, model, schedule) < 1e-5


@pytest.mark.parametrize("steps", [25, 50])
def test_one_corrected_call_per_step_beats_upstream_and_more_calls_beat_one(steps):
    schedule = schedule_of(steps)
    model = wavy(schedule)
    z0 = gaussian(2)
    upstream = error_of_round_trip(
        invert(model, z0, schedule, loop=invert_upstream), model, schedule
    )
    one = error_of_round_trip(invert(model, z0, schedule), model, schedule)
    many = error_of_round_trip(invert(model, z0, schedule, iterations=30), model, schedule)
    assert one < upstream / 5
    assert many < one / 5
    assert many < 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mean", [0.05, 0.1])
def test_where_the_model_leaps_a_step_is_corrected_until_it_is_solved(seed, mean):
    schedule, steps = schedule_of(13), []
    model, z0 = leaping(schedule), mean + 0.1 * gaussian(seed)
    one = error_of_round_trip(invert(model, z0, schedule, iterations=1), model, schedule)
    solved = invert(model, z0, schedule, iterations=None, on_step=steps.append)
    assert one > 0.1
    assert error_of_round_trip(solved, model, schedule) < 0.005
    # One more call of every step would have cost more.
    assert sum(step.num_calls for step in steps) < 2 * 13 + 1
    noisy = [step for step in steps if schedule.angle(step.timestep) > NOISY]
    assert all(step.num_calls == 1 for step in steps[1:] if step not in noisy)
    begun = [step.num_calls > 1 for step in noisy].index(True)
    below = {t: s for s, t in schedule.inversion_steps()}
    for step in noisy[begun:]:
        assert 1 < step.num_calls <= 1 + MAX_FURTHER
        cos, sin = schedule.rotation(step.timestep, below[step.timestep])
        is_solved = step.residual < TOLERANCE * sin / cos
        assert is_solved or step.num_calls == 1 + MAX_FURTHER


def test_each_clip_of_a_batch_has_its_own_corrections():
    schedule = schedule_of(13)
    model = leaping(schedule)
    clips = [mean + 0.1 * gaussian(0) for mean in (0.05, 2.0, 0.1)]
    together = invert(model, torch.cat(clips), schedule, iterations=None)
    for number, clip in enumerate(clips):
        steps = []
        alone = invert(model, clip, schedule, iterations=None, on_step=steps.append)
        assert torch.allclose(together.samples[:, [number]], alone.samples, atol=1e-6)
        assert (sum(step.num_calls for step in steps) == 14) == (number == 1)


def test_two_levels_below_the_first_are_worth_more_than_twice_the_levels():
    z0 = gaussian(2)

    def error(schedule):
        model = wavy(schedule)
        return error_of_round_trip(invert(model, z0, schedule), model, schedule)

    assert error(schedule_of(25).with_low_levels(2)) < error(schedule_of(25)) / 3
    assert error(schedule_of(25).with_low_levels(2)) < error(schedule_of(50))


def back_by_midpoint(inverted, model, schedule):
    """Sample from the noisiest level that the inversion asked about."""
    down = schedule.subset(None, start_step=1)
    steps = denoise(model, inverted.at(down.timesteps[0]), down, solver="midpoint")
    return run_steps(steps, "sample")[-1]


@pytest.mark.parametrize("snr_shift_scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_the_midpoint_rule_up_and_down_with_an_oracle_is_the_identity(steps, snr_shift_scale):
    schedule = schedule_of(steps, snr_shift_scale).midpoints()
    z0, eps = gaussian(0), gaussian(1)
    model = oracle(schedule, z0, eps)
    inverted = invert(model, z0, schedule, loop=invert_midpoint)
    assert torch.allclose(inverted.noise, eps, atol=1e-5)
    down = denoise(model, inverted.noise, schedule, solver="midpoint")
    assert torch.allclose(run_steps(down, "sample")[-1], z0, atol=1e-5)


def test_the_midpoint_rule_is_of_second_order_and_asks_once_per_level():
    z0 = gaussian(2)

    def error(steps, loop):
        schedule = schedule_of(steps)
        if loop is invert_midpoint:
            schedule = schedule.midpoints()
        calls = []

        def model(sample, timestep):
            calls.append(timestep)
            return wavy(schedule)(sample, timestep)

        inverted = invert(model, z0, schedule, loop=loop)
        assert len(calls) == steps + 1
        if loop is not invert_midpoint:
            return error_of_round_trip(inverted, model, schedule)
        assert 999 not in calls
        back = back_by_midpoint(inverted, model, schedule)
        assert len(calls) == 2 * steps + 1
        return float((back - z0).abs().max())

    coarse, fine = (error(steps, invert_midpoint) for steps in (25, 50))
    assert fine < coarse / 2
    assert coarse < error(25, invert_consistent) / 4


@pytest.mark.parametrize("num_done", [1, 4, 10])
def test_a_stopped_midpoint_inversion_goes_on_with_the_same_bits(num_done):
    schedule = schedule_of(10).midpoints()
    model, z0, states = wavy(schedule), gaussian(3), []
    straight = invert(model, z0, schedule, loop=invert_midpoint, on_state=states.append)
    resumed = invert(model, z0, schedule, loop=invert_midpoint, done=states[:num_done])
    assert torch.equal(resumed.samples, straight.samples)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_calls_per_step(iterations):
    schedule = schedule_of(10)
    calls = []

    def model(sample, timestep):
        calls.append(timestep)
        return wavy(schedule)(sample, timestep)

    invert(model, gaussian(3), schedule, iterations=iterations)
    # The first step has no earlier velocity to predict from and asks once more.
    assert len(calls) == 10 * iterations + 1
    assert calls[0] == calls[1] == 99
    assert calls[-1] == 999


def test_trajectory_is_in_inversion_order_and_found_by_timestep():
    schedule = schedule_of(10)
    z0, eps = gaussian(0), gaussian(1)
    inverted = invert(oracle(schedule, z0, eps), z0, schedule)
    assert inverted.samples.shape == (10, 1, 3, 4, 4, 4)
    assert inverted.timesteps == tuple(range(99, 1000, 100))
    for t in inverted.timesteps:
        a = schedule.alpha_cumprod(t)
        assert torch.allclose(inverted.at(t), a**0.5 * z0 + (1 - a) ** 0.5 * eps, atol=1e-5)
    assert torch.equal(inverted.noise, inverted.at(999))
    with pytest.raises(ArtifactMismatch, match="timestep 19;"):
        inverted.at(19)


def test_progress_reports_levels_and_falling_residuals():
    schedule = schedule_of(50)
    steps = []
    invert(wavy(schedule), gaussian(4), schedule, on_step=steps.append)
    assert [s.index for s in steps] == list(range(50))
    assert [s.timestep for s in steps] == sorted(schedule.timesteps)
    assert all(0 <= s.residual < 0.2 for s in steps)


def test_nan_stops_at_its_step():
    schedule = schedule_of(10)

    def model(sample, timestep):
        return sample * (float("nan") if timestep == 299 else 1.0)

    with pytest.raises(NumericalError, match=r"step 3 \(timestep 299\)"):
        invert(model, gaussian(5), schedule)
    with pytest.raises(NumericalError, match=r"step 8 \(timestep 299\)"):
        sample(model, gaussian(5), schedule)


def test_refuses_what_has_no_solution():
    with pytest.raises(UsageError, match="inversion_iterations is 0"):
        invert(wavy(schedule_of(5)), gaussian(0), schedule_of(5), iterations=0)
    with pytest.raises(UsageError, match="at least 2 inference steps"):
        invert(wavy(schedule_of(1)), gaussian(0), schedule_of(1))


@pytest.mark.parametrize("iterations", [1, 2, None])
@pytest.mark.parametrize("kind", [wavy, leaping])
def test_an_inversion_goes_on_from_any_step_with_the_same_bits(iterations, kind):
    schedule, z0, states = schedule_of(13), 0.1 * gaussian(2), []
    model = kind(schedule)
    whole = invert(model, z0, schedule, iterations=iterations, on_state=states.append)
    for count in range(len(states) + 1):
        told = []
        again = invert(
            model,
            z0,
            schedule,
            iterations=iterations,
            done=states[:count],
            on_step=told.append,
        )
        assert torch.equal(again.samples, whole.samples)
        assert told == [state.info for state in states[count:]]


def test_an_upstream_inversion_goes_on_from_any_step_with_the_same_bits():
    schedule, z0, states = schedule_of(7), gaussian(2), []
    model = wavy(schedule)
    whole = invert(model, z0, schedule, loop=invert_upstream, on_state=states.append)
    for count in range(len(states) + 1):
        again = invert(model, z0, schedule, loop=invert_upstream, done=states[:count])
        assert torch.equal(again.samples, whole.samples)


def test_the_last_good_step_is_handed_over_before_a_bad_one_stops():
    schedule, z0, states = schedule_of(7), gaussian(2), []
    good = wavy(schedule)

    def model(sample, timestep):
        return good(sample, timestep) * (float("nan") if timestep > 500 else 1.0)

    with pytest.raises(NumericalError, match=r"the inverted sample .* at step 4 \(timestep 570"):
        invert(model, z0, schedule, on_state=states.append)
    assert [state.info.index for state in states] == [0, 1, 2]
    assert all(torch.isfinite(state.tensors["sample"]).all() for state in states)
