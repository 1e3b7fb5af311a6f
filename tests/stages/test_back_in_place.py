"""A clip back in its video: `--splice` of the commands that write videos."""

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from pipelines import TINY_MODEL, settings_here
from typer.testing import CliRunner
from videos import ffmpeg, make_counter, make_video, read_back, read_counter

import cogedit
from cogedit.cli import app
from cogedit.errors import UsageError, VideoError
from cogedit.media import probe
from cogedit.media.probe import probe_stored
from cogedit.stages.export import check_export
from cogedit.stages.recipe import read_recipe

CLIPS = Path(__file__).parents[1] / "data" / "clips"


def settings_of(source, **flags):
    return settings_here(source, **{"load__frame_sample_step": 1, "export__splice": True} | flags)


def export(artifact, output=None, *, source_video=None, with_source=False, **flags):
    """Export, and return the result and what was said."""
    said = []
    made = cogedit.export(
        artifact,
        settings_of(artifact, **flags),
        output=output,
        source_video=source_video,
        with_source=with_source,
        run=cogedit.Run(notify=said.append),
    )
    return made, "\n".join(said)


def load(video, **flags):
    return cogedit.load(video, settings_of(video, **flags)).path


def numbers(path):
    """The number in each frame of a counter; what went through RGB is darker by up to a level."""
    return read_counter(read_back(path, width=64, height=48) + 1)


def times(path):
    timing = probe_stored(path).timing
    return [(ticks - timing.timestamps[0]) * timing.time_base for ticks in timing.timestamps]


def test_the_clip_is_in_its_place_and_nothing_else_has_changed(here):
    """The clip of a frames artifact is the source's own, so that frame k is frame k everywhere."""
    video = make_counter(here / "in.mp4", num_frames=40)
    frames = load(video, load__skip_frames_start=12)
    made, said = export(frames, here / "out.mp4", export__crossfade=2)
    assert numbers(made.path) == list(range(40))
    assert times(made.path) == times(video)
    assert "40 frames at 25 fps, the clip in frames 12 to 20" in said
    options = read_recipe(made.path).options
    assert (options["splice"], options["crossfade"], options["crf"]) == (True, 2, 15)
    again, _ = export(frames, here / "out.mp4", export__crossfade=2)
    assert again.reused
    other, _ = export(frames, here / "out.mp4", export__crossfade=3)
    assert not other.reused


def test_an_edit_is_put_back_with_sound_and_comparison(here):
    video = make_video(here / "in.mp4", width=96, height=64, num_frames=30, sound=True)
    [made] = cogedit.edit(
        video,
        "a blue cat",
        settings_of(video, load__skip_frames_start=8),
        output=here / "out.mp4",
        with_source=True,
    )
    own, shown = (read_back(path, width=96, height=64).astype(int) for path in (video, made.path))
    difference = np.abs(own - shown).mean(axis=(1, 2, 3))
    assert difference[8:17].min() > 20  # random weights edit to noise
    assert np.delete(difference, range(8, 17)).max() < 4
    assert times(made.path) == times(video)
    listed = [ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "streamhash", "-")
              for path in (video, made.path)]  # fmt: skip
    assert listed[0] == listed[1]
    assert probe_stored(made.source).num_frames == 9
    # A whole video is compared with the whole source.
    compared = cogedit.compare([video, made.path], settings_of(video), output=here / "both.mp4")
    assert probe_stored(compared.path).num_frames == 30


def test_a_varying_rate_keeps_every_time(here):
    plain = make_counter(here / "plain.mp4", num_frames=48)
    video = here / "in.mp4"
    # Frames 16 to 27 are held, as where nothing moves on a screen.
    ffmpeg("-i", plain, "-vf", "select=lt(n\\,16)+gte(n\\,28)", "-fps_mode", "vfr", "-crf", "8",
           video)  # fmt: skip
    frames = load(video, load__skip_frames_start=10, load__max_num_frames=25)
    made, said = export(frames, here / "out.mp4")
    assert times(made.path) == times(video)
    found = numbers(made.path)
    assert found == [*range(16), *range(28, 48)]
    assert "faster" not in said


