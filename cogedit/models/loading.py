"""Load the components of a checkpoint, one at a time; refuse what does not fit exactly.

diffusers only warns when weights are missing and fills them with random numbers, and it falls back
to pickled files; here both are errors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from cogedit.errors import ModelError, first_line
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.device import is_out_of_memory
from cogedit.models.prompts import vocabulary_guard
from cogedit.models.quiet import quiet_imports, quiet_loading
from cogedit.models.single_file import PartFile

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

Part = TypeVar("Part", bound=nn.Module)

_AGAIN = "copy or download the model again"


class LoadingInfo(TypedDict):
    """What `output_loading_info=True` returns beside the model, as far as it is used here."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]


def load_transformer(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> CogVideoXTransformer3DModel:
    """Load the transformer in evaluation mode; ModelError as in the module's docstring."""
    with quiet_imports():
        from diffusers import CogVideoXTransformer3DModel

    return _load(CogVideoXTransformer3DModel, checkpoint, "transformer", device, dtype)


def load_vae(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> AutoencoderKLCogVideoX:
    """Load the VAE in evaluation mode; ModelError as in the module's docstring."""
    with quiet_imports():
        from diffusers import AutoencoderKLCogVideoX

    return _load(AutoencoderKLCogVideoX, checkpoint, "vae", device, dtype)


def load_text_encoder(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    """Load the tokenizer and the T5 encoder; ModelError also if the vocabulary cannot be read."""
    with quiet_imports():
        from transformers import T5EncoderModel, T5Tokenizer

    with quiet_loading(), vocabulary_guard(checkpoint.id):
        tokenizer = T5Tokenizer.from_pretrained(
            checkpoint.folder / "tokenizer", local_files_only=True
        )
    encoder = _load(T5EncoderModel, checkpoint, "text_encoder", device, dtype)
    return tokenizer, encoder


def alphas_cumprod(checkpoint: Checkpoint) -> Tensor:
    """Return the noise table of the checkpoint's forward scheduler, [T] float64.

    The class is always `CogVideoXDDIMScheduler`, whatever the checkpoint names: some ship the
    stochastic DPM scheduler, whose table is the same but whose steps cannot be inverted.
    `find_checkpoint` has refused those that have none.
    """
    with quiet_imports():
        from diffusers import CogVideoXDDIMScheduler

    with quiet_loading():
        try:
            scheduler = CogVideoXDDIMScheduler.from_config(dict(checkpoint.scheduler_config))
        except Exception as error:  # whatever its formulas stumble over
            raise ModelError(
                f"the scheduler of {checkpoint.id} cannot be made: {first_line(error)}",
                hint=_AGAIN,
            ) from error
    return cast(Tensor, scheduler.alphas_cumprod)


def _load(
    kind: type[Part],
    checkpoint: Checkpoint,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Part:
    """Load one component and check that every weight came from the files.

    Weights that the model has no place for are no error in a pipeline: some copies ship a decoder
    or a second embedding table beside the encoder. In a file of its own they are.
    """
    file = checkpoint.files.get(name)
    named = f"the {name} of {checkpoint.id}" if file is None else f"the {name} {file.path}"
    loaded: Part
    with quiet_loading():
        try:
            if file is None:
                loaded, info = cast("Any", kind).from_pretrained(
                    checkpoint.folder / name,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    # Not ignored: reported in `info`, by name, and refused below.
                    ignore_mismatched_sizes=True,
                    dtype=dtype,
                )
            else:
                config = getattr(checkpoint, f"{name}_config")
                loaded, info = _from_file(kind, file, config, dtype)
        except Exception as error:  # whatever the classes of the libraries stumble over
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{named} cannot be loaded: {first_line(error)}",
                hint=_AGAIN,
            ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{named} lacks {len(missing)} of its weights, the first is {missing[0]}",
            hint=_AGAIN,
        )
    unexpected = sorted(info["unexpected_keys"]) if file is not None else []
    if unexpected:
        raise ModelError(
            f"{named} has {len(unexpected)} weights that CogVideoX has not, the first is "
            f"{unexpected[0]}",
            hint="it is another model; leave it out, or name another file",
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise ModelError(
            f"{named} has {len(mismatched)} weights of another shape, the "
            f"first is {key} with {list(found)}; expected {list(expected)} by its config.json",
            hint=_AGAIN,
        )
    for buffer in loaded.buffers():
        if buffer.dtype == torch.float64:
            # 2B's positions, which its forward casts to this dtype; Macs have no float64.
            buffer.data = buffer.data.to(dtype)
    return loaded.to(device).eval().requires_grad_(False)


def _from_file(
    kind: type[Part], file: PartFile, config: Mapping[str, object], dtype: torch.dtype
) -> tuple[Part, LoadingInfo]:
    """Make a part with the weights of one file; 8 bits become `dtype`, which holds them exactly."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from safetensors import safe_open

    with init_empty_weights(include_buffers=False):  # the positions of 2B are in no file
        made = cast("Any", kind).from_config(dict(config))
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    found = file.names.keys() & shapes.keys()
    with safe_open(file.path, framework="pt") as opened:
        state = {name: opened.get_tensor(file.names[name]).to(dtype) for name in found}
    mismatched = [
        (name, tuple(tensor.shape), tuple(shapes[name]))
        for name, tensor in state.items()
        if tensor.shape != shapes[name]
    ]
    info = LoadingInfo(
        missing_keys=shapes.keys() - found,
        unexpected_keys=file.names.keys() - found,
        mismatched_keys=mismatched,
    )
    if not mismatched:
        made.load_state_dict(state, strict=False, assign=True)
    return made, info
