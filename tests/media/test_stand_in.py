"""A stand-in for an edit: it does what the edit does, in frames that it was not shown."""

import numpy as np
import pytest

from cogedit.media.edges import measure_moments
from cogedit.media.stand_in import PICTURE, StandIn

WIDTH, HEIGHT = PICTURE
RADIUS = 2


def panned(speed, num_frames=3):
    """A picture of patches that moves by some pixels a frame."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(
        10, 246, (HEIGHT // 6, -(-(WIDTH + speed * num_frames) // 6), 3), np.uint8
    )
    wide = coarse.repeat(6, axis=0).repeat(6, axis=1)
    return [wide[:, speed * n : speed * n + WIDTH] for n in range(num_frames)]


def squared(frame):
    return np.rint(frame.astype(float) ** 2 / 255).astype(np.uint8)


def error_of_the_edit(own, share):
    """That of the frame in the middle, shown by the others' fit, against its own."""
    edited = [squared(frame) for frame in own]
    before, itself, after = measure_moments(edited, own, own, radius=RADIUS)
    shown = (m.fit().on(own[1]) for m in (before.toward(after, share), itself))
    return np.square(np.subtract(*shown, dtype=float)).mean()


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("speed", [1, 3, 9])
def test_it_is_as_hard_to_predict_as_a_cubic_edit_that_it_stands_in_for(speed, share):
    own = panned(speed)
    stand_in = StandIn(own, RADIUS / WIDTH)
    for number in (0, 2):
        stand_in.learn(own[number], squared(own[number]))
    assert stand_in.error(1, 0, 2, share) == pytest.approx(error_of_the_edit(own, share), rel=0.1)


def test_a_frame_like_those_that_it_is_shown_by_is_not_hard():
    own = panned(0)
    stand_in = StandIn(own, RADIUS / WIDTH)
    stand_in.learn(own[0], squared(own[0]))
    assert stand_in.error(1, 0, 2, 0.5) == 0


def test_what_is_learned_of_large_frames_is_done_to_small_ones():
    own = panned(3)
    small, large = (StandIn(own, RADIUS / WIDTH) for _ in range(2))
    for frame in own:
        small.learn(frame, squared(frame))
        wide = frame.repeat(4, axis=0).repeat(4, axis=1)
        large.learn(wide, squared(wide))
    assert large.error(1, 0, 2, 0.5) == pytest.approx(small.error(1, 0, 2, 0.5))
