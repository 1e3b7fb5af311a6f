"""A batch: every good edit is made, whatever becomes of the others, and each has its line."""

import contextlib
import csv
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
from hub import serve
from huggingface_hub import constants
from pipelines import TINY_MODEL, TINY_PIPELINE
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import read_record
from cogedit.cli import app
from cogedit.config import read_batch
from cogedit.errors import ConfigError, Interrupted, ModelError, NumericalError, UsageError
from cogedit.media import files as media_files
from cogedit.media import images
from cogedit.stages.reconstruct import make_edits
from cogedit.tools import batch_group
from cogedit.tools.batch import RESULTS, batch
from cogedit.tools.batch_plan import plan_batch

TINY = [*TINY_MODEL, "--num-inference-steps", "2"]
FLAGS = {
    "model": str(TINY_PIPELINE),
    "dtype": "fp32",
    "device": "cpu",
    "invert.num_inference_steps": 2,
    "reconstruct.num_inference_steps": 2,
}
COLOURS = ("red", "green", "blue", "white", "black")
TEN = [("a.mp4", f"a {colour} square") for colour in COLOURS]
TEN += [("broken.mp4", "a red square")]
TEN += [("b.mp4", f"a {colour} circle") for colour in COLOURS[:4]]


def invoke(*args, folder, stdin=None):
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, ["batch", *map(str, args)], input=stdin)


def as_csv(rows, header=("video", "prompt")):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def clips(folder):
    """Two clips and a file that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, fps in (("a", "8"), ("b", "9")):  # a rate each, or they would be the same clip
        make_video(folder / f"{name}.mp4", width=64, height=64, num_frames=9, fps=fps)
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """A folder in which ten edits were asked for, of which one is bad, and what was shown."""
    folder = clips(tmp_path_factory.mktemp("ten"))
    (folder / "edits.csv").write_text(as_csv(TEN))
    return folder, invoke("edits.csv", *TINY, folder=folder)


@pytest.fixture
def folder(tmp_path):
    return clips(tmp_path)


def test_one_bad_edit_keeps_nine(ten):
    folder, shown = ten
    assert shown.exit_code == 10
    found = lines_of(folder / RESULTS)
    assert [(one["video"], one["prompt"]) for one in found] == TEN
    assert [one["status"] for one in found] == ["written"] * 5 + ["failed"] + ["written"] * 4
    bad = found[5]
    assert (bad["row"], bad["exit_code"], bad["path"]) == ("row 6 of edits.csv", 3, None)
    assert "broken.mp4" in bad["error"]
    written = [one["path"] for one in found if one["path"] is not None]
    assert shown.stdout.splitlines() == written
    assert len({*written}) == 9
    assert all((folder / path).stat().st_size for path in written)


def test_edits_of_a_video_share_the_inversion_and_the_pass(ten):
    folder, _ = ten
    for name, number in (("a", 5), ("b", 4)):
        made = [len(one["content_keys"]) for one in lines_of(folder / f"{name}.cogedit/runs.jsonl")]
        assert made == [1, number]  # the inversion, and all edits at once


def test_a_second_run_reuses_nine_and_appends_its_results(ten):
    folder, first = ten
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.cogedit/*.mp4")}
    again = invoke("edits.csv", *TINY, "--results", "again.jsonl", folder=folder)
    assert again.exit_code == 10
    found = lines_of(folder / "again.jsonl")
    assert [one["status"] for one in found].count("reused") == 9
    assert again.stdout == first.stdout
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*.cogedit/*.mp4")}
    invoke("edits.csv", *TINY, "--results", "again.jsonl", folder=folder)
    assert len(lines_of(folder / "again.jsonl")) == 20


def test_a_dry_run_says_what_is_there_and_writes_nothing(ten):
    folder, _ = ten
    (folder / "more.csv").write_text(as_csv([*TEN, ("a.mp4", "a gray square")]))
    before = files(folder)
    shown = invoke("more.csv", *TINY, "--dry-run", folder=folder)
    assert shown.exit_code == 10
    rows = shown.stdout.splitlines()
    assert "broken.mp4" in rows[5]
    found = json.loads(invoke("more.csv", *TINY, "--dry-run", "--json", folder=folder).stdout)
    exported = [edit["export"] for edit in found["edits"]]
    assert exported == [True] * 5 + [False] + [True] * 4 + [False]
    assert [edit["inversion"] for edit in found["edits"]] == [True] * 5 + [False] + [True] * 5
    assert [edit["error"] is None for edit in found["edits"]] == [True] * 5 + [False] + [True] * 5
    assert found["outputs"] == []
    assert files(folder) == before
    (folder / "more.csv").write_text(as_csv([TEN[0]]))
    assert invoke("more.csv", *TINY, "--dry-run", folder=folder).exit_code == 0


def test_a_dry_run_says_what_is_in_the_way(ten):
    folder, _ = ten
    (folder / "holiday.mp4").write_bytes(b"not ours")
    (folder / "named.csv").write_text("video,prompt,output\na.mp4,a gray square,holiday.mp4\n")
    arguments = ("named.csv", *TINY, "--dry-run", "--json")
    [row] = json.loads(invoke(*arguments, folder=folder).stdout)["edits"]
    assert "holiday.mp4" in row["error"]
    [row] = json.loads(invoke(*arguments, "--force", folder=folder).stdout)["edits"]
    assert row["error"] is None
    assert row["output"] == "holiday.mp4"
    shown = invoke(*arguments[:-1], "--force", folder=folder).stdout
    assert "a gray square  holiday.mp4  edit, export" in shown


def test_json_has_failures_too(ten):
    folder, _ = ten
    args = ["edits.csv", *TINY, "--json", "--quiet", "--results", "json.jsonl"]
    shown = invoke(*args, folder=folder)
    assert shown.exit_code == 10
    assert json.loads(shown.stdout)["outputs"] == lines_of(folder / "json.jsonl")


def test_fail_fast_ends_with_the_first_failure(folder):
    (folder / "edits.csv").write_text(as_csv([TEN[5], TEN[5], TEN[0]]))
    shown = invoke("edits.csv", *TINY, "--fail-fast", folder=folder)
    assert shown.exit_code == 10
    assert [one["status"] for one in lines_of(folder / RESULTS)] == ["failed"]
    assert not list(folder.glob("*.cogedit"))


TOML = f"""
model = "{TINY_PIPELINE}"
dtype = "fp32"
device = "cpu"
invert.num_inference_steps = 2

