"""Rows of a call: their order, their prompts, and what leaving rows out may not change."""

from copy import deepcopy

import pytest
import torch
from references import written_out

from cogedit.errors import UsageError
from cogedit.models.attention import Injection
from cogedit.models.denoiser import Denoiser
from cogedit.models.forward import run_rows
from cogedit.models.placement import place
from cogedit.models.rotary import image_rotary_emb
from cogedit.models.rows import EditPrompts
from cogedit.types import TransformerSettings

SHAPE = (3, 16, 8, 12)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def transformer(golden_pipeline):
    return golden_pipeline.transformer


EMPTY, PROMPT = 0, 1


def upstream_texts(num_clips=1):
    """Each row of an edit looks at a reference under its own text."""
    return [EditPrompts(PROMPT, EMPTY, PROMPT, EMPTY, source=clip) for clip in range(num_clips)]


@pytest.fixture
def embeds(golden):
    both = torch.cat([golden["negative_prompt_embeds"], golden["prompt_embeds"]])
    return both[:, :32]  # of 226 tokens, so many hold the prompt


@pytest.fixture
def texts(embeds):
    return {"embeds": embeds, "prompts": upstream_texts()}


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
    together = Denoiser(transformer, **(guided | {"prompts": upstream_texts(2)})).velocity(x, 500)
    assert together.shape == x.shape
    for i in range(2):
        assert torch.allclose(together[i : i + 1], one.velocity(x[i : i + 1], 500), atol=1e-4)


def test_edits_of_a_batch_have_texts_of_their_own(transformer, embeds):
    x = draw(1, *SHAPE).expand(2, -1, -1, -1, -1)
    texts = [EditPrompts(EMPTY, None, EMPTY, EMPTY), EditPrompts(PROMPT, None, PROMPT, PROMPT)]
    found = Denoiser(transformer, embeds=embeds, prompts=texts).velocity(x, 500)
    expected = by_hand(transformer, [x[0], x[0]], [EMPTY, PROMPT], embeds)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_reference_rows_come_last_and_give_the_sources_velocity(transformer, guided):
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    rows, texts = [x[0], x[0], x_ref[0], x_ref[0]], [EMPTY, PROMPT] * 2
    with written_out(transformer, (2, 3), Injection()):
        uncond, cond, _, ref = by_hand(transformer, rows, texts, guided["embeds"]).split(1)
    denoiser = Denoiser(transformer, **guided, injection=Injection(), reference_velocity=True)
    with run_rows(transformer):
        found = denoiser(x, 500, x_ref)
    assert torch.allclose(found.edit, uncond + 6 * (cond - uncond), atol=1e-4)
    assert torch.allclose(found.reference, ref, atol=1e-5)


def test_prompts_that_share_a_source_share_its_rows_and_give_the_same_edits(transformer, guided):
    """3N + 1 rows for upstream's 4N: the unconditional reference is the same for all."""
    x, x_ref = draw(2, *SHAPE), draw(1, *SHAPE, seed=1)
    prompts = [EditPrompts(p, EMPTY, p, EMPTY) for p in (PROMPT, 2)]
    embeds = torch.cat([guided["embeds"], draw(1, 32, 32, seed=5)])
    options = {"embeds": embeds, "guidance_scale": 6.0, "injection": Injection()}
    with run_rows(transformer):
        together = Denoiser(transformer, prompts=prompts, **options)(x, 500, x_ref)
        for i in range(2):
            alone = Denoiser(transformer, prompts=[prompts[i]], **options)(x[i : i + 1], 500, x_ref)
            assert torch.allclose(together.edit[i : i + 1], alone.edit, atol=1e-4)


def test_a_batch_of_two_clips_looks_at_its_own_references(transformer, guided):
    x, x_ref = draw(2, *SHAPE), draw(2, *SHAPE, seed=1)
    one = Denoiser(transformer, **guided, injection=Injection())
    two = Denoiser(transformer, **(guided | {"prompts": upstream_texts(2)}), injection=Injection())
    with run_rows(transformer):
        together = two(x, 500, x_ref).edit
        apart = [one(x[i : i + 1], 500, x_ref[i : i + 1]).edit for i in range(2)]
        swapped = two(x, 500, x_ref.flip(0)).edit
    assert torch.allclose(together, torch.cat(apart), atol=1e-4)
    assert not torch.allclose(swapped, together, atol=1e-2)


