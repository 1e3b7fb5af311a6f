"""Figures of clips, on clips whose figures are known."""

import math
import tracemalloc

import numpy as np
import pytest

from cogedit.media.metrics import MAX_PSNR, flicker, mean_change, psnr, ssim
from cogedit.media.optical_flow import estimate_flow, warp_error


def texture(height, width, seed=0):
    """Blurred noise: something to match everywhere."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    for axis in (0, 1):
        for _ in range(3):
            noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return (255 * noise).round().astype(np.uint8)


def moving(x, y, num_frames=4, size=(72, 96)):
    """A clip whose content moves by (x, y) pixels a frame."""
    height, width = size
    big = texture(height + 200, width + 200)
    return np.stack(
        [
            big[100 - t * y : 100 - t * y + height, 100 - t * x : 100 - t * x + width]
            for t in range(num_frames)
        ]
    )


def test_ssim_of_equal_and_of_shifted_clips():
    clip = moving(3, 1)
    assert ssim(clip, clip) == pytest.approx(1.0)
    assert ssim(clip, clip[::-1].copy()) < 0.9


def test_ssim_is_the_formula_on_one_window():
    """One window of 11x11 leaves one value, which the formula gives directly."""
    x, y = (texture(11, 11, seed)[..., :1].repeat(3, -1) for seed in (1, 2))
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    a, b = x[..., 0].astype(float), y[..., 0].astype(float)
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    both = (window * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert ssim(x[None], y[None]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_figures_frame_by_frame_are_those_of_the_whole_clip(dtype):
    clip, other = moving(3, 1, num_frames=5), moving(-2, 4, num_frames=5)
    error = (clip.astype(np.float64) - other) ** 2
    where = np.zeros(clip.shape[:3], bool)
    where[1:3, :40] = True
    for mean, chosen in ((error.mean(), None), (error[where].mean(), where)):
        expected = 10 * math.log10(255**2 / mean)
        found = psnr(clip.astype(dtype), other.astype(dtype), where=chosen)
        assert found == pytest.approx(expected, rel=1e-9)
    change = clip.astype(np.float64) - other
    assert mean_change(clip, other) == pytest.approx(np.abs(change).mean(), rel=1e-9)
    expected = np.abs(np.diff(change, axis=0)).mean()
    assert flicker(clip, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", [psnr, ssim, mean_change, flicker])
def test_a_figure_copies_a_frame_and_not_the_clip(measure):
    clip = np.zeros((60, 32, 48, 3), np.uint8)
    other = clip + np.uint8(1)
    measure(clip, other)
    tracemalloc.start()
    try:
        measure(clip, other)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < clip.nbytes


def test_where_chooses_the_pixels():
    clip = moving(0, 0)
    other = clip.copy()
    other[:, :, 48:] = 255 - other[:, :, 48:]
    left = np.zeros(clip.shape[:3], bool)
    left[:, :, :40] = True
    assert psnr(other, clip, where=left) == MAX_PSNR
    assert ssim(other, clip, where=left) == pytest.approx(1.0)
    assert ssim(other, clip) < 0.7
    nowhere = np.zeros_like(left)
    assert math.isnan(ssim(other, clip, where=nowhere))
    assert math.isnan(psnr(other, clip, where=nowhere))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 0), (-5, 3), (11, -9)])
def test_flow_finds_how_a_clip_moves(x, y):
    clip = moving(x, y)
    flow = estimate_flow(clip)
    inner = slice(16, -16)
    vectors, explained = (np.stack(fields)[:, inner, inner] for fields in zip(*flow, strict=True))
    assert (vectors == (x, y)).all(axis=-1).mean() > 0.95
    assert explained.mean() > 0.95
    assert warp_error(clip, flow) < 0.5


def test_warp_error_is_the_flicker_of_what_moves_alike():
    clip = moving(4, 2, num_frames=6)
    flow = estimate_flow(clip)
    negative = 255 - clip  # another picture with the same motion
    assert warp_error(negative, flow) == pytest.approx(warp_error(clip, flow))
    flicker = clip.copy()
    flicker[::2] = np.minimum(flicker[::2], 235) + 20
    brighter = np.clip(flicker.astype(int) - clip, 0, None)[::2].mean()
    assert warp_error(flicker, flow) == pytest.approx(brighter, rel=0.05)


def test_a_flow_that_explains_nothing_gives_no_number():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, size=(3, 32, 32, 3)).astype(np.uint8) * 255
    flow = estimate_flow(noise)
    for bits in flow.explained:
        bits[:] = 0
    assert math.isnan(warp_error(noise, flow))


@pytest.mark.parametrize("size", [(16, 16), (17, 50), (64, 64), (101, 203)])
def test_flow_takes_any_size(size):
    clip = moving(1, 0, num_frames=2, size=size)
    [(vectors, explained)] = estimate_flow(clip)
    assert vectors.shape == (*size, 2)
    assert explained.shape == size
