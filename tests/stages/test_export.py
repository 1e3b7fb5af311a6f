"""Exports as files: rate, sound, size, recipe, and what is said where something is missing."""

import json
import shutil
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pipelines import TINY_MODEL, settings_here
from typer.testing import CliRunner
from videos import ffmpeg, make_video, read_back, read_sound

import cogedit
from cogedit.artifacts import content_key, read_record
from cogedit.cli import app
from cogedit.errors import ArtifactDamaged, ArtifactMismatch, UsageError, VideoError
from cogedit.media.probe import probe_facts
from cogedit.stages.recipe import read_recipe

FPS = Fraction(30000, 1001)
PROMPT = "a blue cat running in snow"


def settings_of(source, **flags):
    return settings_here(source, **{"load__frame_rate": "spread"} | flags)


def load(video, **flags):
    return cogedit.load(video, settings_of(video, **flags)).path


def export(artifact, output=None, *, run=None, source_video=None, with_source=False, **flags):
    """Export, and return the result and what was said."""
    said = []
    exported = cogedit.export(
        artifact,
        settings_of(artifact, **flags),
        output=output,
        source_video=source_video,
        with_source=with_source,
        run=run or cogedit.Run(notify=said.append),
    )
    return SimpleNamespace(path=exported.path, reused=exported.reused, source=exported.source,
                           said="\n".join(said))  # fmt: skip


def make_tone(path, *, delay=0.0):
    """25 fps, 4 s; a tone from 2 s of the picture on; the sound starts `delay` s before it."""
    picture = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=4"]
    tone = f"aevalsrc='sin(880*PI*t)*gte(t,{2 + delay})':d={4 + delay}:s=48000"
    late = ["-itsoffset", str(delay), *picture]
    ffmpeg(*late, "-f", "lavfi", "-i", tone, "-c:v", "libx264", "-bf", "0", "-c:a", "aac", path)
    return path


# Rate and sound


def test_a_sampled_clip_plays_at_the_source_s_speed_with_its_sound(here):
    video = make_video(here / "clip.mp4", width=96, height=64, num_frames=60, sound=True)
    frames = load(video, load__frame_sample_step=2, load__skip_frames_start=10)
    done = export(frames, here / "out.mp4")
    facts = probe_facts(done.path)
    assert facts.fps == FPS / 2
    assert facts.num_frames == 9
    assert facts.audio_tracks[0].codec == "aac"
    seconds = float(9 * 2 / FPS)
    assert abs(len(read_sound(done.path)) / 8000 - seconds) < 0.05
    assert "with the source's audio" in done.said


@pytest.mark.parametrize("codec", ["h264", "h265", "prores", "ffv1"])
@pytest.mark.parametrize("delay", [0.0, 0.6])
def test_sound_is_in_time_with_the_picture(here, codec, delay):
    video = make_tone(here / "tone.mkv", delay=delay)
    frames = load(video, load__frame_sample_step=4, load__skip_frames_start=30)
    done = export(frames, export__codec=codec)
    # The clip begins at frame 30, 1.2 s, and plays 36 frames long.
    assert abs(np.argmax(np.abs(read_sound(done.path)) > 3000) / 8000 - 0.8) < 0.03
    assert abs(len(read_sound(done.path)) / 8000 - 1.44) < 0.05


def test_sound_stays_away_where_it_would_not_fit(here):
    video = make_video(here / "clip.mp4", width=96, height=64, num_frames=30, sound=True)
    frames = load(video)
    fast = export(frames, here / "fast.mp4", export__fps="24")
    assert "exported without audio: at 24 fps the clip does not keep the source's time" in fast.said
    silent = export(frames, here / "silent.mp4", export__sound=False)
    assert "no audio" not in silent.said
    for done in (fast, silent):
        assert not probe_facts(done.path).audio_tracks
    same = export(frames, here / "same.mp4", export__fps="10000/1001")
    assert probe_facts(same.path).audio_tracks[0].codec == "aac"
    # Pictures have no sound to lose.
    assert "no audio" not in export(frames, here / "moving.gif").said
    plain = make_video(here / "plain.mp4", width=96, height=64, num_frames=9)
    assert "no audio" not in export(load(plain), here / "plain-out.mp4").said


