import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from videos import ffmpeg, make_video, read_back, read_counter

from cogedit.errors import UsageError, VideoError
from cogedit.media import filters
from cogedit.media import reader as reader_module
from cogedit.media.clip import plan_clip, plan_resize
from cogedit.media.ffmpeg import FfmpegPipe
from cogedit.media.files import check_file
from cogedit.media.pipe import ProcessPipe
from cogedit.media.probe import identify, probe_facts
from cogedit.media.reader import (
    DecordFailed,
    iterate_frames,
    read_clip,
    read_frames_upstream,
    resize_frame,
)
from cogedit.types import LoadSettings


def load(path, *, reader=None, fall_back=True, **settings):
    facts = probe_facts(path)
    if reader is not None:
        facts = dataclasses.replace(facts, reader=reader)
    settings.setdefault("width", facts.width)
    settings.setdefault("height", facts.height)
    wanted = LoadSettings(**settings)
    plan = plan_clip(identify(path, facts), wanted)
    resize = plan_resize(facts.width, facts.height, settings=wanted)
    frames = read_all(path, facts, indices=plan.indices, resize=resize, fall_back=fall_back)
    return frames, plan


def read_all(*args, **options):
    return np.stack(list(read_clip(*args, **options)))


@pytest.mark.parametrize("reader", ["decord", "ffmpeg"])
@pytest.mark.parametrize("name", ["counter.mp4", "counter.mkv", "counter.webm"])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_frames": 49},
        {"max_num_frames": 9, "skip_frames_start": 3, "skip_frames_end": 2},
        {"max_num_frames": 17, "frame_sample_step": 2, "skip_frames_start": 13},
        {"max_num_frames": 1, "skip_frames_start": 49},
    ],
)
def test_frames_are_exact_by_both_readers(clips, reader, name, settings):
    frames, plan = load(clips / name, reader=reader, **settings)
    assert read_counter(frames) == list(plan.indices)


@pytest.mark.parametrize("name", ["counter.ts", "edit_list.mp4"])
def test_frames_are_exact_where_only_ffmpeg_reads(clips, name):
    frames, plan = load(clips / name, max_num_frames=9, skip_frames_start=2, frame_sample_step=3)
    # 0.7 s into 25 fps: the edit list makes frame 18 the first.
    first = 18 if name == "edit_list.mp4" else 0
    assert read_counter(frames) == [first + index for index in plan.indices]


def test_both_readers_return_the_same_bytes(clips):
    by_decord, _ = load(clips / "plain.mp4", reader="decord")
    by_ffmpeg, _ = load(clips / "plain.mp4", reader="ffmpeg")
    assert np.array_equal(by_decord, by_ffmpeg)
    assert by_decord.shape == (49, 96, 160, 3)
    assert by_decord.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "undo"),
    [
        ("turned90.mp4", lambda frame: np.rot90(frame, 1)),
        ("turned180.mp4", lambda frame: np.rot90(frame, 2)),
        ("turned270.mp4", lambda frame: np.rot90(frame, -1)),
        ("mirrored.mp4", lambda frame: frame[:, ::-1]),
    ],
)
def test_turned_and_mirrored_videos_are_upright(clips, name, undo):
    frames, _ = load(clips / name, max_num_frames=9)
    plain, _ = load(clips / "plain.mp4", max_num_frames=9)
    turned_back = np.stack([undo(frame) for frame in frames])
    # Colour planes are interpolated after the turn, so edges differ a little.
    assert np.abs(turned_back.astype(int) - plain.astype(int)).mean() < 5
    assert np.abs(frames[:, :96, :96].astype(int) - plain[:, :96, :96].astype(int)).mean() > 30


@pytest.mark.parametrize("name", ["odd.mp4", "clip.gif", "wide_pixels.mp4", "varying.mp4"])
def test_unusual_files_are_read_at_their_displayed_size(clips, name):
    frames, _ = load(clips / name, max_num_frames=9)
    facts = probe_facts(clips / name)
    assert frames.shape[1:] == (facts.height, facts.width, 3)
    assert frames.std() > 20


