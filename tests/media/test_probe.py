import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from videos import ffmpeg, make_video

from cogedit.errors import ConfigError, StorageError, VideoError
from cogedit.media import ffmpeg as ffmpeg_module
from cogedit.media import probe
from cogedit.media.ffmpeg import FfmpegResult, find_messages, run_on_input
from cogedit.media.packets import run_packet_list
from cogedit.media.probe import identify, probe_facts
from cogedit.media.recipe_comment import find_comment


def test_facts_of_a_plain_file(clips):
    source = identify(clips / "plain.mp4", probe_facts(clips / "plain.mp4"))
    assert (source.name, source.width, source.height) == ("plain.mp4", 160, 96)
    assert source.fps == Fraction(30000, 1001)
    assert source.num_frames == 60
    assert source.rotation == 0
    assert source.has_audio
    assert source.reader == "decord"
    assert source.sha256 == hashlib.sha256((clips / "plain.mp4").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "size", "fps", "num_frames", "reader"),
    [
        ("odd.mp4", (131, 97), Fraction(30000, 1001), 30, "ffmpeg"),
        ("counter.mkv", (64, 48), Fraction(25), 50, "decord"),
        ("counter.webm", (64, 48), Fraction(25), 50, "decord"),
        ("counter.ts", (64, 48), Fraction(25), 50, "ffmpeg"),
        ("clip.gif", (160, 96), Fraction(10), 12, "ffmpeg"),
        ("wide_pixels.mp4", (240, 96), Fraction(30000, 1001), 60, "ffmpeg"),
        ("edit_list.mp4", (64, 48), Fraction(25), 32, "ffmpeg"),
        ("mirrored.mp4", (160, 96), Fraction(30000, 1001), 60, "ffmpeg"),
    ],
)
def test_facts_and_reader(clips, name, size, fps, num_frames, reader):
    source = probe_facts(clips / name)
    assert (source.width, source.height) == size
    assert source.fps == fps
    assert source.num_frames == num_frames
    assert source.reader == reader


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_clockwise_and_the_size_is_as_displayed(clips, degrees):
    source = probe_facts(clips / f"turned{degrees}.mp4")
    assert source.rotation == degrees
    assert (source.width, source.height) == ((160, 96) if degrees == 180 else (96, 160))


def test_notes_say_what_is_unusual(clips):
    assert probe_facts(clips / "plain.mp4").notes == ()
    varying = probe_facts(clips / "varying.mp4")
    assert (varying.num_frames, varying.grid) == (60, Fraction(30000, 1001))
    assert "29.97" in varying.notes[0]
    assert "240x96" in probe_facts(clips / "wide_pixels.mp4").notes[0]
    cut = probe_facts(clips / "cut_short.mp4")
    assert cut.reader == "ffmpeg"
    assert f"{cut.num_frames} frames" in cut.notes[0]
    assert 0 < cut.num_frames < 60


def test_a_misspelled_name_is_recognised(clips):
    for name, hint in (
        ("cut-short.mp4", str(clips / "cut_short.mp4")),
        ("else.webm", "path"),
        ("none/cut_short.mp4", "path"),
    ):
        with pytest.raises(VideoError) as caught:
            probe_facts(clips / name)
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        *("missing.mp4", "", "empty.mp4", "text.mp4", "sound.m4a", "hls.mp4", "concat.mp4"),
        "picture.mp4",
    ],
)
def test_refusals_are_one_sentence_with_a_remedy(clips, name):
    with pytest.raises(VideoError) as caught:
        probe_facts(clips / name)
    assert str(clips / name) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3


def test_playlist_is_refused_by_the_demuxer_too(clips, tmp_path):
    # A playlist that the first bytes do not give away.
    sneaky = tmp_path / "sneaky.m3u8"
    sneaky.write_bytes(b" " * 100 + (clips / "hls.mp4").read_bytes())
    with pytest.raises(VideoError):
        probe_facts(sneaky)


