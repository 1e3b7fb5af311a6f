from fractions import Fraction

import pytest

from cogedit.clip_times import parse_time, rate_text, resampling_rate, show_time, time_text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("12.5", "12.5"),
        ("12.50", "12.5"),
        (".5", "0.5"),
        ("1:02.5", "62.5"),
        ("00:01:02.500", "62.5"),
        ("1:00:00", "3600"),
        ("90:00", "5400"),
        ("120", "120"),
        ("300f", "300f"),
        ("007f", "7f"),
        (12.5, "12.5"),
        (3, "3"),
        (Fraction(1, 2), None),
        ("", None),
        ("1:60", None),
        ("1:99:00", None),
        ("-1", None),
        ("1e9", None),
        ("12.", None),
        ("f", None),
        ("1.5f", None),
        ("1:2:3:4", None),
        ("9" * 99, None),
        ("soon", None),
        (True, None),
        (None, None),
        (float("inf"), None),
        ([3], None),
    ],
)
def test_times(given, text):
    if text is None:
        with pytest.raises(ValueError, match="is no"):
            time_text(given)
    else:
        assert time_text(given) == text
        assert time_text(text) == text


def test_a_time_in_frames_needs_the_rate():
    assert parse_time("1:02.5").at(Fraction(25)) == Fraction(125, 2)
    assert parse_time("300f").at(Fraction(30000, 1001)) == Fraction(1001, 100)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("model", "model"),
        ("source", "source"),
        ("spread", "spread"),
        ("8", "8"),
        ("8.0", "8"),
        ("23.976", "2997/125"),
        ("30000/1001", "30000/1001"),
        (24, "24"),
        (Fraction(30000, 1001), "30000/1001"),
        ("0", None),
        ("1001", None),
        ("1/0", None),
        ("auto", None),
        (True, None),
    ],
)
def test_rates(given, text):
    if text is None:
        with pytest.raises(ValueError, match="is no"):
            rate_text(given)
    else:
        assert rate_text(given) == text
        assert resampling_rate(text) == (None if text.isalpha() else Fraction(text))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ("0", "0:00"),
        ("6.125", "0:06.125"),
        ("58.2", "0:58.2"),
        ("59.9999", "1:00"),
        ("566", "9:26"),
        ("3723.5", "1:02:03.5"),
        ("36000", "10:00:00"),
    ],
)
def test_times_for_people(seconds, text):
    assert show_time(Fraction(seconds)) == text
