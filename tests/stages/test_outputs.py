"""Where a result goes: a file or a folder by its name, the same in a dry run as in the run."""

import pytest
from pipelines import TINY_MODEL
from typer.testing import CliRunner
from videos import make_video

from cogedit.cli import app

TINY = [*TINY_MODEL, "--num-inference-steps", "2"]
EDIT = ["edit", "clip.mp4", "-p", "a cat", *TINY]


def cogedit(*args, code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.stderr
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a video and an edit of it."""
    folder = tmp_path_factory.mktemp("outputs")
    make_video(folder / "clip.mp4", num_frames=12)
    make_video(folder / "other.mp4", num_frames=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cogedit(*EDIT)
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize("name", ["out.xyz", "out.jpeg", "out.webm", "out.v2"])
@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize("prompts", [[], ["-p", "a dog"]])
def test_a_suffix_that_no_video_has_makes_no_folder(here, name, dry, prompts):
    shown = cogedit(*EDIT, *prompts, "-o", name, *dry, code=2).stderr
    assert f"cannot write {name}: no video that is written ends in" in shown
    assert ".mp4, .mov, .mkv or .gif" in shown
    is_other_file = name in ("out.jpeg", "out.webm")  # nobody calls a folder so
    assert (f"a folder of that name ends in a slash: -o {name}/" in shown) != is_other_file
    assert not (here / name).exists()


@pytest.mark.parametrize("name", ["films", "films.v1/", "films.mp4/"])
def test_a_folder_is_named_by_its_slash_or_without_a_suffix(here, name):
    path = cogedit(*EDIT, "-o", name).stdout.strip()
    assert (here / path).parent == here / name
    # It exists now, and is meant without the slash, too.
    assert cogedit(*EDIT, "-o", name.rstrip("/")).stdout.strip() == path


def test_rows_name_folders_alike(here):
    row = '{"video": "clip.mp4", "prompt": "a cat", "output": "%s"}\n'
    (here / "edits.jsonl").write_text(row % "rows.v2")
    assert (
        "no video that is written ends in .v2"
        in cogedit("batch", "edits.jsonl", *TINY, code=2).stderr
    )
    (here / "edits.jsonl").write_text(row % "rows.v2/")
    path = cogedit("batch", "edits.jsonl", *TINY).stdout.strip()
    assert (here / path).parent == here / "rows.v2"


@pytest.mark.parametrize("name", ["both.xyz", "both.jpg", "both"])
def test_a_comparison_says_what_it_may_be_called(here, name):
    shown = cogedit("compare", "clip.mp4", "clip.mp4", "-o", name, code=2).stderr
    assert ".mp4, .mov, .mkv or .gif, or of an image in .png" in shown


@pytest.mark.parametrize("name", ["clip2.mp4", "clip2.webm", "clip2.png"])
@pytest.mark.parametrize("command", ["load", "encode", "invert", "reconstruct"])
def test_an_artifact_is_not_called_a_video(here, command, name):
    prompt = ["-p", "a cat"] if command == "reconstruct" else []
    shown = cogedit(command, "clip.mp4", *prompt, *TINY, "-o", name, code=2).stderr
    assert f"an artifact is written as a safetensors file; found -o {name}" in shown
    assert not (here / name).exists()


@pytest.mark.parametrize(
    ("command", "output", "text"),
    [
        (["invert"], "nowhere/t", "there is no folder nowhere"),
        (["invert"], "t.mp4", "found -o t.mp4"),
        (["invert", "--source-prompt", "a dog"], "t.safetensors", "made with other settings"),
        (["reconstruct", "-p", "a", "-p", "b"], "e", "there are 2 prompts"),
        (["reconstruct", "-p", "b"], "e.safetensors", "was made with other settings"),
        (["edit", "-p", "b"], "o.mp4", "o.mp4 exists and is no export of this edit"),
        (["edit", "-p", "b"], "other.mp4", "other.mp4 exists and is no export of this edit"),
        (["edit", "-p", "b", "--with-source"], "w.mp4", "w-source.mp4 exists and is no source"),
    ],
)
def test_a_dry_run_refuses_the_output_that_the_run_refuses(here, command, output, text):
    cogedit("invert", "clip.mp4", *TINY, "-o", "t.safetensors")
    cogedit("reconstruct", "clip.mp4", "-p", "a cat", *TINY, "-o", "e.safetensors")
    cogedit(*EDIT, "-o", "o.mp4")
    (here / "w-source.mp4").write_bytes((here / "other.mp4").read_bytes())
    first, *rest = command
    given = [first, "clip.mp4", *rest, *TINY, "-o", output]
    run, dry = CliRunner().invoke(app, given), CliRunner().invoke(app, [*given, "--dry-run"])
    assert run.exit_code == dry.exit_code != 0
    assert text in dry.stderr
    assert text in run.stderr


@pytest.mark.parametrize("command", [["invert"], ["reconstruct", "-p", "a cat"]])
def test_a_dry_run_counts_what_an_output_holds(here, tmp_path, command):
    """The same artifact in the workspace is not reused for an output, and is made again."""
    first, *rest = command
    given = [first, "clip.mp4", *rest, *TINY, "-o", tmp_path / "made.safetensors"]
    assert " calls, " in cogedit(*given, "--dry-run").stdout
    cogedit(*given)
    assert " calls, " not in cogedit(*given, "--dry-run").stdout
    assert cogedit(*given, "--force", "--dry-run").stdout.count(" calls, ") == 1


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_another_source_is_refused_before_anything_is_computed(here, dry):
    """Also where the edit exists, and its video."""
    before = sorted(here.rglob("*"))
    for prompt in ("a cat", "something new"):
        words = ["edit", "clip.mp4", "-p", prompt, *TINY, "--source", "other.mp4", *dry]
        assert "--source other.mp4 is not the video" in cogedit(*words, code=2).stderr
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--vae-span", "1"],
        ["--vae-span", "5"],
        ["--low-levels", "2"],
        ["--low-levels", "3"],
    ],
)
def test_what_no_inversion_can_have_is_refused_before_anything_is_written(tmp_path, flags):
    video = make_video(tmp_path / "clip.mp4", num_frames=12)
    place = ["--workspace", tmp_path / "work"]
    for dry in (["--dry-run"], []):
        words = ["edit", video, "-p", "a cat", *TINY, *place, *flags, *dry]
        assert f" is {flags[1]}" in cogedit(*words, code=2).stderr
    assert not (tmp_path / "work").exists()


def test_a_dry_run_counts_the_check_of_an_inversion(here):
    """As many calls as the inversion has steps, also where that exists."""
    words = ["invert", "clip.mp4", *TINY, "--check", "--dry-run"]
    rows = dict(line.split(maxsplit=1) for line in cogedit(*words).stdout.splitlines())
    assert rows["check"].startswith("2 calls, 2 rows, ")
    assert "check" not in cogedit(*words[:-2], "--dry-run").stdout


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize(
    "command",
    [
        ["edit", "-p", "b"],
        ["invert", "--force"],
        ["invert", "--check"],
        ["probe-layers", "-p", "b"],
        ["probe-layers", "-p", "a cat"],
    ],
)
def test_a_dry_run_asks_for_the_kernels_of_the_run(here, command, dry):
    first, *rest = command
    words = [first, "clip.mp4", *rest, *TINY, "--attention-backend", "cudnn", *dry]
    assert "cudnn needs a CUDA device; this run is on cpu" in cogedit(*words, code=2).stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing/", "it is a link to nothing"),
        ("nothing/films", "nothing is a link to nothing"),
        ("clip.mp4/", "it is a file"),
        ("clip.mp4/films", "clip.mp4 is a file"),
        ("x" * 300, None),  # which no disk takes
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_folder_that_cannot_be_made_is_refused_before_the_edit(here, name, why, dry):
    (here / "nothing").unlink(missing_ok=True)
    (here / "nothing").symlink_to("nowhere")
    before = sorted(here.rglob("*"))
    words = ["edit", "clip.mp4", "-p", "not made yet", *TINY, "-o", name, *dry]
    shown = cogedit(*words, code=7).stderr
    assert why is None or f"cannot write videos into {name.rstrip('/')}: {why}" in shown
    assert sorted(here.rglob("*")) == before
