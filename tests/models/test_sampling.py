"""Edits as their settings say: each control does what its sentence in the settings promises."""

from dataclasses import replace

import pytest
import torch
from references import written_out

from cogedit.diffusion.ddim import ddim_step
from cogedit.diffusion.invert import MAX_FURTHER
from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.trajectory import Trajectory
from cogedit.errors import ArtifactMismatch, UsageError
from cogedit.lab.configurations import UPSTREAM_EDIT
from cogedit.models.attention import Injection
from cogedit.models.denoiser import Denoiser
from cogedit.models.predictor import InvertedClips, Predictor
from cogedit.models.rows import EditPrompts
from cogedit.models.sampling import edit_latents, invert_latents
from cogedit.types import InvertSettings, ReconstructSettings, TransformerSettings

PROMPT = "a blue cat running in snow"
CAPTION = "a dog"
TOKENS = 32  # of 226: so many hold the prompt
PLAIN = replace(UPSTREAM_EDIT, guidance_scale=1.0, start="inverted", injection_strength=0.0)


@pytest.fixture(scope="module")
def model(golden, golden_pipeline):
    generator = torch.Generator().manual_seed(9)
    embeds = {
        "": golden["negative_prompt_embeds"][:, :TOKENS],
        PROMPT: golden["prompt_embeds"][:, :TOKENS],
        CAPTION: torch.randn(1, TOKENS, 32, generator=generator),
    }
    table = golden_pipeline.scheduler.alphas_cumprod
    return Predictor(golden_pipeline.transformer, table, embeds)


@pytest.fixture(scope="module")
def invert(golden, model):
    def run(settings, **options):
        return invert_latents(model, golden["latents"], [settings], **options)

    return run


@pytest.fixture(scope="module")
def inverted(invert):
    return invert(InvertSettings(num_inference_steps=10, inverse="upstream"))


@pytest.fixture(scope="module")
def edit(model):
    def run(reference, settings, inversion_prompt="", **options):
        inverted = InvertedClips(reference, (inversion_prompt,))
        return edit_latents(model, inverted, [settings], **options)

    return run


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("start", ["inverted", "random"])
def test_flow_of_one_text_returns_the_source_bit_for_bit(edit, inverted, guidance, start):
    settings = replace(
        PLAIN,
        prompt=CAPTION,
        guidance_steps=(0.0, 0.7),
        method="flow",
        start=start,
        guidance_scale=guidance,
        source_guidance_scale=guidance,
    )
    samples = edit(inverted, settings, CAPTION)
    assert len(samples) == 10
    assert all(torch.equal(sample, inverted.latents) for sample in samples)
    other = edit(inverted, replace(settings, prompt=PROMPT), CAPTION)[-1]
    assert not torch.allclose(other, inverted.latents, atol=0.05)


def test_flow_may_attend_to_the_source(edit, inverted):
    settings = replace(PLAIN, prompt=PROMPT, method="flow", guidance_scale=4.0)
    plain = edit(inverted, settings)[-1]
    attending = edit(inverted, replace(settings, injection_strength=1.0))[-1]
    never = edit(inverted, replace(settings, injection_strength=1.0, injection_steps=(0.0, 0.0)))[
        -1
    ]
    assert not torch.allclose(attending, plain, atol=1e-2)
    assert torch.allclose(never, plain, atol=1e-4)


def test_start_between_the_inverted_and_the_random(edit, inverted):
    def first(**changes):
        return edit(inverted, replace(PLAIN, **changes))[0]

    assert torch.equal(first(start_noise=0.0), first(start="inverted"))
    assert torch.equal(first(start_noise=1.0), first(start="random"))
    halfway = first(start_noise=0.5)
    assert not torch.allclose(halfway, first(start="inverted"), atol=1e-2)
    assert not torch.allclose(halfway, first(start="random"), atol=1e-2)
    assert torch.equal(first(start="random"), first(start="random"))
    assert not torch.equal(first(start="random"), first(start="random", seed=43))


def test_start_below_the_noisiest_level(edit, inverted):
    steps = []
    samples = edit(inverted, replace(PLAIN, start_step=4), on_step=steps.append)
    assert len(samples) == 6
    assert [step.timestep for step in steps] == [499, 399, 299, 199, 99, -1]
    # From z0 and fresh noise at that level (SDEdit): the source shows through.
    noised = edit(inverted, replace(PLAIN, start_step=9, start="random"))
    assert len(noised) == 1
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(noised[0].flatten(), inverted.latents.flatten(), dim=0) > 0.5


