"""What the configuration files of a model may say: each field that is read, its type and range.

The libraries build a model from these files without a look at them: text for a number ends in any
error, and a number too large in all of the memory. Fields that are not here may have any value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, TypedDict, TypeVar, cast, get_args, get_type_hints

import msgspec
from msgspec import Meta

from cogedit.errors import ModelError, shown

Config = Mapping[str, object]
"""A component's `config.json`."""

ConfigT = TypeVar("ConfigT")

Size = Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number, 1 to 1000000")]
Width = Annotated[int, Meta(ge=1, le=65_536, description="a whole number, 1 to 65536")]
Depth = Annotated[int, Meta(ge=1, le=512, description="a whole number, 1 to 512")]
Colors = Annotated[int, Meta(ge=3, le=3, description="3")]
TokenId = Annotated[int, Meta(ge=0, le=1_000_000, description="a whole number, 0 to 1000000")]
Timesteps = Annotated[int, Meta(ge=1, le=100_000, description="a whole number, 1 to 100000")]
Length = Annotated[float, Meta(ge=1, description="a number, 1 or more")]
Number = Annotated[float, Meta(ge=-1e6, le=1e6, description="a number")]
Scale = Annotated[float, Meta(gt=0, le=1e6, description="a number above 0")]
Share = Annotated[float, Meta(ge=0, le=1, description="a number, 0 to 1")]
Flag = Annotated[bool, Meta(description="true or false")]
Word = Annotated[str, Meta(description="text")]
Words = Annotated[list[str], Meta(max_length=100, description="a list of text")]
Numbers = Annotated[list[Number], Meta(max_length=100_000, description="a list of numbers")]
Widths = Annotated[
    list[Width], Meta(min_length=1, max_length=8, description="a list of 1 to 8 whole numbers")
]
Token = Annotated[str | dict[str, object], Meta(description="text, or a token")]


class _TransformerSizes(TypedDict):
    patch_size: Depth
    sample_height: Size
    sample_width: Size
    sample_frames: Size
    max_text_seq_length: Width
    num_layers: Depth
    num_attention_heads: Width
    attention_head_dim: Width
    in_channels: Width
    out_channels: Width
    text_embed_dim: Width
    time_embed_dim: Width


class TransformerConfig(_TransformerSizes, total=False):
    """`transformer/config.json`; what sizes and costs follow from must be there."""

    patch_size_t: Depth | None
    ofs_embed_dim: Width | None
    temporal_compression_ratio: Depth
    activation_fn: Word
    timestep_activation_fn: Word
    dropout: Share
    norm_eps: Scale
    freq_shift: Number
    spatial_interpolation_scale: Scale
    temporal_interpolation_scale: Scale
    flip_sin_to_cos: Flag
    attention_bias: Flag
    norm_elementwise_affine: Flag
    patch_bias: Flag
    use_rotary_positional_embeddings: Flag
    use_learned_positional_embeddings: Flag


class _VAESizes(TypedDict):
    block_out_channels: Widths
    temporal_compression_ratio: Depth
    latent_channels: Width


class VAEConfig(_VAESizes, total=False):
    """`vae/config.json`; what the sizes of latents follow from must be there."""

    in_channels: Colors
    out_channels: Colors
    down_block_types: Words
    up_block_types: Words
    layers_per_block: Depth
    act_fn: Word
    norm_eps: Scale
    norm_num_groups: Width
    sample_height: Size
    sample_width: Size
    scaling_factor: Scale
    shift_factor: Number | None
    latents_mean: Numbers | None
    latents_std: Numbers | None
    force_upcast: Flag
    use_quant_conv: Flag
    use_post_quant_conv: Flag
    invert_scale_latents: Flag


class TextEncoderConfig(TypedDict, total=False):
    """`text_encoder/config.json`."""

    d_model: Width
    d_kv: Width
    d_ff: Width
    num_layers: Depth
    num_decoder_layers: Depth | None
    num_heads: Width
    vocab_size: Size
    relative_attention_num_buckets: Width
    relative_attention_max_distance: Size
    dropout_rate: Share
    classifier_dropout: Share
    layer_norm_epsilon: Scale
    initializer_factor: Number
    feed_forward_proj: Word
    dense_act_fn: Word
    model_type: Word
    dtype: Word | None
    torch_dtype: Word | None
    architectures: Words | None
    is_gated_act: Flag
    is_decoder: Flag
    is_encoder_decoder: Flag
    tie_word_embeddings: Flag
    scale_decoder_outputs: Flag
    use_cache: Flag
    eos_token_id: TokenId | None
    pad_token_id: TokenId | None


class SchedulerConfig(TypedDict, total=False):
    """`scheduler/scheduler_config.json`."""

    num_train_timesteps: Timesteps
    beta_start: Share
    beta_end: Share
    beta_schedule: Word
    trained_betas: Numbers | None
    prediction_type: Word
    timestep_spacing: Word
    steps_offset: TokenId
    clip_sample_range: Number
    sample_max_value: Number
    snr_shift_scale: Scale
    clip_sample: Flag
    set_alpha_to_one: Flag
    rescale_betas_zero_snr: Flag


class TokenizerConfig(TypedDict, total=False):
    """`tokenizer/tokenizer_config.json`."""

    tokenizer_class: Word | None
    backend: Word | None
    model_max_length: Length | None
    extra_ids: TokenId
    bos_token: Token | None
    eos_token: Token | None
    unk_token: Token | None
    pad_token: Token | None
    padding_side: Word
    truncation_side: Word
    additional_special_tokens: list[Token] | None


def check_config(kind: type[ConfigT], config: Config, file: str) -> ConfigT:
    """Check the fields of a configuration and return them.

    Args:
        kind: What the file holds.
        config: The file, parsed.
        file: Its name in the model's folder.

    Raises:
        ModelError: A field is missing, of another type or out of range; it names file and field,
            what was found and what was expected.
    """
    hints = get_type_hints(kind, include_extras=True)
    for name, hint in hints.items():
        expected = " or ".join(_words(hint))
        if name not in config:
            if name in kind.__required_keys__:  # type: ignore[attr-defined]
                raise ModelError(f"{file} has no {name}; expected {expected}")
            continue
        try:
            msgspec.convert(config[name], hint)
        except (ValueError, RecursionError) as error:
            found = shown(config[name])
            raise ModelError(f"{file} has {name} = {found}; expected {expected}") from error
    return cast(ConfigT, config)


def decode_config(data: bytes) -> Config:
    """Parse a configuration; ValueError says what is wrong, as the end of a sentence."""
    try:
        config: object = msgspec.json.decode(data)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004
    return config


def _words(kind: object) -> Iterator[str]:
    """Yield what is allowed, in words."""
    for part in (kind, *get_args(kind)):
        if isinstance(part, Meta) and part.description is not None:
            yield part.description
        elif part is NoneType:
            yield "null"
        elif part is not kind:
            yield from _words(part)
