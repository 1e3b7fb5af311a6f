"""One safetensors file in place of a part of a pipeline: what its names and shapes say. No torch.

Names are those of diffusers or of ComfyUI, also behind a prefix that is before them all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cogedit.errors import ModelError, StorageError
from cogedit.models.configs import Config
from cogedit.models.names import (
    is_of_transformer,
    is_scale,
    weight_in_diffusers,
    without_prefix,
)
from cogedit.models.weights import WeightFile
from cogedit.wording import count_of

PartOfFile = Literal["transformer", "vae"]
"""Parts that may be a file of their own."""

Files = tuple[tuple[PartOfFile, Path], ...]
"""The files that were given, by part."""

_ONLY_OF = {
    "transformer": ("patch_embed.proj.weight", "proj_out.weight", "time_embedding.linear_1.weight"),
    "vae": ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"),
    "T5": ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
}
_ONLY_FROM_IMAGE = {
    "use_learned_positional_embeddings": "patch_embed.pos_embedding",
    "ofs_embed_dim": "ofs_embedding.linear_1.weight",
}
"""By a field of its configuration, a tensor that a published image-to-video model has: 5B, 1.5."""
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3"}
_HEAD_DIM = 64  # of every CogVideoX
_WIDTH_OF_2B = 1920  # the one model with sin-cos positions, which leave no name in a file
_PUBLISHED = {
    (_WIDTH_OF_2B, None): "CogVideoX-2B",
    (3072, None): "CogVideoX-5B",
    (3072, 2): "CogVideoX 1.5",
}
"""By width and latent frames of a patch: each has another VAE or other noise levels."""


@dataclass(frozen=True)
class PartFile:
    """A part of a pipeline in one file.

    Attributes:
        weights: The file.
        names: Name of each tensor in the file, by its name in the part.
    """

    weights: WeightFile
    names: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.weights.path

    @property
    def is_fp8(self) -> bool:
        """Whether most of its numbers are stored in 8 bits."""
        counts = self.weights.dtypes
        return 2 * counts["F8_E4M3"] > counts.total()


def read_part(file: Path, part: PartOfFile) -> PartFile:
    """Read what a file holds, and refuse what is not this part by what it is.

    Raises:
        ModelError: It is no safetensors file, is damaged, or holds something else.
        StorageError: It cannot be read.
    """
    weights = read_weights(
        file, partial(_refused, file, part=part), hint=f"name the file: --{part} FILE.safetensors"
    )
    names = without_prefix(weights.shapes)
    if part == "transformer":
        names = {weight_in_diffusers(name): in_file for name, in_file in names.items()}
    _check_kind(file, names, weights, part)
    if part == "transformer":
        _check_names(file, names, weights)
    return PartFile(weights, names)


def read_weights(file: Path, refused: Callable[..., ModelError], *, hint: str) -> WeightFile:
    """Read the header of a safetensors file that a user named.

    Args:
        file: What was named.
        refused: Makes the error of what was found, the second half of a sentence.
        hint: What mends it where that is no file.

    Raises:
        ModelError: It is no safetensors file, or damaged.
        StorageError: It cannot be read.
    """
    try:
        if not file.is_file():
            raise refused("is a folder" if file.is_dir() else "does not exist", hint=hint)
        with file.open("rb") as opened:
            start = opened.read(4)
        if start == b"GGUF":
            raise refused("is a GGUF file, which is not read")
        if start[:2] in (b"PK", b"\x80\x02"):
            raise refused("is a pickled file, which may run any program")
        return WeightFile.read(file)
    except ValueError as error:
        raise ModelError(f"{file} {error}", hint="copy or download it again") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error}") from error


def transformer_config(file: PartFile, base: Config, *, text_width: object) -> Config:
    """Describe the transformer of a file; what its shapes do not say is the base pipeline's.

    Args:
        file: The transformer.
        base: `transformer/config.json` of the pipeline whose VAE, T5 and scheduler it runs with.
        text_width: Width of that T5's embeddings.

    Raises:
        ModelError: A block is incomplete, its shapes contradict each other, or it takes other
            embeddings than T5 makes.
    """
    stored = file.weights.shapes
    shapes = {name: stored[in_file] for name, in_file in file.names.items()}
    num_layers = _count_layers(file)
    try:
        embed = shapes["patch_embed.proj.weight"]
        width = embed[0]
        temporal = None if len(embed) == 4 else base.get("patch_size_t") or 2
        patch = embed[2] if len(embed) == 4 else base.get("patch_size", 2)
        if not isinstance(patch, int) or not isinstance(temporal, int | None):
            raise _contradicts(file, "patch_embed.proj.weight", embed)
        area = patch * patch * (temporal or 1)
        takes = embed[1] if temporal is None else _divided(file, embed[1], area)
        makes = _divided(file, shapes["proj_out.weight"][0], area)
        text = shapes["patch_embed.text_proj.weight"][1]
        time = shapes["time_embedding.linear_1.weight"][0]
    except (KeyError, IndexError) as error:
        raise ModelError(
            f"{file.path} has no {error.args[0]}"
            if isinstance(error, KeyError)
            else f"{file.path} has tensors of other shapes than a CogVideoX transformer",
            hint="copy or download it again",
        ) from error
    of_file, of_base = _PUBLISHED.get((width, temporal)), _published(base)
    if of_file is not None and of_base is not None and of_file != of_base:
        raise ModelError(
            f"the transformer {file.path} is of {of_file}, the pipeline of {of_base}, whose VAE "
            "or noise levels are others",
            hint=f"name a pipeline of {of_file} with --model",
        )
    if text != text_width:
        raise ModelError(
            f"the transformer {file.path} takes embeddings of width {text}; the T5 of its "
            f"pipeline makes {text_width}",
            hint="name the pipeline of the model that it was made from with --model",
        )
    _check_is_of_pipeline(file, base, takes)
    learned = "patch_embed.pos_embedding" in shapes
    config = {
        **base,
        **_heads(file, width, base),
        "num_layers": num_layers,
        "in_channels": takes,
        "out_channels": makes,
        "patch_size": patch,
        "patch_size_t": temporal,
        "text_embed_dim": text,
        "time_embed_dim": time,
        "use_learned_positional_embeddings": learned,
    }
    if temporal is None:  # a matrix, over two latent frames, always has one
        config["patch_bias"] = "patch_embed.proj.bias" in shapes
    offset = shapes.get("ofs_embedding.linear_1.weight")
    return config | {"ofs_embed_dim": None if offset is None else offset[0]}


def _check_is_of_pipeline(file: PartFile, base: Config, takes: int) -> None:
    """Refuse what lacks a tensor that only an image-to-video model has, over such a pipeline.

    Control models (Fun) take as many channels, and no others tell them apart.
    """
    for key, name in _ONLY_FROM_IMAGE.items():
        if takes == base.get("in_channels") and base.get(key) and name not in file.names:
            raise ModelError(
                f"the transformer {file.path} has no {name}, which that of its pipeline has: it is "
                "a control model (Fun), or that was left out",
                hint="leave it out, or name another file",
            )


def _published(config: Config) -> str | None:
    """Which of the published models has a transformer like this."""
    heads, dim = config.get("num_attention_heads"), config.get("attention_head_dim")
    temporal = config.get("patch_size_t")
    if isinstance(heads, int) and isinstance(dim, int) and isinstance(temporal, int | None):
        return _PUBLISHED.get((heads * dim, temporal))
    return None


def _heads(file: PartFile, width: int, base: Config) -> dict[str, object]:
    """The heads and kind of positions: the base's at its width, else those of published models."""
    heads, dim = base.get("num_attention_heads"), base.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(dim, int) and heads * dim == width:
        return {}
    return {
        "num_attention_heads": _divided(file, width, _HEAD_DIM),
        "attention_head_dim": _HEAD_DIM,
        "use_rotary_positional_embeddings": width != _WIDTH_OF_2B,
    }