def test_options_that_change_nothing_are_said(here):
    frames = load(make_video(here / "clip.mp4", width=96, height=64, num_frames=9))
    idle = export(frames, str(here / "idle.gif"), export__crossfade=3, export__feather=2)
    for flag in ("--crossfade", "--feather"):
        assert f"{flag} changes nothing" in idle.said


def test_the_source_is_found_from_within_the_workspace(here, monkeypatch):
    video = make_video(here / "clip.mp4", width=96, height=64, num_frames=30, sound=True)
    frames = load(video)
    monkeypatch.chdir(frames.parent)
    assert "with the source's audio" in export(frames.name, "out.mp4").said
    video.rename(here / "other.mp4")
    missing = export(frames.name, "silent.mp4").said
    assert "clip.mp4 is neither here nor in the folder above" in missing


def test_a_missing_or_other_source_is_said_in_one_line(here):
    video = make_video(here / "clip.mp4", width=96, height=64, num_frames=30, sound=True)
    frames = load(video)
    away = here / "away"
    away.mkdir()
    shutil.move(video, away / "clip.mp4")
    done = export(frames, here / "out.mp4")
    assert done.said.splitlines()[0] == (
        "exported without audio: clip.mp4 is neither here nor beside clip.cogedit "
        "(--source VIDEO names it)"
    )
    assert not probe_facts(done.path).audio_tracks
    again = export(frames, here / "out.mp4")
    assert again.reused
    assert "no audio" not in again.said
    make_video(here / "clip.mp4", width=96, height=64, num_frames=31, sound=True)
    other = export(frames, here / "other.mp4")
    assert (
        "exported without audio: clip.mp4 is not the clip.mp4 that the clip was taken from"
        in other.said
    )
    # Found again, the video is written anew; gone again, the better one stays.
    named = export(frames, here / "out.mp4", source_video=away / "clip.mp4")
    assert not named.reused
    assert probe_facts(named.path).audio_tracks[0].codec == "aac"
    assert export(frames, here / "out.mp4").reused
    with pytest.raises(UsageError, match=r"--source clip\.mp4 is not the video .* its sha256 is"):
        export(frames, here / "x.mp4", source_video=(here / "clip.mp4").relative_to(here))
    with pytest.raises(VideoError, match="no such video"):
        export(frames, here / "x.mp4", source_video=here / "gone.mp4")


def test_the_source_is_found_beside_the_workspace(here, monkeypatch):
    video = make_video(here / "clip.mp4", width=96, height=64, num_frames=30, sound=True)
    frames = load(video)
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = export(here / frames, here / "out.mp4")
    assert probe_facts(done.path).audio_tracks[0].codec == "aac"


def test_a_varying_rate_is_made_even_and_keeps_the_sound(here):
    video = make_video(here / "plain.mp4", width=96, height=64, num_frames=40, sound=True)
    ffmpeg("-i", video, "-vf", "select=not(eq(mod(n\\,3)\\,1))", "-fps_mode", "vfr",
           here / "varying.mp4")  # fmt: skip
    frames = load(here / "varying.mp4")
    source = read_record(frames).source
    assert (source.fps, source.is_resampled) == (FPS, True)
    assert source.num_frames >= 40  # as long as the file says that its last frame is shown
    done = export(frames, here / "out.mp4")
    assert probe_facts(done.path).audio_tracks[0].codec == "aac"
    # Read again from its record, at the source's own size.
    big = export(frames, here / "big.mp4", export__size="source")
    assert probe_facts(big.path).num_frames == probe_facts(done.path).num_frames


