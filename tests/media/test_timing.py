from fractions import Fraction

import numpy as np
import pytest

from cogedit.media.timing import explains, find_timing, snap_rate

MILLISECOND, MPEG = Fraction(1, 1000), Fraction(1, 90_000)
RATES = ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60",
         "120000/1001", "120")  # fmt: skip


def printed(rate):
    """What ffmpeg prints of a rate: an average with two decimals, and its guess."""
    return [Fraction(round(rate * 100), 100)] * 2


def stamps(rate, num_frames, *, time_base, clock, jitter=0.0):
    """Timestamps in ticks, first rounded to the clock of whoever wrote them; jitter in frames."""
    late = np.random.default_rng(0).uniform(-jitter, jitter, num_frames)
    times = [(number + Fraction(late[number])) / rate for number in range(num_frames)]
    return [round(round(time / clock) * clock / time_base) for time in times]


@pytest.mark.parametrize("num_frames", [2, 9, 49, 5000])
@pytest.mark.parametrize("rate", RATES)
def test_constant_rates_on_three_clocks_and_under_a_finer_one(rate, num_frames):
    rate = Fraction(rate)
    clocks = [(MILLISECOND, MILLISECOND), (MPEG, MPEG), (1 / rate / 512, 1 / rate / 512)]
    if num_frames > 2:
        clocks += [(Fraction(1, 16_000), MILLISECOND), (MPEG, MILLISECOND)]
    for time_base, clock in clocks:
        ticks = stamps(rate, num_frames, time_base=time_base, clock=clock)
        timing = find_timing(ticks, time_base, printed=printed(rate))
        found = (timing.rate, timing.is_constant)
        near = num_frames == 2 and abs(timing.rate / rate - 1) < 0.1
        assert found == (rate, True) or near, (time_base, clock, found)
        assert timing.shown(timing.rate) == tuple(range(num_frames))


@pytest.mark.parametrize("jitter", [0.01, 0.04, 0.12])
@pytest.mark.parametrize("rate", RATES)
def test_jitter_leaves_a_rate_constant(rate, jitter):
    rate = Fraction(rate)
    ticks = stamps(rate, 81, time_base=MPEG, clock=MPEG, jitter=jitter)
    average = Fraction(80 * 90_000, ticks[-1] - ticks[0])
    timing = find_timing(ticks, MPEG, printed=[average, *printed(rate)[:1]])
    assert (timing.rate, timing.is_constant) == (rate, True)


@pytest.mark.parametrize("num_frames", [2, 49, 100_000])
@pytest.mark.parametrize(
    ("period", "rate"),
    [
        ("333667/10000000", "30000/1001"),
        ("417083/10000000", "24000/1001"),
        ("333333/10000000", "30"),
        ("41666667/1000000000", "24"),
        ("66707123/1000000000", None),
        ("10000001/10000000", None),
        ("1000007/7", None),
    ],
)
def test_a_rate_on_a_fine_clock_is_one_that_can_be_written(period, rate, num_frames):
    period = Fraction(period)
    for time_base, step in ((period, 1), (Fraction(1, period.denominator), period.numerator)):
        timing = find_timing([step * number for number in range(num_frames)], time_base)
        if rate is not None:
            assert timing.rate == Fraction(rate)
        assert timing.is_constant
        assert float(timing.rate * period) == pytest.approx(1, abs=2e-6)
        assert max(timing.rate.numerator, timing.rate.denominator) <= 1_000_000
        assert timing.shown(timing.rate) == tuple(range(num_frames))


@pytest.mark.parametrize("period", ["1000000000", "1/1000000007"])
def test_a_rate_that_no_video_has_is_what_it_is(period):
    assert find_timing([0, 1, 2], Fraction(period)).rate == 1 / Fraction(period)


def hold(rate, *, before, seconds, after, time_base=MPEG):
    """Timestamps of frames at a rate, the last of the first ones being shown for some seconds."""
    numbers = [*range(before), *range(before, before + after)]
    pauses = [0] * before + [Fraction(seconds)] * after
    times = [number / rate + pause for number, pause in zip(numbers, pauses, strict=True)]
    return [round(time / time_base) for time in times]