[reconstruct]
num_inference_steps = 2

[[edit]]
video = ["clips/a.mp4", "clips/b.mp4"]
prompt = ["a red square", "a blue square"]

[[edit]]
video = "clips/a.mp4"
prompt = "a red square"
output = "green.mp4"
reconstruct.guidance_scale = 3
export.crf = 30
"""


def test_toml_crosses_videos_and_prompts_under_settings_of_its_own(tmp_path):
    clips(tmp_path / "sub" / "clips")
    (tmp_path / "sub" / "edits.toml").write_text(TOML)
    args = ["sub/edits.toml", "--workspace", "work"]
    shown = invoke(*args, folder=tmp_path)
    assert shown.exit_code == 0, shown.stderr
    found = lines_of(tmp_path / "work" / RESULTS)  # the workspace that all have in common
    assert [(Path(one["video"]).name, one["row"]) for one in found] == [
        ("a.mp4", "row 1 of edits.toml"),
        ("a.mp4", "row 1 of edits.toml"),
        ("a.mp4", "row 2 of edits.toml"),
        ("b.mp4", "row 1 of edits.toml"),
        ("b.mp4", "row 1 of edits.toml"),
    ]
    assert found[2]["path"] == "sub/green.mp4"
    assert (tmp_path / "sub" / "green.mp4").is_file()
    recipe = CliRunner().invoke(app, ["inspect", str(tmp_path / "sub/green.mp4"), "--json"]).stdout
    for setting in ('"guidance_scale": 3.0', '"crf": 30'):
        assert setting in json.dumps(json.loads(recipe))


@pytest.mark.parametrize(
    "text",
    [
        as_csv([("a.mp4", "a red square, small", "3")], ("video", "prompt", "reconstruct.seed")),
        '{"video": "a.mp4", "prompt": "a red square, small", "reconstruct": {"seed": 3}}\n',
    ],
)
def test_the_standard_input_is_csv_or_json_lines(folder, text):
    shown = invoke("-", *TINY, folder=folder, stdin=text)
    assert shown.exit_code == 0, shown.stderr
    [one] = lines_of(folder / RESULTS)
    assert (one["row"], one["status"]) == ("row 1 of the standard input", "written")


def read(tmp_path, name, text, encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read_batch(str(tmp_path / name))


SHEET = 'video,prompt,reconstruct.seed\nä.mp4,"in the snow, at night",3\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.csv", SHEET),
        ("e.csv", SHEET.replace("\n", "\r\n")),
        ("e.csv", "video;prompt;reconstruct.seed\nä.mp4;in the snow, at night;3\n"),
        ("e.csv", 'video;prompt;reconstruct.seed\nä.mp4;"in the snow, at night";3\n'),
        ("e.tsv", "video\tprompt\treconstruct.seed\nä.mp4\tin the snow, at night\t3\n"),
        ("e.TSV", SHEET),
        ("e.jsonl", '{"video": "ä.mp4", "prompt": "in the snow, at night", "reconstruct.seed": 3}'),
        (
            "e.toml",
            '[[edit]]\nvideo = "ä.mp4"\nprompt = "in the snow, at night"\nreconstruct.seed = 3\n',
        ),
    ],
)
def test_what_a_spreadsheet_saves_is_read(tmp_path, name, text, encoding):
    [row] = read(tmp_path, name, text, encoding)
    assert row.videos == (tmp_path / "ä.mp4",)
    assert row.prompts == ("in the snow, at night",)
    assert str(row.values[f"row 1 of {name}"]["reconstruct.seed"]) == "3"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["e.csv", "e.toml"])
def test_another_encoding_is_refused(tmp_path, name, encoding):
    text = SHEET if name == "e.csv" else '[[edit]]\nvideo = "ä.mp4"\nprompt = "x"\n'
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, name, text, encoding)
    assert name in caught.value.message
    assert "UTF-8" in (caught.value.hint or "")


@pytest.mark.parametrize("key", ["video", "mask", "output"])
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("https://host/clip.mp4?id=1", "https://host/clip.mp4?id=1"),
        ("S3://bucket/clip.mp4", "s3://bucket/clip.mp4"),
        ("youtube.com/watch?v=abc", "yt-dlp"),
        ("https://youtu.be/" + "a" * 300, "yt-dlp"),
        ("file:///clips/bear.mp4", "/clips/bear.mp4"),
        ("C:\\clips\\bear.mp4", "/clips/bear.mp4"),
        ("C:/clips/bear.mp4", "/clips/bear.mp4"),
        ("clips\\bear.mp4", "clips/bear.mp4"),
    ],
)
def test_places_that_are_not_here_are_refused_before_anything_runs(tmp_path, key, place, named):
    values = {"video": "a.mp4", "prompt": "x", key: place}
    for name, text in (
        ("e.csv", as_csv([values.values()], values)),
        ("e.jsonl", json.dumps(values)),
    ):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, name, text)
        assert f"`{key}` in row 1 of {name}" in caught.value.message
        assert named in str(caught.value)


def test_a_file_that_is_here_is_right_under_any_name(tmp_path):
    (tmp_path / "odd\\name.mp4").write_bytes(b"")
    [row] = read(tmp_path, "e.csv", "video,prompt\nodd\\name.mp4,x\n")
    assert row.videos == (tmp_path / "odd\\name.mp4",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.toml", '[[edit]]\nvideo = "C:\\clips\\a.mp4"\nprompt = "x"\n'),
        ("e.toml", '[[edit]]\nvideo = "C:\\temp\\new.mp4"\nprompt = "x"\n'),
        ("e.toml", '[[edit]]\nvideo = "C:\\Users\\me.mp4"\nprompt = "x"\n'),
        ("e.jsonl", '{"video": "C:\\clips\\a.mp4", "prompt": "x"}'),
        ("e.jsonl", '{"video": "C:\\temp\\new.mp4", "prompt": "x"}'),
    ],
)
def test_backslashes_that_begin_an_escape_are_explained(tmp_path, name, text):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, name, text)
    assert name in caught.value.message
    assert "/" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("e.csv", "video,promt\na,b\n", ["`promt`", "row 1 of e.csv", "`prompt`"]),
        ("e.csv", "video,prompt\na,b\nc\n", ["row 2 of e.csv", "1", "2"]),
        ("e.csv", "video,prompt\na,b\nc,\n", ["row 2 of e.csv", "`prompt`"]),
        ("e.csv", "video,video\na,b\n", ["e.csv", "`video`"]),
        ("e.csv", 'video,prompt\n"a"b,c\n', ["line 2 of e.csv"]),
        ("e.csv", "", ["e.csv"]),
        ("e.csv", "video;prompt,mask\na;b,c\n", ["e.csv", "semicolons"]),
        ("e.csv", "video;prompt\na;b;c\n", ["row 1 of e.csv", "semicolon"]),
        (
            "e.csv",
            "video,prompt,guidance_scale\na,b,3\n",
            ["`guidance_scale`", "row 1 of e.csv", "`reconstruct.guidance_scale`"],
        ),
        (
            "e.csv",
            "video,prompt,reconstruct.seed\na,b,x\n",
            ["reconstruct.seed", "row 1 of e.csv", "x"],
        ),
        (
            "e.toml",
            '[[edit]]\nvideo = "a"\nprompt = "b"\nreconstruct.seed = "3"\n',
            ["reconstruct.seed", "row 1 of e.toml", "3"],
        ),
        ("e.toml", '[[edit]]\nvideo = "a"\nprompt = 3\n', ["`prompt`", "row 1 of e.toml", "3"]),
        ("e.toml", '[[edits]]\nvideo = "a"\n', ["`edits`", "e.toml", "`edit`"]),
        ("e.toml", "edit = 3\n", ["`edit`", "e.toml", "[[edit]]"]),
        ("e.toml", 'model = "shapes"\n', ["e.toml", "[[edit]]"]),
        ("e.toml", "edit =\n", ["e.toml"]),
        ("e.jsonl", '{"video": "a", "prompt": "b"}\n[]\n', ["row 2 of e.jsonl"]),
        ("e.jsonl", "{\n", ["row 1 of e.jsonl"]),
        ("e.txt", "", [".toml", ".csv", ".jsonl"]),
        (
            "e.jsonl",
            '{"video": "a", "prompt": "b", "reconstruct": {"strengh": 1}}\n',
            ["reconstruct.strengh", "row 1 of e.jsonl"],
        ),
    ],
)
def test_bad_rows_are_refused_with_their_number(tmp_path, name, text, named):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, name, text)
    assert not [part for part in named if part not in str(caught.value)]


def test_nothing_runs_where_one_row_is_bad(folder):
    rows = [("a.mp4", "a red square", "1"), ("b.mp4", "a red square", "-1")]
    (folder / "edits.csv").write_text(as_csv(rows, ("video", "prompt", "reconstruct.seed")))
    before = files(folder)
    shown = invoke("edits.csv", *TINY, folder=folder)
    assert shown.exit_code == 2
    assert all(text in shown.stderr for text in ("reconstruct.seed", "row 2 of edits.csv", "-1"))
    assert files(folder) == before


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("a.mp4", "x", "o.mp4"), ("b.mp4", "y", "o.mp4")], "row 2 of edits.csv"),
        ([("a.mp4", "x", "a.mp4")], "row 1 of edits.csv"),
        ([("a.cogedit/x.safetensors", "x", "")], "row 1 of edits.csv"),
    ],
)
def test_edits_that_cannot_work_are_refused_before_any_runs(folder, rows, named):
    (folder / "edits.csv").write_text(as_csv(rows, ("video", "prompt", "output")))
    before = files(folder)
    shown = invoke("edits.csv", *TINY, folder=folder)
    assert shown.exit_code in (2, 4)
    assert named in shown.stderr
    assert files(folder) == before


def test_a_mask_that_no_video_has_stops_the_list(folder):
    rows = [("a.mp4", "x", ""), ("b.mp4", "x", "0,0,65,64")]
    (folder / "edits.csv").write_text(as_csv(rows, ("video", "prompt", "mask")))
    before = files(folder)
    for more in ([], ["--dry-run"]):
        shown = invoke("edits.csv", *TINY, *more, folder=folder)
        assert shown.exit_code == 2
        assert all(text in shown.stderr for text in ("row 2 of edits.csv", "0,0,65,64", "64x64"))
        assert files(folder) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--device", "cuda:99"], "cuda:99 is not available"),
        (["--device", "cpu", "--attention-backend", "flash"], "flash needs a CUDA device"),
    ],
)
def test_a_dry_run_names_a_device_or_a_kernel_that_is_not_here(folder, flags, named):
    """Of a machine that makes the edits; those of a Ray cluster check their own."""
    (folder / "edits.csv").write_text(as_csv([("a.mp4", "x")], ("video", "prompt")))
    before = files(folder)
    given = ("edits.csv", *TINY, *flags, "--dry-run", "--json")
    [row] = json.loads(invoke(*given, folder=folder).stdout)["edits"]
    assert named in row["error"]
    on_others = invoke(*given, "--engine", "ray", folder=folder)
    if "cuda:99" in flags:  # which no worker may have
        assert "each worker has a GPU of its own" in on_others.stderr
    else:
        assert json.loads(on_others.stdout)["edits"][0]["error"] is None
    assert files(folder) == before


def test_an_inversion_that_no_clip_can_have_stops_the_list(folder):
    rows = [("a.mp4", "x", "1")]
    names = ("video", "prompt", "invert.num_inference_steps")
    (folder / "edits.csv").write_text(as_csv(rows, names))
    shown = invoke("edits.csv", *TINY_MODEL, "--dry-run", folder=folder)
    assert shown.exit_code == 2
    assert "row 1 of edits.csv: the inversion needs at least 2" in shown.stderr


def test_a_file_or_a_time_that_does_not_fit_fails_its_own_row(folder):
    make_video(folder / "wide.mp4", width=64, height=32, num_frames=9, fps="8")
    make_video(folder / "short.mp4", width=64, height=64, num_frames=8, fps="8")
    named = {  # what the row is given beside video and prompt, and what is said of it
        ("a.mp4", "", ""): None,
        ("a.mp4", "wide.mp4", ""): "the mask wide.mp4 is 64x32",
        ("a.mp4", "short.mp4", ""): "the mask short.mp4 has 8 frames",
        ("a.mp4", "gone.mp4", ""): "no such mask: gone.mp4",
        ("a.mp4", "", "0:09"): "a.mp4 has no frame at 0:09",
        ("broken.mp4", "", ""): "broken.mp4",
        ("gone.mp4", "0,0,65,64", ""): "no such video: gone.mp4",
    }
    rows = [(video, "x", mask, start) for video, mask, start in named]
    (folder / "edits.csv").write_text(as_csv(rows, ("video", "prompt", "mask", "load.start")))
    shown = invoke("edits.csv", *TINY, "--dry-run", "--json", folder=folder)
    assert shown.exit_code == 10
    errors = [edit["error"] for edit in json.loads(shown.stdout)["edits"]]
    for error, said in zip(errors, named.values(), strict=True):
        assert error is None if said is None else said in error


def make_odd(path):
    """A clip of an odd width, in pixels that are square."""
    odd = ("-vf", "setsar=1", "-c:v", "ffv1")
    make_video(path, width=65, height=64, num_frames=9, fps="8", options=odd)


def test_a_clip_that_does_not_suit_its_settings_fails_alone_where_others_do(folder):
    make_odd(folder / "odd.mkv")
    given = ("edits.csv", *TINY, "--size", "source")
    (folder / "edits.csv").write_text(as_csv([("odd.mkv", "x"), ("a.mp4", "x")]))
    shown = invoke(*given, "--dry-run", "--json", folder=folder)
    assert shown.exit_code == 10
    odd, even = json.loads(shown.stdout)["edits"]
    assert "frames of 65x64 cannot be written" in odd["error"]
    assert even["error"] is None
    assert invoke(*given, folder=folder).exit_code == 10
    found = lines_of(folder / RESULTS)
    assert [(one["status"], one["exit_code"]) for one in found] == [("failed", 2), ("written", 0)]
    # Alone, or under settings of its own, it is a mistake in the list.
    header = ("video", "prompt", "load.height")
    for rows in ([("odd.mkv", "x", "64")], [("odd.mkv", "x", "64"), ("a.mp4", "x", "48")]):
        (folder / "edits.csv").write_text(as_csv(rows, header))
        shown = invoke(*given, "--dry-run", folder=folder)
        assert shown.exit_code == 2
        assert "row 1 of edits.csv: frames of 65x64" in shown.stderr


def test_an_output_that_cannot_be_stops_the_list_beside_others(folder):
    rows = [("a.mp4", "x", "x.mp4"), ("b.mp4", "x", "x.txt")]
    (folder / "edits.csv").write_text(as_csv(rows, ("video", "prompt", "output")))
    shown = invoke("edits.csv", *TINY, "--dry-run", folder=folder)
    assert shown.exit_code == 2
    assert "row 2 of edits.csv" in shown.stderr


def test_an_error_names_the_video_of_a_row_with_several(folder):
    make_odd(folder / "odd.mkv")
    (folder / "box.jsonl").write_text(
        '{"video": ["odd.mkv", "a.mp4"], "prompt": "x", "mask": "0,0,65,64"}\n'
    )
    shown = invoke("box.jsonl", *TINY, "--dry-run", folder=folder)
    assert shown.exit_code == 2
    assert "row 1 of box.jsonl, " in shown.stderr
    assert "a.mp4: " in shown.stderr


def test_a_failure_says_whether_another_machine_may_not_have_it(folder):
    """Which then tries, too: a disk that is not mounted, a kernel or a GPU that is not here."""
    rows = {
        ("broken.mp4", "cpu", "native", ""): False,
        ("gone.mp4", "cpu", "native", ""): True,
        ("a.mp4", "cpu", "native", "0:09"): False,
        ("a.mp4", "cpu", "flash", ""): True,
        ("a.mp4", "cuda:99", "native", ""): True,
    }
    header = ("video", "prompt", "device", "transformer.attention_backend", "load.start")
    listed = [(video, "x", *settings) for video, *settings in rows]
    (folder / "edits.csv").write_text(as_csv(listed, header))
    model = TINY[: TINY.index("--device")] + TINY[TINY.index("--device") + 2 :]
    assert invoke("edits.csv", *model, folder=folder).exit_code == 10
    found = lines_of(folder / RESULTS)
    assert [one["status"] for one in found] == ["failed"] * len(rows)
    assert {one["row"]: one["is_of_machine"] for one in found} == {
        f"row {number} of edits.csv": expected for number, expected in enumerate(rows.values(), 1)
    }


def test_flags_stand_above_rows_and_rows_above_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("COGEDIT_RECONSTRUCT_SEED", "9")
    clips(tmp_path)
    rows = read(
        tmp_path,
        "e.toml",
        "reconstruct.seed = 1\nreconstruct.guidance_scale = 2\n"
        '[[edit]]\nvideo = "a.mp4"\nprompt = "x"\n'
        '[[edit]]\nvideo = "a.mp4"\nprompt = "x"\nreconstruct.seed = 3\n',
    )
    seeds = [one.settings.reconstruct.seed for one in plan_batch(rows, FLAGS)]
    assert seeds == [1, 3]
    above = plan_batch(rows, FLAGS | {"reconstruct.seed": 4})
    assert [one.settings.reconstruct.seed for one in above] == [4, 4]
    assert {one.settings.reconstruct.guidance_scale for one in above} == {2.0}


@pytest.mark.parametrize(
    ("is_mac", "names", "exit_code"),
    [
        (True, ("Bear.mp4", "bear.mp4"), 2),
        (True, ("b\u00e4r.mp4", "ba\u0308r.mp4"), 2),
        (True, ("bear.mp4", "bears.mp4"), 0),
        (False, ("Bear.mp4", "bear.mp4"), 0),
        (False, ("bear.mp4", "bear.mp4"), 2),
    ],
)
def test_two_rows_do_not_write_one_file(folder, monkeypatch, is_mac, names, exit_code):
    """A Mac's file system takes Bear.mp4 and bear.mp4 for one name."""
    monkeypatch.setattr("cogedit.tools.batch_plan.IS_MAC", is_mac)
    rows = [("a.mp4", "x", names[0]), ("b.mp4", "y", names[1])]
    (folder / "edits.csv").write_text(as_csv(rows, ("video", "prompt", "output")))
    shown = invoke("edits.csv", *TINY, "--dry-run", folder=folder)
    assert shown.exit_code == exit_code
    assert ("the same output" in shown.stderr) == (exit_code == 2)