# The source's size


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A folder with a video of 176x144, an edit of it under each resize mode, and a masked one."""
    folder = tmp_path_factory.mktemp("edited")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=12)
    edits = {}
    for mode in ("crop", "pad", "stretch"):
        settings = settings_of(
            video, load__resize_mode=mode, workspace=folder / "w", load__skip_frames_start=2
        )
        [edits[mode]] = cogedit.reconstruct(video, [PROMPT], settings)
    settings = settings_of(video, workspace=folder / "w", load__skip_frames_start=2)
    [edits["mask"]] = cogedit.reconstruct(video, [PROMPT], settings, mask="0,0,88,144")
    return folder, {name: edit.path for name, edit in edits.items()}


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_the_edit_lies_over_the_original(edited, tmp_path, mode):
    folder, edits = edited
    done = export(edits[mode], tmp_path / "big.mkv", source_video=folder / "clip.mp4",
                  export__size="source", export__codec="ffv1")  # fmt: skip
    found = read_back(done.path, width=176, height=144)
    own = read_back(folder / "clip.mp4", width=176, height=144)[2:11]
    assert found.shape == own.shape
    small = export(edits[mode], tmp_path / "small.mkv", export__codec="ffv1")
    clip = read_back(small.path, width=96, height=64)
    if mode == "crop":
        # 176x144 is scaled to 96x79, of which the clip has rows 7 to 70.
        top, bottom = -(-7 * 144 // 79), 71 * 144 // 79
        assert np.array_equal(found[:, :top], own[:, :top])
        assert np.array_equal(found[:, bottom:], own[:, bottom:])
        assert not np.array_equal(found[:, top], own[:, top])
    else:
        box = (9, 0, 87, 64) if mode == "pad" else (0, 0, 96, 64)
        picture = Image.fromarray(clip[4]).crop(box)
        expected = np.asarray(picture.resize((176, 144), Image.Resampling.LANCZOS))
        assert np.array_equal(found[4], expected)


def test_without_the_source_a_crop_cannot_be_undone(edited, here):
    _, edits = edited
    alone = here / "alone"
    alone.mkdir()
    copy = shutil.copy(edits["crop"], alone)
    with pytest.raises(VideoError) as caught:
        export(copy, here / "big.mp4", export__size="source")
    assert str(caught.value) == (
        f"--size source needs frames of clip.mp4 itself, and clip.mp4 is neither here nor beside "
        f"{alone} (name it with --source VIDEO)"
    )
    assert not (here / "big.mp4").exists()
    # The others have all of the picture.
    padded = export(shutil.copy(edits["pad"], alone), here / "pad.mp4", export__size="source")
    assert probe_facts(padded.path).width == 176


def test_outside_a_mask_the_original_pixels_are_shown(edited, tmp_path):
    folder, edits = edited
    done = export(edits["mask"], tmp_path / "big.mkv", source_video=folder / "clip.mp4",
                  workspace=folder / "w", export__size="source", export__codec="ffv1",
                  export__composite="source")  # fmt: skip
    found = read_back(done.path, width=176, height=144)
    own = read_back(folder / "clip.mp4", width=176, height=144)[2:11]
    assert np.array_equal(found[:, :, 92:], own[:, :, 92:])
    assert not np.array_equal(found[:, 40:100, :80], own[:, 40:100, :80])


def test_with_source_writes_its_twin(edited, tmp_path):
    folder, edits = edited
    done = export(edits["crop"], tmp_path / "a.mkv", with_source=True, export__codec="ffv1")
    assert done.source == tmp_path / "a-source.mkv"
    frames = next(path for path in (folder / "w").glob("frames-*")
                  if content_key(cogedit.artifacts.read_record(path))
                  == content_key(read_recipe(done.source).record))  # fmt: skip
    twin = read_back(done.source, width=96, height=64)
    expected = cogedit.artifacts.read_artifact(frames, "frames").tensors["frames"].numpy()
    assert np.array_equal(twin, expected)
    big = export(edits["crop"], tmp_path / "b.mkv", with_source=True, export__codec="ffv1",
                 export__size="source", source_video=folder / "clip.mp4")  # fmt: skip
    own = read_back(folder / "clip.mp4", width=176, height=144)[2:11]
    assert np.array_equal(read_back(big.source, width=176, height=144), own)
    assert probe_facts(big.source).fps == probe_facts(big.path).fps


# The recipe


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.gif", "a"])
def test_inspect_reads_the_recipe(edited, tmp_path, name):
    _, edits = edited
    codec = ("--codec", "png") if name == "a" else ()
    command = ["export", str(edits["crop"]), "-o", str(tmp_path / name), *codec, *TINY_MODEL]
    assert CliRunner().invoke(app, command).exit_code == 0
    record = cogedit.artifacts.read_record(edits["crop"])
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / name), "--json"])
    found = json.loads(shown.stdout)
    assert (found["kind"], found["content_key"]) == ("video", content_key(record))
    assert found["record"] == json.loads(cogedit.artifacts.record_text(record))
    assert found["export"]["fps"] == "30000/1001"
    text = CliRunner().invoke(app, ["inspect", str(tmp_path / name)]).stdout
    assert "video of edit, made by cogedit" in text
    assert f'prompt = "{PROMPT}"' in text
    assert 'size = "clip"' in text


def test_inspect_of_what_has_no_recipe(here):
    video = make_video(here / "clip.mp4", num_frames=3)
    shown = CliRunner().invoke(app, ["inspect", str(video)])
    assert shown.exit_code == 4
    assert "clip.mp4 is no artifact, and carries no recipe of cogedit" in shown.stderr
    with pytest.raises(ArtifactMismatch):
        read_recipe(here)


def test_an_altered_recipe_is_refused(here):
    video = make_video(here / "clip.mp4", width=96, height=64, num_frames=9)
    done = export(load(video), here / "out.mp4")
    comment = read_back_comment(done.path)
    for altered in (
        comment.replace('"height":64', '"height":65'),
        comment.replace('"0:9:1"', '"0:9:x"'),
        comment.replace('"0:9:1"', f'"0:{10**30}:1"'),
        comment[:-5],
        '{"cogedit":[]}',
    ):
        ffmpeg("-i", done.path, "-c", "copy", "-metadata", f"comment={altered}", here / "x.mp4")
        with pytest.raises(ArtifactDamaged):
            read_recipe(here / "x.mp4")


def read_back_comment(path):
    from cogedit.media.recipe_comment import find_comment

    return find_comment(path)


# What is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--codec", "ffv1", "-o", "out.mp4"], [".mp4", "ffv1"]),
        (["--codec", "h265", "--crf", "60"], ["crf", "60", "0 to 51"]),
        (["--codec", "av1", "--lossless"], ["av1", "lossless"]),
        (["--codec", "vp9"], ["--codec", "vp9", "h265"]),
        (["--fps", "60", "-o", "out.gif"], ["GIF", "50"]),
        (["--size", "source"], ["131x97", "h264"]),
    ],
)
def test_an_edit_is_refused_before_it_is_computed(here, options, named):
    make_video(here / "odd.mp4", width=131, height=97, num_frames=9,
               options=("-c:v", "libx264", "-pix_fmt", "yuv444p"))  # fmt: skip
    done = CliRunner().invoke(app, ["edit", "odd.mp4", "-p", "a dog", *TINY_MODEL, *options])
    assert done.exit_code == 2
    assert all(value in done.stderr for value in named)
    assert [path.name for path in here.iterdir()] == ["odd.mp4"]


def test_edit_takes_the_same_options(here):
    make_video(here / "clip.mp4", width=176, height=144, num_frames=12, sound=True)
    options = ["--codec", "h265", "--size", "source", "--with-source", "--num-inference-steps", "2"]
    size = ["--width", "96", "--height", "64", "--max-num-frames", "9", "--frame-rate", "spread"]
    command = ["edit", "clip.mp4", "-p", "a dog", "-p", "a cat", "-o", "edits"]
    done = CliRunner().invoke(app, [*command, *TINY_MODEL, *size, *options, "--json"])
    assert done.exit_code == 0, done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    assert [output["kind"] for output in outputs] == ["video", "source"] * 2
    for output in outputs:
        facts = probe_facts(here / output["path"])
        assert (facts.codec, facts.width, facts.height) == ("hevc", 176, 144)
        assert (facts.fps, facts.num_frames, facts.audio_tracks[0].codec) == (FPS, 9, "aac")
