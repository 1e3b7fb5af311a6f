"""What is on another machine, or named as another system does: recognised wherever it is named."""

import errno
from pathlib import Path, PureWindowsPath

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
        (
            str(PureWindowsPath("https://host.org/a/clip.mp4")),
            "-o clip.mp4 https://host.org/a/clip",
        ),
        (str(PureWindowsPath("https://youtu.be/watch?v=abc")), "'https://youtu.be/watch?v=abc'"),
        (str(PureWindowsPath("www.host.org/clip.mp4")), "https://www.host.org/clip.mp4"),
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
        (r"clips:\bear.mp4", "write it with /: clips:/bear.mp4"),
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


def test_an_address_with_a_question_mark_is_no_pattern_of_pictures():
    said = CliRunner().invoke(app, ["load", "https://www.youtube.com/watch?v=abc", *SMALL])
    assert said.exit_code == 3
    assert "yt-dlp" in said.stderr


@pytest.fixture
def names_of_windows(tmp_path, monkeypatch):
    """Refuse names as Windows does, which tells those that cannot be from those that are not."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=64, height=64, num_frames=9)
    for name in ("stat", "lstat", "open"):
        call = getattr(Path, name)

        def refuse_or_call(path, *args, call=call, **options):
            if set(str(path)) & set("*?"):
                error = OSError(errno.EINVAL, "The filename syntax is incorrect", str(path))
                error.winerror = 123  # type: ignore[attr-defined]
                raise error
            return call(path, *args, **options)

        monkeypatch.setattr(Path, name, refuse_or_call)


@pytest.mark.parametrize(
    ("command", "exit_code", "named"),
    [
        (["load", "https://youtube.com/watch?v=abc", *SMALL], 3, "yt-dlp"),
        (["load", "clips/*.mp4", *SMALL], 3, "no such video"),
        (["inspect", "clip?.mp4"], 3, "no such video"),
        (["edit", "clip.mp4", "-p", "x", "--dry-run", "-o", "noon?/", *SMALL], 7, "this name here"),
    ],
)
def test_a_name_that_cannot_be_is_one_that_is_not(names_of_windows, command, exit_code, named):
    said = CliRunner().invoke(app, command, env={"COLUMNS": "999"})
    assert (said.exit_code, said.stdout) == (exit_code, ""), said.stderr
    assert named in said.stderr
