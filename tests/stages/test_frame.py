"""`cogedit frame`: a frame of a video as the model will see it."""

import shutil

import numpy as np
import pytest
from PIL import Image
from pipelines import settings_here, tiny_artifacts
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import read_artifact
from cogedit.cli import app
from cogedit.errors import ArtifactError, UsageError, VideoError
from cogedit.media.png import save_png

ODD = {"load__width": 48, "load__height": 64}


@pytest.fixture
def video(here):
    return make_video(here / "clip.mp4", width=80, height=64, num_frames=30)


def first_of_clip(video, settings):
    return read_artifact(cogedit.load(video, settings).path).tensors["frames"][0].numpy()


@pytest.mark.parametrize(
    ("flags", "at"),
    [
        ({}, None),
        ({**ODD, "load__resize_mode": "pad"}, None),
        ({"load__start": "0.5", "load__frame_rate": "10"}, None),
        ({"load__skip_frames_start": 3}, None),
        ({"load__start": "0.9", "load__duration": "0.1"}, "0.4"),
        ({**ODD, "load__skip_frames_end": 3}, "7f"),
    ],
)
def test_a_frame_has_the_pixels_of_the_clip(video, flags, at):
    settings = settings_here(video, **flags)
    path = cogedit.save_frame(video, settings, output=video.with_name("first.png"), at=at)
    given = {name: value for name, value in flags.items() if at is None or name in ODD}
    begun = given if at is None else {**given, "load__start": at}
    expected = first_of_clip(video, settings_here(video, **begun))
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), expected)


def test_a_frame_of_an_artifact_is_that_of_its_clip(here):
    """From its frames, and from the video where those are gone."""
    video = make_video(here / "clip.mp4", width=80, height=64, num_frames=30)
    made = tiny_artifacts(video, {"load.max_num_frames": 9, "load.start": "0.3"})
    settings = settings_here(video)
    expected = read_artifact(made["frames"]).tensors["frames"][0].numpy()

    def shown(kind, name, at=None):
        path = cogedit.save_frame(made[kind], settings, output=str(here / name), at=at)
        return np.asarray(Image.open(path))

    assert np.array_equal(shown("frames", "a.png"), expected)
    assert np.array_equal(shown("trajectory", "b.png"), expected)
    later = shown("latents", "c.png", at="0.6")
    assert not np.array_equal(later, expected)
    made["frames"].unlink()
    assert np.array_equal(shown("latents", "d.png"), expected)
    assert np.array_equal(shown("latents", "e.png", at="0.3"), expected)
    shutil.move(video, here / "moved.mp4")
    with pytest.raises(ArtifactError, match=r"clip\.mp4"):
        shown("latents", "f.png")
    assert not (here / "f.png").exists()


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"output": "first.jpg"}, UsageError, r"first\.jpg"),
        ({"output": "mine.png"}, UsageError, r"mine\.png"),
        ({"output": "first.png", "at": "soon"}, UsageError, "soon"),
        ({"output": "first.png", "at": "99"}, VideoError, "1:39"),
        ({"output": "first.png", "at": "30f"}, VideoError, "30f"),
    ],
)
def test_what_is_no_frame_or_no_place_is_refused(video, options, error, named, listing):
    save_png(np.zeros((2, 2, 3), np.uint8), video.with_name("mine.png"))
    before = listing(video.parent)
    output = video.with_name(options["output"])
    with pytest.raises(error, match=named):
        cogedit.save_frame(video, settings_here(video), **options | {"output": output})
    assert listing(video.parent) == before


def test_the_command_replaces_a_picture_by_force_and_never_its_source(video):
    def frame(*args):
        size = ("--model", "shapes", "--width", "64", "--height", "64")
        return CliRunner().invoke(app, ["frame", *map(str, args), *size])

    assert frame(video, "-o", "first.png", "--json").exit_code == 0
    assert frame(video, "-o", "first.png").exit_code == 2
    assert frame(video, "-o", "first.png", "--at", "0.5", "--force").stdout == "first.png\n"
    shutil.copy("first.png", "only.png")
    refused = frame("only.png", "-o", "only.png", "--force")
    assert refused.exit_code != 0
    assert np.asarray(Image.open("only.png")).shape == (64, 64, 3)
