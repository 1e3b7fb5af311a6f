"""Load the parts of a checkpoint, one at a time, and refuse what does not fit exactly.

diffusers only warns when weights are missing and fills them with random numbers, and it falls back
to pickled files; here both are errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from cogedit.errors import ModelError
from cogedit.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

Part = TypeVar("Part", bound=nn.Module)


def load_transformer(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> CogVideoXTransformer3DModel:
    """Load the transformer in evaluation mode.

    Raises:
        ModelError: Weights are missing, left over or of another shape.
    """
    from diffusers import CogVideoXTransformer3DModel

    return _load(CogVideoXTransformer3DModel, checkpoint, "transformer", device, dtype)


def load_vae(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> AutoencoderKLCogVideoX:
    """Load the VAE in evaluation mode.

    Raises:
        ModelError: Weights are missing, left over or of another shape.
    """
    from diffusers import AutoencoderKLCogVideoX

    return _load(AutoencoderKLCogVideoX, checkpoint, "vae", device, dtype)


def load_text_encoder(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    """Load the tokenizer and the T5 encoder.

    Raises:
        ModelError: Weights are missing, left over or of another shape, or the tokenizer's files
            cannot be read.
    """
    from transformers import T5EncoderModel, T5Tokenizer

    try:
        tokenizer = T5Tokenizer.from_pretrained(
            checkpoint.folder / "tokenizer", local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The tokenizer of {checkpoint.id} cannot be loaded: {error}") from error
    encoder = _load(T5EncoderModel, checkpoint, "text_encoder", device, dtype)
    return tokenizer, encoder


def alphas_cumprod(checkpoint: Checkpoint) -> Tensor:
    """Return the noise table of the checkpoint's forward scheduler, [T] float64.

    The class is always `CogVideoXDDIMScheduler`, whatever the checkpoint names: some ship the
    stochastic DPM scheduler, whose table is the same but whose steps cannot be inverted.

    Raises:
        ModelError: The model does not predict v.
    """
    from diffusers import CogVideoXDDIMScheduler

    prediction = checkpoint.scheduler_config.get("prediction_type")
    if prediction != "v_prediction":
        raise ModelError(f"{checkpoint.id} predicts {prediction!r}; expected v_prediction.")
    scheduler = CogVideoXDDIMScheduler.from_config(dict(checkpoint.scheduler_config))
    return cast(Tensor, scheduler.alphas_cumprod)


def _load(
    cls: type[Part], checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype
) -> Part:
    """Load one part and check that every weight came from the files."""
    with _quiet():
        try:
            loaded, info = cls.from_pretrained(
                checkpoint.folder / name,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=dtype,
            )
        except (OSError, ValueError, RuntimeError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise ModelError(
                f"The {name} of {checkpoint.id} cannot be loaded: {first_line}"
            ) from error
    for problem in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[problem])
        if keys:
            raise ModelError(
                f"The {name} of {checkpoint.id} has {len(keys)} {problem.split('_')[0]} weights, "
                f"the first {keys[0]}; expected none.",
                hint="copy or download the model again",
            )
    part: Part = loaded.to(device).eval().requires_grad_(False)
    return part


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' loading bars and long key lists off the screen; `_load` reports."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    verbosity = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity[0])
        transformers_logging.set_verbosity(verbosity[1])
        if bars:
            transformers_logging.enable_progress_bar()
