"""Frames between edited ones: by whose fit they are shown, and what leaving one out says."""

import math

import numpy as np
import pytest

from cogedit.media.between import LeaveOneOut, blend_changes, decibels, plan_blends
from cogedit.media.edges import measure_moments
from cogedit.media.metrics import psnr

RADIUS = 4


def plan(edited, end, cuts=()):
    return [(b.frame, b.before, b.after, round(b.share, 3)) for b in plan_blends(edited, end, cuts)]


def test_a_frame_between_is_weighted_by_its_distance_in_time():
    assert plan((4, 8, 12), 14) == [
        (4, 0, 0, 0),
        (5, 0, 1, 0.25),
        (6, 0, 1, 0.5),
        (7, 0, 1, 0.75),
        (8, 1, 1, 0),
        (9, 1, 2, 0.25),
        (10, 1, 2, 0.5),
        (11, 1, 2, 0.75),
        (12, 2, 2, 0),
        (13, 2, 2, 0),
    ]


@pytest.mark.parametrize(
    ("cuts", "shown_by"),
    [
        ((3,), [0, 0, 0, 1, 1, 1]),  # a scene begins between them
        ((6,), [0, 0, 0, 0, 0, 0, 1]),  # or with the second
        ((2, 5), [0, 0, 0, 1, 1, 1]),  # one that has no edited frame is shown by the nearest
    ],
)
def test_no_frame_is_fitted_across_a_cut(cuts, shown_by):
    planned = plan((0, 6), 7, cuts)
    assert [(before, after, share) for _, before, after, share in planned][: len(shown_by)] == [
        (place, place, 0) for place in shown_by
    ]


def clip(num_frames, *, speed=0, seed=0):
    """A textured picture that moves, and the same with its red turned to blue."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(20, 230, (40, 60 + speed * num_frames, 3)).astype(np.float32)
    wide = np.stack([wide[:-8, n : -8 - 4 + n] for n in range(4)]).mean(axis=0)
    own = [wide[:, speed * n : speed * n + 48].astype(np.uint8) for n in range(num_frames)]
    return own, [frame[..., ::-1].copy() for frame in own]


def shown(own, edited, sampled, end, cuts=()):
    left_out = LeaveOneOut(sampled, own, radius=RADIUS / own[0].shape[1], cuts=cuts)
    moments = measure_moments(
        [edited[n] for n in sampled], [own[n] for n in sampled], [own[n] for n in sampled],
        radius=RADIUS,
    )  # fmt: skip
    blends = plan_blends(sampled, end, cuts)
    changes = blend_changes(blends, left_out.watch(moments, [own[n] for n in sampled]))
    pairs = zip(blends, changes, strict=True)
    return [change.on(own[blend.frame]) for blend, change in pairs], left_out, blends


def test_at_an_edited_frame_it_is_its_own_fit():
    own, edited = clip(9, speed=3)
    frames, *_ = shown(own, edited, (0, 4, 8), 9)
    for place in (0, 4, 8):
        [alone], *_ = shown(own[place:], edited[place:], (0,), 1)
        assert np.array_equal(frames[place], alone)


def test_a_function_of_the_colours_is_found_on_frames_that_were_not_edited():
    own, edited = clip(9, speed=3)
    frames, left_out, blends = shown(own, edited, (0, 4, 8), 9)
    assert psnr(frames, edited) > 40
    assert decibels(left_out.expected(blends)) > 40


def test_across_a_cut_another_change_does_not_count():
    own, edited = clip(16)
    edited[9:] = [255 - frame for frame in own[9:]]  # the second scene changes otherwise
    across, told_across, blends = shown(own, edited, (0, 4, 8, 12), 16)
    apart, told, planned = shown(own, edited, (0, 4, 8, 12), 16, cuts=(9,))
    assert psnr(apart[9:], edited[9:]) > psnr(across[9:12], edited[9:12]) + 10
    assert decibels(told.expected(planned)) > decibels(told_across.expected(blends)) + 10


def test_inner_frames_are_left_out_and_predicted_from_both_sides():
    own, edited = clip(17, speed=1)
    _, left_out, _ = shown(own, edited, range(0, 17, 4), 17)
    assert left_out.errors.keys() == {1, 2, 3}


def test_next_to_a_cut_a_frame_is_predicted_from_its_side():
    own, edited = clip(17, speed=1)
    edited[10:] = own[10:]  # nothing changes in the second scene
    _, left_out, _ = shown(own, edited, range(0, 17, 4), 17, cuts=(10,))
    _, error = left_out.errors[3]
    assert error == 0


def reds_turned(own):
    """An edit that is no linear function of the colours."""
    return [np.where(frame[..., :1] > 130, frame[..., ::-1], frame) for frame in own]


def test_beside_a_frame_that_was_predicted_badly_more_is_expected():
    own, _ = clip(25, speed=2)
    edited = reds_turned(own)
    edited[20] = own[20]
    _, left_out, blends = shown(own, edited, range(0, 25, 4), 25)
    beside, away = (
        left_out.expected([blend for blend in blends if first < blend.frame < first + 4])
        for first in (16, 4)
    )
    assert beside > 5 * away


def test_without_an_inner_frame_nothing_is_said():
    own, edited = clip(5)
    _, left_out, blends = shown(own, edited, (0, 4), 5)
    assert math.isnan(left_out.expected(blends))
