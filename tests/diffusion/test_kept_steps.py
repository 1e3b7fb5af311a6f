"""What a loop keeps on the device, and in host memory, does not grow with its steps."""

import pytest
import torch
from accounting import DEVICE, Device
from schedules import pulls_to, schedule_of

from cogedit.diffusion.denoise import denoise, keep_outside
from cogedit.diffusion.flow_edit import flow_edit
from cogedit.diffusion.invert import invert_consistent, invert_upstream
from cogedit.diffusion.state import StepState
from cogedit.diffusion.trajectory import Trajectory
from cogedit.models.steps import run_steps

SHAPE = 1, 3, 4, 8, 8
SAMPLE = 4 * 3 * 4 * 8 * 8  # bytes
FEW, MANY = 6, 24


def gaussian(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def invert(schedule, z0, done, *, inverse):
    model = pulls_to(schedule, z0)
    invert = invert_consistent if inverse == "consistent" else invert_upstream
    return invert(model, z0, schedule, done=done), "sample"


def edit(schedule, z0, done, *, method):
    """With a mask and the solver that looks back; its reference waits in host memory."""
    model = pulls_to(schedule, gaussian(2).to(z0.device))
    mask = torch.ones(3, 1, 8, 8, device=z0.device)
    path = torch.stack([gaussian(seed) for seed in range(len(schedule.timesteps))])
    reference = Trajectory.of(path, gaussian(1), schedule)
    if method == "flow":
        both = lambda x_edit, x_source, t: (model(x_edit, t), model(x_source, t))  # noqa: E731
        options = {"source_at": reference.at, "mask": mask, "solver": "dpm++2m", "done": done}
        return flow_edit(both, z0, schedule, **options), "offset"
    kept = keep_outside(mask, reference)
    states = denoise(model, z0, schedule, solver="dpm++2m", constrain=kept, done=done)
    return states, "sample"


LOOPS = [
    pytest.param(invert, {"inverse": "consistent"}, id="inversion"),
    pytest.param(invert, {"inverse": "upstream"}, id="upstream"),
    pytest.param(edit, {"method": "sample"}, id="edit"),
    pytest.param(edit, {"method": "flow"}, id="flow"),
]


def run(loop, options, num_steps, *, done=()):
    """Run a loop on the device; what it kept, its states as a file has them, and the peaks."""
    states = []

    def save(state):
        on_cpu = {name: tensor.cpu() for name, tensor in state.tensors.items()}
        states.append(StepState(state.info, on_cpu))

    with Device() as device:
        steps, name = loop(schedule_of(num_steps), gaussian(1).to(DEVICE), done, **options)
        kept = run_steps(steps, name, done=done, on_state=None if done else save)
    assert kept.device.type == "cpu"
    return kept, states, device


@pytest.mark.parametrize(("loop", "options"), LOOPS)
def test_the_device_holds_as_much_after_many_steps_as_after_few(loop, options):
    few, many = (run(loop, options, num_steps)[2].peak for num_steps in (FEW, MANY))
    assert 0 < few == many < 20 * SAMPLE


@pytest.mark.parametrize(("loop", "options"), LOOPS)
def test_no_earlier_step_goes_to_the_device_on_resume(loop, options):
    _, _, short = run(loop, options, FEW)
    whole, states, _ = run(loop, options, MANY)
    resumed, _, device = run(loop, options, MANY, done=states[:-2])
    assert torch.equal(resumed, whole)
    assert device.peak <= short.peak


@pytest.mark.parametrize(("loop", "options"), LOOPS[:2])
def test_host_memory_holds_the_trajectory_once(loop, options):
    with Device() as device:
        schedule = schedule_of(MANY)
        states, name = loop(schedule, gaussian(1).to(DEVICE), (), **options)
        trajectory = Trajectory.of(run_steps(states, name), gaussian(1), schedule)
    assert len(trajectory.samples) == MANY
    assert device.host_peak < (MANY + 4) * SAMPLE
