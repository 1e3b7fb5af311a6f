"""Frames and latents: the posterior's mode, scaled, and lengths that come back."""

from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from pipelines import TINY_PIPELINE, decode_latents
from published import COGVIDEOX_5B

from cogedit.lab import world
from cogedit.models.geometry import Geometry
from cogedit.models.vae import (
    decode_pieces,
    encode_frames,
    encode_pixels,
    num_decoder_calls,
    num_encoder_calls,
    to_model_range,
    to_pixels,
)
from cogedit.models.vae_tiles import use_tiles
from cogedit.shapes import model_dir


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKLCogVideoX.from_pretrained(TINY_PIPELINE / "vae").eval()


def clip(num_frames, height=32, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_frames, 3, height, width, generator=generator) * 2 - 1


def close(found, expected):
    assert found.shape == expected.shape
    return (
        float((found - expected).abs().max() / expected.std()) < 1e-3
    )  # stored on another processor


def test_encoding_is_the_golden_mode(golden_pipeline, golden):
    assert close(encode_frames(golden_pipeline.vae, golden["video_frames"]), golden["vae_mode"])


def test_decoding_is_the_golden_decoding(golden_pipeline, golden):
    # The upstream script keeps the decoder's order, [B, C, F, H, W].
    expected = golden["decoded"].reshape(-1, *golden["decoded"].shape[-4:])[0]
    if expected.shape[0] == 3:
        expected = expected.movedim(0, 1)
    assert close(decode_latents(golden_pipeline.vae, golden["vae_mode"]), expected)


def test_equal_clips_give_equal_latents_and_draw_nothing(vae):
    state = torch.random.get_rng_state()
    frames = clip(9)
    assert torch.equal(encode_frames(vae, frames), encode_frames(vae, frames))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_scaling_factor_is_the_models(vae):
    other = deepcopy(vae)
    other.register_to_config(scaling_factor=1.15258426)
    frames = clip(1)
    latents = encode_frames(vae, frames)
    decoded = decode_latents(vae, latents)
    rescaled = encode_frames(other, frames)
    assert torch.allclose(rescaled, latents * (1.15258426 / 0.7), rtol=1e-5)
    assert torch.allclose(decode_latents(other, rescaled), decoded, atol=1e-5)


def geometry(vae):
    return Geometry.of(dict(vae.config), COGVIDEOX_5B)


@pytest.mark.parametrize("num_frames", [1, 9, 17])
def test_lengths_of_8n_and_1_come_back(vae, num_frames):
    latents = encode_frames(vae, clip(num_frames))
    assert latents.shape == (1, geometry(vae).num_latent_frames(num_frames), 16, 4, 6)
    assert latents.dtype == torch.float32
    assert decode_latents(vae, latents).shape == (num_frames, 3, 32, 48)


@pytest.mark.parametrize("num_frames", [5, 13])
def test_lengths_of_8n_and_5_do_not(vae, num_frames):
    """Why clips snap to 8n + 1 frames: an even number of latent frames has no first frame apart."""
    latents = encode_frames(vae, clip(num_frames))
    assert latents.shape[1] == (num_frames - 1) // 4 + 1
    assert len(decode_latents(vae, latents)) == num_frames + 3


def test_pixels_survive_the_model_range():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16, 1).repeat(1, 1, 1, 3)
    pixels[..., 1] = 255 - pixels[..., 1]
    frames = to_model_range(pixels)
    assert frames.shape == (2, 3, 8, 16)
    assert (frames.min(), frames.max()) == (-1, 1)
    assert torch.equal(to_pixels(frames), pixels)


def test_pixels_are_clamped_and_rounded():
    values = torch.tensor([-1.7, 1.2, 0.0, 2 / 255 - 1.0, 2.9 / 255 - 1.0, 3.1 / 255 - 1.0])
    frames = values.reshape(1, 1, 1, -1)
    assert to_pixels(frames).flatten().tolist() == [0, 255, 128, 1, 1, 2]


