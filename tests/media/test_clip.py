from dataclasses import replace
from fractions import Fraction

import pytest

from cogedit.errors import UsageError, VideoError
from cogedit.media.clip import find_span, nearest_step, plan_clip, plan_resize
from cogedit.media.timing import Timing, even_timing, find_timing
from cogedit.sources import SourceVideo
from cogedit.types import LoadSettings


def video(num_frames, fps="25"):
    return SourceVideo(
        name="a.mp4", sha256="", width=1280, height=720, rotation=0, fps=Fraction(fps),
        num_frames=num_frames, reader="decord", has_audio=False,
    )  # fmt: skip


def plan(num_frames, fps="25", *, rate=None, **settings):
    rate = None if rate is None else Fraction(rate)
    return plan_clip(video(num_frames, fps), LoadSettings(**settings), model_rate=rate)


@pytest.mark.parametrize(
    ("fps", "rate", "step"),
    [
        ("8", 8, 1),
        ("25", 8, 3),
        ("24", 8, 3),
        ("30", 8, 4),
        ("30000/1001", 8, 4),
        ("60", 8, 8),
        ("10", 8, 1),
        ("12", 8, 2),
        ("5", 8, 1),
        ("25", 16, 2),
        ("30", 16, 2),
        ("24", 16, 2),
        ("60", 16, 4),
    ],
)
def test_the_step_comes_nearest_to_the_models_rate(fps, rate, step):
    made = plan(1000, fps, rate=rate)
    assert made.indices == tuple(range(0, 49 * step, step))
    assert (made.fps, made.num_extra) == (Fraction(fps) / step, 0)
    assert nearest_step(Fraction(fps), Fraction(rate)) == step


def test_the_rate_and_the_step_that_were_asked_for():
    assert plan(1000, rate=8, frame_rate="source").indices == tuple(range(49))
    assert plan(1000, "8", rate=8, frame_rate="12").indices == tuple(range(49))
    assert plan(1000, rate=8, frame_sample_step=5).indices == tuple(range(0, 245, 5))
    assert plan(1000, frame_rate="model").indices == tuple(range(49))


def test_a_clip_of_the_models_rate_and_length_is_taken_whole():
    made = plan(9, "8", rate=8, max_num_frames=9)
    assert (made.indices, made.fps, made.num_extra) == (tuple(range(9)), 8, 0)


@pytest.mark.parametrize(
    ("total", "most", "shown", "indices"),
    [
        (60, 16, 16, [*range(17)]),
        (60, 50, 50, [*range(57)]),
        (50, None, 50, [*range(50), *[49] * 7]),
        (52, 50, 50, [*range(52), *[51] * 5]),
        (1, 49, 1, [0]),
        (2, 49, 2, [0, 1, *[1] * 7]),
        (49, 49, 49, [*range(49)]),
    ],
)
def test_8n_plus_1_costs_no_frame(total, most, shown, indices):
    made = plan(total, max_num_frames=most)
    assert list(made.indices) == indices
    assert made.num_extra == len(indices) - shown


def test_the_frames_beyond_the_end_are_those_of_the_step():
    made = plan(100, rate=8, end="2", max_num_frames=None)
    assert made.indices == tuple(range(0, 49 + 3, 3))[:17]
    made = plan(60, rate=8, end="1.2", max_num_frames=None)
    assert (made.indices, made.num_extra) == ((*range(0, 50, 3),), 7)
    made = plan(40, rate=8, end="1.2", max_num_frames=None)
    assert (made.indices, made.num_extra) == ((*range(0, 40, 3), 39, 39, 39), 7)


@pytest.mark.parametrize("most", [1, 8, 9, 16, 17, 48, 49, 81, None])
@pytest.mark.parametrize("total", [1, 2, 8, 9, 10, 49, 82, 163])
@pytest.mark.parametrize("word", ["model", "spread"])
def test_count_is_always_8n_plus_1(total, most, word):
    made = plan(total, rate=8, max_num_frames=most, frame_rate=word)
    assert len(made.indices) % 8 == 1
    assert made.indices[-1] < total
    shown = len(made.indices) - made.num_extra
    assert shown <= (most or total)
    if word == "model":
        assert shown == min(len(range(0, total, 3)), most or total)


