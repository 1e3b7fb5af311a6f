"""Published CogVideoX checkpoints: their configuration files, and a tiny one of the same kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cogedit.models.configs import Config
from cogedit.models.mistaken import IMAGE_TO_VIDEO, TEXT_TO_VIDEO

_VERSION = {"_diffusers_version": "0.30.0.dev0"}
_TRANSFORMER: Config = {
    "_class_name": "CogVideoXTransformer3DModel",
    **_VERSION,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "num_attention_heads": 48,
    "num_layers": 42,
    "out_channels": 16,
    "patch_size": 2,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
    "use_rotary_positional_embeddings": True,
}
_VAE: Config = {
    "_class_name": "AutoencoderKLCogVideoX",
    **_VERSION,
    "act_fn": "silu",
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 3,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
    "shift_factor": None,
    "temporal_compression_ratio": 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_SCHEDULER: Config = {
    "_class_name": "CogVideoXDDIMScheduler",
    **_VERSION,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
_TEXT_ENCODER: Config = {
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}
TOKENIZER: Config = {
    "clean_up_tokenization_spaces": True,
    "eos_token": "</s>",
    "extra_ids": 100,
    "model_max_length": 226,
    "pad_token": "<pad>",
    "tokenizer_class": "T5Tokenizer",
    "unk_token": "<unk>",
}


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: Its folder's.
        dtype: Number format of its files, as safetensors writes it.
        size: Width, height and number of frames of its clips.
        transformer, vae, scheduler, text_encoder: Its configurations.
    """

    name: str
    dtype: str
    size: tuple[int, int, int]
    transformer: Config
    vae: Config
    scheduler: Config
    text_encoder: Config

    def with_layers(
        self, num_layers: int | None = None, text_layers: int | None = None
    ) -> Published:
        """Return the model with other numbers of layers in transformer and T5, and another name."""
        model = self
        if num_layers is not None:
            transformer = {**self.transformer, "num_layers": num_layers}
            model = replace(
                model, name=f"{model.name}-{num_layers}-layers", transformer=transformer
            )
        if text_layers is not None:
            text_encoder = {**self.text_encoder, "num_layers": text_layers}
            name = f"{model.name}-{text_layers}-text-layers"
            model = replace(model, name=name, text_encoder=text_encoder)
        return model

    def files(self) -> dict[str, Config]:
        """Return its configuration files, by their path in its folder; the tokenizer's is apart."""
        from_image = self.transformer["in_channels"] != self.transformer["out_channels"]
        index = {
            "_class_name": IMAGE_TO_VIDEO if from_image else TEXT_TO_VIDEO[0],
            **_VERSION,
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        }
        return {
            "model_index.json": index,
            "transformer/config.json": self.transformer,
            "vae/config.json": self.vae,
            "scheduler/scheduler_config.json": self.scheduler,
            "text_encoder/config.json": self.text_encoder,
        }


_5B = Published(
    "CogVideoX-5b", "BF16", (720, 480, 49), _TRANSFORMER, _VAE, _SCHEDULER, _TEXT_ENCODER
)
MODELS = {
    "2b": replace(
        _5B,
        name="CogVideoX-2b",
        dtype="F16",
        transformer={
            **_TRANSFORMER,
            "num_layers": 30,
            "num_attention_heads": 30,
            "use_rotary_positional_embeddings": False,
        },
        vae={**_VAE, "scaling_factor": 1.15258426},
        scheduler={**_SCHEDULER, "snr_shift_scale": 3.0},
    ),
    "5b": _5B,
    "1.5": replace(
        _5B,
        name="CogVideoX1.5-5B",
        size=(1360, 768, 81),
        transformer={
            **_TRANSFORMER,
            "patch_size_t": 2,
            "patch_bias": False,
            "sample_frames": 81,
            "sample_height": 300,
            "sample_width": 300,
            "use_learned_positional_embeddings": False,
        },
        vae={**_VAE, "invert_scale_latents": True},
    ),
    # For trying a rehearsal out: seconds are enough for all of it.
    "tiny": replace(
        _5B,
        name="CogVideoX-tiny",
        size=(96, 64, 9),
        transformer={
            **_TRANSFORMER,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "text_embed_dim": 32,
            "time_embed_dim": 16,
            "sample_frames": 9,
            "sample_height": 8,
            "sample_width": 12,
            "max_text_seq_length": 32,
        },
        vae={
            **_VAE,
            "block_out_channels": [2, 2, 2, 2],
            "layers_per_block": 1,
            "norm_num_groups": 2,
        },
        text_encoder={
            **_TEXT_ENCODER,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
        },
    ),
}
"""By the names that a command line gives them."""


def _from_image(model: Published, name: str, **transformer: object) -> Published:
    """The image-to-video model that was trained on from a text-to-video model."""
    changed = {**model.transformer, "in_channels": 32, **transformer}
    return replace(model, name=name, transformer=changed)


_LEARNED = {"use_learned_positional_embeddings": True}
MODELS |= {
    "5b-i2v": _from_image(MODELS["5b"], "CogVideoX-5b-I2V", **_LEARNED),
    "1.5-i2v": _from_image(MODELS["1.5"], "CogVideoX1.5-5B-I2V", ofs_embed_dim=512),
    "tiny-i2v": _from_image(MODELS["tiny"], "CogVideoX-tiny-I2V", **_LEARNED),
}
