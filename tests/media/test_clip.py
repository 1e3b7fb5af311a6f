from fractions import Fraction

import pytest

from cogedit.errors import UsageError, VideoError
from cogedit.media.clip import check_size, plan_clip, plan_resize
from cogedit.sources import SourceVideo
from cogedit.types import LoadSettings


def video(num_frames, fps="25"):
    return SourceVideo(
        name="a.mp4", sha256="", width=1280, height=720, rotation=0, fps=Fraction(fps),
        num_frames=num_frames, reader="decord", has_audio=False,
    )  # fmt: skip


def test_short_video_is_taken_whole_and_snapped():
    plan = plan_clip(video(30), LoadSettings())
    assert plan.indices == tuple(range(25))
    assert plan.fps == 25
    assert plan.notes == ("dropped 5 frames to reach 25 = 8*3+1",)


def test_long_video_is_spread_over_the_clip():
    plan = plan_clip(video(132, "30000/1001"), LoadSettings())
    assert plan.indices == tuple(range(0, 97, 2))
    assert plan.fps == Fraction(15000, 1001)
    assert plan.notes == (
        "took every 2nd frame",
        "left out 17 frames at the end beyond the 49 that fit",
    )


def test_upstream_selection_where_it_snaps_alike():
    for total in (1, 9, 49, 50, 97, 98, 99, 150, 1000):
        step = max(1, total // 49)
        expected = list(range(0, total, step))[:49]
        expected = expected[: (len(expected) - 1) // 8 * 8 + 1]
        assert list(plan_clip(video(total), LoadSettings()).indices) == expected


def test_skips_and_step():
    settings = LoadSettings(
        skip_frames_start=10, skip_frames_end=5, frame_sample_step=3, max_num_frames=9
    )
    plan = plan_clip(video(60), settings)
    assert plan.indices == tuple(range(10, 35, 3))
    assert plan.fps == Fraction(25, 3)
    assert plan.notes[0] == "took every 3rd frame"


def test_step_counts_also_where_all_frames_would_fit():
    assert plan_clip(video(40), LoadSettings(frame_sample_step=2)).indices == tuple(range(0, 34, 2))


@pytest.mark.parametrize("most", [1, 8, 9, 16, 17, 48, 49, 81])
@pytest.mark.parametrize("total", [1, 2, 8, 9, 10, 49, 82, 163])
def test_count_is_always_8n_plus_1(total, most):
    plan = plan_clip(video(total), LoadSettings(max_num_frames=most))
    assert len(plan.indices) % 8 == 1
    assert len(plan.indices) <= most
    assert plan.indices[-1] < total


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


def test_check_size_names_the_nearest():
    check_size(720, 480, multiple=16)
    with pytest.raises(UsageError) as caught:
        check_size(721, 480, multiple=16)
    assert all(number in caught.value.message for number in ("721", "16", "720", "736"))
    with pytest.raises(UsageError, match=r"height 5 .*16$"):
        check_size(720, 5, multiple=16)
