"""A loop that is given its own state back goes on with the same bits."""

import pytest
import torch
from schedules import forward_scheduler, pulls_to

from cogedit.diffusion.denoise import Prediction, denoise
from cogedit.diffusion.flow_edit import flow_edit, noised_source
from cogedit.diffusion.invert import invert_consistent
from cogedit.diffusion.schedule import Schedule

STEPS = 8
LAST = STEPS // 2  # where the windows end


def gaussian(seed):
    return torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def schedule():
    return Schedule.trailing(forward_scheduler().alphas_cumprod, STEPS)


def as_edit(model, source):
    def both(sample, timestep, reference):
        known = None if reference is None else source(reference, timestep)
        return Prediction(model(sample, timestep), known)

    return both


def edit(schedule, solver, *, masked, **rest):
    """Injection with everything that carries something from step to step."""
    source = pulls_to(schedule, gaussian(1))
    mask = torch.zeros(3, 1, 4, 4)
    mask[1] = 1
    return denoise(
        as_edit(pulls_to(schedule, gaussian(2)), source),
        gaussian(0),
        schedule,
        reference=invert_consistent(source, gaussian(1), schedule),
        reference_steps=(0.0, LAST / STEPS),
        drift_correction=0.5,
        mask=mask if masked else None,
        solver=solver,
        restarts=frozenset({schedule.timesteps[LAST]}),
        **rest,
    )


def flow(schedule, solver, *, masked, **rest):
    mask = torch.zeros(3, 1, 4, 4)
    mask[1] = 1
    return flow_edit(
        as_edit(pulls_to(schedule, gaussian(2)), pulls_to(schedule, gaussian(1))),
        pulls_to(schedule, gaussian(1)),
        gaussian(3),
        schedule,
        source_at=noised_source(gaussian(3), schedule, seeds=[3]),
        mask=mask if masked else None,
        solver=solver,
        restarts=frozenset({schedule.timesteps[LAST]}),
        **rest,
    )


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
    assert {*states[1].tensors} == {"sample", "before", "before_reference"}
    assert {*states[-1].tensors} == {"sample", "before"}, "the window of the reference is over"
    states = []
    edit(schedule, "ddim", masked=False, on_state=states.append)
    assert {*states[1].tensors} == {"sample"}
