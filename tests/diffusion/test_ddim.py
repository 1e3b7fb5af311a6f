"""One step function for both directions, against diffusers and against the algebra."""

import pytest
import torch
from schedules import forward_scheduler

from cogedit.diffusion.ddim import ddim_step, pred_original_sample, require_finite
from cogedit.diffusion.schedule import CLEAN, Schedule
from cogedit.errors import NumericalError


@pytest.mark.parametrize("snr_shift_scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_step_parity_at_every_timestep(snr_shift_scale, steps):
    scheduler = forward_scheduler(snr_shift_scale)
    scheduler.set_timesteps(steps)
    schedule = Schedule.trailing(scheduler.alphas_cumprod, steps)
    generator = torch.Generator().manual_seed(0)
    stride = 1000 // steps
    for t in range(1000):
        v, x = torch.randn(2, 1, 2, 3, 4, 4, generator=generator)
        t_to = t - stride if t >= stride else CLEAN
        expected = scheduler.step(v, t, x, return_dict=False)
        assert torch.allclose(
            ddim_step(v, x, schedule=schedule, t_from=t, t_to=t_to), expected[0], atol=2e-6
        ), t
        assert torch.allclose(
            pred_original_sample(v, x, schedule=schedule, timestep=t), expected[1], atol=2e-6
        ), t


def test_a_step_up_undoes_a_step_down_when_v_is_the_samples_own():
    schedule = Schedule.trailing(forward_scheduler(1.0).alphas_cumprod, 50)
    z0, eps = torch.randn(2, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()

    def sample_and_v(t):
        a = schedule.alpha_cumprod(t)
        return a**0.5 * z0 + (1 - a) ** 0.5 * eps, a**0.5 * eps - (1 - a) ** 0.5 * z0

    for t, s in schedule.denoising_steps():
        x_t, v_t = sample_and_v(t)
        x_s, v_s = sample_and_v(s)
        down = ddim_step(v_t, x_t, schedule=schedule, t_from=t, t_to=s)
        up = ddim_step(v_s, x_s, schedule=schedule, t_from=s, t_to=t)
        assert torch.allclose(down, x_s, atol=1e-12)
        assert torch.allclose(up, x_t, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops_the_run(bad):
    sample = torch.zeros(1, 1, 1, 2, 2)
    require_finite(sample, name="the sample", step=1, timestep=999)
    sample[0, 0, 0, 1, 1] = bad
    with pytest.raises(
        NumericalError, match=r"1 NaN or Inf of 4 values at step 3 \(timestep 939\)"
    ):
        require_finite(sample, name="the sample", step=3, timestep=939)
