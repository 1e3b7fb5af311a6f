"""Cuts: found where a scene ends, and nowhere else."""

import numpy as np
import pytest

from cogedit.media.cuts import SIZE, find_cuts

WIDTH, HEIGHT = SIZE


def scene(seed, width=WIDTH):
    """A picture of soft patches, [H, W, 3] uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (HEIGHT // 6, -(-width // 6), 3))
    return coarse.repeat(6, axis=0).repeat(6, axis=1)[:, :width].astype(np.uint8)


def panned(seed, num_frames, step):
    wide = scene(seed, WIDTH + step * num_frames)
    return [wide[:, step * n : step * n + WIDTH] for n in range(num_frames)]


white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


def lit(frames, gains):
    pairs = zip(frames, gains, strict=True)
    return [(frame * gain).clip(0, 255).astype(np.uint8) for frame, gain in pairs]


@pytest.mark.parametrize(("first", "second"), [(10, 10), (1, 12), (12, 1), (3, 2)])
def test_a_cut_is_the_first_frame_of_its_scene(first, second):
    assert find_cuts(panned(1, first, 1) + panned(2, second, 1)) == (first,)


def test_cuts_in_a_fast_pan_are_found():
    frames = panned(1, 12, 1) + panned(2, 9, 1) + panned(3, 12, 1)
    assert find_cuts(frames) == (12, 21)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([], id="none"),
        pytest.param(panned(1, 1, 0), id="one"),
        pytest.param(panned(1, 20, 0), id="a still"),
        pytest.param(panned(1, 30, 2), id="a fast pan"),
        pytest.param(lit(panned(1, 24, 1), np.tile([1, 0.5, 0.8], 8)), id="flicker"),
        pytest.param(
            [white if n == 9 else frame for n, frame in enumerate(panned(1, 20, 1))],
            id="a flash",
        ),
        pytest.param(lit(panned(1, 20, 0), np.linspace(1, 0.05, 20)), id="a fade"),
    ],
)
def test_nothing_else_is_a_cut(frames):
    assert find_cuts(frames) == ()
