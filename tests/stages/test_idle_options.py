"""Options that change nothing beside others: a line says so, in a dry run as in the run."""

import pytest
from pipelines import TINY_MODEL
from typer.testing import CliRunner
from videos import make_video

from cogedit.cli import app

TINY = [*TINY_MODEL, "--num-inference-steps", "2"]
FLOW = ["--method", "flow"]
MAPS = ["--injection-mode", "image-queries-keys", "--injection-strength", "1"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idle")
    make_video(folder / "clip.mp4", num_frames=12)
    make_video(folder / "heard.mp4", num_frames=12, sound=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def said(*flags, video="clip.mp4", command=("edit", "-p", "a cat")):
    first, *rest = command
    result = CliRunner().invoke(app, [first, video, *rest, *TINY, *flags])
    assert result.exit_code == 0, result.stderr
    return [line for line in result.stderr.splitlines() if "changes nothing" in line]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--source-guidance-scale", "2"], "without --method flow"),
        (["--start-noise", "0.5", *FLOW], "with --method flow, where --start-from random adds"),
        (["--negative-prompt", "x", "--guidance-scale", "1"], "without guidance"),
        (["--negative-prompt", "x", "--unconditional", "source"], "with --unconditional source"),
        (["--guidance-reuse", "0.2", "--guidance-scale", "1"], "without guidance"),
        (["--guidance-reuse", "0.2", *FLOW], "with --method flow"),
        (["--auto-mask-threshold", "0.5"], "without --auto-mask"),
        (["--auto-mask-threshold", "0.5", "--mask", "0,0,80,50"], "without --auto-mask"),
        (["--mask-dilation", "2"], "without --mask or --auto-mask"),
        (["--injection-tokens", "image", *MAPS], "without --injection-mode concatenate"),
        (["--injection-recentering", "0.3", *MAPS], "without --injection-mode concatenate"),
        (["--inversion-iterations", "2", "--inverse", "upstream"], "with --inverse upstream"),
        (["--inversion-iterations", "2", "--inverse", "midpoint"], "with --inverse midpoint"),
        (["--background", "red"], "of the video, which is not transparent"),
    ],
)
def test_what_changes_nothing_is_said(here, flags, text):
    assert said(*flags, "--dry-run") == [f"{flags[0]} changes nothing {text}{end(text)}"]


def test_a_run_says_what_its_dry_run_said(here):
    """Of the edit, of its inversion and of the clip."""
    flags = ["--mask-dilation", "2", "--inversion-iterations", "2", "--inverse", "upstream"]
    flags += ["--background", "red"]
    planned = said(*flags, "--dry-run")
    assert len(planned) == 3
    assert sorted(said(*flags)) == sorted(planned)


def end(text):
    return {
        "without guidance": " (--guidance-scale 1)",
        "with --method flow, where --start-from random adds": " noise",
    }.get(text, "")


@pytest.mark.parametrize(
    "flags",
    [
        ["--source-guidance-scale", "2", *FLOW],
        ["--negative-prompt", "x", "--guidance-scale", "1", "--source-guidance-scale", "2", *FLOW],
        ["--mask-dilation", "2", "--mask", "0,0,80,50"],
        ["--auto-mask-threshold", "0.5", "--auto-mask", "--source-prompt", "a dog"],
        ["--inversion-iterations", "2"],
        ["--config", "upstream", "--inversion-steps", "2"],
        ["--config", "bold"],
        ["--config", "fast", "--inversion-steps", "3"],
    ],
)
def test_what_changes_something_is_not(here, flags):
    assert said(*flags, "--dry-run") == []


@pytest.mark.parametrize(
    "flags", [["--no-sound"], ["--codec", "gif"], ["--fps", "12"], ["--size", "clip"]]
)
def test_a_track_of_audio_that_is_not_written(here, flags):
    track = ["--audio-track", "1"]
    video = "clip.mp4" if flags[0] == "--size" else "heard.mp4"
    assert said(*track, *flags, video=video) == [
        "--audio-track changes nothing: the video is written without audio"
    ]
    assert said(*track, video="heard.mp4") == []


def test_a_sweep_says_what_none_of_its_edits_uses(here):
    def swept(*values):
        vary = [word for value in values for word in ("--vary", value)]
        command = ("sweep", "-p", "a cat", "--dry-run")
        return said("--source-guidance-scale", "2", *vary, command=command)

    assert swept("guidance-scale=2,3") != []
    assert swept("method=injection,flow") == []


@pytest.mark.parametrize(
    ("name", "flags", "idle"),
    [
        ("o.png", ["--crf", "20", "--lossless"], ["--crf", "--lossless"]),
        ("o.png", ["--codec", "h265", "--fps", "12"], ["--codec"]),
        ("o.mp4", ["--crf", "20"], []),
        ("f.png", ["--feather", "3"], ["--feather"]),
    ],
)
def test_a_comparison_says_it_too(here, name, flags, idle):
    words = ["compare", "clip.mp4", "clip.mp4", *TINY[:6], *flags, "-o", name, "--force"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "changes nothing" in line]
    assert [line.split()[0] for line in lines] == idle


@pytest.mark.parametrize("flags", [["--audio-track", "1"], ["--every-frame"]])
def test_what_no_comparison_has_is_no_option_of_it(here, flags):
    words = ["compare", "clip.mp4", "clip.mp4", *flags, "-o", "o.mp4"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "No such option" in result.stderr
