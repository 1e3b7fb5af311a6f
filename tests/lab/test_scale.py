"""The driver over groups of nothing, and the plan of many clips."""

import pytest

from cogedit.lab import scale


def test_every_group_of_nothing_has_its_line():
    found = scale.measure_driver(40, 2)
    assert found.num_lines == 40
    assert found.seconds > 0


def test_the_plan_counts_what_a_clip_takes():
    one, four = scale.Clip.of(1), scale.Clip.of(4)
    # The trajectory alone is 108 MB at 24 levels, as steps and as a whole.
    assert one.written > 2 * 107e6
    # In the ratio of the speed table, 3.48 times fewer operations than the script, and 5.42.
    assert four.flops / one.flops == pytest.approx(4 * 3.48 / 5.42, rel=0.01)
    # The samples of 24 steps and the edit, and for six steps what they use of guidance again.
    assert four.written - one.written == 3 * (25 + 6) * 4 * 16 * 13 * 60 * 90


def test_tables_are_printed(capsys):
    assert scale.main(["--groups", "6", "--workers", "1", "--gpus", "8", "64"]) == 0
    printed = capsys.readouterr().out
    assert "1000 clips" in printed
    assert "results.jsonl" in printed
