"""`--every-frame` through the stages: which frames an export shows, and what it says of them."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from pipelines import TINY_MODEL, settings_of
from typer.testing import CliRunner
from videos import ffmpeg, make_video, read_back

import cogedit
from cogedit.artifacts import frames_record, read_artifact
from cogedit.cli import app
from cogedit.errors import UsageError, VideoError
from cogedit.media.probe import probe_facts
from cogedit.stages.recipe import read_recipe

PROMPT = "a blue cat running in snow"
BOX = "40,30,120,100"
NUM_FRAMES, STEP = 27, 3
SIZE = {"clip": (96, 64), "source": (176, 144)}


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A video of two scenes with sound, of which every third frame was edited; with a mask too."""
    folder = tmp_path_factory.mktemp("full rate")
    scenes = [
        make_video(folder / "first.mp4", width=176, height=144, num_frames=14, fps="25"),
        folder / "second.mp4",
    ]
    picture = "mandelbrot=s=176x144:r=25:start_scale=1"
    ffmpeg("-f", "lavfi", "-i", picture, "-frames:v", str(NUM_FRAMES - 14), scenes[1])
    video = folder / "clip.mp4"
    joined = "[0:v][1:v]concat=n=2:v=1,format=yuv420p"
    inputs = [word for scene in scenes for word in ("-i", scene)]
    tone = ["-f", "lavfi", "-i", f"sine=d={NUM_FRAMES / 25}", "-c:a", "aac"]
    ffmpeg(*inputs, *tone, "-filter_complex", joined, "-map", "2:a", "-crf", "8", video)
    [plain] = cogedit.reconstruct(video, [PROMPT], settings_for(video))
    [masked] = cogedit.reconstruct(video, [PROMPT], settings_for(video), mask=BOX)
    return video, plain.path, masked.path


def settings_for(video, **flags):
    usual = {"load__frame_rate": "model", "load__frame_sample_step": STEP}
    return settings_of(video, **usual | flags)


def every_frame(video, artifact, output, *, size="clip", run=None, **flags):
    """Export every frame without loss; return the frames and the video's facts."""
    asked = {"export__align_edges": 5, "export__every_frame": True, "export__lossless": True}
    settings = settings_for(video, export__size=size, **asked | flags)
    cogedit.export(artifact, settings, output=output, source_video=video, run=run)
    width, height = SIZE[size]
    return read_back(output, width=width, height=height), probe_facts(output)


@pytest.fixture(scope="module")
def exported(edited, tmp_path_factory):
    """Every frame of the edit without a mask, by size: its frames, facts, file and notes."""
    video, plain, _ = edited
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def at(size):
        said, output = [], folder / f"{size}.mkv"
        run = cogedit.Run(notify=said.append)
        return *every_frame(video, plain, output, size=size, run=run), output, "\n".join(said)

    return at


def own_frames(video):
    return read_back(video, width=176, height=144)


@pytest.mark.parametrize("size", ["clip", "source"])
def test_every_frame_is_shown_at_the_source_s_rate_with_its_sound(edited, exported, tmp_path, size):
    video, plain, _ = edited
    shown, facts, output, _ = exported(size)
    assert (len(shown), facts.fps, facts.num_frames) == (NUM_FRAMES, 25, NUM_FRAMES)
    assert facts.audio_tracks[0].codec == "aac"
    # At the edited frames it is what an export of these alone shows.
    few, _ = every_frame(video, plain, tmp_path / "few.mkv", size=size, export__every_frame=False)
    assert np.array_equal(shown[::STEP], few)
    assert read_recipe(output).options["every_frame"] is True


def test_the_frames_between_have_the_source_s_own_detail(edited, exported):
    shown, *_ = exported("source")
    own = own_frames(edited[0])

    def likeness(clip, other):
        rough = (frames[:, :, 1:].astype(float) - frames[:, :, :-1] for frames in (clip, other))
        return np.corrcoef(*(part.ravel() for part in rough))[0, 1]

    between = [number for number in range(NUM_FRAMES) if number % STEP]
    before = [number - number % STEP for number in between]
    assert likeness(shown[between], own[between]) > 0.8
    assert likeness(shown[between], own[before]) < likeness(shown[between], own[between]) - 0.1


@pytest.mark.parametrize("size", ["clip", "source"])
def test_outside_the_mask_every_frame_is_the_source_s(edited, tmp_path, size):
    video, _, masked = edited
    shown, _ = every_frame(video, masked, tmp_path / "all.mkv", size=size)
    inside = np.zeros(shown.shape[1:3], dtype=bool)
    if size == "source":
        own = own_frames(video)
        inside[27:103, 37:123] = True
    else:
        settings = settings_for(video, load__frame_sample_step=1, load__max_num_frames=NUM_FRAMES)
        loaded = cogedit.load(video, settings)
        frames = read_artifact(loaded.path, "frames").tensors["frames"]
        own = frames.numpy()[: loaded.record.num_frames]
        inside |= read_artifact(masked, "edit").tensors["mask"].numpy().any(axis=0)
    assert np.array_equal(shown[:, ~inside], own[:, ~inside])
    assert np.abs(shown[:, inside].astype(int) - own[:, inside]).mean() > 1


def test_it_says_where_a_cut_is_and_how_good_the_frames_between_are(exported):
    *_, told = exported("clip")
    assert "1 cut found, at 0:00.56" in told
    assert "the frames between reach" in told
    # The noise that a random model makes has edges of its own.
    assert "--align-edges 0 --no-every-frame" in told
    assert "wrote" in told
    assert f"({NUM_FRAMES} frames at 25 fps, with the source's audio)" in told


