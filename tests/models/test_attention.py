"""Injection: what it computes, and that nothing is left behind."""

import math

import pytest
import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

from cogedit.errors import UsageError
from cogedit.models.attention import (
    Heads,
    InjectingAttnProcessor,
    Injection,
    KeyValues,
    attend_rows,
    attend_with_reference,
    inject,
)
from cogedit.models.kernels import attention
from cogedit.models.rotary import image_rotary_emb


def qkv(seed, rows=2, tokens=7):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, tokens, 16, generator=generator) for _ in range(3)]


def by_hand(q, own, reference, strength):
    """Softmax over both sets of keys, the reference's logits raised by ln w."""
    k, v = (torch.cat(pair, dim=2) for pair in zip(own, reference, strict=True))
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if strength == 0:
        logits[..., own[0].shape[2] :] = -math.inf
    else:
        logits[..., own[0].shape[2] :] += math.log(strength)
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("strength", [3.0, 1.0, 0.9, 0.5, 0.01])
def test_merge_by_log_sum_exp_is_the_biased_softmax(strength):
    q, k, v = qkv(0)
    _, k_ref, v_ref = qkv(1)
    merged = attend_with_reference(q, (k, v), (k_ref, v_ref), strength=strength)
    assert torch.allclose(merged, by_hand(q, (k, v), (k_ref, v_ref), strength), atol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("tokens", ["all", "image", "own-text"])
def test_tokens_say_what_is_seen_beside_the_rows_own(tokens, strength):
    own, references = Heads(*qkv(0)), Heads(*qkv(1, rows=3))
    targets, length = (2, 0), 3
    theirs = [x[list(targets)] for x in (references.k, references.v)]
    seen = {
        "all": theirs,
        "image": [x[:, :, length:] for x in theirs],
        "own-text": [
            torch.cat([mine[:, :, :length], x[:, :, length:]], dim=2)
            for mine, x in zip((own.k, own.v), theirs, strict=True)
        ],
    }[tokens]
    injection = Injection(targets, strength=strength, tokens=tokens)
    attended = attend_rows(own, references, targets, injection=injection, text_length=length)
    assert torch.allclose(attended, by_hand(own.q, (own.k, own.v), seen, strength), atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_memory_does_not_keep_the_text_of_other_rows(strength):
    references, memory = Heads(*qkv(9, rows=1)), KeyValues()
    injection = Injection((0, 0), strength=strength, tokens="own-text")
    for seed in range(2):  # chunks of rows that look at one reference, within one layer
        own = Heads(*qkv(seed))
        attended = attend_rows(
            own, references, (0, 0), injection=injection, text_length=3, memory=memory
        )
        fresh = attend_rows(own, references, (0, 0), injection=injection, text_length=3)
        assert torch.equal(attended, fresh)


def test_memory_holds_the_rows_own_where_one_softmax_sees_both():
    own, references = Heads(*qkv(0)), Heads(*qkv(1))
    k, v = KeyValues().join(own, references, (0, 1), first=3, again=3)
    count = own.k.shape[2]
    assert k.shape[2] == v.shape[2] == 2 * count
    assert torch.equal(k[:, :, :count], own.k)
    seen_k, seen_v = KeyValues().join(own, references, (0, 1), with_own=False, first=3, again=3)
    assert torch.equal(seen_k, k[:, :, count:])
    assert torch.equal(seen_v, v[:, :, count:])


@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("tokens", "keeps"), [("all", True), ("own-text", True), ("image", False)])
def test_a_row_that_looks_at_its_equal_attends_as_it_did(tokens, keeps, strength):
    own = Heads(*qkv(0))
    alone = attention(*own)
    injection = Injection((0, 1), strength=strength, tokens=tokens)
    looking = attend_rows(own, own, (0, 1), injection=injection, text_length=3)
    assert torch.allclose(looking, alone, atol=1e-5) == keeps


@pytest.fixture
def transformer(golden_pipeline):
    return golden_pipeline.transformer


def run(transformer, rows, seed=3):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, 3, 16, 8, 12, generator=generator)
    text = torch.randn(rows, 226, 32, generator=generator)
    with torch.no_grad():
        return transformer(
            hidden_states=latents,
            encoder_hidden_states=text,
            timestep=torch.full((rows,), 500),
            image_rotary_emb=image_rotary_emb(transformer, (3, 8, 12)),
            return_dict=False,
        )[0]