def test_fewer_steps_than_the_inversion(edit, inverted):
    steps = []
    samples = edit(inverted, replace(PLAIN, num_inference_steps=5), on_step=steps.append)
    assert len(samples) == 5
    assert [step.timestep for step in steps] == [799, 599, 399, 199, -1]
    with pytest.raises(UsageError, match=r"11 .* 10"):
        edit(inverted, replace(PLAIN, num_inference_steps=11))
    with pytest.raises(UsageError, match=r"start_step .*10"):
        edit(inverted, replace(PLAIN, start_step=10))


def test_a_level_that_the_inversion_did_not_visit_is_missed_by_name(inverted):
    with pytest.raises(ArtifactMismatch, match="979"):
        inverted.at(979)


def test_guidance_window(edit, inverted):
    guided = replace(PLAIN, prompt=PROMPT, guidance_scale=5.0)
    never = edit(inverted, replace(guided, guidance_steps=(0.0, 0.0)))
    assert torch.equal(never[-1], edit(inverted, replace(guided, guidance_scale=1.0))[-1])
    half = edit(inverted, replace(guided, guidance_steps=(0.0, 0.5)))
    always = edit(inverted, guided)
    assert torch.equal(half[4], always[4])
    assert not torch.allclose(half[5], always[5], atol=1e-4)


def test_guidance_takes_over_the_difference_between_its_sides(
    edit, inverted, model, golden_pipeline
):
    """The loop written out: both sides at five of eight steps, the difference of the last after."""
    settings = replace(
        PLAIN, prompt=PROMPT, guidance_scale=4.0, guidance_steps=(0.1, 0.9), guidance_reuse=0.1
    )
    embeds = torch.cat([model.embeds[""], model.embeds[PROMPT]])
    without, given = (
        Denoiser(golden_pipeline.transformer, embeds=embeds, prompts=[EditPrompts(n, None, n, n)])
        for n in (0, 1)
    )
    schedule = Schedule.trailing(model.alphas_cumprod, 10)
    x, difference = inverted.noise, torch.zeros(1)
    for step, (t, s) in enumerate(schedule.denoising_steps()):
        v = given.velocity(x, t)
        if step in (1, 2, 4, 6, 8):  # of ten, the third and those before it are not settled
            difference = v - without.velocity(x, t)
        if 1 <= step < 9:
            v = v + 3.0 * difference
        x = ddim_step(v, x, schedule=schedule, t_from=t, t_to=s)
    assert torch.allclose(edit(inverted, settings)[-1], x, atol=1e-4)
    predicted = edit(inverted, replace(settings, guidance_reuse=0.0))[-1]
    assert not torch.allclose(predicted, x, atol=1e-2)


@pytest.mark.parametrize(("at", "takes_over"), [(1, False), (2, True), (3, True), (4, False)])
def test_an_edit_that_goes_on_takes_over_the_same_difference(edit, inverted, at, takes_over):
    settings = replace(PLAIN, prompt=PROMPT, guidance_scale=4.0, guidance_reuse=0.2)
    states = []
    whole = edit(inverted, settings, on_state=states.append)
    state = states[at]
    assert ("guidance" in state.tensors) == takes_over
    again = edit(inverted, settings, done=[state], keep_steps=False)
    assert torch.equal(again[-1], whole[-1])
    if takes_over:
        lost = replace(state, tensors={"sample": state.tensors["sample"]})
        with pytest.raises(ValueError, match="no difference of guidance"):
            edit(inverted, settings, done=[lost], keep_steps=False)


def test_a_flow_takes_nothing_over(edit, inverted):
    settings = replace(PLAIN, prompt=PROMPT, guidance_scale=4.0, method="flow")
    assert torch.equal(
        edit(inverted, replace(settings, guidance_reuse=0.2)), edit(inverted, settings)
    )


