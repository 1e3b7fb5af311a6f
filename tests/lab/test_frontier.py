"""What edits show against what they keep, from results of the quality benchmark."""

import json

import pytest

from cogedit.lab.frontier import Point, frontier, main, read_points
from cogedit.lab.quality import main as measure_quality
from cogedit.lab.tables import CEILING, FLOOR


def point(name, seen, kept):
    return Point(name, seen, kept, 20.0)


def test_the_frontier_is_what_nothing_beats():
    points = [
        point("bold", 0.9, 20),
        point("beaten in both", 0.4, 25),
        point("faithful", 0.2, 35),
        point("balanced", 0.5, 30),
        point("beaten in one", 0.5, 29),
        point("as balanced", 0.5, 30),
    ]
    names = [one.name for one in frontier(points)]
    assert names == ["faithful", "balanced", "as balanced", "bold"]
    assert frontier([]) == []


def test_a_point_does_not_beat_its_equal():
    assert not point("a", 0.5, 30).beats(point("b", 0.5, 30))
    assert point("a", 0.5, 31).beats(point("b", 0.5, 30))
    assert not point("a", 0.4, 31).beats(point("b", 0.5, 30))


@pytest.fixture(scope="module")
def runs(world_pipeline, tmp_path_factory):
    """Two runs over the same clips, and one over another, by their folders."""
    folders = {}
    for name, first, row in (("a", 3, "shared"), ("b", 3, "fast"), ("other", 4, "shared")):
        folders[name] = tmp_path_factory.mktemp(name)
        arguments = ["--model", str(world_pipeline), "--clips", "1", "--steps", "2"]
        arguments += ["--kind", "color", "background", "same", "--seed-offset", str(first)]
        arguments += ["--configuration", row, "--output", str(folders[name]), "--pictures", "0"]
        assert measure_quality(arguments) == 0
    return folders


def test_runs_of_the_same_clips_are_drawn_together(runs, tmp_path, capsys):
    files = [runs["a"] / "quality.json", runs["b"] / "quality.json"]
    found = read_points(files)
    assert set(found) <= {"color", "background"}
    record = json.loads(files[1].read_text())["edits"]["color"]["fast"]
    (fast,) = [one for one in found["color"] if one.name == "fast"]
    assert fast.seen == record["target_seen"]["mean"]
    assert fast.kept == record["background_psnr"]["mean"]
    names = [one.name for one in found["color"]]
    assert names == ["upstream", "default", "shared", "fast"]
    assert not {CEILING, FLOOR} & set(names)
    assert main([*map(str, files), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "color edits, 4 configurations" in out
    assert "frontier.png" in out


def test_a_run_draws_its_own_frontier(runs):
    assert (runs["a"] / "frontier.png").is_file()


def test_runs_of_other_clips_are_refused(runs, capsys):
    files = [str(runs[name] / "quality.json") for name in ("a", "other")]
    assert main(files) == 2
    assert "first_seed 4 in place of 3" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"edits": {"color": {"fast": {}}}, "run": {}}'])
def test_a_file_of_something_else_is_refused(text, tmp_path, capsys):
    path = tmp_path / "quality.json"
    path.write_text(text)
    assert main([str(path)]) == 2
    assert "is no result of the quality benchmark" in capsys.readouterr().err


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 2
    assert "cannot read" in capsys.readouterr().err
