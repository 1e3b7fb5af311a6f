"""Row counts of the cost model, and which row attends to which."""

from dataclasses import replace

import pytest

from cogedit.diffusion.schedule import Schedule
from cogedit.models.rows import (
    EditPrompts,
    Row,
    edit_prompts,
    guidance_reused,
    injection_jumps,
    injection_strengths,
    needs_reference_velocity,
    plan_rows,
    prompt_bank,
)
from cogedit.types import ReconstructSettings

EDIT, SOURCE = "a blue cat", "a dog"
UPSTREAM = ReconstructSettings(EDIT, reference_prompt="edit", reference_rows="two")

EMPTY, INVERSION = 0, 0  # the inversion's own prompt is the empty one


def upstream(prompt):
    """Each row attends to a reference under its own text."""
    return EditPrompts(prompt, EMPTY, prompt, EMPTY)


def shared(prompt):
    """All rows attend to the reference under the inversion's prompt."""
    return EditPrompts(prompt, EMPTY, INVERSION, INVERSION)


def test_one_prompt_gives_upstreams_four_rows_in_its_order():
    plan = plan_rows([upstream(1)], guided=True, referenced=True)
    assert plan.edits == (Row(0, EMPTY), Row(0, 1))
    assert plan.references == (Row(0, EMPTY), Row(0, 1))
    assert plan.reference_of == (2, 3)
    assert (plan.unconditional, plan.conditional, plan.reference) == ((0,), (1,), (3,))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_row_counts_of_the_cost_model(count):
    prompts = range(1, count + 1)

    def rows(texts, **what):
        return plan_rows(texts, **what).num_rows

    exact, few = [upstream(p) for p in prompts], [shared(p) for p in prompts]
    assert rows(exact, guided=True, referenced=True) == 3 * count + 1
    assert rows(few, guided=True, referenced=True) == 2 * count + 1
    assert rows(few, guided=True, referenced=False) == 2 * count
    assert rows(few, guided=False, referenced=True) == count + 1
    assert rows(few, guided=False, referenced=False) == count


def test_an_edit_under_the_unconditional_text_has_one_row():
    plan = plan_rows([upstream(EMPTY), upstream(1)], guided=True, referenced=True)
    assert plan.edits == (Row(0, EMPTY), Row(1, EMPTY), Row(1, 1))
    assert plan.unconditional == (0, 1)
    assert plan.conditional == (0, 2)


def test_clips_of_several_sources_attend_to_their_own():
    texts = [EditPrompts(1, EMPTY, EMPTY, EMPTY, source=s) for s in (0, 1)]
    plan = plan_rows(texts, guided=True, referenced=True)
    assert plan.references == (Row(0, EMPTY), Row(1, EMPTY))
    assert plan.reference_of == (4, 4, 5, 5)
    assert plan.reference == (4, 5)


def test_without_references_no_row_attends_to_another():
    plan = plan_rows([upstream(1), upstream(2)], guided=True, referenced=False)
    assert plan.references == plan.reference_of == plan.reference == ()
    assert plan.num_rows == 4


def test_prompts_of_the_rows():
    bank = ["", EDIT, SOURCE]

    def prompts(**changes):
        chosen = edit_prompts(replace(UPSTREAM, **changes), SOURCE, bank, source=0)
        return tuple(
            bank[i]
            for i in (
                chosen.unconditional,
                chosen.conditional,
                chosen.reference_unconditional,
                chosen.reference_conditional,
            )
        )

    assert prompts() == ("", EDIT, "", EDIT)  # upstream
    assert prompts(reference_prompt="inversion") == ("", EDIT, "", SOURCE)
    assert prompts(reference_prompt="inversion", reference_rows="one") == (
        "",
        EDIT,
        SOURCE,
        SOURCE,
    )
    assert prompts(reference_rows="one") == ("", EDIT, EDIT, EDIT)
    assert prompts(unconditional="source") == (SOURCE, EDIT, SOURCE, EDIT)


def test_the_prompts_of_a_run_each_once():
    edits = [replace(UPSTREAM, prompt=prompt) for prompt in (EDIT, SOURCE, EDIT)]
    assert sorted(prompt_bank(edits, [SOURCE, "a hill"])) == sorted(["", EDIT, SOURCE, "a hill"])


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"method": "flow"}, False),
        ({"method": "flow", "reference_prompt": "inversion"}, True),
        (
            {"method": "flow", "reference_prompt": "inversion", "source_guidance_scale": 2.0},
            False,
        ),
    ],
)
def test_a_flow_may_take_the_source_s_velocity_from_its_reference_rows(changes, needed):
    assert needs_reference_velocity(replace(UPSTREAM, **changes)) == needed
    plan = plan_rows([shared(1)], guided=True, referenced=True, reference_velocity=needed)
    assert plan.reference_velocity == needed
    alone = plan_rows([shared(1)], guided=True, referenced=False, reference_velocity=needed)
    assert not alone.reference_velocity


