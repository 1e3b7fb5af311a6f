"""Masks by hand: which pixels make which latent, and what a composite leaves alone."""

import pytest
import torch

from cogedit.diffusion.latent_mask import (
    composite,
    difference_mask,
    feather_mask,
    pool_mask,
    unpool_mask,
)
from cogedit.errors import UsageError


def pixels(*points, num_frames=9, size=32):
    mask = torch.zeros(num_frames, size, size, dtype=torch.uint8)
    for frame, y, x in points:
        mask[frame, y, x] = 1
    return mask


def latents(mask, **options):
    """The latents (frame, row, column) that may change."""
    pooled = pool_mask(mask, **({"spatial": 8, "temporal": 4} | options))
    assert pooled.dtype == torch.float32
    assert set(pooled.unique().tolist()) <= {0.0, 1.0}
    return {(f, y, x) for f, c, y, x in pooled.nonzero().tolist()}


@pytest.mark.parametrize(
    ("point", "latent"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((0, 31, 31), (0, 3, 3)),
        ((0, 7, 8), (0, 0, 1)),
        ((1, 8, 7), (1, 1, 0)),  # frames 1 to 4 are latent frame 1
        ((4, 8, 7), (1, 1, 0)),
        ((5, 16, 16), (2, 2, 2)),
        ((8, 16, 16), (2, 2, 2)),
    ],
)
def test_one_pixel_is_one_latent(point, latent):
    assert latents(pixels(point)) == {latent}


def test_factors_are_the_model_s():
    assert latents(pixels((2, 5, 9)), spatial=4, temporal=2) == {(1, 1, 2)}
    assert pool_mask(pixels(), spatial=4, temporal=2).shape == (5, 1, 8, 8)


def test_any_value_but_zero_counts():
    assert latents(255 * pixels((0, 0, 0))) == {(0, 0, 0)}
    assert latents(pixels((0, 0, 0)).float() * 0.1) == {(0, 0, 0)}


def test_dilation_is_in_latents_and_within_a_frame():
    assert latents(pixels((0, 0, 0)), dilation=1) == {(0, y, x) for y in (0, 1) for x in (0, 1)}
    middle = {(1, y, x) for y in range(4) for x in range(4)} - {(1, 3, x) for x in range(4)}
    assert latents(pixels((1, 8, 8)), dilation=1) == middle - {(1, y, 3) for y in range(4)}
    assert len(latents(pixels((1, 8, 8)), dilation=100)) == 16


def test_pad_frames_repeat_the_first():
    pooled = pool_mask(pixels((0, 0, 0)), spatial=8, temporal=4, num_pad_frames=1)
    assert pooled.shape == (4, 1, 4, 4)
    assert torch.equal(pooled[0], pooled[1])
    assert pooled[:, 0, 0, 0].tolist() == [1, 1, 0, 0]


def test_a_single_frame():
    assert pool_mask(pixels(num_frames=1), spatial=8, temporal=4).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("shape", "found"),
    [((8, 32, 32), "8 frames"), ((9, 30, 32), "32x30"), ((9, 32, 30), "30x32")],
)
def test_a_clip_that_does_not_divide_is_refused(shape, found):
    with pytest.raises(UsageError, match=found):
        pool_mask(torch.zeros(shape), spatial=8, temporal=4)


def test_unpooling_is_undone_by_pooling():
    mask = (torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    unpooled = unpool_mask(mask, spatial=8, temporal=4)
    assert unpooled.shape == (9, 32, 40)
    assert unpooled.dtype == torch.uint8
    assert torch.equal(unpooled[1], unpooled[4])
    assert torch.equal(pool_mask(unpooled, spatial=8, temporal=4), mask)


def differences(strength):
    """v of two texts that differ by `strength` [B, F, H, W] in every channel."""
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 1, 4, 1, 1)
    return strength[:, :, None] * sign


def test_the_mask_is_where_predictions_differ():
    strength = torch.zeros(1, 2, 12, 12)
    strength[0, 0, 2:6, 2:6] = 8.0
    found = difference_mask([differences(strength)] * 2, threshold=0.5)
    assert found.shape == (1, 2, 1, 12, 12)
    assert found[0, 0, 0, 3:5, 3:5].all()
    assert not found[0, 0, 0, 8:, 8:].any()
    assert not found[0, 1].any()
    assert 12 <= found.sum() <= 16  # the mean over neighbours rounds the corners off


def test_levels_count_alike_and_clips_apart():
    weak, strong = torch.zeros(2, 1, 12, 12), torch.zeros(2, 1, 12, 12)
    weak[0, 0, :4], strong[0, 0, 8:] = 1e-3, 1e3
    weak[1, 0, :4], strong[1, 0, :4] = 5.0, 5.0
    found = difference_mask([differences(weak), differences(strong)], threshold=0.5)
    assert found[0, 0, 0, 1, 6] == found[0, 0, 0, 10, 6] == 1
    assert found[0, 0, 0, 6, 6] == 0
    alone = difference_mask([differences(weak[1:]), differences(strong[1:])], threshold=0.5)
    assert torch.equal(found[1:], alone)


def test_one_wild_latent_does_not_set_the_scale():
    strength = torch.zeros(1, 2, 16, 16)
    strength[0, 0, 2:10, 2:10] = 1.0
    strength[0, 1, 15, 15] = 1e6
    assert difference_mask([differences(strength)], threshold=0.5)[0, 0, 0, 3:9, 3:9].all()


def test_equal_predictions_give_an_empty_mask_at_any_threshold():
    found = difference_mask([torch.zeros(1, 2, 4, 8, 8)], threshold=0.0, dilation=1)
    assert not found.any()


def test_threshold_and_dilation_of_the_found_mask():
    strength = torch.linspace(0, 1, 16).expand(1, 1, 16, 16).contiguous()
    wide, narrow = (
        difference_mask([differences(strength)], threshold=share) for share in (0.3, 0.7)
    )
    assert wide.sum() > narrow.sum() > 0
    grown = difference_mask([differences(strength)], threshold=0.7, dilation=2)
    assert grown.sum() == narrow.sum() + 2 * 16


def noise(seed, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 16, 16, 3), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("feather", [0, 1, 3])
def test_outside_the_mask_every_pixel_is_the_source_s(feather, dtype):
    mask = torch.zeros(3, 16, 16, dtype=torch.uint8)
    mask[1, 4:12, 4:12] = 1
    edited, source = noise(0, dtype), noise(1, dtype)
    mixed = composite(edited, source, mask, feather=feather)
    assert mixed.dtype == dtype
    outside = mask == 0
    assert torch.equal(mixed[outside], source[outside])
    deep = mixed[1, 4 + feather : 12 - feather, 4 + feather : 12 - feather]
    assert torch.equal(deep, edited[1, 4 + feather : 12 - feather, 4 + feather : 12 - feather])


def test_feather_falls_inside_and_not_at_the_border():
    mask = torch.zeros(1, 5, 9, dtype=torch.uint8)
    mask[:, :, 4:] = 1
    weights = feather_mask(mask, 3)
    assert weights.shape == (1, 5, 9)
    expected = torch.tensor([0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert torch.equal(weights[0], expected.expand(5, 9))
    assert torch.equal(feather_mask(mask, 0), mask.float())


def test_feather_mixes_by_its_weights():
    mask = torch.ones(1, 1, 2, dtype=torch.uint8)
    mask[0, 0, 0] = 0
    edited = torch.full((1, 1, 2, 3), 200, dtype=torch.uint8)
    mixed = composite(edited, torch.zeros_like(edited), mask, feather=1)
    assert mixed[0, 0, :, 0].tolist() == [0, 100]
