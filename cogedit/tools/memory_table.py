"""Which presets a machine has the memory for, known without the files of their models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogedit.config import Settings, preset_names, resolve_settings
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    activation_bytes,
    edit_work,
)

_T5_RESIDENT = 32128 * 4096 + 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
"""Parameters of CogVideoX's T5 on the device at once when it is offloaded block by block: the
embedding table and two blocks."""

_NO_CONFIG_FILE = Path(__file__).parent
"""A folder without a `cogedit.toml`."""


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint by its published `transformer/config.json`.

    Attributes:
        sizes: Of the transformer.
        num_parameters: Of the transformer.
        latent_shape: Of its training clip: latent frames with padding, height, width.
    """

    sizes: TransformerSizes
    num_parameters: int
    latent_shape: LatentShape


def _published(
    *, layers: int, heads: int, patch_size_t: int, parameters: int, shape: LatentShape
) -> PublishedModel:
    sizes = TransformerSizes(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        patch_size=2,
        patch_size_t=patch_size_t,
        text_embed_dim=4096,
        time_embed_dim=512,
        max_text_seq_length=226 if patch_size_t == 1 else 224,
    )
    return PublishedModel(sizes, parameters, shape)


PUBLISHED = {
    "zai-org/CogVideoX-2b": _published(
        layers=30, heads=30, patch_size_t=1, parameters=1_693_783_872, shape=(13, 60, 90)
    ),
    "zai-org/CogVideoX-5b": _published(
        layers=42, heads=48, patch_size_t=1, parameters=5_570_283_072, shape=(13, 60, 90)
    ),
    "zai-org/CogVideoX1.5-5B": _published(
        layers=42, heads=48, patch_size_t=2, parameters=5_570_676_352, shape=(22, 96, 170)
    ),
}


@dataclass(frozen=True)
class PresetMemory:
    """Device memory that one edit takes under a preset.

    Attributes:
        preset: Its name.
        settings: Its settings.
        resident_bytes: The transformer and its activations. T5 is freed before the transformer is
            loaded. Decoding by the VAE is not counted; tiled, it takes less.
        offloaded_bytes: The same with the transformer's blocks on the device two at a time.
    """

    preset: str
    settings: Settings
    resident_bytes: int
    offloaded_bytes: int


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
    rows = edit_work(edits, settings.invert, model.sizes, model.latent_shape).max_rows
    activations = activation_bytes(
        model.sizes, model.latent_shape, rows=rows, item_size=ITEM_SIZE[dtype], device="cuda"
    )
    weights = model.num_parameters * ITEM_SIZE[settings.weights or dtype]
    # One block computes while the next is copied; the weights outside of the blocks are small.
    two_blocks = 2 * weights // model.sizes.num_layers
    return PresetMemory(
        preset,
        settings,
        resident_bytes=weights + activations,
        offloaded_bytes=max(two_blocks + activations, _T5_RESIDENT * ITEM_SIZE[dtype]),
    )
