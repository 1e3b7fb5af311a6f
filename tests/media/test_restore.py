"""The resize undone: where every pixel lands, and whose it is."""

import numpy as np
import pytest

from cogedit.media.clip import plan_resize
from cogedit.media.edges import measure_moments
from cogedit.media.metrics import psnr
from cogedit.media.reader import resize_frame
from cogedit.media.restore import needs_own_frames, restore_frames
from cogedit.types import LoadSettings


def smooth(height, width):
    """A picture without detail finer than a clip of a third of its size."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 15 + c) + np.cos(y / 12 - c) for c in range(3)]
    return (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def plan(width, height, mode, *, clip=(96, 64)):
    settings = LoadSettings(width=clip[0], height=clip[1], resize_mode=mode)
    return plan_resize(width, height, settings=settings)


@pytest.mark.parametrize("size", [(177, 131), (320, 100), (120, 200), (192, 128), (48, 50)])
@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_what_the_clip_shows_comes_back_where_it_was(size, mode):
    resize = plan(size[0], size[1], mode)
    own = smooth(size[1], size[0])
    clip = resize_frame(own, resize)
    below = [own] if needs_own_frames(resize) else None
    [restored] = restore_frames([clip], resize, own=below)
    assert restored.shape == own.shape
    # A shift by half a pixel of this picture leaves less than 34 dB, black beyond an edge far less.
    assert psnr(restored, own) > 40


def test_what_a_crop_left_out_is_the_source_s_to_the_bit():
    resize = plan(320, 100, "crop")
    assert needs_own_frames(resize)
    own = np.random.default_rng(0).integers(0, 256, (100, 320, 3), dtype=np.uint8)
    [restored] = restore_frames([np.zeros((64, 96, 3), np.uint8)], resize, own=[own])
    # 320x100 is scaled to 205x64, and the clip is 96 of the 205 columns from the 54th on.
    left, right = -(-54 * 320 // 205), (54 + 96) * 320 // 205
    assert np.array_equal(restored[:, :left], own[:, :left])
    assert np.array_equal(restored[:, right:], own[:, right:])
    # Lanczos reaches over the edge by less than 3 pixels of the clip.
    assert restored[:, left + 10 : right - 10].max() == 0


def test_bars_are_cut_off_and_leave_no_edge():
    resize = plan(320, 100, "pad")
    clip = resize_frame(np.full((100, 320, 3), 200, np.uint8), resize)
    assert clip.min() == 0
    [restored] = restore_frames([clip], resize)
    assert (restored == 200).all()


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_weights_give_pixels_to_the_source(mode):
    resize = plan(320, 100, mode)
    own = np.random.default_rng(0).integers(0, 256, (100, 320, 3), dtype=np.uint8)
    edit = np.full((64, 96, 3), 77, np.uint8)
    nothing = np.zeros((64, 96), np.float32)
    [restored] = restore_frames([edit], resize, own=[own], weights=[nothing])
    assert np.array_equal(restored, own)
    half = nothing.copy()
    half[:, :48] = 1
    [restored] = restore_frames([edit], resize, own=[own], weights=[half])
    middle = 160
    assert np.array_equal(restored[:, middle + 4 :], own[:, middle + 4 :])
    assert (restored[40:60, middle - 10 : middle - 4] == 77).all()


def test_a_crop_needs_the_source():
    with pytest.raises(ValueError, match="own frames are needed"):
        next(restore_frames([np.zeros((64, 96, 3), np.uint8)], plan(320, 100, "crop")))


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_a_change_is_laid_over_the_source_s_detail(mode):
    """A disc that became blue at the clip's size: at the source's its edge and grain are sharp."""
    width, height = 320, 200
    y, x = np.mgrid[0:height, 0:width]
    inside = (np.hypot(y - 100, x - 160) < 40)[..., None]
    grain = np.random.default_rng(0).normal(0, 8, (height, width, 1))
    own, right = (
        np.rint(np.where(inside, color, (110, 120, 110)) + grain).clip(0, 255).astype(np.uint8)
        for color in ((200, 60, 50), (50, 70, 200))
    )
    resize = plan(width, height, mode)
    source, edited = resize_frame(own, resize), resize_frame(right, resize)
    [moments] = measure_moments([edited], [source], [source], radius=8)
    [aligned] = restore_frames([moments.fit()], resize, own=[own])
    below = [own] if needs_own_frames(resize) else None
    [plain] = restore_frames([edited], resize, own=below)
    edge = (abs(np.hypot(y - 100, x - 160) - 40) < 6)[..., None] & np.ones(3, bool)
    assert psnr(aligned, right) > psnr(plain, right) + 8
    assert psnr(aligned[edge], right[edge]) > psnr(plain[edge], right[edge]) + 8


def test_a_change_needs_the_source():
    [moments] = measure_moments(*np.zeros((3, 1, 64, 96, 3), np.uint8), radius=2)
    with pytest.raises(ValueError, match="own frames are needed"):
        list(restore_frames([moments.fit()], plan(177, 131, "stretch")))