def test_a_clip_has_all_frames_up_to_the_end_of_its_last(edited, tmp_path):
    video, *_ = edited
    settings = settings_for(video, load__max_num_frames=1)
    [one] = cogedit.reconstruct(video, [PROMPT], settings)
    shown, _ = every_frame(video, one.path, tmp_path / "all.mkv", load__max_num_frames=1)
    assert len(shown) == STEP


def test_the_source_clip_beside_it_has_the_same_frames(edited, tmp_path):
    video, plain, _ = edited
    output = tmp_path / "all.mkv"
    settings = settings_for(
        video,
        export__align_edges=5,
        export__every_frame=True,
        export__lossless=True,
        export__size="source",
    )
    made = cogedit.export(plain, settings, output=output, source_video=video, with_source=True)
    own = read_back(made.source, width=176, height=144)
    assert np.array_equal(own, own_frames(video))


def test_an_export_is_reused_and_is_not_that_of_the_edited_frames(edited, tmp_path):
    video, plain, _ = edited
    output = tmp_path / "out.mkv"
    for asked in (True, False):
        settings = settings_for(video, export__align_edges=5, export__every_frame=asked)
        for again in (False, True):
            made = cogedit.export(plain, settings, output=output, source_video=video)
            assert made.reused == again
        facts = probe_facts(output)
        assert facts.fps == (25 if asked else Fraction(25, STEP))


def test_without_aligned_edges_it_is_refused_before_anything_runs(edited, tmp_path):
    video, plain, _ = edited
    settings = settings_for(video, export__every_frame=True)
    for run in (
        lambda: cogedit.export(plain, settings, output=tmp_path / "out.mkv"),
        lambda: cogedit.edit(video, [PROMPT], settings, output=tmp_path / "out.mkv"),
    ):
        with pytest.raises(UsageError, match="edges are not aligned"):
            run()


@pytest.mark.parametrize(
    ("rate", "flags", "named"),
    [
        ("60", {"export__codec": "gif"}, "60 frames per second"),
        ("25", {"load__frame_rate": "8", "load__frame_sample_step": None}, "--frame-rate 8"),
    ],
)
def test_a_rate_that_cannot_be_shown_is_refused_before_anything_runs(tmp_path, rate, flags, named):
    video = make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=27, fps=rate)
    asked = {"export__align_edges": 5, "export__every_frame": True}
    with pytest.raises(UsageError, match=named) as caught:
        cogedit.edit(video, [PROMPT], settings_for(video, **asked | flags))
    assert {"25": "--no-every-frame", "60": "--fps"}[rate] in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_without_the_video_it_says_so(edited, tmp_path, monkeypatch):
    video, plain, _ = edited
    monkeypatch.chdir(tmp_path)
    alone = tmp_path / "far" / plain.name
    alone.parent.mkdir()
    alone.write_bytes(plain.read_bytes())
    settings = settings_for(video, export__every_frame=True, export__align_edges=5)
    with pytest.raises(VideoError, match=r"--every-frame needs frames of clip\.mp4 itself"):
        cogedit.export(alone, settings)


def test_a_clip_of_every_frame_needs_nothing(edited, tmp_path):
    video, *_ = edited
    flags = {"load__frame_sample_step": 1, "load__max_num_frames": 9}
    [whole] = cogedit.reconstruct(video, [PROMPT], settings_for(video, **flags))
    settings = settings_for(video, export__every_frame=True, **flags)
    made = cogedit.export(whole.path, settings, output=tmp_path / "out.mkv")
    assert "every_frame" not in read_recipe(made.path).options


def test_export_knows_it_as_the_source_s_frame_rate(edited, tmp_path):
    video, plain, _ = edited
    output = tmp_path / "all.mkv"
    words = ["export", str(plain), "--frame-rate", "source", "--align-edges", "5"]
    words += ["-o", str(output), "--source", str(video), *TINY_MODEL]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert probe_facts(output).num_frames == NUM_FRAMES


def test_recolor_shows_every_frame_of_a_longer_video_unasked(edited, tmp_path):
    video, *_ = edited
    words = ["edit", str(video), "-p", PROMPT, "--config", "recolor", *TINY_MODEL]
    words += ["--max-num-frames", "9", "--num-inference-steps", "2", "--resize-mode", "stretch"]
    words += ["--workspace", str(tmp_path / "w"), "-o", str(tmp_path / "red.mp4")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    facts, recipe = probe_facts(tmp_path / "red.mp4"), read_recipe(tmp_path / "red.mp4")
    assert (facts.num_frames, facts.fps, facts.audio_tracks[0].codec) == (NUM_FRAMES, 25, "aac")
    clip = frames_record(recipe.record)
    assert clip.shown_indices == tuple(range(0, NUM_FRAMES, STEP))


def test_it_is_compared_with_every_frame_of_its_source(edited, exported, tmp_path):
    video, sheet = edited[0], tmp_path / "both.mkv"
    _, _, shown, _ = exported("source")
    settings = settings_for(video, export__lossless=True)
    cogedit.compare([video, shown], settings, output=sheet)
    assert probe_facts(sheet).num_frames == NUM_FRAMES


def test_every_frame_of_a_clip_goes_back_into_its_video(edited, tmp_path):
    video, *_ = edited
    # Frames 5, 8 and 11 are edited; the seconds end before frame 13, where no frame was taken.
    flags = {"load__start": "5f", "load__end": "13f", "export__splice": True}
    [part] = cogedit.reconstruct(video, [PROMPT], settings_for(video, **flags))
    output = tmp_path / "whole.mkv"
    shown, facts = every_frame(video, part.path, output, size="source", **flags)
    assert (facts.num_frames, facts.fps) == (NUM_FRAMES, 25)
    changed = (shown != own_frames(video)).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == list(range(5, 13))
