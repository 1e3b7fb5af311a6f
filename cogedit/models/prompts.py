"""Prompts to embeddings: T5 with padding to the model's own text length, no attention mask.

CogVideoX attends to the pad tokens too, so the result depends on the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogedit.errors import ModelError, first_line
from cogedit.models.device import compute_device
from cogedit.models.quiet import is_panic, quiet_panics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel


@dataclass(frozen=True)
class PromptEmbeds:
    """Embeddings of some prompts.

    Attributes:
        embeds: One [1, L, D] tensor per prompt.
        truncated: For each prompt, how many of its tokens did not fit into L.
        unknown: For each prompt, its words that the tokenizer has no piece for, each once; T5 gets
            its token for "unknown" in their place.
    """

    embeds: tuple[Tensor, ...]
    truncated: tuple[int, ...]
    unknown: tuple[tuple[str, ...], ...]


def embed_prompts(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: T5EncoderModel,
    *,
    max_text_seq_length: int,
) -> PromptEmbeds:
    """Embed prompts as `CogVideoXPipeline.encode_prompt` does, each to [1, max_text_seq_length, D].

    The length is the transformer's, 226 for the published checkpoints, 224 for 1.5. The empty
    prompt is the unconditional one. Embeddings are on the encoder's device and in its dtype.
    """
    ids: list[Tensor] = []
    truncated: list[int] = []
    with vocabulary_guard("this model"):
        for prompt in prompts:
            # Not verbose: the caller reports lengths, and nothing will index out of range.
            length = len(tokenizer(prompt, verbose=False).input_ids)
            truncated.append(max(0, length - max_text_seq_length))
            tokens = tokenizer(
                prompt,
                padding="max_length",
                max_length=max_text_seq_length,
                truncation=True,
                return_tensors="pt",
            )
            ids.append(tokens.input_ids)
        unknown = tuple(_unknown_words(prompt, tokenizer) for prompt in prompts)
    known = text_encoder.get_input_embeddings().num_embeddings
    largest = max((int(tokens.max()) for tokens in ids), default=0)
    if largest >= known:
        raise ModelError(
            f"the vocabulary in tokenizer/ has a token {largest}; the text encoder knows {known}",
            hint="copy or download the model again",
        )
    device = compute_device(text_encoder)
    try:
        with torch.no_grad():
            embeds = tuple(text_encoder(tokens.to(device))[0] for tokens in ids)
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"the text encoder cannot work as its config.json says: {first_line(error)}",
            hint="copy or download the model again",
        ) from error
    return PromptEmbeds(embeds, tuple(truncated), unknown)


@contextmanager
def vocabulary_guard(model: str) -> Iterator[None]:
    """Turn whatever a vocabulary's files let the tokenizer stumble over into a ModelError."""
    try:
        with quiet_panics():
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(
            f"the vocabulary of {model} in tokenizer/ cannot be used: {first_line(error)}",
            hint="copy or download the model again",
        ) from error


def _unknown_words(prompt: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    def holds_unknown(text: str) -> bool:
        return tokenizer.unk_token_id in tokenizer(text, verbose=False).input_ids

    return tuple(dict.fromkeys(word for word in prompt.split() if holds_unknown(word)))
