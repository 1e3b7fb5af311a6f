"""The commands as a shell runs them: one process each, on a real file."""

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import processes
import pytest
from pipelines import TINY_PIPELINE
from videos import make_video, read_back

import cogedit
from cogedit.artifacts import read_record
from cogedit.media.probe import probe_facts

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
        f'model = "{TINY_PIPELINE}"\ndtype = "fp32"\n'
        "[load]\nmax_num_frames = 9\nframe_rate = 'spread'\n[invert]\nnum_inference_steps = 3\n"
    )
    return folder


def run(folder, *args, code=0):
    return processes.cogedit(*args, cwd=folder, code=code)


def path_of(folder, done):
    """The single path that a command printed."""
    (line,) = done.stdout.splitlines()
    assert (folder / line).is_file()
    return folder / line


def test_five_commands(folder):
    frames = path_of(folder, run(folder, "load", "my clip.mp4"))
    assert frames.parent.name == "my clip.cogedit"
    record = read_record(frames, "frames")
    assert (record.source.width, record.source.height) == (177, 131)
    assert record.source.fps == Fraction(30000, 1001)
    assert record.source.has_audio
    # 30 frames spread over at most 9: every third, and 9 = 8 * 1 + 1 of the 10.
    assert record.frame_indices == tuple(range(0, 27, 3))
    assert record.fps == Fraction(10000, 1001)
    assert record.tensors[0].shape == (9, 64, 96, 3)

    latents = path_of(folder, run(folder, "encode", frames))
    assert read_record(latents, "latents").frames == record

    trajectory = path_of(folder, run(folder, "invert", latents))
    shapes = {t.name: t.shape for t in read_record(trajectory, "trajectory").tensors}
    assert shapes == {
        "trajectory": (3, 1, 3, 16, 8, 12),
        "latents": (1, 3, 16, 8, 12),
        "timesteps": (3,),
    }

    edited = run(folder, "reconstruct", "--prompt", PROMPT, "--start", "random", "--seed", 7)
    assert f"my clip.cogedit/{trajectory.name}" in edited.stderr
    edit = path_of(folder, edited)
    assert read_record(edit, "edit").settings.prompt == PROMPT
    assert read_record(edit, "edit").settings.seed == 7
    assert read_record(edit, "edit").trajectory == read_record(trajectory, "trajectory")

    video = path_of(folder, run(folder, "export", edit, "-o", "edit.mp4"))
    assert read_back(video, width=96, height=64).shape == (9, 64, 96, 3)
    assert probe_facts(video).fps == Fraction(10000, 1001)
    inversion = path_of(folder, run(folder, "export", trajectory))
    assert inversion == trajectory.with_suffix(".mp4")
    source = path_of(folder, run(folder, "export", frames, "--fps", "24"))
    assert probe_facts(source).fps == 24


def test_the_video_alone_is_enough_and_nothing_is_done_twice(folder):
    run(folder, "invert", "my clip.mp4")  # there already, unless this test runs alone
    again = run(folder, "invert", "my clip.mp4")
    made = {"frames", "latents", "trajectory"}
    assert {name for name in made if f"/{name}-" in again.stderr} == made
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
    before = {video: video.stat().st_mtime_ns for video in videos}
    once_more = run(
        folder, "edit", "my clip.mp4", "--prompt", PROMPT, "--prompt", "a dog", "-o", "edits"
    )
    assert once_more.stdout == done.stdout
    assert {video: video.stat().st_mtime_ns for video in videos} == before


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
    for named in ("trajectory", "my clip.mp4", "30 frames", "[3, 1, 3, 16, 8, 12]", "float32"):
        assert named in text


def test_a_newer_workspace_is_taken(folder):
    run(folder, "invert", "my clip.mp4", "--workspace", "other.cogedit")
    done = run(folder, "reconstruct", "--prompt", PROMPT)
    assert "other.cogedit/trajectory-" in done.stderr


def test_the_installed_program(folder):
    """In an interpreter of its own, which the other tests save."""
    done = subprocess.run(
        [COGEDIT, "load", "my clip.mp4"], cwd=folder, capture_output=True, text=True, check=True
    )
    path_of(folder, done)


def test_the_module_is_the_program_too():
    command = [sys.executable, "-m", "cogedit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"cogedit {cogedit.__version__}\n"


def documented(page, first_line):
    """The code of a page from this line on."""
    text = (Path(__file__).parents[1] / page).read_text()
    return text[text.index(first_line) :].partition("```")[0]


@pytest.fixture
def bear(folder, tmp_path):
    """A folder with the clip of the documented examples."""
    shutil.copy(folder / "my clip.mp4", tmp_path / "bear.mp4")
    shutil.copy(folder / "cogedit.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "first_line"),
    [("edits.md", "trajectory=$(cogedit invert bear.mp4)"), ("batches.md", "for video in *.mp4")],
)
def test_the_shell_loops_of_the_guide(bear, page, first_line, tmp_path_factory):
    """As written there, in a real shell."""
    with processes.program(tmp_path_factory.mktemp("bin")) as folder:
        done = subprocess.run(
            ["bash", "-euc", documented(f"cogedit/guide/{page}", first_line)],
            cwd=bear,
            capture_output=True,
            text=True,
            check=False,
            env={k: v for k, v in os.environ.items() if not k.startswith("COGEDIT_")}
            | {"PATH": f"{folder}:{os.environ['PATH']}"},
        )
    assert done.returncode == 0, done.stderr
    videos = [bear / line for line in done.stdout.splitlines()]
    assert len(set(videos)) == 2
    assert all(video.is_file() for video in videos)


def test_the_python_example_of_the_readme(bear):
    """As written there, in two steps instead of 25."""
    processes.python(documented("README.md", "import cogedit").replace("25}", "2}"), cwd=bear)
    assert len(list(bear.glob("bear.cogedit/edit-*.mp4"))) == 2
