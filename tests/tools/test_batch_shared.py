"""Processes that share a list: each makes what nobody else does, and hears what the others made."""

import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import workers

from cogedit.artifacts import append_line
from cogedit.config import Settings
from cogedit.errors import WorkerDied
from cogedit.tools.batch_deaths import MAX_RETRIES
from cogedit.tools.batch_group import BatchResult, groups_of
from cogedit.tools.batch_plan import BatchEdit
from cogedit.tools.batch_shared import Heard, SharedList

EDITS = [
    BatchEdit(f"row {number} of e.csv", Path(f"{clip}.mp4"), prompt, None, None, Settings())
    for number, (clip, prompt) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("c", "x")])
]
A, B, C = groups_of(EDITS)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results.jsonl"


@pytest.fixture
def shared(results):
    """Makes lists of a process each, which give back what they hold."""
    with contextlib.ExitStack() as stack:

        def make(*, force=False):
            one = SharedList([A, B, C], results, force=force)
            return stack.enter_context(contextlib.closing(one))

        yield make


def write_down(results, group, **fields):
    """What a process writes when it has made a group."""
    done = [
        BatchResult(edit.where, str(edit.video), edit.prompt, "written", "x.mp4", key=edit.key)
        for edit in group.edits
    ]
    done = [replace(one, **fields) for one in done]
    for one in done:
        append_line(results, json.dumps(asdict(one)).encode())
    return [Heard(one) for one in done]


def test_each_takes_what_nobody_has_and_hears_of_the_rest(results, shared):
    first, second = shared(), shared()
    assert [first.take(), second.take()] == [A, B]
    of_a = write_down(results, A)
    first.give_back(A)
    assert first.take() == C, "what is held comes last"
    assert second.take() is None
    assert second.heard() == of_a
    of_b, of_c = write_down(results, B), write_down(results, C)
    first.give_back(C)
    second.give_back(B)
    assert [first.take(), second.take()] == [None, None]
    assert [first.heard(), second.heard()] == [of_b, of_c]
    assert first.is_empty
    assert second.is_empty
    assert [path.name for path in results.parent.iterdir()] == [results.name]


def test_a_group_of_which_a_line_is_missing_is_taken_over(results, shared):
    dead, other = shared(), shared()
    assert dead.take() == A
    write_down(results, replace(A, edits=A.edits[:1]))
    assert [other.take(), other.take(), other.take()] == [B, C, None]
    assert not other.is_empty
    dead.close()
    assert other.take() == A
    assert other.is_empty


def test_a_group_that_process_after_process_dies_with_fails_for_all(
    results, shared, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    there_before = shared()
    for _ in range(1 + MAX_RETRIES):
        ended = shared()
        assert ended.take() == A
        assert ended.given_up(A) == []
        ended.close()  # by Ctrl-C: no death
        workers.die_with_the_first([A, B, C], results)
    write_down(results, replace(A, edits=A.edits[:1]))
    one = shared()
    assert one.take() == A
    assert one.given_up(A)[0].status == "failed"
    one.close()
    assert there_before.take() == A
    told, failed = there_before.given_up(A)
    assert isinstance(told, Heard), "it was made before they died"
    assert (failed.status, failed.exit_code) == ("failed", WorkerDied.exit_code)
    assert "4 processes ended without a word" in failed.error
    assert one.take() == B
    append_line(results, json.dumps(asdict(failed)).encode())
    there_before.give_back(A)
    assert [one.take(), one.heard()] == [C, []]
    again = shared()
    assert again.take() == A
    assert again.given_up(A) == [], "the command was run again"


def test_who_died_after_its_last_line_is_forgotten(results, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shared()
    workers.die_with_the_first([A, B, C], results)
    of_a = write_down(results, A)
    assert other.take() == B
    assert other.heard() == of_a
    other.give_back(B)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".lease")] == []


HERE_ALONE = {"status": "failed", "path": None, "is_of_machine": True}


@pytest.mark.parametrize(
    ("fields", "force", "is_done"),
    [
        ({}, False, True),
        ({}, True, True),
        ({"status": "failed", "path": None, "error": "broken", "exit_code": 3}, False, True),
        ({"status": "failed", "path": None, "error": "CUDA error", "exit_code": 1}, False, False),
        ({"status": "failed", "path": None, "error": "an option", "exit_code": 2}, False, True),
        ({**HERE_ALONE, "error": "no kernel", "exit_code": 2}, False, False),
        ({**HERE_ALONE, "error": "no such video", "exit_code": 3}, False, False),
        ({"status": "failed", "path": None, "error": "no model", "exit_code": 5}, False, False),
        ({"status": "failed", "path": None, "error": "full", "exit_code": 6}, False, False),
        ({"status": "reused"}, False, True),
        ({"status": "reused"}, True, False),
        ({"key": "0" * 16}, False, False),
        ({"key": None}, False, False),
    ],
)
def test_what_counts_as_done_elsewhere(results, shared, fields, force, is_done):
    one = shared(force=force)
    heard = write_down(results, A, **fields)
    assert one.take() == (B if is_done else A)
    assert one.heard() == (heard if is_done else [])


def test_what_was_written_before_is_of_another_run(results, shared):
    write_down(results, A)
    with results.open("ab") as file:
        file.write(b'{"row": "half a li')
    one = shared()
    of_b = write_down(results, B)
    assert [one.take(), one.take()] == [C, A]
    assert one.heard() == of_b


def test_what_an_earlier_run_made_is_looked_through_last(results, shared):
    write_down(results, A)
    write_down(results, B, status="failed")
    first = shared()
    assert [first.take(), first.take(), first.take()] == [B, C, A]
    first.close()
    assert shared(force=True).take() == A


def test_an_edit_is_the_same_wherever_it_is_computed(tmp_path, monkeypatch):
    edit = EDITS[0]
    here = replace(edit.settings, device="cuda:1", offload="group", cache=tmp_path)
    assert replace(edit, settings=here).key == edit.key
    others = [
        replace(edit, settings=replace(edit.settings, dtype="fp16")),
        replace(edit, prompt="z"),
        replace(edit, output=Path("o.mp4")),
        replace(edit, where="row 9 of e.csv"),
    ]
    assert len({edit.key, *(other.key for other in others)}) == 5
    (tmp_path / "sub").mkdir()
    absolute = replace(edit, video=Path("a.mp4").resolve())
    monkeypatch.chdir(tmp_path / "sub")
    assert absolute.key != edit.key
    monkeypatch.chdir(tmp_path)
    assert replace(edit, video=Path("sub/../a.mp4")).key == edit.key
