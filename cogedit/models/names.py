"""What programs call the modules of a CogVideoX transformer, and what diffusers calls them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "transformer.")
"""What programs put before all names of a file."""

_OTHERS = (
    (r"^blocks\.", "transformer_blocks."),  # DiffSynth's and ComfyUI's
    # DiffSynth's
    (r"\.to_out$", ".to_out.0"),
    (r"\.ff\.0$", ".ff.net.0.proj"),
    (r"\.ff\.2$", ".ff.net.2"),
    (r"^patchify\.proj$", "patch_embed.proj"),
    (r"^context_embedder$", "patch_embed.text_proj"),
    (r"^time_embedder\.timestep_embedder\.0$", "time_embedding.linear_1"),
    (r"^time_embedder\.timestep_embedder\.2$", "time_embedding.linear_2"),
    # ComfyUI's
    (r"^(transformer_blocks\.\d+)\.([qkv])$", r"\1.attn1.to_\2"),
    (r"^(transformer_blocks\.\d+)\.(norm_[qk])$", r"\1.attn1.\2"),
    (r"\.attn_out$", ".attn1.to_out.0"),
    (r"\.ff_proj$", ".ff.net.0.proj"),
    (r"\.ff_out$", ".ff.net.2"),
    (r"^(time|ofs)_embedding_linear_", r"\1_embedding.linear_"),
)
"""Modules of the CogVideoX of other programs, and their names in diffusers."""

_WEIGHT = re.compile(
    r"patch_embed\.pos_embedding|(?:"
    r"patch_embed\.(?:text_)?proj|(?:time|ofs)_embedding\.linear_[12]|"
    r"transformer_blocks\.\d+\.(?:"
    r"norm[12]\.(?:linear|norm)|attn1\.(?:to_[qkv]|to_out\.0|norm_[qk])|ff\.net\.(?:0\.proj|2))|"
    r"norm_final|norm_out\.(?:linear|norm)|proj_out"
    r")\.(?:weight|bias)"
)
_SCALE = re.compile(
    r"scaled_fp8|.+\.(?:scale_weight|scale_input|(?:weight|input)_scale(?:_2)?|comfy_quant|"
    r"SCB|absmax|quant_map|quant_state\..+)"
)


def name_in_diffusers(module: str) -> str:
    """Return what diffusers calls a module; what it calls so itself stays as it is."""
    for pattern, name in _OTHERS:
        module = re.sub(pattern, name, module)
    return module


def weight_in_diffusers(name: str) -> str:
    """Return what diffusers calls a weight or bias."""
    module, dot, kind = name.rpartition(".")
    return name_in_diffusers(module) + dot + kind


def without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Return the names without the prefix that is before them all, each with the whole name."""
    known = list(names)
    for prefix in _PREFIXES:
        if known and all(name.startswith(prefix) for name in known):
            return {name.removeprefix(prefix): name for name in known}
    return {name: name for name in known}


def is_of_transformer(name: str) -> bool:
    """Return whether a CogVideoX transformer of diffusers may have a tensor of this name."""
    return _WEIGHT.fullmatch(name) is not None


def is_scale(name: str) -> bool:
    """Return whether a tensor says how numbers of few bits are multiplied, by its name."""
    return _SCALE.fullmatch(name) is not None
