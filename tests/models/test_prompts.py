"""Embeddings are the pipeline's, and what does not fit is counted."""

import logging
from copy import deepcopy

import pytest
import torch

from cogedit.errors import ModelError
from cogedit.models.prompts import embed_prompts

PROMPT = "a blue cat running in snow"
TEXTS = ["", PROMPT, "snow", "unknown zebra words", PROMPT + " and" * 300]


@pytest.fixture
def embed(golden_pipeline):
    def call(texts, length=226):
        return embed_prompts(
            texts,
            golden_pipeline.tokenizer,
            golden_pipeline.text_encoder,
            max_text_seq_length=length,
        )

    return call


def test_the_golden_embeddings(embed, golden):
    prompt, negative = embed([PROMPT, ""]).embeds
    assert torch.allclose(prompt, golden["prompt_embeds"], atol=1e-3)
    assert torch.allclose(negative, golden["negative_prompt_embeds"], atol=1e-3)


@pytest.mark.parametrize("length", [226, 8])
def test_embeddings_are_the_pipelines(embed, golden_pipeline, length):
    found = embed(TEXTS, length).embeds
    for text, embeds in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected, _ = golden_pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=length
            )
        assert embeds.shape == (1, length, 32)
        assert torch.equal(embeds, expected)
        assert not embeds.requires_grad


def test_a_text_does_not_depend_on_its_company(embed):
    together, alone = embed(TEXTS).embeds, [embed([text]).embeds[0] for text in TEXTS]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_what_does_not_fit_is_counted(embed, golden_pipeline):
    tokens = len(golden_pipeline.tokenizer(PROMPT).input_ids)
    assert embed([PROMPT, "", PROMPT], tokens).truncated == (0, 0, 0)
    assert embed([PROMPT, "", PROMPT], tokens - 2).truncated == (2, 0, 2)
    assert embed([PROMPT + " snow" * 4], tokens).truncated == (4,)


def test_words_that_the_tokenizer_does_not_know_are_named(embed):
    found = embed([PROMPT, "", "a 猫 beside a Zebra and a 猫 in snow"]).unknown
    assert found == ((), (), ("猫", "Zebra"))


def test_a_long_prompt_is_left_to_the_caller_to_tell(embed, golden_pipeline, monkeypatch, caplog):
    """transformers warns of texts beyond the tokenizer's own length, which is 226 as published."""
    monkeypatch.setattr(golden_pipeline.tokenizer, "model_max_length", 4)
    monkeypatch.setattr(golden_pipeline.tokenizer, "deprecation_warnings", {})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert embed([PROMPT], 4).truncated[0] > 0
    assert caplog.records == []


def test_an_encoder_that_does_not_fit_is_refused(golden_pipeline):
    """Of fewer tokens than the vocabulary has, or with a configuration that contradicts itself."""
    small, odd = deepcopy(golden_pipeline.text_encoder), deepcopy(golden_pipeline.text_encoder)
    small.resize_token_embeddings(3)
    odd.encoder.block[0].layer[0].SelfAttention.relative_attention_max_distance = 3
    for encoder in (small, odd):
        with pytest.raises(ModelError):
            embed_prompts([PROMPT], golden_pipeline.tokenizer, encoder, max_text_seq_length=226)
