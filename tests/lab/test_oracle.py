import numpy as np
import pytest

from cogedit.lab import oracle, world
from cogedit.lab.world import Edit, counterfactual, object_track, render, render_mask

SPECS = [world.sample_spec(seed, "held_out") for seed in range(40)]
LONG = [world.sample_spec(seed, "held_out", num_frames=33) for seed in (0, 1)]


@pytest.mark.parametrize("spec", SPECS + LONG)
def test_it_reads_rendered_clips_right(spec):
    reading = oracle.read_clip(render(spec))
    assert (reading.color, reading.shape) == (spec.color, spec.shape)
    assert reading.overlap_shape == spec.shape
    assert (reading.background, reading.motion) == (spec.background, spec.motion)
    assert np.abs(reading.track - object_track(spec)).max() < 0.5
    assert np.abs(reading.mask - render_mask(spec)).mean() < 0.005
    assert reading.shape_iou > 0.85


def test_it_survives_noise_and_blur():
    rng = np.random.default_rng(0)
    for spec in SPECS[:20]:
        frames = render(spec).astype(np.float64)
        frames[:, :, 1:-1] = (frames[:, :, :-2] + 2 * frames[:, :, 1:-1] + frames[:, :, 2:]) / 4
        noisy = np.clip(frames + rng.normal(0, 8, frames.shape), 0, 255).astype(np.uint8)
        reading = oracle.read_clip(noisy)
        assert (reading.color, reading.shape) == (spec.color, spec.shape)
        assert (reading.background, reading.motion) == (spec.background, spec.motion)


def test_round_corners_make_no_other_shape():
    """Masks are rounded and sharpened again, as a model does that draws soft outlines."""
    by_outline = []
    for spec in SPECS:
        mask = rounded(render_mask(spec), sigma=2.5)
        track = oracle.mask_track(mask)
        by_outline.append(oracle.outline_shape(mask, track) == spec.shape)
    assert np.mean(by_outline) > 0.95


def rounded(mask, *, sigma):
    reach = np.arange(-9, 10)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    for axis in (1, 2):
        mask = np.apply_along_axis(np.convolve, axis, mask, weights / weights.sum(), "same")
    return np.clip((mask - 0.5) * 4 + 0.5, 0.0, 1.0).astype(np.float32)


def test_it_answers_single_questions_about_an_edit():
    for spec in SPECS[:10]:
        for shape in world.SHAPES:
            edited = counterfactual(spec, Edit(shape=shape))
            frames = render(edited)
            mask = render_mask(edited)
            assert oracle.object_color(frames, mask) == spec.color
            assert oracle.background_color(frames, mask) == spec.background
            seen = oracle.object_mask(frames, color=spec.color, background=spec.background)
            assert oracle.outline_shape(seen, oracle.mask_track(seen)) == shape


def test_an_empty_frame_shows_no_object():
    frames = np.full((9, 64, 64, 3), world.BACKGROUNDS["gray"], dtype=np.uint8)
    reading = oracle.read_clip(frames)
    assert reading.color is None
    assert reading.shape is None
    assert reading.motion is None
    assert reading.background == "gray"
    assert np.isnan(reading.track).all()


@pytest.mark.parametrize(
    ("way", "motion"),
    [((9, 1), "right"), ((-9, 1), "left"), ((1, 9), "down"), ((1, -9), "up"), ((2, 2), None)],
)
def test_motion_is_the_larger_part_of_the_way(way, motion):
    assert oracle.track_motion([(20.0, 20.0), (20.0 + way[0], 20.0 + way[1])]) == motion