def test_fifo_is_refused_without_waiting(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe\.mp4"):
        probe_facts(tmp_path / "pipe.mp4")


def test_unreadable_file_is_a_storage_error(clips, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(StorageError, match=r"plain\.mp4"):
        probe_facts(clips / "plain.mp4")


def test_bounds(clips, tmp_path, monkeypatch):
    clip = shutil.copy(clips / "plain.mp4", tmp_path)  # one that was not probed before
    monkeypatch.setattr(probe, "MAX_FRAMES", 20)
    with pytest.raises(VideoError, match="20 frames"):
        probe_facts(Path(clip))
    monkeypatch.setattr(probe, "MAX_FRAME_PIXELS", 100)
    with pytest.raises(VideoError, match="160x96"):
        probe_facts(Path(clip))


def test_cover_picture_is_no_video(clips, tmp_path):
    song = tmp_path / "song.m4a"
    inputs = ["-i", clips / "sound.m4a", "-i", clips / "picture.mp4"]
    options = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v", "attached_pic"]
    ffmpeg(*inputs, *options, song)
    with pytest.raises(VideoError, match=r"song\.m4a"):
        probe_facts(song)


def test_absurd_pixel_aspect_is_refused(tmp_path):
    picture = ["-f", "lavfi", "-i", "color=s=4096x128:r=25:d=0.08,setsar=100/1"]
    ffmpeg(*picture, tmp_path / "wide.mp4")
    with pytest.raises(VideoError, match="409600x128"):
        probe_facts(tmp_path / "wide.mp4")


def test_odd_rotation_is_refused(clips, tmp_path):
    askew = tmp_path / "askew.mp4"
    ffmpeg("-display_rotation", "-30", "-i", clips / "plain.mp4", "-c", "copy", askew)
    with pytest.raises(VideoError, match="30 degrees"):
        probe_facts(askew)


def test_second_video_stream_goes_to_ffmpeg(clips, tmp_path):
    both = tmp_path / "both.mkv"
    inputs = ["-i", clips / "counter.mp4", "-i", clips / "plain.mp4"]
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:v", "-c", "copy", both)
    source = probe_facts(both)
    assert (source.num_frames, source.reader) == (50, "ffmpeg")


@pytest.mark.parametrize("name", ["-i.mp4", "a:b.mp4", "%03d.mp4", "a b'\"$(x).mp4", "a\nb.mp4"])
def test_strange_names_are_only_names(clips, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes((clips / "plain.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    path = type(tmp_path)(name)
    source = identify(path, probe_facts(path))
    assert (source.name, source.num_frames, source.width) == (name, 60, 160)


@pytest.fixture
def fresh(clips, tmp_path):
    """A video that ffmpeg has not been asked about: its answers are kept."""
    return Path(shutil.copy(clips / "plain.mp4", tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_a_probe_that_hangs_is_killed(clips, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(VideoError, match=r"plain\.mp4"):
        run_on_input(clips / "plain.mp4", [], timeout=0.2)
    with pytest.raises(VideoError, match=r"plain\.mp4 could not be read within"):
        find_messages(clips / "plain.mp4", [], re.compile(b"x"), timeout=0.2)


@pytest.mark.parametrize(("gigabytes", "seconds"), [(0, 60), (2, 260)])
def test_a_large_file_has_time_to_be_read(tmp_path, monkeypatch, gigabytes, seconds):
    """At ten megabytes a second, as from a disk in another room."""
    path, allowed = tmp_path / "large.ts", []

    def run(args, *, timeout):
        allowed.append(timeout)
        return FfmpegResult(0, b"", "")

    monkeypatch.setattr(ffmpeg_module, "run_ffmpeg", run)
    with path.open("wb") as file:
        file.truncate(gigabytes * 10**9)
    run_packet_list(path, "0:V:0")
    assert allowed == [seconds]


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_a_killed_process_has_the_status_1_on_windows(clips, tmp_path, monkeypatch):
    class PopenOfWindows(subprocess.Popen):
        def wait(self, timeout=None):
            self.returncode = abs(super().wait(timeout)) and 1
            return self.returncode

    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    monkeypatch.setattr(subprocess, "Popen", PopenOfWindows)
    with pytest.raises(VideoError, match=r"plain\.mp4 could not be read within"):
        find_messages(clips / "plain.mp4", [], re.compile(b"y"), timeout=0.2)


def test_broken_ffmpeg_setting_names_the_variable(clips, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    with pytest.raises(ConfigError, match="IMAGEIO_FFMPEG_EXE"):
        probe_facts(clips / "plain.mp4")


def test_coloured_ffmpeg_logs_do_not_confuse(fresh, monkeypatch):
    monkeypatch.setenv("AV_LOG_FORCE_COLOR", "1")
    assert probe_facts(fresh).reader == "decord"


def test_without_decord_ffmpeg_reads(clips, monkeypatch):
    """Also a clip that was probed before."""
    assert probe_facts(clips / "plain.mp4").reader == "decord"
    monkeypatch.setitem(sys.modules, "decord", None)
    assert probe_facts(clips / "plain.mp4").reader == "ffmpeg"


def test_probing_loads_neither_torch_nor_decord(clips):
    code = (
        "import sys; from pathlib import Path\n"
        "from cogedit.media import clip, reader, writer\n"
        "from cogedit.media.probe import probe_facts\n"
        f"probe_facts(Path({str(clips / 'plain.mp4')!r}))\n"
        "print(sorted({'torch', 'decord'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_comment_is_none_without_one(clips):
    assert find_comment(clips / "plain.mp4") is None


@pytest.mark.parametrize("fps", ["24000/1001", "25", "30000/1001", "50", "60000/1001", "25/2"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_exact_rate_on_fine_and_coarse_clocks(tmp_path, fps, suffix):
    path = make_video(tmp_path / f"clip{suffix}", width=32, height=32, fps=fps, num_frames=7)
    assert probe_facts(path).fps == Fraction(fps)


def test_the_rate_of_directshow_is_that_of_television(tmp_path):
    """It counts in steps of 100 ns, and so do AVI files of its time."""
    path = make_video(tmp_path / "clip.avi", width=32, height=32, fps="30000/1001")
    rate, of_directshow = ((1001, 30_000), (333_667, 10_000_000))
    written = path.read_bytes()
    assert written.count(struct.pack("<II", *rate)) == 1
    path.write_bytes(written.replace(struct.pack("<II", *rate), struct.pack("<II", *of_directshow)))
    facts = probe_facts(path)
    assert facts.timing.time_base == Fraction(*of_directshow)
    assert (facts.fps, facts.num_frames) == (Fraction(30000, 1001), 30)
