"""The quality benchmark from its command line, on a tiny pipeline with random weights."""

import json
import math

import numpy as np
import pytest
from pipelines import make_pipeline

from cogedit.errors import NumericalError
from cogedit.lab.edit_metrics import Interval
from cogedit.lab.evaluation import Evaluation
from cogedit.lab.quality import BY_TEXT, main
from cogedit.lab.quality_tables import CEILING, COPY, FLOOR, format_interval
from cogedit.media.contact_sheet import SheetRow, draw_sheet, enlarge
from cogedit.media.metrics import MAX_PSNR


def run(folder, *arguments):
    code = main([*arguments, "--output", str(folder)])
    return code, json.loads((folder / "quality.json").read_text()) if code == 0 else None


def test_a_run_from_end_to_end(world_pipeline, tmp_path, capsys):
    code, found = run(
        tmp_path / "bench",
        *("--model", str(world_pipeline), "--clips", "2", "--steps", "2", "--seed-offset", "7"),
        *("--kind", "color", "same", "--configuration", "shared-half=color", "--pictures", "1"),
    )
    assert code == 0
    rows = [CEILING, FLOOR, "upstream", "default", "shared-half"]
    assert list(found["edits"]) == ["color", "same"]
    assert list(found["edits"]["color"]) == rows
    assert list(found["edits"]["same"]) == rows[:-1]
    ceiling = found["edits"]["color"][CEILING]
    assert ceiling["round_trip_psnr"]["clips"] == [MAX_PSNR, MAX_PSNR]
    assert found["edits"]["same"][FLOOR] == found["edits"]["same"][CEILING]
    assert found["edits"]["same"]["default"]["target_seen"]["mean"] is None
    default = found["edits"]["color"]["default"]["counterfactual_psnr"]
    assert default["mean"] == pytest.approx(sum(default["clips"]) / 2)
    assert default["low"] <= default["mean"] <= default["high"]
    assert list(found["inversions"]) == ["upstream", "default, shared-half"]
    assert found["run"]["first_seed"] == 7
    assert found["configurations"][0]["inversion"]["settings"]["num_inference_steps"] == 2
    out = capsys.readouterr().out
    for text in ("upstream", "shared-half", "quality-same.png"):
        assert text in out
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == [
        "quality-color.png",
        "quality-same.png",
        "quality.json",
    ]


def test_edits_by_a_first_frame_stand_beside_the_same_by_text(tmp_path):
    model = make_pipeline(tmp_path / "i2v", in_channels=32, use_rotary_positional_embeddings=True)
    code, found = run(
        tmp_path / "bench",
        *("--model", str(model), "--clips", "1", "--steps", "2", "--kind", "color"),
        *("--configuration", "first-frame@prompt", "--pictures", "1"),
    )
    assert code == 0
    rows = [CEILING, FLOOR, COPY, "first-frame", "first-frame@prompt", BY_TEXT]
    assert list(found["edits"]) == ["color"]
    assert list(found["edits"]["color"]) == rows
    [copied] = found["edits"]["color"][COPY]["target_seen"]["clips"]
    assert copied == 1
    assert (tmp_path / "bench" / "quality-color.png").is_file()


def test_batches_do_not_change_the_figures(world_pipeline, tmp_path):
    arguments = ("--model", str(world_pipeline), "--clips", "2", "--steps", "2", "--kind", "color")
    _, together = run(tmp_path / "a", *arguments, "--pictures", "0")
    _, alone = run(tmp_path / "b", *arguments, "--pictures", "0", "--batch-size", "1")
    for name in ("upstream", "default"):
        first, second = (
            found["edits"]["color"][name]["counterfactual_psnr"]["clips"]
            for found in (together, alone)
        )
        assert first == pytest.approx(second, abs=0.01)
    assert not list((tmp_path / "a").glob("quality-*.png"))


def test_a_run_that_fails_keeps_the_batches_before(world_pipeline, tmp_path, monkeypatch):
    run_batch = Evaluation.run_batch

    def fail_later(self, seeds):
        if 8 in seeds:
            raise NumericalError("NaN in the second batch")
        run_batch(self, seeds)

    monkeypatch.setattr(Evaluation, "run_batch", fail_later)
    arguments = ["--model", str(world_pipeline), "--clips", "2", "--steps", "2", "--kind", "color"]
    arguments += ["--seed-offset", "7", "--batch-size", "1", "--output", str(tmp_path)]
    assert main(arguments) == NumericalError.exit_code
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["run"]["num_clips"] == 1
    assert len(found["edits"]["color"]["default"]["counterfactual_psnr"]["clips"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--clips", "0"], 2, "--clips"),
        (["--configuration", "best"], 2, "best"),
        (["--model", "no-such-model"], 5, "no-such-model"),
    ],
)
def test_mistakes_end_with_a_sentence_and_their_code(arguments, code, text, tmp_path, capsys):
    assert main([*arguments, "--output", str(tmp_path / "bench")]) == code
    assert text in capsys.readouterr().err


def test_intervals_are_written_for_people():
    assert format_interval(Interval(0.8, 0.71, 0.88, 64), 100, decimals=0) == "80 [71 88]"
    assert format_interval(Interval(math.nan, math.nan, math.nan, 0)) == "-"
    assert format_interval(Interval(MAX_PSNR, MAX_PSNR, MAX_PSNR, 3)) == "="


def test_a_sheet_holds_its_pictures_enlarged():
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    sheet = draw_sheet(["one", "two"], [SheetRow("a row", (red, None))] * 3, zoom=5)
    assert ((sheet == (200, 0, 0)).all(axis=-1)).sum() == 3 * 4 * 6 * 25
    assert enlarge(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), 2)[2:, 2:, 1].tolist() == [
        [10, 10],
        [10, 10],
    ]