def test_file_cut_short_gives_the_frames_that_are_there(clips):
    whole, _ = load(clips / "streamable.mp4", max_num_frames=9)
    cut, _ = load(clips / "cut_short.mp4", max_num_frames=9, frame_sample_step=1)
    assert cut.shape == whole.shape


@pytest.mark.parametrize("reader", ["decord", "ffmpeg"])
def test_count_is_checked_against_the_probe(clips, reader):
    path = clips / "counter.mp4"
    facts = probe_facts(path)
    more = dataclasses.replace(facts.timing, timestamps=tuple(range(70)))
    facts = dataclasses.replace(facts, timing=more, reader=reader)
    settings = LoadSettings(width=64, height=48, max_num_frames=65)
    resize = plan_resize(64, 48, settings=settings)
    with pytest.raises(VideoError, match=r"frame 50.*70 frames"):
        read_all(
            path, facts, indices=plan_clip(identify(path, facts), settings).indices, resize=resize
        )


@pytest.mark.parametrize("reader", ["decord", "ffmpeg"])
def test_damaged_content_is_a_video_error(clips, tmp_path, reader):
    path = clips / "counter.mp4"
    facts = dataclasses.replace(probe_facts(path), reader=reader)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((clips / "text.mp4").read_bytes())
    settings = LoadSettings(width=64, height=48)
    resize = plan_resize(64, 48, settings=settings)
    with pytest.raises(VideoError, match="frame 0"):
        read_all(
            broken, facts, indices=plan_clip(identify(path, facts), settings).indices, resize=resize
        )