def test_a_clip_without_every_frame_is_refused_before_anything_is_computed(here):
    video = make_video(here / "in.mp4", width=96, height=64, num_frames=60)
    for flags in ({"load__frame_sample_step": 2}, {"load__frame_rate": "12"}):
        with pytest.raises(UsageError) as refused:
            cogedit.edit(video, "a cat", settings_of(video, **flags))
        assert "--frame-rate source" in str(refused.value)
        assert "recolor" in str(refused.value)
        assert not (here / "in.cogedit").exists()
        frames = load(video, **flags)
        with pytest.raises(UsageError, match="every frame"):
            export(frames)
        with pytest.raises(UsageError, match="every frame"):
            cogedit.edit(frames, "a cat", settings_of(frames, **flags))
        shutil.rmtree(here / "in.cogedit")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"export__codec": "png"}, "png"),
        ({"export__codec": "gif"}, "gif"),
        ({"export__fps": "12"}, "--fps"),
        ({"export__audio_track": 3}, "--audio-track"),
        ({"export__codec": "ffv1"}, "full range"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(here, flags, says):
    video = make_video(
        here / "in.mp4", width=96, height=64, sound=True,
        options=("-c:v", "libx264", "-pix_fmt", "yuvj420p"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=says):
        cogedit.edit(video, "a cat", settings_of(video, **flags))
    assert not (here / "in.cogedit").exists()


def test_pictures_have_no_times_to_go_back_to(here):
    folder = here / "pictures"
    folder.mkdir()
    make_counter(here / "plain.mp4", num_frames=12)
    ffmpeg("-i", here / "plain.mp4", folder / "%03d.png")
    frames = load(folder)
    with pytest.raises(UsageError, match="pictures is no video"):
        export(frames)


def test_the_source_has_to_be_there(here):
    video = make_counter(here / "in.mp4", num_frames=20)
    frames = load(video)
    (here / "away").mkdir()
    shutil.move(video, here / "away" / "in.mp4")
    with pytest.raises(VideoError, match=r"--splice needs frames of in\.mp4"):
        export(frames)
    made, _ = export(frames, source_video=here / "away" / "in.mp4")
    assert len(times(made.path)) == 20


def test_the_command_line_and_a_batch_know_it(here):
    make_video(here / "in.mp4", width=96, height=64, num_frames=20, sound=True)
    model = [*TINY_MODEL, "--max-num-frames", "9", "--frame-sample-step", "1"]
    steps = ["--num-inference-steps", "2", "--guidance-scale", "1"]
    rows = here / "rows.csv"
    rows.write_text(
        "video,prompt,output,export.splice,export.crossfade\nin.mp4,a cat,out.mp4,true,2\n"
    )
    done = CliRunner().invoke(app, ["batch", str(rows), *model, *steps], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(times(here / "out.mp4")) == 20
    assert read_recipe(here / "out.mp4").options["crossfade"] == 2
    edit = ["edit", "in.mp4", "-p", "a cat", "-o", "two.mp4", "--splice", *model, *steps]
    done = CliRunner().invoke(app, edit, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert probe_stored(here / "two.mp4").fps == Fraction(30000, 1001)


def test_a_long_video_that_changes_its_size_outside_of_the_clip_is_refused(here, monkeypatch):
    monkeypatch.setattr(probe, "MANY_KEYFRAMES", 1)
    video = shutil.copy(CLIPS / "size-changes.mkv", here / "long.mkv")
    frames = load(video, load__skip_frames_end=25)
    for source in (frames, video):
        with pytest.raises(VideoError, match=r"long\.mkv changes its size at frame 17"):
            check_export(
                source,
                settings_of(source, **({} if source is frames else {"load__skip_frames_end": 25})),
                output=here / "out.mp4",
                source_video=None,
                has_mask=False,
            )
    with pytest.raises(VideoError, match=r"long\.mkv changes its size at frame 17"):
        export(frames, here / "out.mp4")
    assert not (here / "out.mp4").exists()


# In gray, of which RGB loses nothing, and moving fast.
WEAVE = "testsrc2=s=96x64:r=50,hue=s=0,scroll=h=0.03,interlace=scan={scan}:lowpass=off"
INTERLACED = ("-c:v", "libx264", "-flags", "+ilme+ildct", "-pix_fmt", "yuv420p", "-crf", "4")


def make_interlaced(path, *, scan="tff", num_frames=24, options=INTERLACED):
    """A video whose frames hold two fields of different moments each."""
    ffmpeg("-f", "lavfi", "-i", WEAVE.format(scan=scan), "-frames:v", str(num_frames), *options,
           path)  # fmt: skip
    return path


def pixels(path):
    return read_back(path, width=96, height=64).astype(int)


def check_is_whole(found, video, part, options):
    """Check that frames are those of the video deinterlaced, which its own frames are not."""
    whole = video.with_name("whole.mkv")
    ffmpeg("-y", "-i", video, "-vf", f"bwdif=mode=send_frame:{options}", "-c:v", "ffv1",
           whole)  # fmt: skip
    expected, woven = pixels(whole)[part], pixels(video)[part]
    assert np.abs(woven - expected).mean() > 6
    assert np.abs(found[part] - expected).mean() < 2


@pytest.mark.parametrize(
    ("scan", "options"),
    [
        ("tff", INTERLACED),
        ("bff", ("-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "2")),
        ("bff", ("-c:v", "ffv1", "-pix_fmt", "yuv422p", "-field_order", "bt")),
    ],
)
@pytest.mark.parametrize("deinterlace", [False, True])
def test_an_interlaced_video_is_written_in_whole_frames(here, scan, options, deinterlace):
    """Outside the clip and inside, where it shows the source: no two moments in a frame."""
    video = make_interlaced(here / "in.mkv", scan=scan, options=options)
    frames = load(video, load__skip_frames_start=8, load__deinterlace=deinterlace)
    made, said = export(frames, here / "out.mkv", export__codec="ffv1")
    assert times(made.path) == times(video)
    for part in (slice(8), slice(8, 17), slice(17, None)):
        check_is_whole(pixels(made.path), video, part, f"parity={scan}")
    assert probe_stored(made.path).pictures.field_order == ""
    assert "is interlaced: the whole video is written deinterlaced" in said


def test_every_frame_of_an_interlaced_video_is_shown_whole(here):
    video = make_interlaced(here / "in.mkv")
    frames = load(video, load__frame_sample_step=2)
    made, _ = export(
        frames, here / "out.mkv", export__codec="ffv1", export__splice=False,
        export__every_frame=True, export__size="source",
    )  # fmt: skip
    found = pixels(made.path)
    check_is_whole(found, video, slice(len(found)), "parity=tff")


def test_whole_frames_stay_as_they_are_where_none_is_interlaced(here):
    video = make_video(here / "in.mkv", width=96, height=64, num_frames=24)
    made, said = export(load(video), here / "out.mkv", export__codec="ffv1")
    assert np.array_equal(pixels(video)[9:], pixels(made.path)[9:])
    assert "interlaced" not in said


def test_fields_that_come_later_in_a_long_video_are_noticed(here):
    """Only the first of many keyframes is looked at when the clip is taken."""
    coded = ("-g", "1", "-x264-params", "repeat-headers=1")
    plain = make_video(here / "plain.h264", width=96, height=64, num_frames=40,
                       options=(*INTERLACED[:2], "-pix_fmt", "yuv420p", *coded))  # fmt: skip
    woven = make_interlaced(here / "woven.h264", options=(*INTERLACED, *coded))
    (here / "in.h264").write_bytes(plain.read_bytes() + woven.read_bytes())
    video = here / "in.mp4"
    ffmpeg("-r", "25", "-i", here / "in.h264", "-c", "copy", video)
    facts = probe_stored(video)
    assert (facts.is_sampled, facts.pictures.field_order) == (True, "")
    made, said = export(load(video), here / "out.mkv", export__codec="ffv1")
    found, own = pixels(made.path), pixels(video)
    assert np.array_equal(found[9:40], own[9:40])
    check_is_whole(found, video, slice(40, None), "deint=interlaced")
    assert "is interlaced" in said
