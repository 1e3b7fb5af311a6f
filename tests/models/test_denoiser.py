"""Rows of a call: their order, which texts they see, and what leaving rows out may not change."""

from copy import deepcopy

import pytest
import torch

from cogedit.models.attention import Injection, inject
from cogedit.models.denoiser import Denoiser
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.rows import EditTexts

SHAPE = (3, 16, 8, 12)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def transformer(golden_pipeline):
    return golden_pipeline.transformer


EMPTY, PROMPT = 0, 1


def upstream_texts(num_clips=1):
    """Each row of an edit looks at a reference under its own text."""
    return [EditTexts(PROMPT, EMPTY, PROMPT, EMPTY, source=clip) for clip in range(num_clips)]


@pytest.fixture
def embeds(golden):
    return torch.cat([golden["negative_prompt_embeds"], golden["prompt_embeds"]])


@pytest.fixture
def texts(embeds):
    return {"embeds": embeds, "texts": upstream_texts()}


@pytest.fixture
def guided(texts):
    return texts | {"guidance_scale": 6.0}


def by_hand(transformer, samples, rows, embeds, timestep=500):
    """v of samples under the texts with these numbers, row by row."""
    with torch.no_grad():
        return transformer(
            hidden_states=torch.stack(samples),
            encoder_hidden_states=embeds[rows],
            timestep=torch.full((len(samples),), timestep),
            image_rotary_emb=image_rotary_emb(transformer, (3, 8, 12)),
            return_dict=False,
        )[0]


def test_one_row(transformer, texts):
    x = draw(1, *SHAPE)
    expected = by_hand(transformer, [x[0]], [PROMPT], texts["embeds"])
    denoiser = Denoiser(transformer, **texts)
    assert torch.equal(denoiser(x, 500).edit, expected)
    assert torch.equal(denoiser.velocity(x, 500), expected)
    assert denoiser(x, 500).reference is None


def test_a_level_of_its_own(transformer, texts):
    x = draw(1, *SHAPE)
    denoiser = Denoiser(transformer, **texts)
    expected = by_hand(transformer, [x[0]], [PROMPT], texts["embeds"], timestep=19)
    assert torch.equal(denoiser.velocity(x, 19), expected)
    assert not torch.allclose(denoiser.velocity(x, 999), expected, atol=1e-4)


def test_guidance_runs_the_unconditional_row_first(transformer, guided):
    x = draw(1, *SHAPE)
    uncond, cond = by_hand(transformer, [x[0], x[0]], [EMPTY, PROMPT], guided["embeds"]).split(1)
    found = Denoiser(transformer, **guided).velocity(x, 500)
    assert torch.allclose(found, uncond + 6 * (cond - uncond), atol=1e-4)
    assert not torch.allclose(found, cond, atol=1e-3)


def test_guidance_stops_outside_its_window(transformer, guided, texts):
    x = draw(1, *SHAPE)
    windowed = Denoiser(transformer, **guided, guided=frozenset({500}))
    assert torch.equal(windowed.velocity(x, 500), Denoiser(transformer, **guided).velocity(x, 500))
    assert torch.equal(windowed.velocity(x, 300), Denoiser(transformer, **texts).velocity(x, 300))


def test_a_batch_of_two_clips_is_two_clips(transformer, guided):
    x = draw(2, *SHAPE)
    one = Denoiser(transformer, **guided)
    together = Denoiser(transformer, **(guided | {"texts": upstream_texts(2)})).velocity(x, 500)
    assert together.shape == x.shape
    for i in range(2):
        assert torch.allclose(together[i : i + 1], one.velocity(x[i : i + 1], 500), atol=1e-4)


def test_edits_of_a_batch_have_texts_of_their_own(transformer, embeds):
    x = draw(1, *SHAPE).expand(2, -1, -1, -1, -1)
    texts = [EditTexts(EMPTY, None, EMPTY, EMPTY), EditTexts(PROMPT, None, PROMPT, PROMPT)]
    found = Denoiser(transformer, embeds=embeds, texts=texts).velocity(x, 500)
    expected = by_hand(transformer, [x[0], x[0]], [EMPTY, PROMPT], embeds)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_reference_rows_come_last_and_give_the_sources_velocity(transformer, guided):
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    rows, texts = [x[0], x[0], x_ref[0], x_ref[0]], [EMPTY, PROMPT] * 2
    with inject(transformer, Injection(reference_of=(2, 3))):
        uncond, cond, _, ref = by_hand(transformer, rows, texts, guided["embeds"]).split(1)
    with inject(transformer, Injection()) as injection:
        found = Denoiser(transformer, **guided, injection=injection)(x, 500, x_ref)
        assert injection.reference_of == (2, 3)
    assert torch.allclose(found.edit, uncond + 6 * (cond - uncond), atol=1e-4)
    assert torch.allclose(found.reference, ref, atol=1e-5)


