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


def test_the_object_stays_in_the_picture_and_off_its_companion():
    for seed in SEEDS:
        spec = sample_spec(seed)
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
    with pytest.raises(UsageError, match="unknown caption length 'long'"):
        caption(sample_spec(0), "long")
    with pytest.raises(UsageError, match="unknown shape 'dog'"):
        world.shape_coverage("dog", [(1.0, 1.0)], radius=3.0, angle=0.0)
