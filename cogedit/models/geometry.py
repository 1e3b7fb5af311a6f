"""Sizes that a model imposes on a clip, read from its configuration files without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cogedit.errors import ModelError

Config = Mapping[str, object]
"""A component's `config.json`."""

_POSITION_GRID_15 = (300, 300)
_TRAINED_15 = (96, 170)


@dataclass(frozen=True)
class Geometry:
    """How pixels and frames become latents and tokens.

    Attributes:
        spatial_compression: Pixels per latent, along height and width.
        temporal_compression: Frames per latent frame, after the first.
        patch_size: Latents per token, along height and width.
        patch_size_t: Latent frames per token; None is 1 (CogVideoX 1.0).
        height: Pixels that the model was trained at; so is `width`.
        num_frames: Frames that the model was trained at.
        max_text_seq_length: Tokens of a prompt; shorter ones are padded to it.
    """

    spatial_compression: int
    temporal_compression: int
    patch_size: int
    patch_size_t: int | None
    height: int
    width: int
    num_frames: int
    max_text_seq_length: int
    num_layers: int
    latent_channels: int

    @classmethod
    def of(cls, vae: Config, transformer: Config) -> Geometry:
        """Read it from two configurations; ModelError names a field that is missing or wrong."""
        channels = vae.get("block_out_channels")
        if not isinstance(channels, list) or not channels:
            raise ModelError("vae/config.json has no block_out_channels")
        # AutoencoderKLCogVideoX halves the size after every block but the last.
        spatial = 2 ** (len(channels) - 1)
        patch_size_t = None
        if transformer.get("patch_size_t") is not None:
            patch_size_t = positive_integer(transformer, "patch_size_t", "transformer")
        height = positive_integer(transformer, "sample_height", "transformer")
        width = positive_integer(transformer, "sample_width", "transformer")
        if patch_size_t is not None and (height, width) == _POSITION_GRID_15:
            # Some copies of CogVideoX 1.5 state how far its positions reach in place of the size
            # that it was trained at; clips of 2400x2400 would be the default.
            height, width = _TRAINED_15
        return cls(
            spatial_compression=spatial,
            temporal_compression=positive_integer(vae, "temporal_compression_ratio", "vae"),
            patch_size=positive_integer(transformer, "patch_size", "transformer"),
            patch_size_t=patch_size_t,
            height=height * spatial,
            width=width * spatial,
            num_frames=positive_integer(transformer, "sample_frames", "transformer"),
            max_text_seq_length=positive_integer(transformer, "max_text_seq_length", "transformer"),
            num_layers=positive_integer(transformer, "num_layers", "transformer"),
            latent_channels=positive_integer(vae, "latent_channels", "vae"),
        )

    @property
    def size_multiple(self) -> int:
        """Width and height of a clip must be multiples of this many pixels."""
        return self.spatial_compression * self.patch_size

    def num_latent_frames(self, num_frames: int) -> int:
        """Return how many latent frames the causal VAE makes of `num_frames` = 8n + 1 frames."""
        return (num_frames - 1) // self.temporal_compression + 1

    def num_pad_frames(self, num_latent_frames: int) -> int:
        """Return how many latent frames must be added for the temporal patch to divide them."""
        return -num_latent_frames % (self.patch_size_t or 1)


def positive_integer(config: Config, key: str, component: str) -> int:
    """Return a field of a component's configuration; ModelError if it is no integer above 0."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(
            f"{component}/config.json has {key} = {value!r}; expected a positive whole number"
        )
    return value