def processors(transformer):
    return [block.attn1.processor for block in transformer.transformer_blocks]


def test_without_reference_rows_it_is_the_stock_processor(transformer):
    stock = run(transformer, 2)
    with inject(transformer, Injection()):
        assert torch.allclose(run(transformer, 2), stock, atol=1e-5)


def test_strength_zero_and_layers_outside_the_window_are_plain(transformer):
    stock = run(transformer, 2)
    with inject(transformer, Injection(reference_of=(1,), strength=0.0)):
        assert torch.allclose(run(transformer, 2), stock, atol=1e-5)
    with inject(transformer, Injection(reference_of=(1,)), layers=(1, 2)):
        installed = [isinstance(p, InjectingAttnProcessor) for p in processors(transformer)]
        assert installed == [False, True, False]
        injected = run(transformer, 2)
    assert not torch.allclose(injected[0], stock[0], atol=1e-3)


def test_edit_rows_change_and_reference_rows_do_not(transformer):
    stock = run(transformer, 4)
    with inject(transformer, Injection(reference_of=(2, 3))):
        injected = run(transformer, 4)
    assert torch.allclose(injected[2:], stock[2:], atol=1e-5)
    assert not torch.allclose(injected[:2], stock[:2], atol=1e-3)


def test_two_edit_rows_may_share_one_reference_row(transformer):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 3, 16, 8, 12, generator=generator)
    text = torch.randn(3, 226, 32, generator=generator)

    def forward(rows, references):
        with inject(transformer, Injection(reference_of=references)), torch.no_grad():
            return transformer(
                hidden_states=latents[rows],
                encoder_hidden_states=text[rows],
                timestep=torch.full((len(rows),), 500),
                image_rotary_emb=image_rotary_emb(transformer, (3, 8, 12)),
                return_dict=False,
            )[0]

    shared = forward([0, 1, 2], (2, 2))
    assert torch.allclose(shared[0], forward([0, 2], (1,))[0], atol=1e-5)
    assert torch.allclose(shared[1], forward([1, 2], (1,))[0], atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_processors_come_back_when_the_body_raises(transformer, error):
    before = processors(transformer)
    assert all(isinstance(p, CogVideoXAttnProcessor2_0) for p in before)

    def interrupted():
        with inject(transformer, Injection()):
            changed = processors(transformer)
            assert not any(isinstance(p, CogVideoXAttnProcessor2_0) for p in changed)
            raise error

    with pytest.raises(error):
        interrupted()
    assert all(a is b for a, b in zip(processors(transformer), before, strict=True))


def test_nesting_is_refused_and_leaves_the_outer_one_in_place(transformer):
    with inject(transformer, Injection()):
        with (
            pytest.raises(UsageError, match="does not nest"),
            inject(transformer, Injection()),
        ):
            pass
        assert all(isinstance(p, InjectingAttnProcessor) for p in processors(transformer))


@pytest.mark.parametrize("layers", [(0, 4), (2, 2), (3, None), (-1, 2)])
def test_a_window_without_layers_is_refused(transformer, layers):
    with (
        pytest.raises(UsageError, match=r"this model has layers 0:3"),
        inject(transformer, Injection(), layers=layers),
    ):
        pass


def test_a_mask_is_refused(transformer):
    processor = InjectingAttnProcessor(Injection())
    with pytest.raises(ValueError, match="attention mask is not supported"):
        processor(None, torch.zeros(1), torch.zeros(1), attention_mask=torch.ones(1))