@pytest.mark.parametrize("time_base", [MILLISECOND, MPEG])
@pytest.mark.parametrize("rate", RATES)
def test_a_frame_that_is_held_stays_on_the_grid_of_the_others(rate, time_base):
    rate = Fraction(rate)
    ticks = hold(rate, before=24, seconds=3, after=25, time_base=time_base)
    average = Fraction(48) / ((ticks[-1] - ticks[0]) * time_base)
    timing = find_timing(ticks, time_base, printed=[average, *printed(rate)[:1]])
    assert (timing.rate, timing.is_constant) == (rate, False)
    shown = timing.shown(timing.rate)
    counts = [shown.count(number) for number in range(49)]
    assert counts[:23] + counts[24:] == [1] * 48
    assert abs(counts[23] - (1 + 3 * rate)) <= 1
    assert len(shown) == timing.num_shown(timing.rate)


def test_the_average_is_never_the_rate():
    # Two speeds, each held for long: most frames follow the faster one.
    ticks = [3000 * number for number in range(100)]
    ticks += [ticks[-1] + 3750 * number for number in range(1, 60)]
    timing = find_timing(ticks, MPEG, printed=[Fraction("27.3"), Fraction("27.3")])
    assert (timing.rate, timing.is_constant) == (30, False)


def test_dropped_frames_are_filled_by_the_one_before():
    ticks = [40 * number for number in range(30) if number % 7 != 3]
    timing = find_timing(ticks, MILLISECOND, printed=[Fraction("21.6"), Fraction(25)])
    assert (timing.rate, timing.is_constant) == (25, False)
    kept = [number for number in range(30) if number % 7 != 3]
    expected = [kept.index(n if n in kept else n - 1) for n in range(30)]
    assert list(timing.shown(timing.rate)) == expected


def test_each_place_of_a_grid_has_the_frame_that_is_shown_then():
    timing = find_timing([1000 * number for number in range(24)], Fraction(1, 24_000))
    for rate in (Fraction(10), Fraction(12), Fraction(25), Fraction(30), Fraction(30000, 1001)):
        shown = timing.shown(rate)
        assert list(shown) == [int(place / rate * 24) for place in range(len(shown))]
        assert len(shown) == -(-rate // 1)  # of one second
    # The clock of 1 ms moves no frame to another place, and neither does a late start.
    coarse = find_timing([round(5 + number * 1000 / 60) for number in range(60)], MILLISECOND)
    assert coarse.shown(Fraction(60)) == tuple(range(60))
    assert coarse.shown(Fraction(30)) == tuple(range(0, 60, 2))


def test_the_last_frame_is_shown_for_as_long_as_the_file_says():
    timing = find_timing([0, 10, 20, 30], Fraction(1, 100), last_duration=200)
    assert timing.shown(Fraction(10)) == (0, 1, 2, *[3] * 20)


def test_one_frame_and_equal_times():
    single = find_timing([5], MILLISECOND, printed=printed(Fraction(30000, 1001)))
    assert (single.rate, single.shown(single.rate)) == (Fraction(30000, 1001), (0,))
    double = find_timing([0, 40, 40, 80, 120, 160], MILLISECOND, printed=[Fraction(25)])
    assert (double.rate, double.is_constant) == (25, False)
    assert double.shown(Fraction(25)) == (0, 2, 3, 4, 5)


def test_rates_that_ffmpeg_prints():
    assert snap_rate(Fraction("29.97")) == Fraction(30000, 1001)
    assert snap_rate(Fraction("23.98")) == Fraction(24000, 1001)
    assert snap_rate(Fraction("119.88")) == Fraction(120000, 1001)
    assert snap_rate(Fraction("30")) == 30
    assert snap_rate(Fraction("12.5")) == Fraction(25, 2)
    # 33, 33, 34 ms could be 30 or 30000/1001: what ffmpeg printed decides while both explain it.
    ticks = [0, 33, 67, 100]
    for rate in (Fraction(30000, 1001), Fraction(30)):
        assert find_timing(ticks, MILLISECOND, printed=printed(rate)).rate == rate
    assert not explains(Fraction(0), [0, 1], MILLISECOND)
