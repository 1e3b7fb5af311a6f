"""Changes fitted to the source's edges: where they end, and whose the texture is."""

import numpy as np
import pytest
from fits import align_edges

from cogedit.lab import world
from cogedit.media.edges import RIDGE, FitShare, measure_moments
from cogedit.media.metrics import psnr

RADIUS = 8


def textured(height=48, width=64, seed=0):
    """A gray picture with grain."""
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 1))
    return np.rint((128 + grain).clip(0, 255)).astype(np.uint8).repeat(3, axis=2)


def disc(height=48, width=64, *, shift=0.0, softness=0.0):
    """How much of each pixel a disc in the middle covers, 0 to 1."""
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot(y - height / 2, x - width / 2 - shift) - 12
    return (0.5 - distance / (1 + softness)).clip(0, 1)[..., None]


def painted(picture, cover, color):
    """Give a disc a colour; the grain shows through."""
    tinted = picture.astype(float) - 128 + np.asarray(color)
    return np.rint((picture + cover * (tinted - picture)).clip(0, 255)).astype(np.uint8)


RED, BLUE = (200, 40, 40), (40, 60, 200)


def test_a_change_ends_at_the_source_s_edge_and_keeps_its_grain():
    ground = textured()
    source, right = (painted(ground, disc(), color) for color in (RED, BLUE))
    # What an edit through a VAE does: the outline soft and off, and the grain gone.
    smooth = np.full_like(ground, 128)
    edit = painted(smooth, disc(shift=1.5, softness=2), BLUE)
    [aligned] = align_edges(
        edit[None], painted(smooth, disc(softness=2), RED)[None], source[None], radius=RADIUS
    )
    assert psnr(edit, right) < 28
    assert psnr(aligned, right) > psnr(edit, right) + 8
    # The blue is there; it is no copy of the source.
    assert psnr(source, right) < 15


def test_an_edge_that_the_source_has_not_is_lost():
    ground = textured()
    edit = painted(ground, disc(), BLUE)
    [aligned] = align_edges(edit[None], ground[None], ground[None], radius=RADIUS)
    middle = aligned[24, :, 2].astype(int)
    assert abs(np.diff(edit[24, :, 2].astype(int))).max() > 50
    assert abs(np.diff(middle - ground[24, :, 2])).max() < 15


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        (world.Edit(color="pink"), 0.9, 1),
        (world.Edit(background="white"), 0.9, 1),
        (world.Edit(shape="square"), 0, 0.3),
        (world.Edit(texture=world.Texture("stripes", 22.0, 14.0, 0.0, 0.5)), 0, 0.4),
        (world.Edit(), np.nan, np.nan),
    ],
)
def test_it_is_known_how_much_of_a_change_is_shown(change, least, most):
    for seed in (11000, 11004, 11007):
        spec = world.sample_spec(seed, "held_out")
        frames = zip(
            world.render(world.counterfactual(spec, change)), world.render(spec), strict=True
        )
        found = FitShare((slice(None), slice(None)))
        for edit, source in [*frames][::4]:
            [moments] = measure_moments([edit], [source], [source], radius=16)
            found.add(edit, source, source, fitted=moments)
        assert np.array_equal(found.share, least, equal_nan=True) or least <= found.share <= most


def test_neither_noise_nor_what_is_painted_into_bars_is_taken_for_a_change():
    spec = world.sample_spec(11000, "held_out")
    [source], [edit] = (
        world.render(one)[:1]
        for one in (spec, world.counterfactual(spec, world.Edit(color="pink")))
    )
    noise = np.random.default_rng(3).normal(0, 12, edit.shape)
    edit = np.clip(np.rint(edit + noise), 0, 255).astype(np.uint8)
    framed, painted = (np.pad(one, ((16, 16), (0, 0), (0, 0))) for one in (source, edit))
    painted[:16] = 255
    window = slice(16, -16), slice(None)
    [moments] = measure_moments([painted], [framed], [framed], radius=16, window=window)
    found = FitShare(window)
    found.add(painted, framed, framed, fitted=moments)
    assert found.share > 0.9


def test_no_change_stays_no_change():
    own, through_vae = np.random.default_rng(2).integers(0, 256, (2, 3, 20, 30, 3), dtype=np.uint8)
    assert np.array_equal(align_edges(through_vae, through_vae, own, radius=5), own)


@pytest.mark.parametrize("radius", [1, 2, 40])
def test_the_formula_window_by_window(radius):
    """Against least squares in each window by itself, borders and all."""
    rng = np.random.default_rng(4)
    edit, through_vae, source = rng.integers(60, 196, (3, 7, 9, 3), dtype=np.uint8)
    guide, change = source / 255, edit / 255 - through_vae / 255
    height, width, _ = guide.shape

    def window(y, x):
        return (
            slice(max(0, y - radius), y + radius + 1),
            slice(max(0, x - radius), x + radius + 1),
        )

    fits = np.empty((height, width, 4, 3))
    for y in range(height):
        for x in range(width):
            colors = guide[window(y, x)].reshape(-1, 3)
            # sum |a I + b - d|^2 + count eps |a|^2, with b free
            rows = np.concatenate([colors, np.ones((len(colors), 1))], axis=1)
            ridge = np.sqrt(len(colors) * RIDGE) * np.eye(3, 4)
            target = np.concatenate([change[window(y, x)].reshape(-1, 3), np.zeros((3, 3))])
            fits[y, x] = np.linalg.lstsq(np.concatenate([rows, ridge]), target, rcond=None)[0]
    expected = np.empty_like(guide)
    for y in range(height):
        for x in range(width):
            mean = fits[window(y, x)].reshape(-1, 4, 3).mean(axis=0)
            expected[y, x] = guide[y, x] + guide[y, x] @ mean[:3] + mean[3]
    [aligned] = align_edges(edit[None], through_vae[None], source[None], radius=radius)
    assert np.abs(aligned - (expected.clip(0, 1) * 255)).max() < 0.501
