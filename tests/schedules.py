"""The 5B scheduler settings, with any shift, and models on it whose answer is known."""

import math

import torch
from diffusers import CogVideoXDDIMScheduler

from cogedit.diffusion.schedule import Schedule

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}


def forward_scheduler(snr_shift_scale=1.0):
    """5B has no shift (1.0), 2B has 3.0."""
    return CogVideoXDDIMScheduler(**CONFIG, snr_shift_scale=snr_shift_scale)


def schedule_of(num_steps, snr_shift_scale=1.0):
    """Evenly spaced levels of that scheduler."""
    return Schedule.trailing(forward_scheduler(snr_shift_scale).alphas_cumprod, num_steps)


def gaussian(seed):
    """A small sample [1, 3, 4, 4, 4]."""
    return torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def pulls_to(schedule, target, variance=0.25):
    """The exact v of a Gaussian around `target`: E[z0 | x_t] is known in closed form."""

    def model(sample, timestep):
        a = schedule.alpha_cumprod(timestep)
        gain = math.sqrt(a) * variance / (a * variance + 1 - a)
        x0 = target + gain * (sample - math.sqrt(a) * target)
        # From x0 = sqrt(a) x - sqrt(1 - a) v.
        return (math.sqrt(a) * sample - x0) / math.sqrt(1 - a)

    return model