def test_an_output_for_several_edits_is_a_folder(tmp_path):
    clips(tmp_path)
    rows = read(
        tmp_path, "e.jsonl", '{"video": "a.mp4", "prompt": ["x", "y"], "output": "o.mp4"}\n'
    )
    with pytest.raises(UsageError, match=r"row 1 of e\.jsonl"):
        plan_batch(rows, FLAGS)


def test_a_batch_downloads_its_model_and_its_dry_run_does_not(tmp_path, monkeypatch):
    clips(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = read(tmp_path, "e.jsonl", '{"video": "a.mp4", "prompt": "a red square"}\n')
    size = {"load.width": 96, "load.height": 64, "load.max_num_frames": 9}
    flags = FLAGS | size | {"model": "owner/tiny"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve("owner/tiny", TINY_PIPELINE) as (hub, address):
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(ModelError) as caught:
            plan_batch(rows, flags, download=False)
        assert caught.value.hint.startswith("hf download owner/tiny")
        assert not hub.fetched
        assert [edit.prompt for edit in plan_batch(rows, flags)] == ["a red square"]
        assert "transformer/config.json" in hub.fetched


def planned(folder, rows):
    (folder / "edits.csv").write_text(as_csv(rows))
    return plan_batch(read_batch("edits.csv"), FLAGS)


def test_a_pattern_names_the_videos_of_a_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "c.mp4").mkdir()
    edits = planned(folder, [("[ab]*.mp4", "x")])
    assert [edit.video.name for edit in edits] == ["a.mp4", "b.mp4", "broken.mp4"]
    [edit] = planned(folder, [("*.png", "x")])  # pictures are the frames of one video
    assert edit.video == Path("*.png")
    (folder / "a*.mp4").write_bytes((folder / "a.mp4").read_bytes())
    [edit] = planned(folder, [("a*.mp4", "x")])  # of this name there is one
    assert edit.video == Path("a*.mp4")


def test_a_pattern_leaves_out_what_a_shell_would_and_what_cogedit_wrote(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / ".hidden.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "a.png").write_bytes(b"")
    (folder / "broken.mp4").unlink()
    rows = [("*.mp4", "x")]
    (folder / "edits.csv").write_text(as_csv(rows))
    shown = invoke("edits.csv", *TINY, "--workspace", ".", "--max-num-frames", "1", folder=folder)
    assert shown.exit_code == 0, shown.stderr
    assert len([*folder.glob("[!.]*.mp4")]) == 4  # two clips, and their edits
    for pattern in ("*.mp4", "*", "a*", "a.*"):
        named = [edit.video.name for edit in planned(folder, [(pattern, "x")])]
        expected = ["a.mp4", "b.mp4"] if pattern in ("*.mp4", "*") else ["a.mp4"]
        assert [name for name in named if name.endswith(".mp4")] == expected


@pytest.mark.parametrize(("video", "output"), [("*.mov", ""), ("*/a.mp4", ""), ("*.mp4", "o.mp4")])
def test_a_pattern_that_cannot_work_is_refused(folder, video, output):
    (folder / "edits.csv").write_text(as_csv([(video, "x", output)], ("video", "prompt", "output")))
    before = files(folder)
    shown = invoke("edits.csv", *TINY, folder=folder)
    assert shown.exit_code == 2
    assert "row 1 of edits.csv" in shown.stderr
    assert files(folder) == before


def test_an_edit_that_fails_in_company_fails_alone(folder, monkeypatch):
    """The others of its pass are made one by one."""
    monkeypatch.chdir(folder)
    edits = planned(folder, TEN[:3])
    make = make_edits

    def failing(source, asked, settings, **how):
        if any("green" in one.prompt for one in asked):
            raise NumericalError("NaN at step 1")
        return make(source, asked, settings, **how)

    monkeypatch.setattr(batch_group, "make_edits", failing)
    done = batch(edits)
    assert [one.status for one in done] == ["written", "failed", "written"]
    assert (done[1].exit_code, done[1].error) == (8, "NaN at step 1")


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (RuntimeError("CUDA error: unspecified\nmore"), 1, "RuntimeError: CUDA error: unspecified"),
        (OSError(5, "Input/output error"), 7, "Input/output error"),
        (MemoryError("no 2 GB"), 6, "no 2 GB"),
    ],
)
def test_an_edit_that_meets_what_nobody_foresaw_fails_alone(
    folder, monkeypatch, error, exit_code, said
):
    monkeypatch.chdir(folder)
    edits, notes = planned(folder, [*TEN[:3], TEN[6]]), []
    make = make_edits

    def failing(source, asked, settings, **how):
        if any("green" in one.prompt for one in asked):
            raise error
        return make(source, asked, settings, **how)

    monkeypatch.setattr(batch_group, "make_edits", failing)
    done = batch(edits, run=cogedit.Run(notify=notes.append))
    assert [one.status for one in done] == ["written", "failed", "written", "written"]
    assert done[1].exit_code == exit_code
    assert said in done[1].error
    assert [one["status"] for one in lines_of(folder / RESULTS)] == [one.status for one in done]
    assert any(note.startswith("Traceback") for note in notes) == (exit_code != 6)
    assert not any("\n" in note for note in notes)


