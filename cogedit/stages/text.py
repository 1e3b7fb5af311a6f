"""Prompts of a run: T5 comes, embeds and goes before the transformer is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.run import Run

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def embed_texts(
    texts: Sequence[str],
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    dtype: torch.dtype,
    run: Run,
) -> Mapping[str, Tensor]:
    """Embed texts, [1, L, D] by text, and say which of them were too long for the model."""
    from cogedit.models.loading import load_text_encoder
    from cogedit.models.prompts import embed_prompts

    texts = list(dict.fromkeys(texts))
    tokenizer, encoder = load_text_encoder(checkpoint, device=device, dtype=dtype)
    embedded = embed_prompts(
        texts, tokenizer, encoder, max_text_seq_length=checkpoint.geometry.max_text_seq_length
    )
    for text, truncated in zip(texts, embedded.truncated, strict=True):
        if truncated:
            run.say(
                f"the prompt {_short(text)!r} is {truncated} tokens too long for this model "
                f"({checkpoint.geometry.max_text_seq_length}); its end is left out"
            )
    return dict(zip(texts, embedded.embeds, strict=True))


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
