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

_TEXT_ENCODER_RESIDENT = 32128 * 4096 + 2 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
"""Parameters of the T5 encoder of all CogVideoX checkpoints, as many as are there at once where it
comes block by block: the embedding table and two blocks."""


@dataclass(frozen=True)
class PublishedModel:
    """What is known of a checkpoint from its published configuration.

    Attributes:
        sizes: Of the transformer.
        parameters: Of the transformer.
        latent_shape: Of the clip that it was trained at: latent frames with pads, height, width.
    """

    sizes: TransformerSizes
    parameters: int
    latent_shape: LatentShape


def _sizes(num_layers: int, num_heads: int, *, patch_size_t: int, text: int) -> TransformerSizes:
    return TransformerSizes(
        num_layers=num_layers,
        num_attention_heads=num_heads,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        patch_size=2,
        patch_size_t=patch_size_t,
        text_embed_dim=4096,
        time_embed_dim=512,
        max_text_seq_length=text,
    )


_SHAPE_5B = (13, 60, 90)
PUBLISHED = {
    "zai-org/CogVideoX-2b": PublishedModel(
        _sizes(30, 30, patch_size_t=1, text=226), 1_693_783_872, _SHAPE_5B
    ),
    "zai-org/CogVideoX-5b": PublishedModel(
        _sizes(42, 48, patch_size_t=1, text=226), 5_570_283_072, _SHAPE_5B
    ),
    "zai-org/CogVideoX1.5-5B": PublishedModel(
        _sizes(42, 48, patch_size_t=2, text=224), 5_570_676_352, (22, 96, 170)
    ),
}
"""The models of the presets: sizes from the `transformer/config.json` of each."""


@dataclass(frozen=True)
class Need:
    """What an edit under a preset takes.

    Attributes:
        preset: Its name.
        settings: What it sets.
        memory_bytes: The transformer and what it computes in. T5 is freed before it comes, and
            comes block by block where it does not fit. The decoding by the VAE is not counted; in
            tiles it takes less.
        offloaded_bytes: The same with the transformer's blocks coming one by one, as they do where
            they do not fit together.
    """

    preset: str
    settings: Settings
    memory_bytes: int
    offloaded_bytes: int


def needs_of_presets() -> tuple[Need, ...]:
    """Estimate what one edit takes under every preset that names a model."""
    found = []
    for name in preset_names():
        settings = resolve_settings({}, config=name, environ={}, cwd=_NOWHERE).settings
        model = PUBLISHED.get(settings.model)
        if model is not None:
            found.append(_need(name, settings, model))
    return tuple(found)


_NOWHERE = Path(__file__).parent
"""A folder without a `cogedit.toml`."""


def _need(name: str, settings: Settings, model: PublishedModel) -> Need:
    """Estimate as `--dry-run` does, for one edit under the preset."""
    dtype = settings.dtype or "bf16"
    item_size = ITEM_SIZE[dtype]
    asked = settings.reconstruct_with("a prompt")
    rows = edit_work([asked], settings.invert, model.sizes, model.latent_shape).max_rows
    activations = activation_bytes(
        model.sizes, model.latent_shape, rows=rows, item_size=item_size, device="cuda"
    )
    weights = model.parameters * ITEM_SIZE[settings.weights or dtype]
    # One block computes and one is being copied; next to the blocks, the rest is small.
    two_blocks = 2 * weights // model.sizes.num_layers
    return Need(
        name,
        settings,
        memory_bytes=weights + activations,
        offloaded_bytes=max(two_blocks + activations, _TEXT_ENCODER_RESIDENT * item_size),
    )