LEVELS = Schedule((), (9, 8, 7, 6, 5, 4, 3, 2, 1, 0))
"""Ten steps."""


@pytest.mark.parametrize(
    ("strength", "steps", "expected"),
    [
        (2.0, (0.0, 0.3), {9: 2.0, 8: 2.0, 7: 2.0}),
        (0.01, (0.0, 0.2), {9: 0.01, 8: 0.01}),  # a number is taken as it is
        (0.0, (0.0, 1.0), {}),
        ((2.0, 0.0), (0.0, 0.4), {9: 2.0, 8: 1.5, 7: 1.0, 6: 0.5}),
        ((0.0, 1.0), (0.5, 1.0), {3: 0.2, 2: 0.4, 1: 0.6, 0: 0.8}),
        ((3.0, 1.0), (0.2, 0.4), {7: 3.0, 6: 2.0}),
        ((0.09, 0.0), (0.0, 1.0), {9: 0.09, 8: 0.081, 7: 0.072, 6: 0.063, 5: 0.054}),
        ((2.0, 0.0), (0.5, 0.5), {}),
        ((0.0, 0.0), (0.0, 1.0), {}),
    ],
)
def test_strengths_of_the_steps(strength, steps, expected):
    settings = ReconstructSettings(EDIT, injection_strength=strength, injection_steps=steps)
    assert injection_strengths(settings, LEVELS) == pytest.approx(expected)


def test_a_strength_follows_the_edit_and_not_its_number_of_steps():
    settings = ReconstructSettings(EDIT, injection_strength=(2.0, 0.0), injection_steps=(0.0, 0.8))
    coarse = Schedule((), LEVELS.timesteps[::2])
    found = injection_strengths(settings, coarse)
    assert found == {t: injection_strengths(settings, LEVELS)[t] for t in found}
    assert found.keys() == {9, 7, 5, 3}


def predicted(settings):
    """The timesteps at which both sides of guidance are predicted."""
    return LEVELS.window(*settings.guidance_steps) - guidance_reused(settings, LEVELS)


@pytest.mark.parametrize(
    ("reuse", "steps", "expected"),
    [
        (0.09, (0.1, 0.8), {8, 7, 6, 5, 4, 3, 2}),
        (0.1, (0.1, 0.8), {8, 7, 5, 3}),  # 9, 8 and 7 are the steps before 30 %
        (0.2, (0.0, 1.0), {9, 8, 7, 4, 1}),
        (1.0, (0.0, 1.0), {9, 8, 7}),
        (0.1, (0.5, 1.0), {4, 2, 0}),  # the first step has nothing to take over
        (0.1, (0.5, 0.5), set()),
    ],
)
def test_both_sides_of_guidance_are_predicted_in_some_steps(reuse, steps, expected):
    settings = ReconstructSettings(EDIT, guidance_reuse=reuse, guidance_steps=steps)
    assert predicted(settings) == expected
    assert not guidance_reused(replace(settings, guidance_scale=1.0), LEVELS)


def test_guidance_is_predicted_anew_where_the_model_changes():
    settings = ReconstructSettings(EDIT, guidance_reuse=0.2, guidance_steps=(0.0, 1.0))
    jumping = replace(settings, injection_strength=1.0, injection_steps=(0.0, 0.5))
    assert predicted(jumping) == {9, 8, 7, 4, 1}
    jumping = replace(jumping, injection_steps=(0.0, 0.6))
    assert predicted(jumping) == {9, 8, 7, 4, 3, 0}


def test_a_flow_predicts_both_sides_of_guidance_throughout():
    settings = ReconstructSettings(
        EDIT, method="flow", guidance_reuse=0.2, guidance_steps=(0.0, 1.0)
    )
    assert len(predicted(settings)) == 10


@pytest.mark.parametrize(
    ("strength", "steps", "expected"),
    [
        (2.0, (0.2, 0.5), {7, 4}),
        (0.0, (0.2, 0.5), set()),
        ((2.0, 0.0), (0.0, 1.0), set()),
        ((2.0, 0.0), (0.2, 0.5), {7}),
        ((0.0, 2.0), (0.2, 0.5), {4}),
        ((2.0, 1.0), (0.2, 0.5), {7, 4}),
        ((0.0, 0.0), (0.2, 0.5), set()),
        ((2.0, 0.0), (0.5, 0.5), set()),
    ],
)
def test_a_model_changes_where_a_strength_jumps_and_not_where_it_falls(strength, steps, expected):
    settings = ReconstructSettings(EDIT, injection_strength=strength, injection_steps=steps)
    assert LEVELS.changes(injection_jumps(settings, LEVELS)) == expected
