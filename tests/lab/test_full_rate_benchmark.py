"""The benchmark of frames between: its right answers, its hard clips, and what it measures."""

import numpy as np
import pytest

from cogedit.lab import full_rate
from cogedit.lab.full_rate import hard_clips, measure, scene, turn_hue


def test_a_hue_is_turned_and_others_stay():
    colors = np.array([[[220, 30, 30], [30, 220, 30], [30, 30, 220], [128, 128, 128]]], np.uint8)
    turned = turn_hue(colors, 0.0).astype(int)
    assert np.abs(turned[0, 0] - colors[0, 0]).max() > 100
    assert np.abs(turned[0, 1:] - colors[0, 1:]).max() <= 1
    assert abs(turned[0, 0].mean() - colors[0, 0].mean()) < 8  # no lighter, but where it clips


def test_the_hard_clips_are_those_of_their_seed(monkeypatch):
    monkeypatch.setattr(full_rate, "WIDTH", 90)
    monkeypatch.setattr(full_rate, "HEIGHT", 60)
    clips, again = (dict(hard_clips(3, num_frames=2)) for _ in range(2))
    assert len(clips) == 4
    for name, clip in clips.items():
        assert np.array_equal(clip, again[name])
        assert {frame.shape for frame in clip} == {(60, 90, 3)}


@pytest.mark.parametrize(("speed", "least"), [(0, -0.5), (30, 3)])
def test_frames_between_are_as_good_where_nothing_moves_and_worse_where_all_does(speed, least):
    wide = scene(5, 96 + 12 * speed, 64)
    clip = [wide[:, speed * n : speed * n + 96] for n in range(13)]
    [row] = measure("a pan", clip, steps=(3,), radius=4)
    lost = row.sampled - row.between
    assert (lost > least) if speed else (abs(lost) < -least)
    assert row.sampled > row.degraded + 3
    assert row.foretold < row.sampled
    # Equal errors in both would be one of three decibels.
    assert row.between == pytest.approx(row.foretold, abs=3 if speed else 1)


def test_what_leaving_frames_out_says_is_true_where_light_flickers():
    """Frames that are nearer are no easier to predict there."""
    wide = scene(5, 96 + 25, 64)
    gains = np.random.default_rng(1).uniform(0.6, 1.1, 25)
    clip = [
        np.rint((wide[:, n : n + 96] * gain).clip(0, 255)).astype(np.uint8)
        for n, gain in enumerate(gains)
    ]
    [row] = measure("flicker", clip, steps=(4,), radius=4)
    assert row.told == pytest.approx(row.apart, abs=2)
