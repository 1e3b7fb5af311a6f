"""The parts of the shapes pipeline: their sizes, fresh ones for training, and the saved folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from cogedit.lab import world

MAX_TEXT_SEQ_LENGTH = 12
TEXT_DIM = 128
PATCH_SIZE = 2
COARSE_PATCH_SIZE = 4

# Marks the start of a word in a T5 tokenizer.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# Words that a caption may hold, each with other spellings that share its embedding.
_WORDS: dict[str, tuple[str, ...]] = {
    "a": ("the", "one"),
    "an": (),
    "on": (),
    "background": ("backdrop",),
    "moving": ("moves", "going", "flying", "sliding"),
    "gray": ("grey",),
    "cyan": ("turquoise", "aqua"),
    "purple": ("violet",),
    "circle": ("disc", "disk", "ball"),
    "square": ("box",),
    "left": ("leftward", "leftwards"),
    "right": ("rightward", "rightwards"),
    "up": ("upward", "upwards"),
    "down": ("downward", "downwards"),
}


def vocabulary() -> dict[str, str]:
    """Return every known token, in the order of the ids, with the word whose meaning it has.

    A word may start with a capital letter, be in capitals, and end in a full stop or a comma:
    such tokens, and synonyms, get copies of the embedding of the word that was trained
    (`share_embeddings`). So capitals and punctuation need no normaliser in the tokenizer.
    """
    words = dict(_WORDS)
    for names in (world.COLORS, world.SHAPES, world.BACKGROUNDS, world.MOTIONS):
        for name in names:
            words.setdefault(name, ())
    # What is unknown means as little as padding.
    tokens = {"<pad>": "<pad>", "</s>": "</s>", "<unk>": "<pad>", _SPACE: "<pad>"}
    tokens |= {f"{_SPACE}{word}": word for word in words}
    for word, synonyms in words.items():
        for name in (word, *synonyms):
            for spelling in (name, name.capitalize(), name.upper()):
                for end in ("", ".", ","):
                    tokens.setdefault(f"{_SPACE}{spelling}{end}", word)
    return tokens


def make_tokenizer() -> T5Tokenizer:
    """Return the word-level tokenizer; unknown words become `<unk>`."""
    scores = [(token, 0.0 if token.startswith("<") else -1.0) for token in vocabulary()]
    scores[3] = (scores[3][0], -4.0)
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=MAX_TEXT_SEQ_LENGTH)


def make_text_encoder() -> T5EncoderModel:
    """Return a T5 encoder of two layers with random weights (torch's global generator)."""
    config = T5Config(
        vocab_size=len(vocabulary()),
        d_model=TEXT_DIM,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


@torch.no_grad()
def share_embeddings(text_encoder: T5EncoderModel) -> None:
    """Give every token the embedding of the word whose meaning it has, in place."""
    table = vocabulary()
    ids = {token: index for index, token in enumerate(table)}
    weight = text_encoder.get_input_embeddings().weight
    for token, word in table.items():
        source = ids.get(f"{_SPACE}{word}", ids.get(word, 0))
        weight[ids[token]] = weight[source]


def make_transformer(
    vae: AutoencoderKLCogVideoX,
    *,
    num_layers: int,
    num_attention_heads: int,
    attention_head_dim: int = 32,
    time_embed_dim: int = 64,
    patch_size: int = PATCH_SIZE,
    takes_first_frame: bool = False,
) -> CogVideoXTransformer3DModel:
    """Return a transformer for the VAE's latents, with random weights and rotary positions.

    `attention_head_dim` is a multiple of 16; `patch_size` counts latents along height and width.
    One that takes a first frame has its latents as further channels.
    """
    spatial = 2 ** (len(vae.config.block_out_channels) - 1)
    return CogVideoXTransformer3DModel(
        num_attention_heads=num_attention_heads,
        attention_head_dim=attention_head_dim,
        in_channels=vae.config.latent_channels * (2 if takes_first_frame else 1),
        out_channels=vae.config.latent_channels,
        time_embed_dim=time_embed_dim,
        text_embed_dim=TEXT_DIM,
        num_layers=num_layers,
        sample_width=world.WIDTH // spatial,
        sample_height=world.HEIGHT // spatial,
        sample_frames=world.NUM_FRAMES,
        patch_size=patch_size,
        temporal_compression_ratio=int(vae.config.temporal_compression_ratio),
        max_text_seq_length=MAX_TEXT_SEQ_LENGTH,
        use_rotary_positional_embeddings=True,
    )


def make_scheduler() -> CogVideoXDDIMScheduler:
    """Return the scheduler with the settings of CogVideoX-5B."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=1.0,
        steps_offset=0,
        timestep_spacing="trailing",
    )


def make_pipeline(
    vae: AutoencoderKLCogVideoX,
    transformer: CogVideoXTransformer3DModel,
    text_encoder: T5EncoderModel,
) -> CogVideoXPipeline:
    """Put the trained parts together with the tokenizer and the scheduler."""
    pipeline = CogVideoXPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=make_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rotary_embeddings(
    pipeline: CogVideoXPipeline, *, num_latent_frames: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions that the pipeline itself prepares: two [tokens, head dim] tensors."""
    cos, sin = pipeline._prepare_rotary_positional_embeddings(
        world.HEIGHT, world.WIDTH, num_latent_frames, device
    )
    return cos, sin


def export_pipeline(pipeline: CogVideoXPipeline, folder: Path) -> None:
    """Write the pipeline as a diffusers folder; its weights are rounded to fp16, in place.

    The rounding halves the folder; everything is meant to be loaded in float32 again.
    """
    share_embeddings(pipeline.text_encoder)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _forget_sources(folder.glob("*/config.json"))


def export_transformer(pipeline: CogVideoXPipeline, folder: Path) -> None:
    """Write the transformer alone, rounded to fp16 in place, as `export_pipeline` does."""
    pipeline.transformer.to(dtype=torch.float16)
    pipeline.transformer.save_pretrained(folder, safe_serialization=True)
    _forget_sources([folder / "config.json"])


def _forget_sources(configs: Iterable[Path]) -> None:
    """Leave out of configurations which folder a part was loaded from: diffusers writes it down."""
    for config in configs:
        values = json.loads(config.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
