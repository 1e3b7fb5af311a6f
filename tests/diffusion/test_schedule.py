"""The table of levels: spacing, both directions, and what diffusers gets wrong."""

import math

import pytest
from diffusers import DDIMInverseScheduler
from schedules import forward_scheduler

from cogedit.diffusion.schedule import CLEAN, Schedule
from cogedit.errors import UsageError
from cogedit.types import InvertSettings


def test_every_step_count_that_the_scheduler_gets_right_is_the_schedulers():
    scheduler = forward_scheduler(1.0)
    alphas_cumprod = scheduler.alphas_cumprod
    wrong = []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.tolist()
        found = list(Schedule.trailing(alphas_cumprod, steps).timesteps)
        assert len(found) == steps
        if len(expected) == steps:
            assert found == expected, steps
        else:
            wrong.append(steps)
    assert {61, 103} <= set(wrong)


@pytest.mark.parametrize("steps", [7, 15, 28, 61, 103])
def test_any_step_count_gives_that_many_levels(steps):
    schedule = Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, steps)
    assert len(set(schedule.timesteps)) == steps
    assert schedule.timesteps[0] == 999
    assert list(schedule.timesteps) == sorted(schedule.timesteps, reverse=True)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_count_out_of_range(steps):
    with pytest.raises(UsageError, match=f"num_inference_steps is {steps}; .* between 1 and 1000"):
        Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, steps)


def test_the_two_directions_are_one_list_reversed():
    schedule = Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, 50)
    down, up = schedule.denoising_steps(), schedule.inversion_steps()
    assert up == tuple((s, t) for t, s in reversed(down))
    assert up[0] == (CLEAN, 19)
    assert up[-1] == (979, 999)


def test_low_levels_halve_the_first_angle():
    schedule = Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, 25)
    low = schedule.with_low_levels(2)
    assert low.timesteps[:-2] == schedule.timesteps
    for t, s in low.denoising_steps()[-3:-1]:
        assert low.angle(s) == pytest.approx(low.angle(t) / 2, rel=0.05)
    assert schedule.with_low_levels(0) == schedule


@pytest.mark.parametrize("snr_shift_scale", [1.0, 3.0])
def test_there_is_room_for_the_low_levels_that_nobody_asked_for(snr_shift_scale):
    alphas_cumprod = forward_scheduler(snr_shift_scale).alphas_cumprod
    for steps in range(2, 1001):
        low = InvertSettings(num_inference_steps=steps).num_low_levels
        schedule = Schedule.trailing(alphas_cumprod, steps - low).with_low_levels(low)
        assert len(set(schedule.timesteps)) == steps


def test_low_levels_end_where_no_timestep_is_left():
    schedule = Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, 1000)
    with pytest.raises(UsageError):
        schedule.with_low_levels(1)


@pytest.mark.parametrize("snr_shift_scale", [1.0, 3.0])
def test_rotation_turns_by_the_difference_of_angles(snr_shift_scale):
    schedule = Schedule.trailing(forward_scheduler(snr_shift_scale).alphas_cumprod, 28)
    for t, s in schedule.denoising_steps():
        difference = schedule.angle(t) - schedule.angle(s)
        assert schedule.rotation(t, s) == pytest.approx(
            (math.cos(difference), math.sin(difference)), abs=1e-12
        )
        assert difference > 0


def test_the_shifted_levels_of_2b_are_kept_where_the_inverse_scheduler_drops_them():
    """`DDIMInverseScheduler` ignores snr_shift_scale; at t = 264 that is 0.628 for 0.364."""
    forward = forward_scheduler(3.0)
    inverse = DDIMInverseScheduler.from_config(forward.config)
    schedule = Schedule.trailing(forward.alphas_cumprod, 50)
    assert schedule.alpha_cumprod(264) == pytest.approx(0.364, abs=1e-3)
    assert float(inverse.alphas_cumprod[264]) == pytest.approx(0.628, abs=1e-3)
    assert schedule.alphas_cumprod == tuple(forward.alphas_cumprod.double().tolist())


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [(0, 1, range(10)), (0, 0.5, range(5)), (0.2, 0.4, (2, 3)), (0.5, 0.5, ())],
)
def test_a_window_of_steps(first, last, steps):
    schedule = Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, 10)
    assert schedule.window(first, last) == {schedule.timesteps[step] for step in steps}