def halves(width=40, height=20):
    """Left half red, right half white; black would hide the padding."""
    frame = np.full((height, width, 3), 255, dtype=np.uint8)
    frame[:, : width // 2] = (255, 0, 0)
    return frame


def plan(mode, width, height):
    settings = LoadSettings(width=width, height=height, resize_mode=mode)
    return plan_resize(40, 20, settings=settings)


def test_same_size_keeps_every_byte():
    frame = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    for mode in ("crop", "pad", "stretch"):
        assert np.array_equal(resize_frame(frame, plan(mode, 40, 20)), frame)


def test_crop_cuts_the_centre():
    frame = np.zeros((20, 40, 3), dtype=np.uint8)
    frame[:, 10:30] = 200
    assert np.array_equal(resize_frame(frame, plan("crop", 20, 20)), frame[:, 10:30])


def test_pad_lays_the_picture_on_black():
    padded = resize_frame(halves(), plan("pad", 40, 40))
    assert not padded[:10].any()
    assert not padded[30:].any()
    assert np.array_equal(padded[10:30], halves())


def test_stretch_takes_the_whole_frame():
    stretched = resize_frame(halves(), plan("stretch", 20, 40))
    assert stretched.shape == (40, 20, 3)
    assert (stretched[:, :8] == (255, 0, 0)).all()
    assert (stretched[:, 12:] == 255).all()


def test_scaling_neither_wraps_around_nor_darkens():
    frame = np.zeros((20, 40, 3), dtype=np.uint8)
    frame[:, 20:] = 255
    wide = resize_frame(frame, plan("stretch", 80, 40))
    assert (wide[:, :36] == 0).all()
    assert (wide[:, 44:] == 255).all()
    flat = np.full((20, 40, 3), 101, dtype=np.uint8)
    assert (resize_frame(flat, plan("stretch", 27, 13)) == 101).all()


def test_shrinking_is_antialiased():
    stripes = np.zeros((20, 40, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = resize_frame(stripes, plan("stretch", 8, 4))
    assert np.abs(small.astype(int) - 127).max() < 12


def test_frame_of_another_size_is_refused():
    with pytest.raises(VideoError, match="10x10"):
        resize_frame(np.zeros((10, 10, 3), dtype=np.uint8), plan("crop", 20, 20))


def test_upstream_reading_is_decords_own_scaling(clips):
    decord = pytest.importorskip("decord")
    indices = list(range(0, 49, 3))
    frames = read_frames_upstream(clips / "plain.mp4", width=96, height=64, indices=indices)
    video = decord.VideoReader(str(clips / "plain.mp4"), width=96, height=64)
    assert np.array_equal(frames, video.get_batch(indices).asnumpy())


@pytest.mark.parametrize("size", [(96, 64), (160, 96), (320, 240)])
def test_upstream_reading_without_decord_is_the_same(clips, monkeypatch, size):
    path, indices = clips / "plain.mp4", [0, 1, 5, 20]
    width, height = size
    frames = read_frames_upstream(path, width=width, height=height, indices=indices)
    monkeypatch.setitem(sys.modules, "decord", None)
    by_ffmpeg = read_frames_upstream(path, width=width, height=height, indices=indices)
    assert np.array_equal(by_ffmpeg, frames)


def test_upstream_reading_checks_its_indices(clips):
    for indices in ([], [3, 2], [-1, 0], [1, 1]):
        with pytest.raises(UsageError):
            read_frames_upstream(clips / "plain.mp4", width=32, height=32, indices=indices)
    with pytest.raises(VideoError, match="60 frames"):
        read_frames_upstream(clips / "plain.mp4", width=32, height=32, indices=[60])


def test_readers_print_nothing(clips):
    code = (
        "from pathlib import Path\n"
        "from cogedit.media.reader import read_frames_upstream\n"
        f"folder = Path({str(clips)!r})\n"
        "for name in ('plain.mp4', 'edit_list.mp4', 'cut_short.mp4'):\n"
        "    read_frames_upstream(folder / name, width=32, height=32, indices=[0, 8])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_frames_are_what_ffmpeg_itself_returns(clips):
    frames, plan = load(clips / "plain.mp4", max_num_frames=9, frame_sample_step=2)
    assert np.array_equal(
        frames, read_back(clips / "plain.mp4", width=160, height=96)[list(plan.indices)]
    )


@pytest.mark.parametrize(
    ("program", "timeout"),
    [
        ("import time; time.sleep(600)", 0.5),
        ("import os; os.abort()", 60.0),
        ("raise SystemExit(3)", 60.0),
        ("import sys; sys.stdout.buffer.write(bytes(64 * 48 * 3 // 2))", 60.0),
        # One black frame, and then nothing.
        ("import sys; sys.stdout.buffer.write(bytes([16]) * 64 * 48 * 3)", 60.0),
    ],
)
def test_where_decord_fails_ffmpeg_reads_on(clips, tmp_path, monkeypatch, program, timeout):
    child = tmp_path / "child.py"
    child.write_text(program)
    monkeypatch.setattr(reader_module, "DECORD_PROGRAM", child)
    monkeypatch.setattr(reader_module, "DECORD_TIMEOUT", timeout)
    frames, plan = load(clips / "counter.mp4", reader="decord")
    assert read_counter(frames) == list(plan.indices)
    with pytest.raises(DecordFailed, match=r"counter\.mp4"):
        load(clips / "counter.mp4", reader="decord", fall_back=False)


@pytest.fixture
def allowed(monkeypatch):
    """The seconds that each reader was given for a read."""
    seconds = []

    class Watched(ProcessPipe):
        def __init__(self, *args, stall_timeout, **options):
            seconds.append(stall_timeout)
            super().__init__(*args, stall_timeout=stall_timeout, **options)

    class WatchedFfmpeg(FfmpegPipe):
        def __init__(self, args, *, stall_timeout):
            seconds.append(stall_timeout)
            super().__init__(args, stall_timeout=stall_timeout)

    monkeypatch.setattr(reader_module, "ProcessPipe", Watched)
    monkeypatch.setattr(reader_module, "FfmpegPipe", WatchedFfmpeg)
    return seconds


@pytest.mark.parametrize(
    ("changes", "indices", "skipped"),
    [
        ({"reader": "ffmpeg", "keyframes": ()}, range(9), 0),
        ({"reader": "ffmpeg", "keyframes": ()}, range(20, 25), 20),
        ({"reader": "ffmpeg", "keyframes": ()}, [3, 30, 40], 26),
        ({"reader": "decord", "keyframes": ()}, [3, 30, 40], 26),
        ({}, [45], 9),  # from the keyframe 36
    ],
)
def test_a_read_has_time_for_the_frames_before_it(clips, allowed, changes, indices, skipped):
    """Five frames of 1920x1080 a second, beside what one frame may take."""
    facts = dataclasses.replace(probe_facts(clips / "counter.mp4"), **changes)
    for width in (0, 1_000_000):
        pictures = dataclasses.replace(facts.pictures, width=width, height=100)
        claimed = dataclasses.replace(facts, pictures=pictures)
        frames = np.stack([*iterate_frames(clips / "counter.mp4", claimed, indices=indices)])
        assert read_counter(frames) == [*indices]
    small, large = allowed
    assert large - small == pytest.approx(skipped * 10)


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("keyframes", [None, ()])
@pytest.mark.parametrize("seed", range(4))
def test_uneven_frames_are_read_however_they_are_chosen(clips, monkeypatch, limit, keyframes, seed):
    """By ffmpeg, or from all of their time where ffmpeg's command would be too long."""
    monkeypatch.setattr(filters, "MAX_EXPRESSION", limit)
    facts = dataclasses.replace(probe_facts(clips / "counter.mp4"), reader="ffmpeg")
    facts = facts if keyframes is None else dataclasses.replace(facts, keyframes=keyframes)
    indices = sorted(random.Random(seed).sample(range(7 * seed, 50), 20))
    frames = np.stack([*iterate_frames(clips / "counter.mp4", facts, indices=indices)])
    assert read_counter(frames) == indices


def test_any_number_of_uneven_frames_is_read(tmp_path):
    """Ten thousand are more than an argument of a command takes."""
    bright = sorted(random.Random(1).sample(range(12_000), 10_500))
    levels = np.zeros((12_000, 16 * 16), np.uint8)
    levels[bright] = 200
    source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "16x16", "-r", "25", "-i", "-"]
    path = tmp_path / "long.mkv"
    ffmpeg(*source, "-c:v", "ffv1", "-g", "1", path, stdin=levels.tobytes())
    facts = probe_facts(path)
    assert facts.num_frames == 12_000
    assert [int(frame.min()) for frame in iterate_frames(path, facts, indices=bright)] == (
        [200] * 10_500
    )


def test_a_still_end_is_no_failure(tmp_path):
    """Past the end decord repeats the last frame; two that are the same may also be in the file."""
    still = make_video(tmp_path / "still.mp4", num_frames=9)
    ffmpeg("-i", still, "-vf", "tpad=stop=8:stop_mode=clone", "-crf", "0", tmp_path / "end.mp4")
    frames, _ = load(tmp_path / "end.mp4", reader="decord", fall_back=False)
    assert len(frames) == 17


def test_frames_that_are_not_there_are_not_repeated(clips, tmp_path):
    # The index promises 57 frames, the first two of which refer to what was cut off.
    source = Path(__file__).parent.parent / "data" / "clips" / "open-gop-cut.mkv"
    promised = probe_facts(source)
    more = (*promised.timing.timestamps, *(promised.timing.timestamps[-1] + 40 * k for k in (1, 2)))
    timing = dataclasses.replace(promised.timing, timestamps=more)
    facts = dataclasses.replace(promised, timing=timing, reader="decord")
    resize = plan_resize(192, 128, settings=LoadSettings(width=192, height=128))
    with pytest.raises(DecordFailed):
        read_all(source, facts, indices=range(57), resize=resize, fall_back=False)


def test_a_missing_video_is_not_taken_for_a_list(tmp_path):
    for name in ("clip.csv", "clip.cogedit", "clip.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(VideoError) as refused:
        check_file(tmp_path / "clip.mp4", "video")
    assert "clip." not in refused.value.hint
    (tmp_path / "clips.mp4").touch()
    with pytest.raises(VideoError) as refused:
        check_file(tmp_path / "clip.mp4", "video")
    assert "clips.mp4" in refused.value.hint
