"""The commands as a shell runs them: one process each, on a real file."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from pipelines import GOLDEN_PIPELINE
from videos import make_video, read_back

from cogedit.artifacts import read_record
from cogedit.media.probe import probe_video

COGEDIT = shutil.which("cogedit", path=str(Path(sys.executable).parent)) or "cogedit"
PROMPT = "a blue cat running in snow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder with one video: odd size, 30000/1001 fps, with sound."""
    folder = tmp_path_factory.mktemp("a user's folder")
    make_video(
        folder / "my clip.mp4",
        width=177,
        height=131,
        num_frames=30,
        sound=True,
        options=("-c:v", "libx264", "-pix_fmt", "yuv444p"),
    )
    (folder / "cogedit.toml").write_text(
        f'model = "{GOLDEN_PIPELINE}"\ndtype = "fp32"\n'
        "[load]\nmax_num_frames = 9\n[invert]\nnum_inference_steps = 3\n"
    )
    return folder


def run(folder, *args, code=0):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COGEDIT_")}
    done = subprocess.run(
        [COGEDIT, *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def path_of(folder, done):
    """The single path that a command printed."""
    (line,) = done.stdout.splitlines()
    assert (folder / line).is_file()
    return folder / line


def test_five_commands(folder):
    loaded = run(folder, "load", "my clip.mp4")
    frames = path_of(folder, loaded)
    assert frames.parent.name == "my clip.cogedit"
    record = read_record(frames, "frames")
    assert (record.source.width, record.source.height) == (177, 131)
    assert record.source.fps == Fraction(30000, 1001)
    assert record.source.has_audio
    # 30 frames spread over at most 9: every third, and 9 = 8 * 1 + 1 of the 10.
    assert record.frame_indices == tuple(range(0, 27, 3))
    assert record.fps == Fraction(10000, 1001)
    assert record.tensors[0].shape == (9, 64, 96, 3)
    assert "took every 3rd frame" in loaded.stderr

    latents = path_of(folder, run(folder, "encode", frames))
    assert read_record(latents, "latents").frames == record

    inverted = run(folder, "invert", latents)
    trajectory = path_of(folder, inverted)
    shapes = {t.name: t.shape for t in read_record(trajectory, "trajectory").tensors}
    assert shapes == {
        "trajectory": (3, 1, 3, 16, 8, 12),
        "latents": (1, 3, 16, 8, 12),
        "timesteps": (3,),
    }
    assert "standard deviation of the noise" in inverted.stderr

    edited = run(folder, "reconstruct", "--prompt", PROMPT, "--start", "random", "--seed", 7)
    assert f"my clip.cogedit/{trajectory.name}" in edited.stderr
    edit = path_of(folder, edited)
    assert read_record(edit, "edit").settings.prompt == PROMPT
    assert read_record(edit, "edit").settings.seed == 7
    assert read_record(edit, "edit").trajectory == read_record(trajectory, "trajectory")

    video = path_of(folder, run(folder, "export", edit, "-o", "edit.mp4"))
    assert read_back(video, width=96, height=64).shape == (9, 64, 96, 3)
    assert probe_video(video).fps == Fraction(10000, 1001)
    inversion = path_of(folder, run(folder, "export", trajectory))
    assert inversion == trajectory.with_suffix(".mp4")
    source = path_of(folder, run(folder, "export", frames, "--fps", "24"))
    assert probe_video(source).fps == 24


def test_the_video_alone_is_enough_and_nothing_is_done_twice(folder):
    run(folder, "invert", "my clip.mp4")  # there already, unless this test runs alone
    again = run(folder, "invert", "my clip.mp4")
    assert again.stderr.count("reused") == 3
    done = run(
        folder, "edit", "my clip.mp4", "--prompt", PROMPT, "--prompt", "a dog", "-o", "edits"
    )
    videos = [folder / line for line in done.stdout.splitlines()]
    assert [v.name[: v.name.rindex("-")] for v in videos] == [
        "my clip-a-blue-cat-running-in-snow",
        "my clip-a-dog",
    ]
    for video in videos:
        assert read_back(video, width=96, height=64).shape == (9, 64, 96, 3)
    once_more = run(
        folder, "edit", "my clip.mp4", "--prompt", PROMPT, "--prompt", "a dog", "-o", "edits"
    )
    assert once_more.stdout == done.stdout
    assert "wrote" not in once_more.stderr


def test_json_is_one_object_on_stdout(folder):
    run(folder, "invert", "my clip.mp4")  # there already, unless this test runs alone
    done = run(folder, "invert", "my clip.mp4", "--json", "-q")
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    (output,) = printed["outputs"]
    assert (printed["command"], output["kind"], output["reused"]) == ("invert", "trajectory", True)
    assert (folder / output["path"]).is_file()

    shown = json.loads(run(folder, "inspect", output["path"], "--json").stdout)
    assert shown["content_key"] == output["content_key"]
    assert shown["record"]["latents"]["frames"]["source"]["name"] == "my clip.mp4"
    assert str(folder) not in json.dumps(shown["record"])


def test_inspect_is_for_people(folder):
    trajectory = next((folder / "my clip.cogedit").glob("trajectory-*.safetensors"))
    text = run(folder, "inspect", trajectory).stdout
    assert "trajectory, made by cogedit" in text
    assert "all digests match" in text
    assert "my clip.mp4, 30 frames" in text
    assert "[3, 1, 3, 16, 8, 12] float32" in text


def test_a_newer_workspace_is_taken(folder):
    run(folder, "invert", "my clip.mp4", "--workspace", "other.cogedit")
    done = run(folder, "reconstruct", "--prompt", PROMPT)
    assert "other.cogedit/trajectory-" in done.stderr


def test_version_and_module(folder):
    import cogedit

    assert run(folder, "--version").stdout == f"cogedit {cogedit.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "cogedit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cogedit {cogedit.__version__}\n"


@pytest.mark.parametrize("name", ["pipeline_2b", "pipeline_15"])
def test_five_commands_on_other_models(name, request, tmp_path):
    make_video(tmp_path / "clip.mp4", width=128, height=128, num_frames=12)
    model = ("--model", request.getfixturevalue(name), "--dtype", "fp32")
    frames = path_of(tmp_path, run(tmp_path, "load", "clip.mp4", *model))
    latents = path_of(tmp_path, run(tmp_path, "encode", frames, *model))
    steps = ("--num-inference-steps", 3)
    trajectory = path_of(tmp_path, run(tmp_path, "invert", latents, *steps, *model))
    edit = path_of(tmp_path, run(tmp_path, "reconstruct", trajectory, "-p", PROMPT, *model))
    video = path_of(tmp_path, run(tmp_path, "export", edit, *model))
    assert read_back(video, width=64, height=64).shape == (9, 64, 64, 3)


@pytest.mark.parametrize(
    "first_line", ["trajectory=$(cogedit invert bear.mp4)", "for video in *.mp4; do"]
)
def test_the_shell_loops_of_the_readme(folder, tmp_path, first_line):
    """As written there, on a clip of that name."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    loop = text[text.index(first_line) :]
    loop = loop[: loop.index("```")]
    shutil.copy(folder / "my clip.mp4", tmp_path / "bear.mp4")
    shutil.copy(folder / "cogedit.toml", tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\na dog in the snow\n")
    done = subprocess.run(
        ["bash", "-euc", loop],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": f"{Path(COGEDIT).parent}:{os.environ['PATH']}"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    videos = [tmp_path / line for line in done.stdout.splitlines()]
    assert len(set(videos)) == 2
    assert all(video.is_file() for video in videos)


def test_the_python_example_of_the_readme(folder, tmp_path):
    """As written there, on a clip of that name."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    example = text[text.index("import cogedit") :]
    example = example[: example.index("```")]
    shutil.copy(folder / "my clip.mp4", tmp_path / "bear.mp4")
    shutil.copy(folder / "cogedit.toml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", example.replace("25}", "2}")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("bear.cogedit/edit-*.mp4"))) == 2
