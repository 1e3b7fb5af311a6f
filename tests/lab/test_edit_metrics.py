"""Figures of constructed clips, whose values are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cogedit.lab import world
from cogedit.lab.cases import EDIT_KINDS, EditCase, edits_background, make_case
from cogedit.lab.edit_metrics import (
    Answer,
    InversionFigures,
    bootstrap_interval,
    measure,
    summarize,
    to_frames,
    track_distance,
)
from cogedit.lab.oracle import overlap
from cogedit.media.metrics import MAX_PSNR, psnr


def levels(spec):
    return world.render(spec).astype(np.float32)


def perfect_answer(case):
    """An answer as a VAE without loss would give it."""
    return Answer(case, levels(case.source), levels(case.right))


def edit_case(kind, seed=3, **change):
    source = world.sample_spec(seed, "held_out")
    return EditCase(seed, kind, source, world.counterfactual(source, world.Edit(**change)))


def other(names, *taken):
    return next(name for name in names if name not in taken)


@pytest.mark.parametrize("kind", EDIT_KINDS)
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_the_right_answer_is_perfect(kind, seed):
    case = make_case(seed, kind)
    figures = measure(levels(case.right), perfect_answer(case))
    assert figures.others_kept == 1
    if kind == "same":
        assert math.isnan(figures.target_seen)
    else:
        assert figures.target_seen == 1
    assert figures.counterfactual_psnr == figures.round_trip_psnr == MAX_PSNR
    assert figures.background_psnr == figures.background_round_trip_psnr == MAX_PSNR
    assert figures.motion_distance < 0.2
    assert figures.mask_overlap > 0.95


@pytest.mark.parametrize("kind", ["color", "shape", "background", "texture"])
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_the_unedited_source_misses_the_target_and_keeps_the_rest(kind, seed):
    case = make_case(seed, kind)
    figures = measure(levels(case.source), perfect_answer(case))
    assert figures.target_seen == 0
    assert figures.others_kept == 1
    assert figures.counterfactual_psnr < 40
    if not edits_background(kind):
        assert figures.background_psnr == MAX_PSNR


def test_a_wrong_color_is_no_hit():
    source = world.sample_spec(3, "held_out")
    wanted = other(world.COLORS, source.color)
    case = edit_case("color", color=wanted)
    wrong = replace(case.right, color=other(world.COLORS, source.color, wanted))
    figures = measure(levels(wrong), perfect_answer(case))
    assert (figures.target_seen, figures.color_right) == (0, 0)
    assert figures.others_kept == 1


@pytest.mark.parametrize("lost", ["color", "background", "motion"])
def test_a_shape_edit_that_loses_another_attribute_is_told(lost):
    names = {"color": world.COLORS, "background": world.BACKGROUNDS, "motion": world.MOTIONS}
    source = world.sample_spec(3, "held_out")
    case = edit_case("shape", shape=other(world.SHAPES, source.shape))
    wrong = replace(case.right, **{lost: other(names[lost], getattr(source, lost))})
    figures = measure(levels(wrong), perfect_answer(case))
    assert figures.target_seen == 1
    assert figures.others_kept == 0
    assert getattr(figures, f"{lost}_right") == 0


def test_a_color_edit_that_changes_the_shape_is_told():
    source = world.sample_spec(3, "held_out")
    case = edit_case("color", color=other(world.COLORS, source.color))
    wrong = replace(case.right, shape=other(world.SHAPES, source.shape))
    figures = measure(levels(wrong), perfect_answer(case))
    assert (figures.target_seen, figures.others_kept, figures.shape_right) == (1, 0, 0)
    assert figures.mask_overlap < 0.9


def test_a_shifted_object_is_as_far_from_the_track_as_it_was_shifted():
    case = edit_case("same")
    shifted = replace(case.source, x=case.source.x + 3.0, y=case.source.y - 4.0)
    figures = measure(levels(shifted), perfect_answer(case))
    assert figures.motion_distance == pytest.approx(5.0, abs=0.25)


def test_a_clip_without_object_has_no_motion():
    case = edit_case("same")
    nothing = np.broadcast_to(
        np.asarray(world.BACKGROUNDS[case.source.background], np.float32),
        (world.NUM_FRAMES, world.HEIGHT, world.WIDTH, 3),
    )
    figures = measure(nothing, perfect_answer(case))
    assert math.isnan(figures.motion_distance)
    assert figures.mask_overlap == 0
    assert figures.others_kept == 0


def test_background_psnr_counts_no_pixel_of_either_object():
    source = world.sample_spec(3, "held_out")
    case = edit_case("shape", shape=other(world.SHAPES, source.shape))
    touched = (world.render_mask(case.source) > 0) | (world.render_mask(case.right) > 0)
    inside = np.where(touched[..., None], np.float32(90), levels(case.source))
    assert measure(inside, perfect_answer(case)).background_psnr == MAX_PSNR
    outside = levels(case.source) + np.where(touched[..., None], np.float32(0), np.float32(2))
    figures = measure(outside, perfect_answer(case))
    assert figures.background_psnr == pytest.approx(10 * math.log10(255**2 / 4), abs=0.05)


def test_the_background_of_a_background_edit_is_compared_with_the_right_answer():
    source = world.sample_spec(3, "held_out")
    case = edit_case("background", background=other(world.BACKGROUNDS, source.background))
    assert measure(levels(case.right), perfect_answer(case)).background_psnr == MAX_PSNR
    assert measure(levels(case.source), perfect_answer(case)).background_psnr < 30


def test_round_trips_are_compared_before_rounding():
    case = edit_case("same")
    round_trip = levels(case.source) + np.float32(0.25)
    answer = Answer(case, round_trip, round_trip)
    figures = measure(round_trip, answer)
    assert figures.round_trip_psnr == figures.background_round_trip_psnr == MAX_PSNR
    unrounded = measure(levels(case.source), answer).round_trip_psnr
    assert unrounded == pytest.approx(10 * math.log10(255**2 / 0.0625), abs=0.01)


def test_psnr_by_hand():
    zeros = np.zeros((2, 4, 4, 3))
    assert psnr(zeros, zeros) == MAX_PSNR
    assert psnr(zeros + 1, zeros) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(zeros + 255, zeros) == pytest.approx(0)
    half = np.zeros((2, 4, 4), bool)
    half[0] = True
    mixed = zeros.copy()
    mixed[1] = 10
    assert psnr(mixed, zeros, where=half) == MAX_PSNR
    assert psnr(mixed, zeros, where=~half) == pytest.approx(28.1308, abs=1e-4)
    assert psnr(mixed, zeros) == pytest.approx(28.1308 + 10 * math.log10(2), abs=1e-4)
    assert math.isnan(psnr(zeros, zeros, where=np.zeros((2, 4, 4), bool)))


def test_uint8_clips_do_not_wrap_around():
    white, black = np.full((1, 2, 2, 3), 255, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    assert psnr(black, white) == pytest.approx(0)


def test_levels_are_rounded_and_clipped():
    found = to_frames(np.asarray([-3.0, 0.4, 0.6, 254.6, 300.0], np.float32))
    assert found.tolist() == [0, 0, 1, 255, 255]
    assert found.dtype == np.uint8


def test_track_distance_leaves_out_frames_without_object():
    expected = np.zeros((3, 2))
    assert track_distance([(3, 4), (np.nan, np.nan), (0, 1)], expected) == pytest.approx(3)
    assert math.isnan(track_distance(np.full((3, 2), np.nan), expected))


def test_overlap():
    a = np.zeros((1, 2, 2), np.float32)
    b = a.copy()
    assert overlap(a, b) == 1
    a[0, 0] = 1
    b[0, :, 0] = 1
    assert overlap(a, b) == pytest.approx(1 / 3)


def test_bootstrap_of_equal_values_has_no_width():
    interval = bootstrap_interval([2.0] * 7)
    assert (interval.mean, interval.low, interval.high, interval.count) == (2, 2, 2, 7)


def test_bootstrap_of_shares_is_near_the_binomial_interval():
    interval = bootstrap_interval([1.0] * 80 + [0.0] * 20)
    assert interval.mean == pytest.approx(0.8)
    assert interval.low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert interval.high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)
    assert interval == bootstrap_interval([1.0] * 80 + [0.0] * 20)


def test_bootstrap_leaves_out_what_does_not_exist():
    assert bootstrap_interval([1.0, math.nan, 3.0]).count == 2
    assert bootstrap_interval([1.0, math.nan, 3.0]).mean == 2
    nothing = bootstrap_interval([math.nan])
    assert nothing.count == 0
    assert math.isnan(nothing.mean)


def test_every_figure_is_summarized():
    found = summarize([InversionFigures(40.0, 0.8), InversionFigures(50.0, 1.0)])
    assert {name: interval.mean for name, interval in found.items()} == {
        "psnr": 45,
        "noise_std": pytest.approx(0.9),
    }
    assert summarize([]) == {}
