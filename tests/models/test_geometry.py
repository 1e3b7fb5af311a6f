"""Sizes of the published checkpoints, from the fields of their configurations."""

import pytest
from published import COGVIDEOX_5B

from cogedit.errors import UsageError
from cogedit.models.geometry import Geometry

VAE = {
    "block_out_channels": [128, 256, 256, 512],
    "temporal_compression_ratio": 4,
    "latent_channels": 16,
}
COGVIDEOX_15 = COGVIDEOX_5B | {
    "patch_size_t": 2,
    "sample_height": 96,
    "sample_width": 170,
    "sample_frames": 81,
}

FROM_IMAGE = {"in_channels": 32, "use_learned_positional_embeddings": True}


@pytest.mark.parametrize("config", [COGVIDEOX_5B, COGVIDEOX_5B | {"patch_size_t": None}])
def test_cogvideox_5b_and_2b(config):
    geometry = Geometry.of(VAE, config)
    assert (geometry.width, geometry.height, geometry.num_frames) == (720, 480, 49)
    assert (geometry.spatial_compression, geometry.temporal_compression) == (8, 4)
    assert geometry.size_multiple == 16
    assert geometry.max_text_seq_length == 226
    assert geometry.num_layers == 42
    assert geometry.num_latent_frames(49) == 13
    assert [geometry.num_pad_frames(count) for count in (1, 12, 13)] == [0, 0, 0]


@pytest.mark.parametrize("grid", [(96, 170), (300, 300)])
def test_cogvideox_15(grid):
    # Copies in circulation state either the size of the training or the reach of the positions.
    config = COGVIDEOX_15 | {"sample_height": grid[0], "sample_width": grid[1]}
    geometry = Geometry.of(VAE, config)
    assert (geometry.width, geometry.height, geometry.num_frames) == (1360, 768, 81)
    assert geometry.size_multiple == 16
    assert geometry.num_latent_frames(81) == 21
    assert [geometry.num_pad_frames(count) for count in (1, 2, 3, 20, 21)] == [1, 0, 1, 0, 1]


def test_a_square_of_300_is_a_size_for_the_others():
    geometry = Geometry.of(VAE, COGVIDEOX_5B | {"sample_height": 300, "sample_width": 300})
    assert (geometry.width, geometry.height) == (2400, 2400)


def test_compression_comes_from_the_configuration():
    vae = {
        "block_out_channels": [32, 32, 32],
        "temporal_compression_ratio": 8,
        "latent_channels": 16,
    }
    geometry = Geometry.of(vae, COGVIDEOX_5B | {"patch_size": 4})
    assert (geometry.spatial_compression, geometry.size_multiple) == (4, 16)
    assert geometry.num_latent_frames(17) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", None),
        ("patch_size", 0),
        ("patch_size_t", "2"),
        ("patch_size_t", -1),
        ("sample_height", 60.0),
        ("sample_width", True),
        ("sample_frames", "49"),
        ("max_text_seq_length", [226]),
        ("num_layers", 10**9),
        ("use_rotary_positional_embeddings", "yes"),
        ("spatial_interpolation_scale", 0),
    ],
)
def test_a_wrong_value_is_named(refused, key, value):
    error = refused(Geometry.of, VAE, COGVIDEOX_5B | {key: value})
    assert f"{key} = {value!r}" in error.message


def test_a_missing_value_is_named(refused):
    config = {key: value for key, value in COGVIDEOX_5B.items() if key != "num_layers"}
    assert "no num_layers" in refused(Geometry.of, VAE, config).message


@pytest.mark.parametrize("channels", [None, [], 4, ["128"], [128] * 9])
def test_a_vae_without_blocks_is_refused(refused, channels):
    error = refused(Geometry.of, VAE | {"block_out_channels": channels}, COGVIDEOX_5B)
    assert "block_out_channels" in error.message


# --- clips that a model takes ---------------------------------------------------------------------


def test_a_side_must_be_a_multiple_and_the_nearest_are_named():
    geometry = Geometry.of(VAE, COGVIDEOX_5B)
    geometry.check_clip(720, 480, 49)
    with pytest.raises(UsageError) as caught:
        geometry.check_clip(721, 480, 49)
    assert all(number in caught.value.message for number in ("721", "16", "720", "736"))
    with pytest.raises(UsageError, match=r"height 5 .*16$"):
        geometry.check_clip(720, 5, 49)


@pytest.mark.parametrize("clip", [(736, 480, 49), (480, 720, 49), (720, 480, 41), (720, 480, 57)])
def test_learned_positions_are_for_one_size(clip):
    Geometry.of(VAE, COGVIDEOX_5B).check_clip(*clip)
    geometry = Geometry.of(VAE, COGVIDEOX_5B | FROM_IMAGE)
    geometry.check_clip(720, 480, 49)
    with pytest.raises(UsageError) as caught:
        geometry.check_clip(*clip)
    width, height, num_frames = clip
    assert f"{num_frames} frames of {width}x{height}" in caught.value.message
    assert "49 frames of 720x480" in caught.value.message
    with pytest.raises(UsageError, match="1 frame of 720x480; "):
        geometry.check_clip(720, 480, 1)


def test_a_model_that_takes_a_first_frame_takes_one_window():
    Geometry.of(VAE, COGVIDEOX_15).check_clip(1360, 768, 89)
    geometry = Geometry.of(VAE, COGVIDEOX_15 | {"in_channels": 32})
    assert geometry.num_frames == 81
    geometry.check_clip(1360, 768, 161)
    assert geometry.window_plan(42, None) is None
    with pytest.raises(UsageError, match=r"169 frames.* 161 ") as caught:
        geometry.check_clip(1360, 768, 169)
    assert "--max-num-frames 161" in caught.value.hint


def test_both_models_of_1_5_take_ten_seconds_in_one_pass():
    for channels in (16, 32):
        geometry = Geometry.of(VAE, COGVIDEOX_15 | {"in_channels": channels})
        assert (geometry.num_frames, geometry.max_num_frames) == (81, 161)
        assert geometry.window_plan(42, None) is None
    text = Geometry.of(VAE, COGVIDEOX_15)
    longer = text.window_plan(44, None)  # 169 frames: windows of five seconds
    assert (longer.length, longer.overlap) == (22, 6)
    assert Geometry.of(VAE, COGVIDEOX_15 | {"sample_frames": 49}).max_num_frames == 49
    assert Geometry.of(VAE, COGVIDEOX_5B).window_plan(14, None).length == 13
