"""Windows over a long clip: where they lie, what they weigh, and the one field that they make."""

from functools import partial
from itertools import groupby, pairwise, starmap

import pytest
import torch
from schedules import pulls_to, schedule_of

from cogedit.diffusion.denoise import denoise
from cogedit.diffusion.invert import invert_consistent
from cogedit.diffusion.trajectory import Trajectory
from cogedit.diffusion.windows import moves_windows, over_windows, window_starts, window_weights
from cogedit.models.steps import run_steps
from cogedit.types import WindowPlan

OF_5B = WindowPlan(13, 4, 4)
OF_15 = WindowPlan(22, 6, 8)
OF_SHAPES = WindowPlan(3, 1, 1)
PLANS = [OF_5B, OF_15, OF_SHAPES, WindowPlan(13, 8, 2), WindowPlan(13, 0, 6), WindowPlan(4, 3, 0)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("plan", "num_frames", "starts", "moved"),
    [
        (OF_5B, 25, (0, 9, 12), (0, 4, 12)),
        (OF_5B, 49, (0, 9, 18, 27, 36), (0, 4, 13, 22, 31, 36)),
        (OF_5B, 14, (0, 1), (0, 1)),
        (OF_5B, 13, (0,), (0,)),
        (OF_5B, 5, (0,), (0,)),
        (OF_15, 42, (0, 16, 20), (0, 8, 20)),
        (OF_SHAPES, 5, (0, 2), (0, 1, 2)),
    ],
)
def test_where_windows_lie(plan, num_frames, starts, moved):
    assert window_starts(plan, num_frames, moved=False) == starts
    assert window_starts(plan, num_frames, moved=True) == moved


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("moved", [False, True])
def test_windows_cover_a_clip_of_any_length_and_weigh_one_everywhere(plan, moved):
    for num_frames in range(1, 4 * plan.length, 1 if plan is not OF_15 else 2):
        starts = window_starts(plan, num_frames, moved=moved)
        length = min(plan.length, num_frames)
        assert starts[0] == 0
        assert starts[-1] + length == num_frames
        for before, after in pairwise(starts):
            assert 0 < after - before <= plan.length - plan.overlap
        total = [0.0] * num_frames
        for start, weights in zip(starts, window_weights(plan, num_frames, starts), strict=True):
            assert len(weights) == length
            assert min(weights) > 0
            for k, weight in enumerate(weights, start):
                total[k] += weight
        assert total == pytest.approx([1.0] * num_frames)


def test_windows_of_two_frames_to_a_token_begin_with_a_token():
    for num_frames in range(22, 100, 2):
        for moved in (False, True):
            assert not any(s % 2 for s in window_starts(OF_15, num_frames, moved=moved))


def test_the_ramp():
    first, second, _ = window_weights(OF_5B, 31, (0, 9, 18))
    assert first == pytest.approx([1.0] * 9 + [0.8, 0.6, 0.4, 0.2])
    assert second == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 5 + [0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("levels", [50, 25, 12])
@pytest.mark.parametrize("low", [0, 1, 2])
@pytest.mark.parametrize("is_half", [False, True])
def test_windows_change_sides_again_and_again_on_every_usual_schedule(levels, low, is_half):
    visited = schedule_of(levels).with_low_levels(low)
    for schedule in (visited, visited.midpoints()):
        steps = len(schedule.timesteps) // (2 if is_half else 1)
        moved = [moves_windows(t) for t in schedule.subset(steps).timesteps]
        assert max(len(list(run)) for _, run in groupby(moved)) <= 3
        assert abs(sum(moved) / steps - 0.5) < 0.22


def asked(model, x, timestep, plan=OF_SHAPES):
    ask = partial(starmap, lambda part: (model(part, timestep),))
    [v] = over_windows(ask, x, timestep=timestep, plan=plan)
    return v


@pytest.mark.parametrize("timestep", [0, 19, 999])
def test_a_model_that_sees_no_further_than_a_frame_sees_the_whole_clip(timestep):
    """Every window agrees about such a model, and constants are the simplest case of it."""
    x = drawn(2, 9, 4, 2, 3)
    assert torch.allclose(asked(lambda part, t: 3 * part + t, x, timestep), 3 * x + timestep)
    constant = asked(lambda part, t: torch.full_like(part, 7.0), x, timestep)
    assert torch.allclose(constant, torch.full_like(x, 7.0))


def test_windows_are_joined_by_their_weights():
    x, told = drawn(1, 5, 2, 2, 2), []

    def model(part):
        return part, part.mean(dim=1, keepdim=True).expand_as(part)

    same, means = over_windows(
        partial(starmap, model),
        x,
        timestep=0,
        plan=OF_SHAPES,
        on_window=lambda *count: told.append(count),
    )
    first, second = x[:, :3].mean(dim=1), x[:, 2:].mean(dim=1)
    assert torch.allclose(same, x)
    for frame, expected in enumerate([first, first, (first + second) / 2, second, second]):
        assert torch.allclose(means[:, frame], expected, atol=1e-6)
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("plan", [None, OF_5B, WindowPlan(9, 3, 3)])
def test_one_window_is_the_models_own_answer(plan):
    x, answer = drawn(1, 9, 4, 2, 2), drawn(1, 9, 4, 2, 2, seed=1)
    assert asked(lambda part, t: answer, x, 500, plan) is answer


def mean_over_time(schedule):
    """A model that sees its whole window: each frame is drawn to the window's mean."""
    pulls = pulls_to(schedule, 0.3)
    return lambda x, t: pulls(0.5 * x + 0.5 * x.mean(dim=1, keepdim=True), t)


@pytest.mark.parametrize("steps", [50, 25])
def test_an_inversion_and_its_resampling_meet_the_same_windows(steps):
    """Also where the way down visits every second timestep only."""
    schedule, z0 = schedule_of(50), drawn(1, 9, 4, 2, 2)
    seen = {}

    def model(x, timestep):
        def noted(part):
            shares.append(part)
            return (mean_over_time(schedule)(part, timestep),)

        shares = []
        [v] = over_windows(partial(starmap, noted), x, timestep=timestep, plan=OF_SHAPES)
        # Which windows there were is read off the samples that the model was given.
        starts = [
            next(k for k in range(7) if torch.equal(x[:, k : k + 3], part)) for part in shares
        ]
        assert seen.setdefault(timestep, starts) == starts
        return v

    way_up = invert_consistent(model, z0, schedule, iterations=8)
    path = Trajectory.of(run_steps(way_up, "sample"), z0, schedule, windows=OF_SHAPES)
    visited = dict(seen)
    down = list(denoise(model, path.noise, schedule.subset(steps)))
    assert seen == visited
    assert len({tuple(starts) for starts in seen.values()}) == 2
    if steps == 50:
        assert torch.allclose(down[-1].tensors["sample"], z0, atol=1e-4)


def test_an_interrupted_inversion_goes_on_to_the_same_bits():
    schedule, z0 = schedule_of(12), drawn(1, 9, 4, 2, 2)

    def model(x, t):
        return asked(mean_over_time(schedule), x, t)

    whole = list(invert_consistent(model, z0, schedule))
    rest = list(invert_consistent(model, z0, schedule, done=whole[:5]))
    for again, state in zip(rest, whole[5:], strict=True):
        assert torch.equal(again.tensors["sample"], state.tensors["sample"])
