"""Comparisons: which frame stands beside which, to the bit, and under what caption."""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipelines import TINY_PIPELINE, small_settings
from typer.testing import CliRunner
from videos import ffmpeg, make_video, read_back

import cogedit
from cogedit.cli import app
from cogedit.errors import ArtifactMismatch, StorageError, UsageError
from cogedit.media import probe
from cogedit.media.contact_sheet import PAPER, enlarge, lay_out
from cogedit.media.encoding import Encoding
from cogedit.media.probe import probe_facts
from cogedit.media.writer import write_video
from cogedit.tools.compare import captions, cut_sources, open_input

FPS = Fraction(30000, 1001)
FFV1 = Encoding("ffv1", None, lossless=True)
GAP, ZOOM = 6, 2  # 96 pixels are enlarged to 192


def noise(seed, count=9, height=64, width=96):
    shape = (count, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def video(path, seed, *, fps=FPS, **shape):
    frames = noise(seed, **shape)
    write_video(frames, path, fps=fps, encoding=FFV1)
    return frames


@pytest.fixture
def two(here):
    return video(here / "a.mkv", 1), video(here / "b.mkv", 2)


def compare(*sources, output="out.mkv", run=None, flags=None, **options):
    codec = {"export__codec": "ffv1"} if output.endswith(".mkv") else {}
    settings = small_settings(None, **(codec | (flags or {})))
    return cogedit.compare(sources, settings, output=output, run=run, **options).path


def frames_of(path):
    facts = probe_facts(path)
    return read_back(path, width=facts.width, height=facts.height)


def find(sheet, picture):
    """Left and top of a picture on a sheet, and how often it is there."""
    shown = enlarge(picture, ZOOM)
    height, width = shown.shape[:2]
    corners = np.argwhere((sheet == shown[0, 0]).all(axis=-1))
    return [
        (int(left), int(top))
        for top, left in corners
        if np.array_equal(sheet[top : top + height, left : left + width], shown)
    ]


def test_a_long_video_that_changes_its_size_is_not_stretched(here, monkeypatch):
    """At frame 17; of a long one the keyframes are not all looked at unasked."""
    clip = Path(__file__).parent.parent / "data" / "clips" / "size-changes.mkv"
    names = ["a.mkv", "b.mkv", "c.mkv", "d.mkv"]
    for name in names:
        shutil.copy(clip, name)
    compare(*names[:2], output="short.mkv", labels=["left", "right"])
    monkeypatch.setattr(probe, "MANY_KEYFRAMES", 1)
    compare(*names[2:], output="long.mkv", labels=["left", "right"])
    assert open_input(here / "c.mkv").facts.is_sampled
    assert np.array_equal(frames_of(here / "long.mkv"), frames_of(here / "short.mkv"))


def test_a_row_is_frame_exact(two):
    path = compare("a.mkv", "b.mkv")
    facts = probe_facts(path)
    assert (facts.fps, facts.num_frames) == (FPS, 9)
    assert facts.width % 2 == facts.height % 2 == 0
    for number, frame in enumerate(frames_of(path)):
        [(left_a, top_a)] = find(frame, two[0][number])
        [(left_b, top_b)] = find(frame, two[1][number])
        assert (left_a, left_b) == (GAP, 2 * GAP + 192)
        assert top_a == top_b > 18  # below a caption


def test_a_column_is_frame_exact_and_takes_many(two, here):
    third = video(here / "c.mkv", 3)
    path = compare("a.mkv", "b.mkv", "c.mkv", layout="column")
    for number, frame in enumerate(frames_of(path)):
        places = [find(frame, clip[number])[0] for clip in (*two, third)]
        assert [left for left, _ in places] == [GAP] * 3
        tops = [top for _, top in places]
        # A caption fits between them.
        assert tops[1] - tops[0] == tops[2] - tops[1] >= 128 + 18


def test_a_wipe_shows_all_of_the_first_then_all_of_the_second(two):
    frames = frames_of(compare("a.mkv", "b.mkv", layout="wipe"))
    [(left, top)] = find(frames[0], two[0][0])
    seconds = []
    for number, frame in enumerate(frames):
        shown = frame[top : top + 128, left : left + 192]
        first, second = (enlarge(clip[number], ZOOM) for clip in two)
        is_first = (shown == first).all(axis=(0, 2))
        is_second = (shown == second).all(axis=(0, 2))
        is_line = (shown == 255).all(axis=(0, 2))
        edge = int(is_first.sum())
        assert is_first[:edge].all()
        assert is_second[edge + is_line.sum() :].all()
        assert is_line.sum() in (0, 2)
        seconds.append(int(is_second.sum()))
    assert seconds[0] == 0
    assert max(seconds) > 180
    assert seconds[-1] < 40


def test_pictures_are_the_middle_frame_or_a_sheet(two):
    row = np.asarray(Image.open(compare("a.mkv", "b.mkv", output="row.png", layout="row")))
    assert find(row, two[0][4])
    assert find(row, two[1][4])
    sheet = np.asarray(Image.open(compare("a.mkv", "b.mkv", output="sheet.png")))
    for clip in two:
        places = [find(sheet, clip[number]) for number in (0, 2, 4, 6, 8)]
        assert all(len(place) == 1 for place in places)
        assert len({place[0][1] for place in places}) == 1
    wipe = np.asarray(Image.open(compare("a.mkv", "b.mkv", output="wipe.png", layout="wipe")))
    half = enlarge(two[0][4], ZOOM)[:, :95]
    assert any(
        np.array_equal(wipe[top : top + 128, GAP : GAP + 95], half) for top in range(10, 100)
    )


@pytest.mark.parametrize("size", [(64, 64), (720, 480)])
@pytest.mark.parametrize("layout", ["row", "column", "wipe", "sheet"])
def test_captions_have_room_and_ink(here, size, layout):
    width, height = size
    for name in ("a", "b"):
        video(here / f"{name}.mkv", 1, count=1, height=height, width=width)
    label = "an orange star with a long tail that moves over a green meadow"
    bare = compare("a.mkv", "b.mkv", output="bare.png", layout=layout, labels=[".", "."])
    path = compare("a.mkv", "b.mkv", output="out.png", layout=layout, labels=[label, label])
    shown, without = np.asarray(Image.open(path)), np.asarray(Image.open(bare))
    assert shown.shape[1] == without.shape[1]
    # No ink runs out of the right edge of the sheet or its own column.
    assert (shown[:, -GAP:] == PAPER).all()
    if layout == "row":
        between = GAP + max(width, 192)
        assert (shown[:, between : between + GAP] == PAPER).all()
    dark = (shown.astype(int).sum(axis=-1) < 200).sum()
    assert dark > (without.astype(int).sum(axis=-1) < 200).sum() + 300


def test_letters_grow_with_the_pictures():
    small = lay_out(["A"], [""], size=(192, 192), font_size=14).sheet
    large = lay_out(["A"], [""], size=(192, 192), font_size=28).sheet

    def ink(sheet):
        rows = np.flatnonzero((sheet < 100).all(axis=-1).any(axis=1))
        return int(rows[-1] - rows[0] + 1)

    assert ink(small) >= 9
    assert ink(large) >= 1.8 * ink(small)


# What is reconciled and what is refused


def test_lengths_rates_and_shapes_must_agree(two, here):
    video(here / "long.mkv", 3, count=12)
    video(here / "fast.mkv", 4, fps=Fraction(60))
    video(here / "tall.mkv", 5, height=96, width=64)
    for other, details in [
        ("long.mkv", ("9", "12", "--shortest")),
        ("fast.mkv", ("30000/1001", "60", "--fps")),
        ("tall.mkv", ("96x64", "64x96", "--size")),
    ]:
        with pytest.raises(UsageError) as caught:
            compare("a.mkv", other, output="bad.mkv")
        assert all(text in str(caught.value) for text in ("a.mkv", other, *details))
    assert not (here / "bad.mkv").exists()
    assert probe_facts(compare("long.mkv", "a.mkv", shortest=True)).num_frames == 9
    fixed = compare("a.mkv", "fast.mkv", output="f.mkv", flags={"export__fps": "24"})
    assert probe_facts(fixed).fps == 24


def test_the_smaller_is_scaled_to_the_larger(two, here):
    large = video(here / "large.mkv", 6, height=128, width=192)
    frames = frames_of(compare("a.mkv", "large.mkv"))
    scaled = Image.fromarray(two[0][3]).resize((192, 128), Image.Resampling.LANCZOS)
    shown = frames[3][:, GAP : GAP + 192], frames[3][:, 2 * GAP + 192 : 2 * GAP + 384]
    tops = [
        [top for top in range(10, 60) if np.array_equal(side[top : top + 128], picture)]
        for side, picture in zip(shown, (np.asarray(scaled), large[3]), strict=True)
    ]
    assert tops[0] == tops[1] != []


@pytest.mark.parametrize(
    ("sources", "options", "named"),
    [
        (["a.mkv"], {}, "1"),
        (["a.mkv", "b.mkv", "a.mkv"], {"layout": "wipe"}, "3"),
        (["a.mkv", "b.mkv"], {"labels": ["one"]}, "there is 1 label for 2 clips"),
        (["a.mkv", "b.mkv"], {"labels": ["one"] * 3}, "there are 3 labels for 2 clips"),
        (["a.mkv", "b.mkv"], {"layout": "sheet"}, ".png"),
        (["a.mkv", "b.mkv"], {"output": "out.webm"}, ".webm"),
        (["a.mkv", "b.mkv"], {"output": "a.mkv"}, "a.mkv"),
    ],
)
def test_usage_errors(two, sources, options, named):
    with pytest.raises(UsageError) as caught:
        compare(*sources, **options)
    assert named in str(caught.value)


def test_an_output_is_replaced_by_force_alone(two, here):
    compare("a.mkv", "b.mkv")
    with pytest.raises(UsageError, match=r"out\.mkv"):
        compare("a.mkv", "b.mkv")
    compare("a.mkv", "b.mkv", run=cogedit.Run(force=True))
    with pytest.raises(StorageError, match="no/out"):
        compare("a.mkv", "b.mkv", output="no/out.mkv")


# Artifacts


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A folder with a video and its artifacts: two prompts, and one of them under two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    source = make_video(folder / "clip.mp4", width=176, height=144, num_frames=30)
    edits = []
    for seed, prompts in ((42, ["a dog", "a cat"]), (43, ["a dog"])):
        settings = small_settings(
            source,
            workspace=folder / "w",
            load__max_num_frames=9,
            load__frame_rate="spread",
            invert__num_inference_steps=2,
            reconstruct__guidance_scale=1.0,
            reconstruct__start="random",
            reconstruct__seed=seed,
        )
        edits += [edit.path for edit in cogedit.reconstruct(source, prompts, settings)]
    return folder, edits


def test_a_source_is_cut_to_the_frames_of_its_clip(edited, here):
    folder, edits = edited
    frames = next((folder / "w").glob("frames-*"))
    renamed = shutil.copy(folder / "clip.mp4", here / "renamed.mp4")
    path = compare(renamed, edits[0], frames)
    clip = cogedit.artifacts.read_artifact(frames, "frames").tensors["frames"].numpy()
    found = frames_of(path)
    assert probe_facts(path).fps == FPS / 3
    for number in range(9):
        assert len(find(found[number], clip[number])) == 2
    # An export at the source's size is compared at that size, a re-encoded copy by its recipe.
    settings = small_settings(edits[0], export__size="source", export__codec="ffv1")
    big = cogedit.export(edits[0], settings, output=here / "big.mkv", source_video=renamed).path
    path = compare(renamed, big, output="big-row.mkv")
    # Pictures of 176 pixels are enlarged twice.
    assert probe_facts(path).width == 3 * GAP + 2 * 352
    own = read_back(renamed, width=176, height=144)
    assert find(frames_of(path)[2], own[6])


def test_captions_tell_the_clips_apart(edited, here):
    folder, edits = edited
    frames = next((folder / "w").glob("frames-*"))
    latents = next((folder / "w").glob("latents-*"))
    ffmpeg("-i", folder / "clip.mp4", "-frames:v", "9", here / "other.mp4")
    exported = cogedit.export(edits[1], small_settings(edits[1]), output=here / "x.mp4").path
    given = [open_input(path) for path in (*edits, frames, latents, here / "other.mp4", exported)]
    assert captions(cut_sources(given)) == [
        "a dog (seed 42)",
        f"a cat (file {edits[1].name})",
        "a dog (seed 43)",
        "source: clip.mp4",
        "clip.mp4 after the VAE",
        "other",
        "a cat (file x.mp4)",
    ]


def test_captions_name_what_differs_in_the_inversion(edited):
    _, edits = edited
    first = open_input(edits[0])
    settings = replace(first.record.trajectory.settings, prompt="a bear", num_inference_steps=5)
    trajectory = replace(first.record.trajectory, settings=settings)
    second = replace(first, record=replace(first.record, trajectory=trajectory))
    assert captions([first, second]) == [
        "a dog (source-prompt (empty), source-num-inference-steps 2)",
        "a dog (source-prompt a bear, source-num-inference-steps 5)",
    ]


def test_two_models_are_refused(edited, pipeline_2b, here):
    folder, edits = edited
    small = small_settings(
        folder / "clip.mp4",
        model=str(pipeline_2b),
        load__max_num_frames=9,
        load__frame_rate="spread",
    )
    other = cogedit.encode(folder / "clip.mp4", small).path
    with pytest.raises((ArtifactMismatch, UsageError)):
        compare(edits[0], other)
    assert not (here / "out.mkv").exists()


def test_the_command(edited, here):
    folder, edits = edited
    command = ["compare", *map(str, edits[:2]), str(folder / "clip.mp4"), "-o", "out.gif"]
    model = ["--model", str(TINY_PIPELINE)]
    done = CliRunner().invoke(app, [*command, *model, "--layout", "column", "--label", "one",
                                    "--label", "two", "--label", "three"])  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "out.gif\n"
    assert probe_facts(here / "out.gif").num_frames == 9
    wrong = CliRunner().invoke(app, [*command, *model, "--layout", "spiral"])
    assert wrong.exit_code == 2
    # Videos alone need no model.
    ffmpeg("-i", folder / "clip.mp4", "-c", "copy", here / "copy.mp4")
    done = CliRunner().invoke(app, ["compare", "copy.mp4", str(folder / "clip.mp4"), "-o", "a.png"])
    assert done.exit_code == 0, done.stderr
    assert "model" not in done.stderr


def test_long_words_and_newlines_stay_in_their_column():
    label = "W" * 60 + "\nii " * 3
    sheet = lay_out([label, "b"], [""], size=(192, 20)).sheet
    assert (sheet[:, GAP + 192 : 2 * GAP + 192] == PAPER).all()
    assert sheet.shape[0] > 20 + 5 * 18
