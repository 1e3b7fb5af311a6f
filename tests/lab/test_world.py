from dataclasses import replace

import numpy as np
import pytest

from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.world import Edit, caption, counterfactual, render, render_mask, sample_spec

SEEDS = range(60)


def test_equal_specs_give_equal_clips():
    for seed in range(5):
        frames = render(sample_spec(seed))
        assert frames.shape == (9, 64, 64, 3)
        assert frames.dtype == np.uint8
        assert (frames == render(sample_spec(seed))).all()


def test_the_splits_share_no_clip():
    train = {sample_spec(seed, "train") for seed in range(500)}
    held_out = {sample_spec(seed, "held_out") for seed in range(500)}
    assert len(train) == len(held_out) == 500
    assert not train & held_out


def test_the_world_is_varied():
    specs = [sample_spec(seed) for seed in range(400)]
    for name, known in (
        ("shape", world.SHAPES),
        ("color", world.COLORS),
        ("background", world.BACKGROUNDS),
        ("motion", world.MOTIONS),
    ):
        assert {getattr(spec, name) for spec in specs} == set(known)
    assert {spec.texture.kind for spec in specs} == set(world.TEXTURES)
    companions = sum(spec.companion is not None for spec in specs)
    assert 40 < companions < 160


@pytest.mark.parametrize("num_frames", [9, 17, 65])
def test_the_object_stays_in_the_picture_and_off_its_companion(num_frames):
    for seed in SEEDS:
        spec = sample_spec(seed, num_frames=num_frames)
        for shape in world.SHAPES:
            mask = render_mask(counterfactual(spec, Edit(shape=shape)))
            # A sharp tip is drawn a little longer than it is: up to a few percent of a pixel.
            assert max(mask[:, 0].max(), mask[:, -1].max()) < 0.1
            assert max(mask[:, :, 0].max(), mask[:, :, -1].max()) < 0.1
            if spec.companion is not None:
                other = spec.companion
                cover = world.shape_coverage(
                    other.shape, [(other.x, other.y)], radius=other.radius, angle=0.0
                )
                assert (mask * cover).max() < 0.1


def test_clips_of_nine_frames_are_those_of_before():
    """The model was trained on them, and tables name them by their seeds."""
    trained = sample_spec(0)
    assert (trained.shape, trained.color, trained.background) == ("square", "red", "white")
    assert (trained.motion, trained.texture.kind, trained.num_frames) == ("right", "dots", 9)
    assert (trained.x, trained.y, trained.speed) == pytest.approx(
        (40.527788790842416, 45.00357463685492, 1.8181334869700563)
    )
    held_out = sample_spec(11003, "held_out")
    assert (held_out.radius, held_out.angle, held_out.texture.phase) == pytest.approx(
        (11.687333348326083, -0.05165087618295916, 4.827827574689973)
    )
    other = held_out.companion
    assert (other.shape, other.color) == ("circle", "blue")
    assert (other.x, other.y) == pytest.approx((36.6377553091843, 51.57249290134142))


def test_a_longer_clip_goes_one_way_under_the_same_caption():
    for seed in SEEDS:
        short, long = sample_spec(seed), sample_spec(seed, num_frames=33)
        assert caption(long) == caption(short)
        assert (long.radius, long.angle, long.texture) == (
            short.radius,
            short.angle,
            short.texture,
        )
        assert long.speed < short.speed
        steps = np.diff(world.object_track(long), axis=0)
        assert len(steps) == 32
        assert steps == pytest.approx(np.broadcast_to(steps[0], steps.shape))
        assert np.abs(steps[0]).max() > 0.75
        assert (steps[0] @ world.MOTIONS[long.motion]) > 0


def test_fewer_frames_of_a_clip_are_those_in_its_middle():
    long = sample_spec(3, num_frames=17)
    middle = render(replace(long, num_frames=9)).astype(int)
    assert np.abs(middle - render(long)[4:13]).max() <= 1  # rounded to levels
    assert render(long).shape == (17, 64, 64, 3)


def test_shapes_have_about_the_same_area():
    areas = [
        float(world.shape_coverage(shape, [(32.0, 32.0)], radius=10.0, angle=0.3).sum())
        for shape in world.SHAPES
    ]
    assert areas[0] == pytest.approx(np.pi * 100, rel=0.01)
    assert max(areas) / min(areas) < 1.3


def test_the_mask_moves_with_the_track():
    for seed in SEEDS:
        spec = sample_spec(seed)
        mask = render_mask(spec)
        area = mask.sum(axis=(1, 2))
        x = (mask.sum(axis=1) * (np.arange(64) + 0.5)).sum(axis=1) / area
        y = (mask.sum(axis=2) * (np.arange(64) + 0.5)).sum(axis=1) / area
        assert np.abs(world.object_track(spec) - np.stack([x, y], axis=1)).max() < 0.1


def test_an_edit_changes_what_it_names_and_nothing_else():
    spec = replace(sample_spec(3), shape="circle", color="red", background="gray")
    source, inside = render(spec).astype(int), render_mask(spec) > 0
    recolored = render(counterfactual(spec, Edit(color="blue"))).astype(int)
    assert (recolored[~inside] == source[~inside]).all()
    assert (recolored[render_mask(spec) == 1] == world.COLORS["blue"]).all()
    reshaped = counterfactual(spec, Edit(shape="star"))
    outside = ~inside & (render_mask(reshaped) == 0)
    assert (render(reshaped)[outside] == source[outside]).all()
    background = render(counterfactual(spec, Edit(background="teal"))).astype(int)
    assert (background[render_mask(spec) == 1] == source[render_mask(spec) == 1]).all()
    assert (background[~inside] != source[~inside]).any(axis=-1).mean() > 0.9
    turned = counterfactual(spec, Edit(motion="left"))
    assert (turned.x, turned.y, turned.speed) == (spec.x, spec.y, spec.speed)
    assert counterfactual(spec, Edit()) == spec


def test_captions_have_five_lengths():
    spec = replace(sample_spec(0), shape="star", color="orange", background="gray", motion="right")
    assert [caption(spec, length) for length in world.CAPTION_LENGTHS] == [
        "an orange star moving right on a gray background",
        "an orange star on a gray background",
        "an orange star moving right",
        "an orange star",
        "",
    ]


def test_what_the_world_does_not_have_is_refused():
    with pytest.raises(UsageError, match="unknown shape 'dog': expected one of circle, square"):
        counterfactual(sample_spec(0), Edit(shape="dog"))
    with pytest.raises(UsageError, match="unknown split 'test'"):
        sample_spec(0, "test")
    with pytest.raises(UsageError, match="must not be negative"):
        sample_spec(-1)
    with pytest.raises(UsageError, match="at least 9 frames, got 5"):
        sample_spec(0, num_frames=5)
    with pytest.raises(UsageError, match="unknown caption length 'long'"):
        caption(sample_spec(0), "long")
    with pytest.raises(UsageError, match="unknown shape 'dog'"):
        world.shape_coverage("dog", [(1.0, 1.0)], radius=3.0, angle=0.0)