def test_prompts_that_share_a_source_share_its_rows_and_give_the_same_numbers(transformer, guided):
    """3N + 1 rows for upstream's 4N: the unconditional reference is the same for all."""
    x, x_ref = draw(2, *SHAPE), draw(1, *SHAPE, seed=1)
    prompts = [EditTexts(p, EMPTY, p, EMPTY) for p in (PROMPT, 2)]
    embeds = torch.cat([guided["embeds"], draw(1, 226, 32, seed=5)])
    with inject(transformer, Injection()) as injection:
        options = {"embeds": embeds, "guidance_scale": 6.0, "injection": injection}
        together = Denoiser(transformer, texts=prompts, **options)(x, 500, x_ref)
        assert injection.reference_of == (4, 5, 4, 6)
        for i in range(2):
            alone = Denoiser(transformer, texts=[prompts[i]], **options)(x[i : i + 1], 500, x_ref)
            assert torch.allclose(together.edit[i : i + 1], alone.edit, atol=1e-4)


def test_a_batch_of_two_clips_looks_at_its_own_references(transformer, guided):
    x, x_ref = draw(2, *SHAPE), draw(2, *SHAPE, seed=1)
    with inject(transformer, Injection()) as injection:
        one = Denoiser(transformer, **guided, injection=injection)
        two = Denoiser(transformer, **(guided | {"texts": upstream_texts(2)}), injection=injection)
        together = two(x, 500, x_ref).edit
        assert injection.reference_of == (4, 5, 6, 7)
        apart = [one(x[i : i + 1], 500, x_ref[i : i + 1]).edit for i in range(2)]
        swapped = two(x, 500, x_ref.flip(0)).edit
    assert torch.allclose(together, torch.cat(apart), atol=1e-4)
    assert not torch.allclose(swapped, together, atol=1e-2)


def test_a_step_without_reference_forgets_the_last_one(transformer, texts):
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    plain = Denoiser(transformer, **texts).velocity(x, 500)
    with inject(transformer, Injection()) as injection:
        denoiser = Denoiser(transformer, **texts, injection=injection)
        assert not torch.allclose(denoiser(x, 500, x_ref).edit, plain, atol=1e-2)
        assert torch.allclose(denoiser.velocity(x, 500), plain, atol=1e-5)


@pytest.mark.parametrize("with_reference", [False, True])
def test_one_text_on_both_sides_needs_one_row_and_gives_the_same(
    transformer, embeds, with_reference
):
    """DESIGN section 4, trap 7: guidance between two equal texts cancels."""
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1) if with_reference else None
    texts = [EditTexts(EMPTY, EMPTY, EMPTY, EMPTY)]
    with inject(transformer, Injection()) as injection:
        denoiser = Denoiser(
            transformer, embeds=embeds, texts=texts, guidance_scale=6.0, injection=injection
        )
        found = denoiser(x, 500, x_ref).edit
        assert injection.reference_of == ((1,) if with_reference else ())
    samples = [x[0]] * 2 + ([x_ref[0]] * 2 if with_reference else [])
    with inject(transformer, Injection(reference_of=(2, 3) if with_reference else ())):
        rows = by_hand(transformer, samples, [EMPTY] * len(samples), embeds)
        uncond, cond, *_ = rows.split(1)
    assert torch.allclose(found, uncond + 6 * (cond - uncond), atol=1e-4)


def test_the_state_stays_in_float32(golden_pipeline, texts):
    half = deepcopy(golden_pipeline.transformer).bfloat16()
    x = draw(1, *SHAPE)
    before = x.clone()
    v = Denoiser(half, **texts).velocity(x, 500)
    assert v.dtype == torch.float32
    assert not v.requires_grad
    assert torch.equal(x, before)
    exact = Denoiser(golden_pipeline.transformer, **texts).velocity(x, 500)
    assert 0 < float((v - exact).norm() / exact.norm()) < 0.05


def test_two_sizes_one_after_the_other(transformer, texts):
    """Positions are cached by size."""
    denoiser = Denoiser(transformer, **texts)
    small, large = draw(1, 2, 16, 4, 6), draw(1, *SHAPE)
    first = denoiser.velocity(large, 500)
    assert denoiser.velocity(small, 500).shape == small.shape
    assert torch.equal(denoiser.velocity(large, 500), first)
