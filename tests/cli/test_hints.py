"""Commands in notes and hints: typed as they stand they work, also where a model is a folder."""

import re
import shlex

import pytest
from pipelines import TINY_MODEL
from typer.testing import CliRunner
from videos import make_video

from cogedit.cli import app

EDIT = ["edit", "clip.mp4", "-p", "a cat", *TINY_MODEL, "--num-inference-steps", "2"]


def cogedit(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.stderr
    return result


def typed(command):
    program, *words = shlex.split(command)
    assert program == "cogedit"
    return cogedit(*words)


def test_an_export_without_aligned_edges(here):
    make_video(here / "clip.mp4", num_frames=12)
    aligned = cogedit(*EDIT, "--align-edges", "16")
    [command] = re.findall(r"`(cogedit export .*?)`", aligned.stderr)
    assert (here / typed(command).stdout.strip()).is_file()


def test_an_export_elsewhere_where_a_file_is_in_the_way(here):
    make_video(here / "clip.mp4", num_frames=12)
    [edit] = [here / cogedit("reconstruct", *EDIT[1:]).stdout.strip()]
    edit.with_suffix(".mp4").write_bytes(b"something else")
    refused = cogedit("export", edit, *TINY_MODEL, code=2)
    [command] = re.findall(r"is whole: (cogedit export .*) -o FILE(.*)", refused.stderr)
    assert (here / typed(f"{command[0]} -o else.mp4{command[1]}").stdout.strip()).is_file()


def test_a_small_model_takes_no_zero_gigabytes(here):
    make_video(here / "clip.mp4", num_frames=12)
    made = cogedit(*EDIT, "--decode-tiling", "--vae-tiling")
    assert len(re.findall(r"(?:en|de)coding in tiles, about [1-9]\d*\.\d MB", made.stderr)) == 2


@pytest.mark.parametrize(
    ("table", "flags", "remedy"),
    [
        ("export.crf = 30", ["--codec", "ffv1"], "--crf auto"),
        ("export.crf = 30", ["--lossless"], "--crf auto"),
        ("export.lossless = true", ["--codec", "gif"], "--no-lossless"),
        ("export.lossless = true", ["--crf", "20"], "--no-lossless"),
        ("reconstruct.auto_mask = true", ["--mask", "0,0,80,50"], "--no-auto-mask"),
        ("export.every_frame = true", [], "--no-every-frame"),
    ],
)
def test_what_a_file_says_is_taken_back_by_a_flag(here, table, flags, remedy):
    """What the hint says to leave out is on no command line: it names the flag that does."""
    make_video(here / "clip.mp4", num_frames=12)
    (here / "cogedit.toml").write_text(f"{table}\n")
    refused = cogedit(*EDIT, *flags, "--dry-run", code=2)
    assert remedy in refused.stderr.partition("hint: ")[2]
    cogedit(*EDIT, *flags, *remedy.split(), "--dry-run")


def test_none_beside_a_lora_is_no_file(here):
    make_video(here / "clip.mp4", num_frames=12)
    shown = cogedit(*EDIT, "--lora", "style.safetensors", "--lora", "none", code=2).stderr
    assert "--lora is ['style.safetensors', 'none'], expected FILE or FILE:SCALE, or none" in shown
