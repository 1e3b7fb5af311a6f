"""Which seconds of a video become a clip, and the frames that only the VAE wants."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pipelines
import pytest
from typer.testing import CliRunner
from videos import make_counter, make_video

import cogedit
from cogedit.artifacts import read_artifact, read_record
from cogedit.cli import app
from cogedit.errors import UsageError, VideoError
from cogedit.media import probe
from cogedit.media.probe import probe_facts
from cogedit.stages.recipe import read_recipe
from cogedit.tools.compare import open_input

CLIPS = Path(__file__).parent.parent / "data" / "clips"


def settings_of(video, **flags):
    return pipelines.settings_of(video, **({"load__frame_rate": "model"} | flags))


def run(*args):
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "999"})


def edit_of(video, **flags):
    """Settings and an edit of a clip, with a mask."""
    settings = settings_of(video, export__composite="source", **flags)
    [edit] = cogedit.reconstruct(video, ["a red ball"], settings, mask="10,10,40,40@1:3")
    return settings, edit.path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A clip of 6 frames at the rate of the model, with the settings and an edit of it."""
    video = make_video(tmp_path_factory.mktemp("short") / "clip.mp4", fps="8", num_frames=6)
    return video, *edit_of(video)


def num_frames_of(path):
    return probe_facts(path).num_frames


def test_the_artifacts_have_the_extra_frames(short):
    video, settings, edit = short
    frames = cogedit.load(video, settings)
    assert frames.record.frame_indices == (0, 1, 2, 3, 4, 5, 5, 5, 5)
    assert (frames.record.num_frames, frames.record.num_extra_frames) == (6, 3)
    pixels = read_artifact(frames.path, "frames").tensors["frames"]
    assert pixels.shape[0] == 9
    assert all((pixels[number] == pixels[5]).all() for number in (6, 7, 8))
    artifact = read_artifact(edit, "edit")
    assert artifact.tensors["latents"].shape[1] == 3
    assert artifact.tensors["mask"].shape[0] == 9


@pytest.mark.parametrize("size", ["clip", "source"])
@pytest.mark.parametrize("align_edges", [0, 4])
def test_no_video_shows_the_extra_frames(short, tmp_path, size, align_edges):
    video, _, edit = short
    flags = {"export__size": size, "export__align_edges": align_edges}
    settings = settings_of(video, export__composite="source", **flags)
    out = tmp_path / "edit.mp4"
    exported = cogedit.export(edit, settings, output=out, source_video=video, with_source=True)
    assert num_frames_of(out) == num_frames_of(exported.source) == 6
    assert probe_facts(out).fps == 8
    assert read_recipe(out).record == read_record(edit)


def test_latents_and_masks_are_shown_without_them(short, tmp_path):
    video, settings, edit = short
    latents = cogedit.encode(video, settings).path
    cogedit.export(latents, settings_of(video), output=tmp_path / "latents.mp4")
    assert num_frames_of(tmp_path / "latents.mp4") == 6
    assert [len(open_input(path).indices) for path in (latents, edit)] == [6, 6]


def test_inspect_and_cache_ls_name_the_seconds(short):
    _, settings, edit = short
    shown = run("inspect", edit).stdout
    assert "0:00 to 0:00.75 of 0:00.75" in shown
    assert "3 more" in shown
    told = json.loads(run("inspect", edit, "--json").stdout)
    assert told["record"]["trajectory"]["latents"]["frames"]["num_extra_frames"] == 3
    assert "0:00 to 0:00.75 of clip.mp4" in run("cache", "ls", settings.workspace).stdout


def test_the_seconds_that_were_asked_for_are_those_of_the_clip(tmp_path):
    video = make_counter(tmp_path / "counter.mp4", num_frames=50)
    settings = settings_of(video, load__start="0:00.8", load__duration="0.64")
    frames = cogedit.load(video, settings)
    record = frames.record
    assert record.shown_indices == (20, 23, 26, 29, 32, 35)
    assert record.frame_indices == (*range(20, 47, 3),)
    assert record.fps == Fraction(25, 3)
    assert (record.settings.start, record.settings.duration) == ("0.8", "0.64")
    assert record.span == (Fraction(4, 5), Fraction(38, 25))
    pixels = read_artifact(frames.path, "frames").tensors["frames"].numpy()
    shown = np.abs(np.diff(pixels[:, 24:40, 40:56].mean(axis=(1, 2, 3))))
    assert (shown > 6).all()  # three levels of four between frames
    again = cogedit.load(video, settings_of(video, load__start="20f", load__end="1.44"))
    assert again.reused
    assert again.path == frames.path


def test_a_time_in_a_batch_row(tmp_path):
    make_counter(tmp_path / "counter.mp4", num_frames=50)
    (tmp_path / "edits.toml").write_text(
        "[load]\nend = 1.5\n[[edit]]\nvideo = 'counter.mp4'\nprompt = 'x'\nload.start = '0:01'\n"
    )
    [row] = cogedit.config.read_batch(str(tmp_path / "edits.toml"))
    resolved = cogedit.settings_for(tmp_path / "counter.mp4", rows=row.values, environ={})
    assert (resolved.settings.load.start, resolved.settings.load.end) == ("1", "1.5")


def test_a_size_that_changes_within_the_clip_is_found_in_a_long_video(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "MANY_KEYFRAMES", 1)
    video = shutil.copy(CLIPS / "size-changes.mkv", tmp_path / "long.mkv")
    found = []
    for start in ("0f", "20f"):
        settings = settings_of(video, load__start=start, load__frame_rate="source")
        found.append(cogedit.load(video, settings).record.source.changes_size)
    assert found == [False, True]


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--start", "1", "--skip-frames-start", "5"], 2, "--skip-frames-start"),
        (["--end", "1", "--duration", "5"], 2, "--duration"),
        (["--start", "soon"], 2, "--start is soon"),
        (["--start", "1:75"], 2, "--start is 1:75"),
        (["--frame-rate", "fast"], 2, "--frame-rate is fast"),
        (["--max-num-frames", "auto"], 2, "--max-num-frames is auto"),
        (["--start", "2"], 3, "clip.mp4 has no frame at 0:02:"),
        (["--start", "1:02.5"], 3, "clip.mp4 has no frame at 1:02.5:"),
        (["--start", "0.7500001"], 3, "clip.mp4 has no frame at 0:00.7500001: it lasts 0:00.75 "),
        (["--start", "99f"], 3, "clip.mp4 has no frame at 99f:"),
        (["--start", ".2", "--end", "0.1"], 2, "--end 0:00.1 is not after --start 0:00.2"),
    ],
)
def test_what_is_refused(short, flags, code, named):
    video, *_ = short
    result = run("load", video, "--model", settings_of(video).model, *flags)
    assert result.exit_code == code
    assert named in result.stderr


def test_python_is_refused_by_the_same_rules(short):
    video, *_ = short
    with pytest.raises(UsageError, match="--skip-frames-end"):
        cogedit.load(video, settings_of(video, load__end="1", load__skip_frames_end=1))
    with pytest.raises(VideoError, match=r"clip\.mp4 has no frame at 0:09"):
        cogedit.load(video, settings_of(video, load__start="9"))
