"""A folder or a pattern of pictures is a video for every command, and a mask."""

import contextlib
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cogedit.artifacts import frames_record, read_artifact, read_record
from cogedit.cli import app

MODEL = ["--dtype", "fp32", "--device", "cpu"]
STEPS = ["--num-inference-steps", "2"]


def run(folder, *args):
    # Few pictures, at any rate: all of them.
    env = {"COLUMNS": "999", "COGEDIT_LOAD_FRAME_RATE": "spread"}
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, [*map(str, args)], env=env)


def made(folder, *args):
    """The one path that a command prints."""
    shown = run(folder, *args)
    assert shown.exit_code == 0, shown.stderr
    return folder / shown.stdout.strip()


def make_pictures(folder, *, count=9, size=(64, 64), name="f{}.png", colour=None):
    folder.mkdir(parents=True)
    for number in range(count):
        level = colour if colour is not None else (16 + 8 * number, 60, 90)
        Image.new("RGB", size, level).save(folder / name.format(number + 3))
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch, pipeline_5b):
    monkeypatch.setenv("COGEDIT_MODEL", str(pipeline_5b))
    make_pictures(tmp_path / "frames", count=11)
    return tmp_path


def loaded(path):
    return read_artifact(path, "frames").tensors["frames"].numpy()


@pytest.mark.parametrize("place", ["frames", "frames/", "frames/f%d.png", "frames/*.png"])
def test_pictures_are_loaded_in_the_order_of_their_numbers(work, place):
    path = made(work, "load", place, "--fps", "30000/1001", *MODEL)
    assert path.parent == work / "frames.cogedit"
    source = frames_record(read_record(path)).source
    assert (source.name, source.num_frames) == ("frames", 11)
    assert (source.fps, source.reader, source.has_audio) == (Fraction(30000, 1001), "pillow", False)
    assert [frame[0, 0, 0] for frame in loaded(path)] == [16 + 8 * number for number in range(9)]


def test_a_rate_that_nobody_gave_is_said(work):
    shown = run(work, "load", "frames", *MODEL)
    assert shown.exit_code == 0
    assert "25 fps" in shown.stderr
    assert "--fps" in shown.stderr
    assert "are assumed" not in run(work, "load", "frames", "--fps", "25", *MODEL).stderr


def test_the_rate_is_no_second_setting_of_the_clip(work):
    (work / "cogedit.toml").write_text("[load]\nfps = 25\n")
    from_file = made(work, "load", "frames", *MODEL)
    (work / "cogedit.toml").unlink()
    assert made(work, "load", "frames", *MODEL) == from_file
    assert made(work, "load", "frames", "--fps", "24", *MODEL) != from_file


def test_every_command_takes_pictures(work):
    """A loop with one list of flags, then each other command."""
    flags = [*MODEL, *STEPS, "--fps", "12", "--max-num-frames", "9", "--frame-sample-step", "1"]
    artifact = work / "frames"
    for stage in ("load", "encode", "invert", "reconstruct", "export"):
        prompt = ["-p", "a red square"] if stage == "reconstruct" else []
        artifact = made(work, stage, artifact.relative_to(work), *flags, *prompt)
    same = run(work, "edit", "frames", *flags, "-p", "a red square", "--dry-run", "--json")
    estimate = json.loads(same.stdout)
    assert [stage["reused"] for stage in estimate["stages"]] == [1, 1]
    assert made(work, "compare", "frames", artifact, "-o", "row.mp4", "--fps", "12").is_file()
    other = run(work, "reconstruct", "-p", "x", "--fps", "13", *MODEL)
    assert other.exit_code == 2
    assert "12" in other.stderr
    (work / "edits.csv").write_text("video,prompt\nframes,a red square\nframes/f%d.png,x\n")
    planned = run(work, "batch", "edits.csv", "--dry-run", "--json", *flags)
    assert planned.exit_code == 0, planned.stderr
    assert [edit["edit"] for edit in json.loads(planned.stdout)["edits"]] == [True, False]
    page = made(work, "report", "frames.cogedit", *MODEL)
    assert "12 fps" in page.read_text()


def test_the_source_is_found_again(work):
    """For its own size, by name, and by --source where it has another."""
    sized = ["--resize-mode", "pad", "--width", "64", "--height", "64"]
    make_pictures(work / "wide", size=(96, 64), name="{:04d}.png")
    video = made(
        work, "edit", "wide/%04d.png", "-p", "a red square", *MODEL, *STEPS, *sized, "--fps", "8"
    )
    [edit] = (work / "wide.cogedit").glob("edit-*.safetensors")
    export = ["export", edit, "--size", "source", "--align-edges", "2", *MODEL]
    assert made(work, *export, "-o", "big.mp4").is_file()
    (work / "wide").rename(work / "other")
    missing = run(work, *export, "-o", "bigger.mp4")
    assert missing.exit_code == 3
    assert "wide/%04d.png" in missing.stderr
    assert made(work, *export, "-o", "bigger.mp4", "--source", "other").is_file()
    Image.new("RGB", (96, 64)).save(work / "other" / "0005.png")
    changed = run(work, *export, "-o", "biggest.mp4", "--source", "other")
    assert changed.exit_code == 2
    assert video.is_file()


