"""Load the components of a checkpoint, one at a time; refuse what does not fit exactly.

diffusers only warns when weights are missing and fills them with random numbers, and it falls back
to pickled files; here both are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from cogedit.errors import ModelError, first_line
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.device import is_out_of_memory
from cogedit.models.prompts import vocabulary_guard
from cogedit.models.quiet import quiet_imports, quiet_loading

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

Part = TypeVar("Part", bound=nn.Module)

_AGAIN = "copy or download the model again"


class LoadingInfo(TypedDict):
    """What `output_loading_info=True` returns beside the model, as far as it is used here."""

    missing_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]


def load_transformer(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> CogVideoXTransformer3DModel:
    """Load the transformer in evaluation mode; ModelError as in the module's docstring."""
    with quiet_imports():
        from diffusers import CogVideoXTransformer3DModel

    return _load(
        CogVideoXTransformer3DModel.from_pretrained, checkpoint, "transformer", device, dtype
    )


def load_vae(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> AutoencoderKLCogVideoX:
    """Load the VAE in evaluation mode; ModelError as in the module's docstring."""
    with quiet_imports():
        from diffusers import AutoencoderKLCogVideoX

    return _load(AutoencoderKLCogVideoX.from_pretrained, checkpoint, "vae", device, dtype)


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
    encoder = _load(T5EncoderModel.from_pretrained, checkpoint, "text_encoder", device, dtype)
    return tokenizer, encoder


def alphas_cumprod(checkpoint: Checkpoint) -> Tensor:
    """Return the noise table of the checkpoint's forward scheduler, [T] float64.

    The class is always `CogVideoXDDIMScheduler`, whatever the checkpoint names: some ship the
    stochastic DPM scheduler, whose table is the same but whose steps cannot be inverted. ModelError
    if the table is made for other steps than those of `cogedit.diffusion`.
    """
    with quiet_imports():
        from diffusers import CogVideoXDDIMScheduler

    with quiet_loading():
        try:
            scheduler = CogVideoXDDIMScheduler.from_config(dict(checkpoint.scheduler_config))
        except Exception as error:  # whatever its formulas stumble over
            raise ModelError(
                f"The scheduler of {checkpoint.id} cannot be made: {first_line(error)}",
                hint=_AGAIN,
            ) from error
    problem = scheduler_problem(scheduler.config)
    if problem is not None:
        raise ModelError(f"the scheduler of {checkpoint.id} has {problem}")
    return cast(Tensor, scheduler.alphas_cumprod)


def scheduler_problem(config: Mapping[str, object]) -> str | None:
    """Return what in a scheduler's configuration means other steps than ours; None if nothing."""
    expected = {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
    for key, value in expected.items():
        if config[key] != value:
            return f"{key} = {config[key]!r}; expected {value!r}"
    return None


def _load(
    from_pretrained: Callable[..., tuple[Part, LoadingInfo]],
    checkpoint: Checkpoint,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Part:
    """Load one component and check that every weight came from the files.

    Weights that the model has no place for are no error: some copies ship a decoder or a second
    embedding table beside the encoder.
    """
    with quiet_loading():
        try:
            loaded, info = from_pretrained(
                checkpoint.folder / name,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                # Not ignored: reported in `info`, by name, and refused below.
                ignore_mismatched_sizes=True,
                dtype=dtype,
            )
        except Exception as error:  # whatever the classes of the libraries stumble over
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"The {name} of {checkpoint.id} cannot be loaded: {first_line(error)}",
                hint=_AGAIN,
            ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The {name} of {checkpoint.id} lacks {len(missing)} of its weights, the first is "
            f"{missing[0]}",
            hint=_AGAIN,
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise ModelError(
            f"The {name} of {checkpoint.id} has {len(mismatched)} weights of another shape, the "
            f"first is {key} with {list(found)}; expected {list(expected)} by its config.json",
            hint=_AGAIN,
        )
    for buffer in loaded.buffers():
        if buffer.dtype == torch.float64:
            # 2B's positions, which its forward casts to this dtype; Macs have no float64.
            buffer.data = buffer.data.to(dtype)
    return loaded.to(device).eval().requires_grad_(False)