def _count_layers(file: PartFile) -> int:
    """Count the blocks; all must be there, with the same tensors."""
    blocks: dict[int, set[str]] = {}
    for name in file.names:
        if found := _BLOCK.fullmatch(name):
            blocks.setdefault(int(found[1]), set()).add(found[2])
    every = set().union(*blocks.values())
    for number in range(len(blocks)):
        lacking = sorted(every - blocks.get(number, set()))
        if lacking:
            raise ModelError(
                f"{file.path} is incomplete: it has no transformer_blocks.{number}.{lacking[0]}",
                hint="copy or download it again",
            )
    return len(blocks)


def _divided(file: PartFile, number: int, by: int) -> int:
    if number % by:
        raise _contradicts(file, "the number of channels", (number,))
    return number // by


def _contradicts(file: PartFile, what: str, found: Iterable[int]) -> ModelError:
    return ModelError(
        f"{file.path} has {what} {list(found)}, which no CogVideoX transformer has",
        hint="copy or download it again",
    )


def kinds_in(names: Collection[str]) -> list[str]:
    """Which parts of a pipeline a file holds, by the names in it: "transformer", "vae", "T5"."""
    return [kind for kind, some in _ONLY_OF.items() if any(name in names for name in some)]


def _check_kind(
    file: Path, names: Mapping[str, str], weights: WeightFile, part: PartOfFile
) -> None:
    """Refuse a file of another kind, by its kind."""
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        raise _refused(
            file,
            "is a LoRA adapter",
            part=part,
            hint=f"give it as --lora {shlex.quote(str(file))}",
        )
    kinds = kinds_in(names)
    if part not in kinds:
        kind = f"holds {kinds[0]} weights" if kinds else "holds another model"
        hint = f"give it as --{kinds[0]}" if kinds and kinds[0] in ("transformer", "vae") else None
        raise _refused(file, kind, part=part, hint=hint)
    others = set(weights.dtypes) - _FLOATS
    if others:
        raise _refused(
            file,
            f"holds quantized blocks ({', '.join(sorted(others))}), which are not read",
            part=part,
        )


def _check_names(file: Path, names: Mapping[str, str], weights: WeightFile) -> None:
    """Refuse a transformer with tensors that CogVideoX has not, or with one of them twice."""
    again = sorted(weights.shapes.keys() - {*names.values()})
    if again:
        raise _refused(file, f"has a weight twice ({again[0]} is one)", part="transformer")
    more = [in_file for name, in_file in names.items() if not is_of_transformer(name)]
    scales = [in_file for in_file in more if is_scale(in_file)]
    if scales:
        raise _refused(
            file,
            f"holds weights in 8 bits or fewer with scales beside them ({scales[0]}), which are "
            "not read",
            part="transformer",
        )
    if more:
        raise _refused(
            file,
            f"has {count_of(len(more), 'weight')} that CogVideoX has not, the first is {min(more)}",
            part="transformer",
            hint="it is another model; leave it out, or name another file",
        )


def _refused(file: Path, found: str, *, part: PartOfFile, hint: str | None = None) -> ModelError:
    what = "transformer" if part == "transformer" else "VAE"
    return ModelError(
        f"{file} {found}; expected a CogVideoX {what} in one safetensors file (bf16, fp16, fp32 "
        "or fp8 e4m3)",
        hint=hint or "leave it out, or name another file",
    )
