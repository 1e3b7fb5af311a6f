"""The VAE's memory: what is counted is what it holds, and holding less changes no number."""

import json
from copy import deepcopy

import pytest
import torch
from accounting import LiveBytes
from diffusers import AutoencoderKLCogVideoX
from pipelines import TINY_PIPELINE, decode_latents
from published import VAE

from cogedit.models.vae import decode_pieces, encode_frames, encode_pixels
from cogedit.models.vae_cost import WAYS, VAESizes, VAEWay, vae_bytes
from cogedit.models.vae_tiles import use_tiles
from cogedit.shapes import model_dir

BY_FRAME = VAEWay(by_frame=True)


def tiny_configs():
    folders = {"tiny": TINY_PIPELINE / "vae", "shapes": model_dir() / "vae"}
    return {name: json.loads((at / "config.json").read_text()) for name, at in folders.items()}


def vae_on_meta(config):
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        return AutoencoderKLCogVideoX.from_config(fields).to(torch.bfloat16).eval()


class OnDisk:
    """A clip of which nothing is in memory before it is read."""

    def __init__(self, size):
        self.shape = (*size, 3)

    def __getitem__(self, part):
        first, last, _ = part.indices(self.shape[0])
        return torch.zeros(last - first, *self.shape[1:], dtype=torch.uint8)


def held(vae, size, direction, way):
    """Bytes that the VAE holds at most beside its weights, every tensor counted."""
    num_frames, height, width = size
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    shape = ((num_frames - 1) // 4 + 1, height // factor, width // factor)
    if way.in_tiles:
        use_tiles(vae)
    frames, height, width = shape
    with vae.device, LiveBytes() as live:
        if direction == "encode":
            encode_pixels(vae, OnDisk(size), by_frame=way.by_frame)
        else:
            latents = torch.zeros(1, frames, vae.config.latent_channels, height, width)
            # Its frames go to host memory, which there is none of beside meta.
            for piece in decode_pieces(vae, latents, by_frame=way.by_frame):
                assert piece.shape[1:] == (3, *size[1:])
    sizes = VAESizes.of(dict(vae.config))
    return live.peak, vae_bytes(sizes, shape, direction, way, item_size=2, device="cpu")


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("way", WAYS[:2])
def test_the_count_is_what_the_published_vae_holds(direction, way):
    most, counted = held(vae_on_meta(VAE), (17, 768, 1360), direction, way)
    assert counted == pytest.approx(most, rel=0.1)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("way", WAYS[2:3])
def test_the_count_is_what_it_holds_in_tiles(direction, way):
    small = {"sample_height": 96, "sample_width": 144, "layers_per_block": 1}
    vae, size = vae_on_meta(VAE | small), (17, 96, 144)
    if direction == "encode":
        most, counted = held(vae, size, direction, way)
    else:
        # Decoded tiles wait on disk, where nothing of meta can: it holds one of them alone.
        tile = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        most, _ = held(vae, (17, *tile), direction, VAEWay())
        counted = vae_bytes(
            VAESizes.of(dict(vae.config)), (5, 12, 18), direction, way, item_size=2, device="cpu"
        )
    assert counted == pytest.approx(most, rel=0.25)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("name", ["tiny", "shapes"])
def test_the_count_follows_the_channels_of_a_small_vae(name, direction, way):
    most, counted = held(vae_on_meta(tiny_configs()[name]), (17, 64, 96), direction, way)
    assert counted == pytest.approx(most, rel=0.2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_way_needs_less_than_the_one_before(device):
    sizes = VAESizes.of(VAE)
    for shape in ((13, 60, 90), (22, 96, 170)):
        for direction in ("encode", "decode"):
            needs = [
                vae_bytes(sizes, shape, direction, way, item_size=2, device=device) for way in WAYS
            ]
            assert needs == sorted(needs, reverse=True)
            assert needs[-1] < needs[0] / 3


@pytest.mark.parametrize(
    ("direction", "in_tiles", "reserved"),
    [("encode", False, 9.88e9), ("decode", False, 18.66e9), ("decode", True, 5.05e9)],
)
def test_cuda_is_allowed_what_was_reserved_on_an_h200(direction, in_tiles, reserved):
    """At 49 frames of 720x480 in bf16; 0.43 GB of it are weights."""
    sizes, shape, way = VAESizes.of(VAE), (13, 60, 90), VAEWay(in_tiles=in_tiles)
    counted = vae_bytes(sizes, shape, direction, way, item_size=2, device="cuda")
    assert counted + 0.43e9 == pytest.approx(reserved, rel=0.03)


def test_cuda_is_allowed_more_than_a_processor():
    sizes, shape = VAESizes.of(VAE), (13, 60, 90)
    for direction in ("encode", "decode"):
        for way in WAYS:
            here, there = (
                vae_bytes(sizes, shape, direction, way, item_size=2, device=device)
                for device in ("cpu", "cuda")
            )
            assert here < there


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKLCogVideoX.from_pretrained(TINY_PIPELINE / "vae").double().eval()


@pytest.mark.parametrize("num_frames", [1, 9, 17])
def test_frame_by_frame_gives_the_same_numbers(vae, num_frames):
    """In float64, so that no rounding of a convolution of another length can show."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(num_frames, 3, 48, 64, generator=generator).double() * 2 - 1
    latents = encode_frames(vae, frames)
    assert torch.allclose(encode_frames(vae, frames, by_frame=True), latents, rtol=0, atol=1e-6)
    decoded = decode_latents(vae, latents)
    assert torch.allclose(decode_latents(vae, latents, by_frame=True), decoded, rtol=0, atol=1e-9)
    # And the model is as it was.
    assert torch.equal(decode_latents(vae, latents), decoded)


def test_frame_by_frame_works_in_tiles(vae):
    tiled = deepcopy(vae)
    tiled.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
    latents = torch.randn(1, 3, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    whole = decode_latents(tiled, latents)
    assert torch.allclose(decode_latents(tiled, latents, by_frame=True), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("is_tiled", [False, True])
def test_letting_caches_go_changes_no_number(vae, is_tiled):
    vae = deepcopy(vae)
    if is_tiled:
        vae.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)
    frames = torch.rand(17, 3, 48, 64, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    with torch.no_grad():
        mode = vae.encode(frames.movedim(0, 1)[None]).latent_dist.mode()
        decoded = vae.decode(mode).sample[0].movedim(1, 0)
    scale = vae.config.scaling_factor
    latents = encode_frames(vae, frames)
    assert torch.equal(latents, mode.movedim(1, 2).float() * scale)
    assert torch.allclose(decode_latents(vae, mode.movedim(1, 2) * scale), decoded, atol=1e-12)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_longer_clip_takes_its_latents_more(direction):
    vae = vae_on_meta(VAE)
    (short, _), (long, _) = (held(vae, (count, 96, 144), direction, VAEWay()) for count in (33, 65))
    latents = (65 - 33) // 4 * 16 * 12 * 18 * 4  # bytes of the added ones, in float32
    assert long - short <= 4 * latents