def test_pictures_that_cogedit_wrote_are_read_back_at_their_rate(work):
    video = made(work, "load", "frames", "--fps", "24000/1001", *MODEL)
    written = made(work, "export", video, "--codec", "png", "-o", "png")
    assert sorted(path.name for path in written.iterdir())[0] == "frame-0000.png"
    assert run(work, "inspect", "png/*.png").exit_code == 0
    again = made(work, "load", "png", *MODEL)
    assert frames_record(read_record(again)).source.fps == Fraction(24000, 1001)
    assert (loaded(again) == loaded(video)).all()
    slower = made(work, "load", "png", "--fps", "8", *MODEL)
    assert frames_record(read_record(slower)).source.fps == 8


@pytest.mark.parametrize("place", ["mask", "mask/%04d.png", "mask/*.png"])
def test_pictures_are_a_mask(work, place):
    make_pictures(work / "mask", count=11, name="{:04d}.png", colour=(0, 0, 0))
    for picture in sorted((work / "mask").iterdir())[2:]:
        image = Image.new("L", (64, 64))
        image.paste(255, (0, 0, 32, 64))
        image.save(picture)
    args = ["-p", "a red square", "--mask", place, "--fps", "12", *MODEL, *STEPS]
    made(work, "edit", "frames", *args)
    [edit] = (work / "frames.cogedit").glob("edit-*.safetensors")
    mask = read_artifact(edit, "edit").tensors["mask"].numpy()
    assert [int(frame.mean() * 64) for frame in mask] == [0, 0, *[32] * 7]
    (work / "mask" / "0013.png").unlink()
    (work / "mask" / "0012.png").unlink()
    (work / "mask" / "0011.png").unlink()
    short = run(work, "edit", "frames", *args, "--dry-run")
    assert short.exit_code == 3


def test_an_animated_mask_is_a_video(work):
    images = [Image.new("L", (64, 64), 200 * (number > 4) + number) for number in range(11)]
    images[0].save(work / "mask.png", save_all=True, append_images=images[1:], duration=40)
    made(work, "edit", "frames", "-p", "a red square", "--mask", "mask.png", *MODEL, *STEPS)
    [edit] = (work / "frames.cogedit").glob("edit-*.safetensors")
    assert read_record(edit).mask.kind == "video"


@pytest.mark.parametrize("name", ["clip.webp", "clip.png"])
def test_an_animation_is_a_video_with_a_rate_of_its_own(work, name):
    images = [Image.new("RGB", (64, 64), (20 * number, 60, 90)) for number in range(9)]
    how = {"lossless": True} if name.endswith("webp") else {}
    images[0].save(work / name, save_all=True, append_images=images[1:], duration=40, **how)
    shown = run(work, "load", name, "--fps", "12", *MODEL)
    assert "--fps changes nothing" in shown.stderr
    path = work / shown.stdout.strip()
    assert frames_record(read_record(path)).source.fps == 25
    assert [int(frame[0, 0, 0]) for frame in loaded(path)] == [20 * number for number in range(9)]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["load", "frames", "-o", "frames/f99.png"], 2),
        (["load", "frames/*.png", "-o", "frames/x.png"], 2),
        (["load", "empty"], 3),
        (["load", "none/%d.png"], 3),
        (["load", "still.png"], 3),
        (["load", "frames", "--fps", "0"], 2),
    ],
)
def test_what_cannot_work_is_refused(work, args, code, listing):
    Image.new("RGB", (64, 64)).save(work / "still.png")
    (work / "empty").mkdir()
    before = listing(work / "frames")
    shown = run(work, *args, *MODEL)
    assert shown.exit_code == code, shown.stderr
    assert listing(work / "frames") == before


def test_large_steps_of_a_folder_play_as_long_as_it_does(work):
    """Frames that are spread over a long folder keep its time; --fps is the pictures' own rate."""
    make_pictures(work / "long", count=27, name="{:03d}.png")
    path = made(work, "load", "long", "--fps", "24", *MODEL)
    frames = frames_record(read_record(path))
    assert (frames.source.fps, frames.fps) == (24, 8)
    assert np.diff(frames.frame_indices).tolist() == [3] * 8