def test_an_interrupt_that_a_library_took_for_an_error_ends_the_batch(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = cogedit.Run()

    def interrupted(*args, **how):
        run.cancellation.request()  # outside of a loop: the caller stops by itself
        raise RuntimeError("decoding failed")

    monkeypatch.setattr(batch_group, "make_edits", interrupted)
    with pytest.raises(RuntimeError, match="decoding failed"):
        batch(planned(folder, TEN[:1]), run=run)
    assert not (folder / RESULTS).exists()


def test_a_wish_to_stop_keeps_the_results_until_then(folder, monkeypatch):
    monkeypatch.chdir(folder)
    edits = planned(folder, [TEN[0], TEN[6]])

    @contextlib.contextmanager
    def progress(doing, total):
        def on_step(info):
            if doing.startswith("2/2") and info.index == 0:
                run.cancellation.request()

        yield on_step

    run = cogedit.Run(progress=progress)
    with pytest.raises(Interrupted):
        batch(edits, run=run)
    assert [one["status"] for one in lines_of(folder / RESULTS)] == ["written"]
    again = batch(edits, run=cogedit.Run())
    assert [one.status for one in again] == ["written", "reused"], "new work comes first"


def test_the_batch_of_the_documentation(tmp_path):
    """As written there: every prompt on every video, then one edit more."""
    package = Path(cogedit.__file__).parent
    pages = [package.parent / "README.md", *(package / "guide").glob("*.md")]
    text = next(text for page in pages if "# edits.toml" in (text := page.read_text()))
    example = text[text.index("# edits.toml") :]
    first, second = read(tmp_path, "edits.toml", example[: example.index("```")])
    assert (len(first.videos), len(first.prompts)) == (2, 2)
    assert second.output == tmp_path / "polar.mp4"
    assert second.values["row 2 of edits.toml"] == {"reconstruct.guidance_scale": 8}
    assert second.values["edits.toml"] == {"invert.num_inference_steps": 25}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip.mp4", None),
        ("edits.csv", None),
        ("edits.jsonl", b'{"video": "a.mp4", "prompt": "a red square"}\n'),
        ("notes.txt", b"what to buy\n"),
        ("mixed.jsonl", b'{"row": 1}\n'),
    ],
)
def test_results_go_into_no_other_file(folder, name, content):
    (folder / "a.mp4").rename(folder / "clip.mp4")
    (folder / "edits.csv").write_text(as_csv([("clip.mp4", "a red square")]))
    if content is not None:
        (folder / name).write_bytes(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    shown = invoke("edits.csv", *TINY, "--results", name, folder=folder)
    assert shown.exit_code == 2
    assert name in shown.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_results_go_through_no_link_and_into_no_pipe(folder):
    (folder / "edits.csv").write_text(as_csv([("broken.mp4", "a red square")]))
    (folder / RESULTS).symlink_to("mine.jsonl")
    assert invoke("edits.csv", *TINY, folder=folder).exit_code == 7
    assert not (folder / "mine.jsonl").exists()
    os.mkfifo(folder / "pipe")
    assert invoke("edits.csv", *TINY, "--results", "pipe", folder=folder).exit_code == 7


def test_results_go_on_after_a_full_disk(folder):
    """Which left half a line: it is closed, and every other line can be read."""
    (folder / "edits.csv").write_text(as_csv([("broken.mp4", "a red square")]))
    assert invoke("edits.csv", *TINY, folder=folder).exit_code == 10
    whole = (folder / RESULTS).read_bytes()
    for cut in (1, 5, 20):
        (folder / RESULTS).write_bytes(whole[:-cut] if cut > 1 else whole[:4])
        assert invoke("edits.csv", *TINY, folder=folder).exit_code == 10
        assert (folder / RESULTS).read_bytes().endswith(b"\n" + whole)


def test_a_video_is_read_whole_when_its_edits_are_made_and_not_for_the_plan(folder, monkeypatch):
    """So it is the file of that moment: one that changed meanwhile is seen."""
    read, digest = set(), media_files.file_digest
    monkeypatch.setattr(images, "file_digest", lambda path: read.add(path.name) or digest(path))
    monkeypatch.chdir(folder)
    rows = [("a.mp4", "x", ""), ("a.mp4", "y", ""), ("b.mp4", "x", "0,0,9,9")]
    Path("edits.csv").write_text(as_csv(rows, header=("video", "prompt", "mask")))
    flags = {**FLAGS, "load.width": 64, "load.height": 64, "load.max_num_frames": 9}
    edits = plan_batch(read_batch(Path("edits.csv")), flags)
    assert not read
    make_video(folder / "a.mp4", width=64, height=64, num_frames=10, fps="8")
    assert {one.status for one in batch(edits, results=folder / RESULTS)} == {"written"}
    assert read == {"a.mp4", "b.mp4"}
    [frames] = Path("a.cogedit").glob("frames-*.safetensors")
    content = hashlib.sha256((folder / "a.mp4").read_bytes()).hexdigest()
    assert read_record(frames, "frames").source.sha256 == content