@pytest.mark.parametrize(
    "window",
    [
        {"guidance_steps": (0.0, 0.5), "injection_strength": 0.0},
        {"injection_steps": (0.0, 0.5)},
        {"injection_steps": (0.0, 0.5), "injection_strength": (2.0, 0.5)},
    ],
)
def test_second_order_restarts_where_a_window_ends(edit, inverted, window):
    """The steps after it are those of a run that starts there and knows nothing of before."""
    base = replace(UPSTREAM_EDIT, prompt=PROMPT, solver="dpm++2m", start="inverted")
    settings = replace(base, **window)
    samples = edit(inverted, settings)
    there = inverted.samples.clone()
    there[inverted.timesteps.index(499)] = samples[4]
    after = replace(settings, start_step=5, **{key: (0.0, 0.0) for key in window if "steps" in key})
    again = edit(replace(inverted, samples=there), after)
    assert torch.allclose(again[-1], samples[-1], atol=1e-4)


def test_second_order_goes_on_where_the_strength_falls_to_nothing(edit, inverted):
    """Neither the steps of the fall nor its end are of first order."""
    settings = replace(
        UPSTREAM_EDIT,
        prompt=PROMPT,
        solver="dpm++2m",
        start="inverted",
        guidance_scale=1.0,
        injection_strength=(2.0, 0.0),
        injection_steps=(0.0, 0.5),
    )
    samples = edit(inverted, settings)
    there = inverted.samples.clone()
    there[inverted.timesteps.index(499)] = samples[4]
    after = replace(settings, start_step=5, injection_strength=0.0)
    restarted = edit(replace(inverted, samples=there), after)
    assert not torch.allclose(restarted[0], samples[5], atol=1e-3)
    first_order = edit(inverted, replace(settings, solver="ddim"))
    assert torch.allclose(first_order[0], samples[0])
    # The step after zero terminal SNR is of first order; those after it are not.
    for step in (2, 3, 4):
        assert not torch.allclose(first_order[step], samples[step], atol=1e-3)


