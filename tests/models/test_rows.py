"""Row counts of the cost model, and which row looks at which."""

import pytest

from cogedit.models.rows import EditTexts, Row, plan_rows

EMPTY, INVERSION = 0, 0  # the inversion's own prompt is the empty one


def upstream(prompt):
    """Each row looks at a reference under its own text."""
    return EditTexts(prompt, EMPTY, prompt, EMPTY)


def shared(prompt):
    """All rows look at the reference under the inversion's prompt."""
    return EditTexts(prompt, EMPTY, INVERSION, INVERSION)


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
    assert rows(exact, guided=True, referenced=True, share=False) == 4 * count
    assert rows(exact, guided=True, referenced=True) == 3 * count + 1
    assert rows(few, guided=True, referenced=True) == 2 * count + 1
    assert rows(few, guided=True, referenced=False) == 2 * count
    assert rows(few, guided=False, referenced=True) == count + 1
    assert rows(few, guided=False, referenced=False) == count


def test_rows_that_are_not_shared_are_upstreams_for_each_edit():
    plan = plan_rows([upstream(1), upstream(EMPTY)], guided=True, referenced=True, share=False)
    assert plan.edits == (Row(0, EMPTY), Row(0, 1), Row(1, EMPTY), Row(1, EMPTY))
    assert plan.references == (Row(0, EMPTY), Row(0, 1), Row(0, EMPTY), Row(0, EMPTY))
    assert plan.reference_of == (4, 5, 6, 7)
    assert (plan.unconditional, plan.conditional, plan.reference) == ((0, 2), (1, 3), (5, 7))


def test_an_edit_under_the_unconditional_text_has_one_row():
    plan = plan_rows([upstream(EMPTY), upstream(1)], guided=True, referenced=True)
    assert plan.edits == (Row(0, EMPTY), Row(1, EMPTY), Row(1, 1))
    assert plan.unconditional == (0, 1)
    assert plan.conditional == (0, 2)


def test_clips_of_several_sources_look_at_their_own():
    texts = [EditTexts(1, EMPTY, EMPTY, EMPTY, source=s) for s in (0, 1)]
    plan = plan_rows(texts, guided=True, referenced=True)
    assert plan.references == (Row(0, EMPTY), Row(1, EMPTY))
    assert plan.reference_of == (4, 4, 5, 5)
    assert plan.reference == (4, 5)


def test_without_references_no_row_looks_anywhere():
    plan = plan_rows([upstream(1), upstream(2)], guided=True, referenced=False)
    assert plan.references == plan.reference_of == plan.reference == ()
    assert plan.num_rows == 4
