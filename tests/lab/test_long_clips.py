"""Clips longer than the model's own, in every way to see them, on a tiny pipeline."""

import json

import numpy as np
import pytest
import torch

from cogedit.lab import world
from cogedit.lab.batch_pipeline import BatchPipeline
from cogedit.lab.cases import make_case
from cogedit.lab.edit_metrics import border_ratio
from cogedit.lab.evaluation import window_borders
from cogedit.lab.long_clips import CUT, cut_case, main, make_ways
from cogedit.lab.quality_tables import CEILING, FLOOR
from cogedit.models.checkpoint import find_checkpoint
from cogedit.types import WindowPlan


def run(folder, *arguments):
    code = main([*arguments, "--output", str(folder)])
    return code, json.loads((folder / "long.json").read_text()) if code == 0 else None


def test_a_run_from_end_to_end(world_pipeline, tmp_path, capsys):
    ways = ["one-pass", "overlap-1"]
    code, found = run(
        tmp_path,
        *("--model", str(world_pipeline), "--clips", "2", "--batch-size", "1", "--steps", "2"),
        *("--frames", "17", "--kind", "color", "--seed-offset", "7"),
        *(f"--way={way}" for way in ways),
    )
    assert code == 0
    assert (found["run"]["num_clips"], found["run"]["first_seed"]) == (2, 7)
    [comparison] = found["comparisons"]
    assert (comparison["num_frames"], comparison["kind"]) == (17, "color")
    long, cut = comparison["long"], comparison["cut"]
    assert list(long["edits"]["color"]) == [CEILING, FLOOR, *ways]
    assert list(cut["edits"]["color"]) == [CEILING, FLOOR, CUT]
    assert list(long["inversions"]) == ways
    in_windows, in_one = (long["edits"]["color"][way] for way in ("overlap-1", "one-pass"))
    assert all(value > 0 for value in in_windows["border_ratio"]["clips"])
    assert in_one["border_ratio"]["clips"] == [None, None]
    assert in_windows["round_trip_psnr"]["clips"] != in_one["round_trip_psnr"]["clips"]
    plans = [row["inversion"]["windows"] for row in long["configurations"]]
    assert plans == [None, {"length": 3, "overlap": 1, "shift": 1}]
    out = capsys.readouterr().out
    for text in (CUT, "overlap-1", "median dB", "17 frames, 2 clips"):
        assert text in out


def test_ways_are_every_overlap_moved_and_not(world_pipeline):
    ways = make_ways(find_checkpoint(str(world_pipeline)).geometry)
    assert ways == {
        "one-pass": None,
        "overlap-0": WindowPlan(3, 0, 1),
        "overlap-0-unmoved": WindowPlan(3, 0, 0),
        "overlap-1": WindowPlan(3, 1, 1),
        "overlap-1-unmoved": WindowPlan(3, 1, 0),
        "overlap-2": WindowPlan(3, 2, 0),
    }


def test_a_long_clip_is_encoded_in_spans_of_nine_frames(world_pipeline):
    """As `encode` does with the embedded model."""
    pipeline = BatchPipeline(
        find_checkpoint(str(world_pipeline)), device=torch.device("cpu"), dtype=torch.float32
    )
    frames = world.render(make_case(3, "color", num_frames=17).source)
    long, second = (pipeline.encode([clip]) for clip in (frames, frames[8:]))
    assert torch.equal(long[:, 3:], second[:, 1:])


def test_a_cut_clip_is_the_middle_of_the_long_one():
    for kind in ("color", "background"):
        long, cut = make_case(3, kind, num_frames=17), cut_case(3, kind, num_frames=17)
        assert (cut.prompt, cut.source_prompt) == (long.prompt, long.source_prompt)
        for of_cut, of_long in ((cut.source, long.source), (cut.right, long.right)):
            difference = world.render(of_cut).astype(int) - world.render(of_long)[4:13]
            assert np.abs(difference).max() <= 1  # rounded to levels


@pytest.mark.parametrize(
    ("plan", "num_frames", "expected"),
    [
        (WindowPlan(3, 0, 1), 33, (9, 21)),  # windows of latent frames 0-2, 3-5, 6-8
        (WindowPlan(3, 1, 1), 17, (5, 9)),  # 0-2, 2-4
        (WindowPlan(13, 4, 4), 81, (29, 49)),  # 0-12, 8-20
        (WindowPlan(3, 1, 1), 9, ()),
    ],
)
def test_windows_meet_where_the_set_of_windows_changes(plan, num_frames, expected):
    assert window_borders(plan, num_frames, temporal=4) == expected


def test_a_seam_shows_in_the_border_ratio():
    right = np.broadcast_to(np.arange(12.0)[:, None, None, None], (12, 4, 4, 3)).astype("f4")
    seam = right.copy()
    seam[5:] += 1  # one step of two levels among steps of one
    assert border_ratio(seam, right, [5]) == pytest.approx(2.0)
    assert border_ratio(seam, right, [5, 7]) == pytest.approx(1.5)
    assert border_ratio(right, right, [5]) == 1.0
    assert border_ratio(2 * seam, seam, [5]) == pytest.approx(1.0)
    for nowhere_or_everywhere in ([], range(1, 12)):
        assert np.isnan(border_ratio(seam, right, nowhere_or_everywhere))


@pytest.mark.parametrize("arguments", [("--frames", "16"), ("--frames", "9"), ("--way", "two")])
def test_what_cannot_be_measured_is_refused(arguments, world_pipeline, tmp_path):
    assert run(tmp_path, "--model", str(world_pipeline), *arguments) == (2, None)
    assert not (tmp_path / "long.json").exists()