def test_upstream_spreads_and_rounds_down():
    for total in (1, 9, 30, 49, 50, 97, 98, 99, 150, 1000):
        step = max(1, total // 49)
        expected = list(range(0, total, step))[:49]
        expected = expected[: (len(expected) - 1) // 8 * 8 + 1]
        made = plan(total, rate=8, frame_rate="spread")
        assert (list(made.indices), made.num_extra) == (expected, 0)


@pytest.mark.parametrize(
    ("total", "fps", "most", "step"),
    [
        (40, "25", 49, 1),  # no longer than the clip
        (50, "25", 49, 2),  # the smallest step that reaches the end
        (400, "25", 49, 9),
        (5000, "25", 49, 12),  # at most half a second
        (5000, "30000/1001", 49, 14),
        (5000, "1", 49, 1),
        (400, "25", None, 12),
    ],
)
def test_sparse_frames_reach_the_end_or_are_half_a_second_apart(total, fps, most, step):
    made = plan(total, fps, rate=8, frame_rate="sparse", max_num_frames=most)
    shown = made.indices[: len(made.indices) - made.num_extra]
    assert shown == tuple(range(0, total, step))[:most]
    assert made.fps == Fraction(fps) / step


@pytest.mark.parametrize(
    ("times", "end"),
    [
        ({"start": "3", "end": "9"}, 225),  # where frame 231 would be the next
        ({"start": "3", "duration": "150f"}, 225),
        ({"start": "3", "end": "231f"}, None),  # a whole step ends there
        ({"start": "3", "end": "9", "max_num_frames": 5}, None),  # it ends sooner
        ({"start": "3", "end": "99"}, None),  # the video does
        ({"skip_frames_end": 775}, None),  # as in records of 0.1.0
        ({}, None),
    ],
)
def test_where_the_seconds_end_before_the_next_frame_is_kept(times, end):
    settings = {"max_num_frames": None, "frame_sample_step": 12} | times
    assert plan(1000, **settings).end == end


def test_skips_and_step():
    made = plan(60, skip_frames_start=10, skip_frames_end=5, frame_sample_step=3, max_num_frames=9)
    assert made.indices == tuple(range(10, 35, 3))
    assert made.fps == Fraction(25, 3)


@pytest.mark.parametrize(
    ("fps", "times", "first", "end"),
    [
        ("25", {"start": "3"}, 75, 1000),
        ("25", {"start": "3.02"}, 75, 1000),  # frame 75 is on the screen until 3.04
        ("25", {"start": "3", "end": "9"}, 75, 225),
        ("25", {"start": "0:03", "duration": "6"}, 75, 225),
        ("25", {"start": "75f", "end": "225f"}, 75, 225),
        ("25", {"start": "75f", "duration": "150f"}, 75, 225),
        ("25", {"start": "75f", "duration": "6"}, 75, 225),
        ("25", {"start": "3", "duration": "150f"}, 75, 225),
        ("25", {"end": "0.05"}, 0, 2),  # frame 1 appears at 0.04
        ("25", {"end": "99:00"}, 0, 1000),
        ("25", {"start": "1", "duration": "0.001"}, 25, 26),
        ("30000/1001", {"start": "3", "end": "9"}, 89, 270),
        # Milliseconds are rounded: frame 2 of 24 fps appears at 0.0833 s, frame 4 at 0.1667 s.
        ("24", {"start": "0.083", "end": "0.167"}, 2, 4),
        ("30000/1001", {"start": "00:00:03.003"}, 90, 1000),
    ],
)
def test_seconds_are_exact_to_the_frame(fps, times, first, end):
    settings = LoadSettings(**times)
    rate = Fraction(fps)
    span = find_span(video(1000, fps), settings, timing=even_timing(1000, rate))
    assert span == range(first, end)
    # The same under a container's clock of 1 ms, and on a grid.
    clock = find_timing([round(1000 * number / rate) for number in range(1000)], Fraction(1, 1000))
    assert find_span(video(1000, fps), settings, timing=clock) == span
    on_grid = replace(video(1000, fps), is_resampled=True)
    assert find_span(on_grid, settings, timing=clock) == span


def test_frames_are_those_of_the_video_where_it_is_resampled():
    """Frame 75 of 25 fps is shown at 3 s, which is place 24 of a grid of 8 fps."""
    grid = replace(video(320, "8"), is_resampled=True)
    settings = LoadSettings(start="75f", duration="50f", frame_rate="8")
    assert find_span(grid, settings, timing=even_timing(1000, Fraction(25))) == range(24, 40)


def test_where_the_rate_varies_the_frame_on_the_screen_counts():
    timing = Timing((0, 40, 2000, 2040), Fraction(1, 1000), Fraction(25), True, Fraction(0))
    assert [timing.on_screen(Fraction(time)) for time in (0, "0.03", 1, "1.999", 2, 9)] == [
        *(0, 0, 1, 1, 2, 3)
    ]
    assert [timing.first_from(Fraction(time)) for time in (0, "0.03", 1, 2, 9)] == [0, 1, 2, 2, 4]


@pytest.mark.parametrize(
    ("times", "names"),
    [
        ({"start": "3", "skip_frames_start": 5}, ("--start", "--skip-frames-start")),
        ({"end": "3", "skip_frames_end": 5}, ("--end", "--skip-frames-end")),
        ({"duration": "3", "skip_frames_start": 5}, ("--duration", "--skip-frames-start")),
        ({"end": "3", "duration": "3"}, ("--end", "--duration")),
        ({"start": "3", "end": "3"}, ("--end 0:03", "--start 0:03")),
        ({"start": "75f", "end": "2.9"}, ("--end 0:02.9", "--start 75f")),
        ({"duration": "0"}, ("--duration",)),
    ],
)
def test_seconds_that_contradict_each_other_are_refused(times, names):
    with pytest.raises(UsageError) as caught:
        plan(1000, **times)
    assert all(name in caught.value.message for name in names)


@pytest.mark.parametrize("start", ["40", "1000f", "1:00:00"])
def test_a_start_beyond_the_end_is_refused(start):
    with pytest.raises(VideoError, match=rf"{start}.* 0:40 .*1000 frames"):
        plan(1000, start=start)


def test_the_note_says_which_seconds_and_how_to_take_others():
    [note] = plan(1000, rate=8).notes
    assert note.startswith("a.mp4: 0:00 to 0:05.88 of 0:40 at 8.333 fps (every 3rd frame, 49")
    for flag in ("--start", "--end", "--max-num-frames all", "--frame-rate source"):
        assert flag in note
    [note] = plan(49, frame_rate="source").notes
    assert note == "a.mp4: 0:00 to 0:01.96 of 0:01.96 at 25 fps (49 frames)"
    [note] = plan(1000, rate=8, start="3", end="20").notes
    assert "before --end 20" in note
    assert "--max-num-frames all" in note
    [note, extra] = plan(1000, rate=8, start="39.5", end="99").notes
    assert "where the video ends" in note
    assert "4 frames" in extra


def test_the_note_names_nothing_that_the_model_refuses_or_the_video_shows_anyway():
    settings = LoadSettings(max_num_frames=49)
    options = {"model_rate": 8, "takes_longer": False, "shows_all": True}
    [note] = plan_clip(video(1000), settings, **options).notes
    assert "between" in note
    assert "--start" in note
    for flag in ("--max-num-frames", "--frame-rate"):
        assert flag not in note


def test_nothing_left_names_the_numbers():
    with pytest.raises(VideoError, match=r"30.*20.*10"):
        plan_clip(video(30), LoadSettings(skip_frames_start=20, skip_frames_end=10))
    with pytest.raises(VideoError):
        plan_clip(video(30), LoadSettings(skip_frames_start=99))


@pytest.mark.parametrize(
    ("source", "mode", "scaled", "offset"),
    [
        ((1280, 720), "crop", (853, 480), (66, 0)),
        ((1280, 720), "pad", (720, 405), (0, 37)),
        ((1280, 720), "stretch", (720, 480), (0, 0)),
        ((720, 1280), "crop", (720, 1280), (0, 400)),
        ((720, 1280), "pad", (270, 480), (225, 0)),
        ((1440, 960), "crop", (720, 480), (0, 0)),
        ((1440, 960), "pad", (720, 480), (0, 0)),
        ((101, 67), "crop", (724, 480), (2, 0)),
    ],
)
def test_resize_plan(source, mode, scaled, offset):
    plan = plan_resize(*source, settings=LoadSettings(resize_mode=mode))
    assert (plan.box.scaled_width, plan.box.scaled_height) == scaled
    assert (plan.box.left, plan.box.top) == offset
    assert (plan.width, plan.height) == (720, 480)


def test_extreme_shape_is_not_scaled_to_gigabytes():
    with pytest.raises(UsageError, match="30000x2"):
        plan_resize(30000, 2, settings=LoadSettings())
    assert plan_resize(30000, 2, settings=LoadSettings(resize_mode="pad")).box.scaled_height == 1
