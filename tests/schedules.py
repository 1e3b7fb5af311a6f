"""The 5B scheduler settings, with any shift."""

from diffusers import CogVideoXDDIMScheduler

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
