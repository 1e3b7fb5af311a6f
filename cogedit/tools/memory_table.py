"""Which presets a machine has the memory for, known without the files of their models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.config import Settings, preset_names, resolve_settings
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    activation_bytes,
    edit_work,
    text_encoder_bytes,
)
from cogedit.models.vae_cost import Direction, VAEPlan, VAESizes, plan_vae

_T5_RESIDENT = 32128 * 4096 + 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
_T5_BLOCKS = {"num_layers": 2, "d_model": 4096, "d_ff": 10240}
"""Parameters of CogVideoX's T5 on the device at once when it is offloaded block by block: the
embedding table and two blocks."""

_VAE = VAESizes(
    block_out_channels=(128, 256, 256, 512),
    layers_per_block=3,
    latent_channels=16,
    temporal_compression_ratio=4,
    sample_height=480,
    sample_width=720,
)
_VAE_PARAMETERS = 215_583_907
"""The published models have the same VAE."""

_NO_CONFIG_FILE = Path(__file__).parent
"""A folder without a `cogedit.toml`."""


@dataclass(frozen=True)
class PublishedModel:
    """A transformer by its published configuration, and the latent shape of its training clip."""

    sizes: TransformerSizes
    num_parameters: int
    latent_shape: LatentShape


_SIZES_5B = TransformerSizes(
    num_layers=42,
    num_attention_heads=48,
    attention_head_dim=64,
    in_channels=16,
    out_channels=16,
    patch_size=2,
    patch_size_t=1,
    text_embed_dim=4096,
    time_embed_dim=512,
    max_text_seq_length=226,
)
_SIZES_2B = replace(_SIZES_5B, num_layers=30, num_attention_heads=30)
_SIZES_1_5 = replace(_SIZES_5B, patch_size_t=2, max_text_seq_length=224)
PUBLISHED = {
    "zai-org/CogVideoX-2b": PublishedModel(_SIZES_2B, 1_693_783_872, (13, 60, 90)),
    "zai-org/CogVideoX-5b": PublishedModel(_SIZES_5B, 5_570_283_072, (13, 60, 90)),
    "zai-org/CogVideoX1.5-5B": PublishedModel(_SIZES_1_5, 5_570_676_352, (22, 96, 170)),
    "zai-org/CogVideoX-5b-I2V": PublishedModel(
        replace(_SIZES_5B, in_channels=32), 5_625_087_552, (13, 60, 90)
    ),
    "zai-org/CogVideoX1.5-5B-I2V": PublishedModel(
        replace(_SIZES_1_5, in_channels=32), 5_571_594_880, (22, 96, 170)
    ),
}
"""The models of the presets."""


@dataclass(frozen=True)
class PresetMemory:
    """Device memory that one edit takes under a preset.

    Attributes:
        preset: Its name.
        settings: Its settings.
        resident_bytes: The transformer and its activations. T5 and the VAE make room for it.
        offloaded_bytes: The same with the transformer's blocks on the device two at a time.
        latent_shape: Of its clip, for the VAE.
    """

    preset: str
    settings: Settings
    resident_bytes: int
    offloaded_bytes: int
    latent_shape: LatentShape

    def plan_vae(self, direction: Direction, usable: int, device: str) -> VAEPlan:
        """Choose how the VAE runs in so much memory of a kind of device.

        Raises:
            DeviceMemoryError: No way fits.
        """
        size = ITEM_SIZE[self.settings.dtype or "bf16"]
        encodes = direction == "encode"
        return plan_vae(
            _VAE,
            self.latent_shape,
            direction,
            weights=_VAE_PARAMETERS * size,
            usable=usable,
            item_size=size,
            device=device,
            tiling=self.settings.encode.vae_tiling if encodes else self.settings.decode_tiling,
        )


def memory_of_presets() -> tuple[PresetMemory, ...]:
    """Estimate the memory of one edit under every preset that names a published model."""
    needs = []
    for preset in preset_names():
        resolved = resolve_settings({}, config=preset, environ={}, cwd=_NO_CONFIG_FILE)
        model = PUBLISHED.get(resolved.settings.model)
        if model is not None:
            needs.append(_memory(preset, resolved.settings, model))
    return tuple(needs)


def _memory(preset: str, settings: Settings, model: PublishedModel) -> PresetMemory:
    """Estimate as `--dry-run` does."""
    dtype = settings.dtype or "bf16"
    edits = [settings.reconstruct_with("a prompt")]
    work = edit_work(edits, settings.invert, model.sizes, model.latent_shape)
    activations = activation_bytes(
        model.sizes, model.latent_shape, work, item_size=ITEM_SIZE[dtype], device="cuda"
    )
    weights = model.num_parameters * ITEM_SIZE[settings.weights or dtype]
    t5 = text_encoder_bytes(_T5_RESIDENT, _T5_BLOCKS, dtype)
    # One block computes while the next is copied; the weights outside of the blocks are small.
    two_blocks = 2 * weights // model.sizes.num_layers
    return PresetMemory(
        preset,
        settings,
        resident_bytes=weights + activations,
        offloaded_bytes=max(two_blocks + activations, t5),
        latent_shape=model.latent_shape,
    )
