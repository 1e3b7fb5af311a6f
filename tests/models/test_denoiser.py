"""Rows of a call: their order, which texts they see, and what leaving rows out may not change."""

from copy import deepcopy

import pytest
import torch

from cogedit.models.attention import Injection, inject
from cogedit.models.denoiser import Denoiser
from cogedit.models.rotary import image_rotary_emb

SHAPE = (3, 16, 8, 12)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def transformer(golden_pipeline):
    return golden_pipeline.transformer


@pytest.fixture
def texts(golden):
    return {"prompt_embeds": golden["prompt_embeds"]}


@pytest.fixture
def guided(golden):
    return {
        "prompt_embeds": golden["prompt_embeds"],
        "negative_prompt_embeds": golden["negative_prompt_embeds"],
        "guidance_scale": 6.0,
    }


def by_hand(transformer, samples, embeds, timestep=500):
    """v of rows that are given one by one."""
    with torch.no_grad():
        return transformer(
            hidden_states=torch.stack(samples),
            encoder_hidden_states=torch.cat(embeds),
            timestep=torch.full((len(samples),), timestep),
            image_rotary_emb=image_rotary_emb(transformer, (3, 8, 12)),
            return_dict=False,
        )[0]


def test_one_row(transformer, texts):
    x = draw(1, *SHAPE)
    expected = by_hand(transformer, [x[0]], [texts["prompt_embeds"]])
    denoiser = Denoiser(transformer, **texts)
    assert denoiser.num_sides == 1
    assert torch.equal(denoiser(x, 500), expected)


def test_a_level_of_its_own(transformer, texts):
    x = draw(1, *SHAPE)
    denoiser = Denoiser(transformer, **texts)
    expected = by_hand(transformer, [x[0]], [texts["prompt_embeds"]], timestep=19)
    assert torch.equal(denoiser(x, 19), expected)
    assert not torch.allclose(denoiser(x, 999), expected, atol=1e-4)


def test_guidance_runs_the_unconditional_row_first(transformer, guided):
    x = draw(1, *SHAPE)
    embeds = [guided["negative_prompt_embeds"], guided["prompt_embeds"]]
    uncond, cond = by_hand(transformer, [x[0], x[0]], embeds).split(1)
    found = Denoiser(transformer, **guided)(x, 500)
    assert torch.allclose(found, uncond + 6 * (cond - uncond), atol=1e-5)
    assert not torch.allclose(found, cond, atol=1e-3)


def test_a_batch_of_two_clips_is_two_clips(transformer, guided):
    x = draw(2, *SHAPE)
    denoiser = Denoiser(transformer, **guided)
    together = denoiser(x, 500)
    assert together.shape == x.shape
    for i in range(2):
        assert torch.allclose(together[i : i + 1], denoiser(x[i : i + 1], 500), atol=1e-4)


def test_reference_rows_come_last_and_are_thrown_away(transformer, guided):
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    negative, prompt = guided["negative_prompt_embeds"], guided["prompt_embeds"]
    with inject(transformer, Injection(reference_of=(2, 3))):
        rows = [x[0], x[0], x_ref[0], x_ref[0]]
        uncond, cond, *_ = by_hand(transformer, rows, [negative, prompt] * 2).split(1)
    with inject(transformer, Injection()) as injection:
        found = Denoiser(transformer, **guided, injection=injection)(x, 500, x_ref)
        assert injection.reference_of == (2, 3)
    assert found.shape == x.shape
    assert torch.allclose(found, uncond + 6 * (cond - uncond), atol=1e-5)


def test_a_batch_of_two_clips_looks_at_its_own_references(transformer, guided):
    x, x_ref = draw(2, *SHAPE), draw(2, *SHAPE, seed=1)
    with inject(transformer, Injection()) as injection:
        denoiser = Denoiser(transformer, **guided, injection=injection)
        together = denoiser(x, 500, x_ref)
        assert injection.reference_of == (4, 5, 6, 7)
        apart = [denoiser(x[i : i + 1], 500, x_ref[i : i + 1]) for i in range(2)]
        swapped = denoiser(x, 500, x_ref.flip(0))
    assert torch.allclose(together, torch.cat(apart), atol=1e-4)
    assert not torch.allclose(swapped, together, atol=1e-2)


def test_a_step_without_reference_forgets_the_last_one(transformer, texts):
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    plain = Denoiser(transformer, **texts)(x, 500)
    with inject(transformer, Injection()) as injection:
        denoiser = Denoiser(transformer, **texts, injection=injection)
        assert not torch.allclose(denoiser(x, 500, x_ref), plain, atol=1e-2)
        assert torch.allclose(denoiser(x, 500), plain, atol=1e-5)


@pytest.mark.parametrize("with_reference", [False, True])
def test_equal_embeddings_need_one_row_and_give_the_same(transformer, golden, with_reference):
    """DESIGN section 4, trap 7: guidance between two equal texts cancels."""
    empty = golden["negative_prompt_embeds"]
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1) if with_reference else None
    with inject(transformer, Injection()) as injection:
        denoiser = Denoiser(
            transformer,
            prompt_embeds=empty,
            negative_prompt_embeds=empty.clone(),
            guidance_scale=6.0,
            injection=injection,
        )
        assert denoiser.num_sides == 1
        dropped = denoiser(x, 500, x_ref)
    samples = [x[0]] * 2 + ([x_ref[0]] * 2 if with_reference else [])
    with inject(transformer, Injection(reference_of=(2, 3) if with_reference else ())):
        uncond, cond, *_ = by_hand(transformer, samples, [empty] * len(samples)).split(1)
    assert torch.allclose(dropped, uncond + 6 * (cond - uncond), atol=1e-5)


def test_scale_one_drops_the_unconditional_row(transformer, guided):
    x = draw(1, *SHAPE)
    one = Denoiser(transformer, **(guided | {"guidance_scale": 1.0}))
    assert one.num_sides == 1
    plain = Denoiser(transformer, prompt_embeds=guided["prompt_embeds"])
    assert torch.equal(one(x, 500), plain(x, 500))


def test_the_state_stays_in_float32(golden_pipeline, texts):
    half = deepcopy(golden_pipeline.transformer).bfloat16()
    x = draw(1, *SHAPE)
    before = x.clone()
    v = Denoiser(half, **texts)(x, 500)
    assert v.dtype == torch.float32
    assert not v.requires_grad
    assert torch.equal(x, before)
    exact = Denoiser(golden_pipeline.transformer, **texts)(x, 500)
    assert 0 < float((v - exact).norm() / exact.norm()) < 0.05


def test_two_sizes_one_after_the_other(transformer, texts):
    """Positions are cached by size."""
    denoiser = Denoiser(transformer, **texts)
    small, large = draw(1, 2, 16, 4, 6), draw(1, *SHAPE)
    first = denoiser(large, 500)
    assert denoiser(small, 500).shape == small.shape
    assert torch.equal(denoiser(large, 500), first)
