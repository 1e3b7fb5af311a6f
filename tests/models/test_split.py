"""Which rank computes which rows of which window."""

import pytest

from cogedit.models.rows import EditPrompts, plan_rows
from cogedit.models.split import split_call

EDIT = EditPrompts(
    conditional=0, unconditional=1, reference_conditional=2, reference_unconditional=2
)
TWO = [EDIT, EditPrompts(3, 1, 2, 2)]


def plan(prompts=(EDIT,), *, guided=True, referenced=True, velocity=False):
    return plan_rows(prompts, guided=guided, referenced=referenced, reference_velocity=velocity)


def split(rows, num_windows, num_ranks, *, at_a_time=1, num_heads=48):
    return split_call(
        rows, num_windows, at_a_time=at_a_time, num_ranks=num_ranks, num_heads=num_heads
    )


def told(found):
    return [[(s.window, sorted(s.rows), s.answers) for s in team] for team in found.shares]


def test_windows_are_divided_first():
    found = split(plan(), 4, 2)
    assert found.degree == 1
    both = ([0, 1, 2], (0, 1))
    assert told(found) == [[(0, *both), (1, *both)], [(2, *both), (3, *both)]]


def test_rows_are_divided_with_the_reference_that_they_attend_to():
    assert told(split(plan(), 1, 2)) == [[(0, [0, 2], (0,))], [(0, [1, 2], (1,))]]


def test_three_windows_of_two_rows_among_two_ranks():
    first, second = split(plan(), 3, 2).shares
    assert [(s.window, s.answers) for s in first] == [(0, (0, 1)), (1, (0,))]
    assert [(s.window, s.answers) for s in second] == [(1, (1,)), (2, (0, 1))]


def test_rows_that_a_layer_runs_at_once_stay_together():
    assert told(split(plan(TWO), 1, 2, at_a_time=2)) == [
        [(0, [0, 1, 4], (0, 1))],
        [(0, [2, 3, 4], (2, 3))],
    ]
    assert split(plan(TWO), 1, 2, at_a_time=8).degree == 2


def test_the_velocity_of_a_reference_is_in_one_answer():
    shares = told(split(plan(velocity=True), 1, 2))
    assert shares == [[(0, [0, 2], (0, 2))], [(0, [1, 2], (1,))]]


@pytest.mark.parametrize(
    ("num_ranks", "num_heads", "degree", "teams"),
    [(2, 48, 2, 1), (3, 48, 3, 1), (5, 48, 4, 1), (8, 48, 8, 1), (7, 30, 6, 1), (8, 2, 2, 1)],
)
def test_one_row_is_shared_by_as_many_ranks_as_divide_its_heads(
    num_ranks, num_heads, degree, teams
):
    found = split(plan(guided=False, referenced=False), 1, num_ranks, num_heads=num_heads)
    assert (found.degree, len(found.shares)) == (degree, teams)


@pytest.mark.parametrize("num_ranks", range(1, 10))
@pytest.mark.parametrize("num_windows", range(1, 6))
@pytest.mark.parametrize("rows", [plan(), plan(TWO), plan(TWO, referenced=False)])
def test_every_row_of_every_window_is_answered_once(num_ranks, num_windows, rows):
    found = split(rows, num_windows, num_ranks)
    answers = [(s.window, row) for team in found.shares for s in team for row in s.answers]
    wanted = [(window, row) for window in range(num_windows) for row in range(len(rows.edits))]
    assert sorted(answers) == wanted
    assert len(found.shares) * found.degree <= num_ranks
    assert all(team for team in found.shares)
    for share in (share for team in found.shares for share in team):
        assert {rows.reference_of[row] for row in share.answers if rows.references} <= share.rows