@pytest.mark.parametrize("num_latent_frames", [1, 2, 3, 4, 5, 13])
def test_pieces_are_the_whole_decoding(vae, num_latent_frames):
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, num_latent_frames, 16, 4, 6, generator=generator)
    with torch.no_grad():
        whole = vae.decode(latents.movedim(1, 2) / 0.7).sample[0].movedim(1, 0)
        pieces = list(decode_pieces(vae, latents))
    assert len(pieces) == max(1, num_latent_frames // 2)
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(decode_latents(vae, latents), whole)


def test_tiles_are_joined_piece_by_piece(vae, tmp_path):
    tiled = deepcopy(vae)
    tiled.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
    latents = torch.randn(1, 5, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = tiled.decode(latents.movedim(1, 2) / 0.7).sample[0].movedim(1, 0)
        pieces = list(decode_pieces(tiled, latents, folder=tmp_path))
    assert [len(piece) for piece in pieces] == [9, 8]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(decode_latents(vae, latents), whole)


@pytest.mark.parametrize("is_tiled", [False, True])
@pytest.mark.parametrize("num_frames", [1, 5, 9, 17])
def test_encoding_in_pieces_is_that_of_the_whole_clip(vae, num_frames, is_tiled):
    vae = deepcopy(vae)
    if is_tiled:
        vae.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
    pixels = torch.randint(0, 256, (num_frames, 48, 72, 3), dtype=torch.uint8)
    frames = to_model_range(pixels)
    with torch.no_grad():
        whole = vae.encode(frames.movedim(0, 1)[None]).latent_dist.mode().movedim(1, 2) * 0.7
    assert torch.equal(encode_frames(vae, frames), whole)
    assert torch.equal(encode_pixels(vae, pixels), whole)


@pytest.mark.parametrize(
    ("num_frames", "span", "spans"),
    [
        (33, 9, [(0, 9), (8, 17), (16, 25), (24, 33)]),
        (25, 17, [(0, 17), (16, 25)]),
        (17, 17, [(0, 17)]),
    ],
)
def test_spans_of_a_long_clip_are_encoded_as_clips_of_their_own(vae, num_frames, span, spans):
    pixels = torch.randint(0, 256, (num_frames, 48, 72, 3), dtype=torch.uint8)
    frames, told = to_model_range(pixels), []
    first, *others = (encode_frames(vae, frames[start:end]) for start, end in spans)
    expected = torch.cat([first, *(latents[:, 1:] for latents in others)], dim=1)
    found = encode_frames(vae, frames, span=span, on_call=lambda: told.append(None))
    assert torch.equal(found, expected)
    assert found.shape[1] == geometry(vae).num_latent_frames(num_frames)
    assert torch.equal(encode_pixels(vae, pixels, span=span), expected)
    assert len(told) == num_encoder_calls(vae, (num_frames, 3, 48, 72))


def test_two_clips_may_be_decoded_side_by_side(vae):
    first, second = torch.randn(2, 1, 4, 16, 4, 6, generator=torch.Generator().manual_seed(2))
    pairs = zip(*(decode_pieces(vae, latents) for latents in (first, second)), strict=True)
    pieces = [torch.cat(parts) for parts in zip(*pairs, strict=True)]
    assert torch.equal(pieces[0], decode_latents(vae, first))
    assert torch.equal(pieces[1], decode_latents(vae, second))


@pytest.mark.parametrize("num_frames", [1, 9, 17])
@pytest.mark.parametrize("size", [(48, 48), (64, 72), (104, 72)])
@pytest.mark.parametrize("is_tiled", [False, True])
def test_every_call_of_its_parts_is_told_and_foreseen(vae, num_frames, size, is_tiled):
    vae = deepcopy(vae)
    if is_tiled:
        vae.enable_tiling(tile_sample_min_height=48, tile_sample_min_width=48)
    num_tiles = {48: 1, 64: 4, 104: 6}[size[0]] if is_tiled else 1
    frames = clip(num_frames, *size)
    told = []
    latents = encode_frames(vae, frames, on_call=lambda: told.append("encoder"))
    assert len(told) == num_encoder_calls(vae, frames.shape)
    assert len(told) == num_tiles * max(1, num_frames // 8)
    told.clear()
    decoded = decode_latents(vae, latents, on_call=lambda: told.append("decoder"))
    assert len(told) == num_decoder_calls(vae, latents.shape)
    assert torch.equal(decoded, decode_latents(vae, latents))  # nothing is told any more
    assert len(told) == num_decoder_calls(vae, latents.shape)


@pytest.mark.parametrize("size", [(64, 96), (64, 64), (480, 720), (96, 160), (48, 80)])
def test_tiles_fit_together(vae, size):
    """Joined by diffusers' own rounding, the pictures of small models have another size."""
    height, width = size
    # One group: a tile of a single latent has no variance within a channel.
    changes = {"sample_height": height, "sample_width": width, "norm_num_groups": 1}
    tiled = AutoencoderKLCogVideoX.from_config({**vae.config, **changes}).eval()
    tiled.load_state_dict(vae.state_dict())
    before = [tiled.tile_overlap_factor_height, tiled.tile_overlap_factor_width]
    use_tiles(tiled)
    after = [tiled.tile_overlap_factor_height, tiled.tile_overlap_factor_width]
    assert after == before or size != (480, 720)  # CogVideoX's own are left alone
    latents = torch.randn(1, 1, 16, height // 8 + 1, width // 8 + 3)
    if size == (480, 720):
        latents = latents[..., :32, :47]  # larger than a tile by two
    frames = decode_latents(tiled, latents)
    assert frames.shape[2:] == (8 * latents.shape[3], 8 * latents.shape[4])
    assert encode_frames(tiled, frames.clamp(-1, 1)).shape == latents.shape


def test_tiles_of_the_embedded_model_are_the_picture():
    vae = AutoencoderKLCogVideoX.from_pretrained(model_dir() / "vae").eval()
    frames = torch.from_numpy(world.render(world.sample_spec(3, "held_out"))).movedim(-1, 1)
    latents = encode_frames(vae, frames / 127.5 - 1)
    whole = decode_latents(vae, latents)
    use_tiles(vae)
    tiles = decode_latents(vae, latents)
    assert tiles.shape == whole.shape
    assert not torch.equal(tiles, whole)
    assert (tiles - whole).square().mean().sqrt() < 0.05
