"""What is on another machine, or named as another system does: recognised wherever it is named."""

from pathlib import Path

import pytest
from typer.testing import CliRunner
from videos import make_video

from cogedit.cli import app
from cogedit.places import find_elsewhere

SMALL = ["--model", "shapes", "--device", "cpu"]


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("https://host.org/a/clip.mp4?x=1&y=2", "curl -o clip.mp4 'https://host.org/a/clip.mp4?x"),
        (str(Path("http://host.org/clip.mp4")), "http://host.org/clip.mp4"),
        ("FTP://host/clip.mp4", "ftp://host/clip.mp4"),
        ("s3://bucket/clip.mp4", "aws s3 cp s3://bucket/clip.mp4 ."),
        ("rtsp://camera/1", "rtsp://camera/1"),
        ("https://www.youtube.com/watch?v=abc", "yt-dlp"),
        ("https://youtu.be/abc", "yt-dlp"),
        ("youtu.be/abc", "yt-dlp"),
        ("www.host.org/clip.mp4", "curl"),
        ("file:///clips/bear.mp4", "name the file: /clips/bear.mp4"),
        (r"C:\clips\bear.mp4", "/mnt/c/clips/bear.mp4"),
        ("d:clips/bear.mp4", "/mnt/d/clips/bear.mp4"),
        (r"clips\bear.mp4", "clips/bear.mp4"),
    ],
)
def test_places_elsewhere_are_known(place, named):
    found = find_elsewhere(place)
    assert found is not None
    assert named in f"{found.message} {found.hint}"


@pytest.mark.parametrize(
    "place", ["bear.mp4", "a/b: c.mp4", "/clips/x.mp4", "youtube.mp4", "", ":"]
)
def test_other_places_are_files(place):
    assert find_elsewhere(place) is None


@pytest.mark.parametrize(
    "place", ["https://host/clip.mp4", "https://h/" + "a" * 300, r"C:\clip.mp4"]
)
@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        (["load", "{}", *SMALL], 3),
        (["encode", "{}", *SMALL], 3),
        (["edit", "{}", "-p", "x", "--dry-run", *SMALL], 3),
        (["reconstruct", "{}", "-p", "x", *SMALL, "--num-inference-steps", "2"], 3),
        (["edit", "clip.mp4", "-p", "x", "--mask", "{}", "--dry-run", *SMALL], 3),
        (["compare", "clip.mp4", "{}", "-o", "o.mp4"], 3),
        (["inspect", "{}"], 3),
        (["load", "clip.mp4", "-o", "{}", *SMALL], 2),
        (["edit", "clip.mp4", "-p", "x", "--dry-run", "-o", "{}", *SMALL], 2),
    ],
)
def test_every_command_says_what_to_do_instead(command, exit_code, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=64, height=64, num_frames=9)
    said = CliRunner().invoke(app, [part.format(place) for part in command], env={"COLUMNS": "999"})
    assert said.exit_code == exit_code
    assert said.stdout == ""
    assert "URL" in said.stderr or "Windows" in said.stderr
    assert "hint:" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
