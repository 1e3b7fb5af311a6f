"""What is read of a pipeline's scheduler, and which one cannot serve."""

from __future__ import annotations

from cogedit.errors import ModelError, shown
from cogedit.models.configs import SchedulerConfig
from cogedit.models.mistaken import EXAMPLE

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""What diffusers' class makes a noise table of."""


def check_scheduler(name: str, config: SchedulerConfig) -> None:
    """Refuse a scheduler without a noise table, or of a model that predicts no velocity.

    How the pipeline's own sampler steps is not read: `timestep_spacing`, `steps_offset`,
    `set_alpha_to_one` and `clip_sample` are no part of the model. The levels here are always
    "trailing", the only spacing that begins at the last one, where a model of zero terminal SNR
    was trained on pure noise (arXiv 2305.08891).

    Args:
        name: Of the pipeline.
        config: Its scheduler's, checked field by field; the library's defaults stand for others.

    Raises:
        ModelError: It names the field, what was found and what was expected.
    """
    problem = _problem(config)
    if problem is not None:
        raise ModelError(
            f"the scheduler of {name} has {problem}",
            hint="copy scheduler/ from the pipeline that the model was made from, or name another "
            f"model, {EXAMPLE}",
        )


def _problem(config: SchedulerConfig) -> str | None:
    predicts = config.get("prediction_type", "epsilon")
    if predicts != "v_prediction":
        return f"prediction_type = {shown(predicts)}; expected 'v_prediction'"
    count = config.get("num_train_timesteps", 1000)
    if count < 2:
        return f"num_train_timesteps = {count}; expected 2 or more"
    betas, named = config.get("trained_betas"), "trained_betas"
    if betas is None:
        schedule = config.get("beta_schedule", "scaled_linear")
        if schedule not in _BETA_SCHEDULES:
            return f"beta_schedule = {shown(schedule)}; expected {' or '.join(_BETA_SCHEDULES)}"
        if schedule == "squaredcos_cap_v2":
            return None
        betas = [config.get("beta_start", 0.00085), config.get("beta_end", 0.012)]
        named = "beta_start and beta_end"
    elif len(betas) != count:
        return f"{len(betas)} trained_betas; expected {count}, its num_train_timesteps"
    last = len(betas) - 1  # which may be pure noise
    wrong = next(
        (b for place, b in enumerate(betas) if not (0 < b < 1 or (place == last and b == 1))), None
    )
    if wrong is not None:
        return f"{named} with {wrong:g}; expected numbers above 0 and below 1"
    return None