@pytest.mark.parametrize("tokens", ["all", "own-text"])
@pytest.mark.parametrize("ends", [(2.0, 0.0), (0.0, 1.0)])
def test_a_strength_that_changes_is_the_softmax_written_out(
    golden_pipeline, edit, inverted, model, ends, tokens
):
    """Step by step, by a processor in the stock blocks, against the table of strengths."""
    first, last = ends
    settings = replace(
        PLAIN,
        prompt=PROMPT,
        injection_strength=ends,
        injection_steps=(0.1, 0.9),
        injection_tokens=tokens,
        injection_recentering=0.5,
    )
    bank = model.embeds[PROMPT]
    denoiser = Denoiser(
        golden_pipeline.transformer, embeds=bank, prompts=[EditPrompts(0, None, 0, 0)]
    )
    schedule = Schedule.trailing(model.alphas_cumprod, 10)
    x = inverted.noise
    for step, (t, s) in enumerate(schedule.denoising_steps()):
        strength = first + (last - first) * (step / 10 - 0.1) / 0.8
        attends = 1 <= step < 9 and strength > 0.05
        injection = Injection(strength if attends else 0.0, tokens=tokens, recentering=0.5)
        with written_out(golden_pipeline.transformer, (1,) if attends else (), injection):
            v = denoiser(x, t, inverted.at(t) if attends else None).edit
        x = ddim_step(v, x, schedule=schedule, t_from=t, t_to=s)
    assert torch.allclose(edit(inverted, settings)[-1], x, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_a_strength_from_a_number_to_itself_is_that_number(edit, inverted, strength, solver):
    settings = replace(
        UPSTREAM_EDIT, prompt=PROMPT, solver=solver, injection_steps=(0.0, 0.7), start="inverted"
    )
    number = edit(inverted, replace(settings, injection_strength=strength))
    pair = edit(inverted, replace(settings, injection_strength=(strength, strength)))
    assert torch.equal(pair, number)


def test_a_mask_keeps_the_source_outside(edit, inverted):
    mask = torch.zeros(3, 1, 8, 12)
    mask[:, :, 2:5, 3:9] = 1
    settings = replace(PLAIN, prompt=PROMPT, start="random")
    samples = edit(inverted, settings, mask=mask)
    inside = mask.bool().expand_as(inverted.latents)
    assert torch.equal(samples[-1][~inside], inverted.latents[~inside])
    assert torch.equal(samples[0][~inside], inverted.at(899)[~inside])
    assert not torch.allclose(samples[-1][inside], inverted.latents[inside], atol=0.1)


@pytest.mark.parametrize("start", ["inverted", "random"])
def test_a_mask_keeps_the_source_outside_of_a_flow(edit, inverted, start):
    mask = torch.zeros(3, 1, 8, 12)
    mask[:, :, 2:5, 3:9] = 1
    settings = replace(PLAIN, prompt=PROMPT, method="flow", start=start, guidance_scale=4.0)
    samples = edit(inverted, settings, CAPTION, mask=mask)
    inside = mask.bool().expand_as(inverted.latents)
    for sample in samples:
        assert torch.equal(sample[~inside], inverted.latents[~inside])
    assert not torch.allclose(samples[-1][inside], inverted.latents[inside], atol=0.05)


def test_clips_of_a_batch_have_masks_of_their_own(golden_pipeline, inverted, model):
    both = Trajectory(
        inverted.samples.repeat(1, 2, 1, 1, 1, 1),
        inverted.latents.repeat(2, 1, 1, 1, 1),
        inverted.timesteps,
    )
    masks = torch.zeros(2, 3, 1, 8, 12)
    masks[1] = 1
    first, second = edit_latents(
        model, InvertedClips(both, ("", "")), [replace(PLAIN, prompt=PROMPT)] * 2, mask=masks
    )[-1]
    assert torch.equal(first, inverted.latents[0])
    assert not torch.allclose(second, inverted.latents[0], atol=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"injection_mode": "queries-keys"},
        {"injection_mode": "image-queries-keys"},
        {"injection_tokens": "image"},
        {"injection_tokens": "own-text"},
        {"injection_recentering": 0.5},
        {"injection_strength": 2.0},
        {"reference_prompt": "inversion"},
        {"reference_rows": "one"},
        {"injection_strength": 0.5},
        {"injection_strength": (2.0, 0.0)},
        {"injection_steps": (0.0, 0.5)},
        {"injection_layers": (1, 2)},
        {"solver": "dpm++2m"},
        {"unconditional": "source"},
        {"negative_prompt": CAPTION},
        {"guidance_reuse": 0.5},
    ],
)
def test_each_control_changes_the_edit(edit, inverted, changes):
    upstream = replace(UPSTREAM_EDIT, prompt=PROMPT)
    first = edit(inverted, upstream, CAPTION)[-1]
    other = edit(inverted, replace(upstream, **changes), CAPTION)[-1]
    assert not torch.allclose(other, first, atol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": "inverted"},
        {"start": "random", "start_noise": 0.0},
        {"method": "flow", "start": "inverted", "start_noise": 0.5},
        {"start": "random"},
        {"start": "inverted", "start_noise": 0.3},
        {"method": "flow", "start": "random"},
    ],
)
def test_a_seed_counts_where_noise_is_drawn_and_nowhere_else(edit, inverted, changes):
    settings = ReconstructSettings(prompt=PROMPT, num_inference_steps=3, **changes)
    first, second = (edit(inverted, replace(settings, seed=seed))[-1] for seed in (1, 2))
    assert torch.equal(first, second) == (not settings.draws_noise)


def test_unasked_a_noisy_step_is_corrected_as_often_as_it_needs(invert):
    steps, more = [], []
    invert(InvertSettings(num_inference_steps=10, inversion_iterations=1), on_step=steps.append)
    invert(InvertSettings(num_inference_steps=10), on_step=more.append)
    assert [s.num_calls for s in steps] == [2] + [1] * 9
    assert more[0].num_calls == 2
    assert sum(s.num_calls for s in more) > sum(s.num_calls for s in steps)
    assert all(step.num_calls <= 1 + MAX_FURTHER for step in more[1:])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"start": "inverted"},
        {"reference_prompt": "inversion", "reference_rows": "one"},
        {"method": "flow"},
        {"method": "flow", "start": "inverted", "reference_prompt": "inversion"},
        {"method": "flow", "start": "inverted", "source_guidance_scale": 2.0},
        {"guidance_reuse": 0.5},
    ],
)
def test_edits_of_one_clip_are_the_same_together_and_alone(
    golden_pipeline, inverted, model, edit, changes
):
    """Prompts and seeds differ, an equal one among them; the rows of the source are shared."""
    settings = [
        replace(
            UPSTREAM_EDIT,
            prompt=prompt,
            seed=seed,
            guidance_scale=3.0,
            num_inference_steps=4,
            **changes,
        )
        for prompt, seed in [(PROMPT, 1), (CAPTION, 1), (PROMPT, 2), ("", 2)]
    ]
    together = edit_latents(model, InvertedClips(inverted, (CAPTION,)), settings)
    assert len(together) == 4
    for number, one in enumerate(settings):
        alone = edit(inverted, one, CAPTION)[-1]
        assert torch.allclose(together[-1][[number]], alone, atol=1e-4), number
        assert not torch.allclose(together[-1][[(number + 1) % 4]], alone, atol=0.02)