def test_a_step_without_reference_forgets_the_last_one(transformer, texts):
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    plain = Denoiser(transformer, **texts).velocity(x, 500)
    denoiser = Denoiser(transformer, **texts, injection=Injection())
    with run_rows(transformer):
        assert not torch.allclose(denoiser(x, 500, x_ref).edit, plain, atol=1e-2)
        assert torch.allclose(denoiser.velocity(x, 500), plain, atol=1e-5)


@pytest.mark.parametrize("offload", ["none", "group"])
def test_two_denoisers_may_take_turns_on_one_transformer(golden_pipeline, guided, texts, offload):
    """Each call brings its own plan and injection, also where one denoiser calls within another."""
    transformer = deepcopy(golden_pipeline.transformer)
    place(transformer, torch.device("cpu"), offload=offload)
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    first = Denoiser(transformer, **guided, injection=Injection(tokens="own-text"))
    second = Denoiser(transformer, **texts, injection=Injection(0.5, layers=(1, 2)))
    within = []

    def call_the_other(*_):
        if not within:
            within.append(None)
            within[0] = second(x, 500, x_ref).edit

    with run_rows(transformer):
        of_first, of_second = (denoiser(x, 500, x_ref).edit for denoiser in (first, second))
        block = transformer.transformer_blocks[1]
        handle = block.norm1.register_forward_pre_hook(call_the_other)
        around = first(x, 500, x_ref).edit
        handle.remove()
        again = [denoiser(x, 500, x_ref).edit for denoiser in (second, first)]
    assert not torch.allclose(of_first, of_second, atol=1e-2)
    assert torch.equal(around, of_first)
    assert torch.equal(within[0], of_second)
    assert torch.equal(again[0], of_second)
    assert torch.equal(again[1], of_first)


def test_two_denoisers_may_share_compiled_blocks(transformer, guided, texts, monkeypatch):
    monkeypatch.setattr("cogedit.models.forward.COMPILER", "eager")
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1)
    first = Denoiser(transformer, **guided, injection=Injection(tokens="own-text"))
    second = Denoiser(transformer, **texts, injection=Injection(0.5, layers=(1, 2)))
    with run_rows(transformer):
        expected = [denoiser(x, 500, x_ref).edit for denoiser in (first, second, first)]
    torch._dynamo.reset()
    with run_rows(transformer, TransformerSettings(compile=True)):
        found = [denoiser(x, 500, x_ref).edit for denoiser in (first, second, first)]
    torch._dynamo.reset()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_an_injection_that_nobody_would_see_is_refused(transformer, texts):
    denoiser = Denoiser(transformer, **texts, injection=Injection())
    with pytest.raises(ValueError, match="run_rows"):
        denoiser(draw(1, *SHAPE), 500, draw(1, *SHAPE, seed=1))


def test_a_window_beyond_the_model_is_refused(transformer, texts):
    with pytest.raises(UsageError, match="this model has layers 0:3"):
        Denoiser(transformer, **texts, injection=Injection(layers=(0, 4)))


@pytest.mark.parametrize("with_reference", [False, True])
def test_one_text_on_both_sides_needs_one_row_and_gives_the_same(
    transformer, embeds, with_reference
):
    """DESIGN section 4, trap 7: guidance between two equal texts cancels."""
    x, x_ref = draw(1, *SHAPE), draw(1, *SHAPE, seed=1) if with_reference else None
    texts = [EditPrompts(EMPTY, EMPTY, EMPTY, EMPTY)]
    denoiser = Denoiser(
        transformer, embeds=embeds, prompts=texts, guidance_scale=6.0, injection=Injection()
    )
    rows = []
    handle = transformer.proj_out.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    with run_rows(transformer):
        found = denoiser(x, 500, x_ref).edit
    handle.remove()
    assert rows == [2 if with_reference else 1]
    samples = [x[0]] * 2 + ([x_ref[0]] * 2 if with_reference else [])
    with written_out(transformer, (2, 3) if with_reference else (), Injection()):
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
