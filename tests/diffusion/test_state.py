"""A loop that is given its own state back continues with the same bits."""

import pytest
import torch
from schedules import gaussian, pulls_to, schedule_of

from cogedit.diffusion.denoise import denoise, keep_outside
from cogedit.diffusion.flow_edit import flow_edit, noised_source
from cogedit.diffusion.invert import invert_consistent
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.steps import run_steps

STEPS = 8
LAST = STEPS // 2  # where the windows end


@pytest.fixture(scope="module")
def schedule():
    return schedule_of(STEPS)


def half_a_mask():
    mask = torch.zeros(3, 1, 4, 4)
    mask[1] = 1
    return mask


def edit(schedule, solver, *, masked, done=(), **rest):
    """Denoising with everything that carries something from step to step."""
    path = run_steps(
        invert_consistent(pulls_to(schedule, gaussian(1)), gaussian(1), schedule), "sample"
    )
    reference = Trajectory.of(path, gaussian(1), schedule)
    states = denoise(
        pulls_to(schedule, gaussian(2)),
        gaussian(0),
        schedule,
        constrain=keep_outside(half_a_mask(), reference) if masked else None,
        solver=solver,
        restarts=frozenset({schedule.timesteps[LAST]}),
        done=done,
    )
    return run_steps(states, "sample", done=done, **rest)


def flow(schedule, solver, *, masked, done=(), **rest):
    edit, source = pulls_to(schedule, gaussian(2)), pulls_to(schedule, gaussian(1))
    states = flow_edit(
        lambda x_edit, x_source, t: (edit(x_edit, t), source(x_source, t)),
        gaussian(3),
        schedule,
        source_at=noised_source(gaussian(3), schedule, seeds=[3]),
        mask=half_a_mask() if masked else None,
        solver=solver,
        restarts=frozenset({schedule.timesteps[LAST]}),
        done=done,
    )
    return run_steps(states, "offset", done=done, **rest)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
@pytest.mark.parametrize("loop", [edit, flow])
def test_an_edit_goes_on_from_any_step_with_the_same_bits(schedule, loop, solver, masked):
    states = []
    whole = loop(schedule, solver, masked=masked, on_state=states.append)
    assert len(states) == len(whole) == STEPS
    for count in range(STEPS + 1):
        told = []
        again = loop(schedule, solver, masked=masked, done=states[:count], on_step=told.append)
        assert len(again) == STEPS
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
        assert told == [state.info for state in states[count:]]
        alone = states[count - 1 : count] if count else []
        [last] = loop(schedule, solver, masked=masked, done=alone, keep_steps=False)
        assert torch.equal(last, whole[-1])


def test_the_state_of_the_second_order_holds_what_it_looks_back_at(schedule):
    states = []
    edit(schedule, "dpm++2m", masked=False, on_state=states.append)
    assert all({*state.tensors} == {"sample", "before"} for state in states)
    states = []
    edit(schedule, "ddim", masked=False, on_state=states.append)
    assert all({*state.tensors} == {"sample"} for state in states)