def test_the_last_step_alone(edit, inverted):
    for method in ("injection", "flow"):
        settings = ReconstructSettings(prompt=PROMPT, method=method)
        (last,) = edit(inverted, settings, keep_steps=False)
        assert torch.equal(last, edit(inverted, settings)[-1])


def test_clips_and_edits_that_do_not_fit(inverted, model):
    two = InvertedClips(inverted.repeated(2), ("", ""))
    with pytest.raises(ValueError, match="2 clips for 3 edits"):
        edit_latents(model, two, [PLAIN] * 3)
    with pytest.raises(ValueError, match="3 prompts for 2 clips"):
        replace(two, prompts=("", "", ""))


@pytest.fixture
def rows_of(golden_pipeline, inverted, model):
    """Edit under some prompts in two steps: the edits, and how many rows each model call had."""
    generator = torch.Generator().manual_seed(4)
    texts = [f"prompt {number}" for number in range(8)]
    embeds = {text: torch.randn(1, TOKENS, 32, generator=generator) for text in texts}
    known = replace(model, embeds=model.embeds | embeds)
    first = golden_pipeline.transformer.transformer_blocks[0].attn1
    base = replace(UPSTREAM_EDIT, num_inference_steps=2)

    def run(count, **changes):
        rows = []
        handle = first.to_v.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
        try:
            samples = edit_latents(
                known,
                InvertedClips(inverted, (CAPTION,)),
                [replace(base, prompt=text, **changes) for text in texts[:count]],
            )
        finally:
            handle.remove()
        return samples[-1], rows

    return run


SHARED = {"reference_prompt": "inversion", "reference_rows": "one"}


@pytest.mark.parametrize("count", [1, 4, 8])
def test_rows_under_references_of_two_kinds(rows_of, count):
    """3N + 1 where each side of guidance has a reference, 2N + 1 where all share one."""
    exact, exact_rows = rows_of(count)
    shared, shared_rows = rows_of(count, **SHARED)
    assert sum(exact_rows) == 2 * (3 * count + 1)
    assert sum(shared_rows) == 2 * (2 * count + 1)
    assert not torch.allclose(shared, exact, atol=1e-2)


def test_rows_that_a_window_leaves_out_are_not_run(rows_of):
    _, rows = rows_of(3, **SHARED, injection_steps=(0.0, 0.5))
    assert rows == [1, 6, 6]  # the reference beside the edits, then the edits alone
    _, rows = rows_of(3, **SHARED, guidance_steps=(0.0, 0.5))
    assert rows == [1, 6, 1, 3]
    _, rows = rows_of(3, injection_strength=0.0)
    assert rows == [6, 6]
    _, rows = rows_of(3, injection_strength=0.0, guidance_reuse=0.2, num_inference_steps=5)
    assert rows == [6, 6, 3, 6, 3]


def test_a_flow_asks_for_the_source_once(rows_of):
    _, rows = rows_of(3, method="flow", injection_strength=0.0)
    assert rows == [6, 1] * 2  # the edits, then the source
    _, rows = rows_of(3, method="flow", **SHARED)
    assert rows == [1, 6] * 2  # the rows that the edits attend to say where the source goes


@pytest.mark.parametrize("max_rows", [1, 2, 5])
def test_rows_in_chunks_give_the_same_edit(golden_pipeline, inverted, model, max_rows):
    settings = [ReconstructSettings(p, num_inference_steps=3) for p in (PROMPT, CAPTION)]
    at_once, in_chunks = (
        edit_latents(
            replace(model, options=TransformerSettings(max_rows=rows)),
            InvertedClips(inverted),
            settings,
        )[-1]
        for rows in (100, max_rows)
    )
    assert torch.allclose(in_chunks, at_once, atol=1e-5)
