import json
import os
import stat
from fractions import Fraction

import imageio_ffmpeg
import numpy as np
import pytest
from interleaving import at_every_moment
from videos import BARS, bars, ffmpeg, make_counter, make_video, middles, read_back, read_counter

from cogedit.errors import StorageError, UsageError
from cogedit.media import writer
from cogedit.media.encoding import Encoding
from cogedit.media.ffmpeg import input_args, run_ffmpeg
from cogedit.media.png import check_image_folder
from cogedit.media.probe import probe_facts
from cogedit.media.recipe_comment import add_gif_comment, find_comment
from cogedit.media.stream import FrameStream
from cogedit.media.writer import AudioSource, write_video

FPS = Fraction(30000, 1001)


def frames(count=9, height=48, width=64):
    levels = 16 + 4 * np.arange(count)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("fps", [FPS, Fraction(25), Fraction(8), Fraction(24000, 1001)])
def test_rate_count_and_size_read_back(tmp_path, suffix, fps):
    path = tmp_path / f"out{suffix}"
    write_video(frames(), path, fps=fps)
    facts = probe_facts(path)
    assert (facts.fps, facts.num_frames, facts.grid) == (fps, 9, None)
    assert (facts.width, facts.height, facts.pictures.pixel_format) == (64, 48, "yuv420p")
    assert facts.reader == "decord"
    assert read_counter(read_back(path, width=64, height=48)) == list(range(9))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("fps", [Fraction(15000, 1001), Fraction(25, 3), Fraction(10000, 1001)])
def test_rates_of_a_sampled_clip_are_exact_in_mp4(tmp_path, fps):
    write_video(frames(), tmp_path / "out.mp4", fps=fps)
    assert probe_facts(tmp_path / "out.mp4").fps == fps


@pytest.mark.parametrize("size", [(8, 8), (50, 18), (96, 178)])
def test_no_size_is_rounded_to_macroblocks(tmp_path, size):
    width, height = size
    write_video(frames(1, height, width), tmp_path / "out.mp4", fps=FPS)
    assert read_back(tmp_path / "out.mp4", width=width, height=height).shape[0] == 1
    facts = probe_facts(tmp_path / "out.mp4")
    assert (facts.width, facts.height) == size


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_colours_survive_within_two_levels(tmp_path, suffix):
    path = tmp_path / f"bars{suffix}"
    write_video(bars(3), path, fps=FPS, encoding=Encoding(crf=1))
    found = read_back(path, width=320, height=64)[1]
    for colour, middle in zip(BARS, middles(found), strict=True):
        assert np.abs(middle - colour).max() <= 2, colour


def test_colours_are_tagged_as_what_they_are(tmp_path):
    write_video(frames(), tmp_path / "out.mp4", fps=FPS)
    done = run_ffmpeg(input_args(tmp_path / "out.mp4"), timeout=60)
    assert "yuv420p(tv, bt709" in done.stderr


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_comment_reads_back(tmp_path, suffix):
    recipe = json.dumps({"prompt": "a 'cat' = \"dog\"; #1\n\\ ünï 🎬 %d", "seed": 42})
    write_video(frames(), tmp_path / f"out{suffix}", fps=FPS, comment=recipe)
    assert find_comment(tmp_path / f"out{suffix}") == recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_video(folder / "aac.mp4", num_frames=60, sound=True)
    aac = folder / "aac.mp4"
    tags = ["-metadata", "title=private", "-metadata", "comment=theirs"]
    ffmpeg("-i", aac, "-c:v", "copy", "-c:a", "libvorbis", *tags, folder / "vorbis.mkv")
    ffmpeg("-i", aac, "-map", "0:v", "-c", "copy", folder / "silent.mp4")
    ffmpeg("-i", aac, "-c:v", "copy", "-af", "atrim=0:0.3", folder / "short_sound.mp4")
    return folder


def audio_of(path, start, duration):
    return AudioSource(path, start, duration, probe_facts(path).audio_tracks[0].codec)


def audio_seconds(path):
    """Decoded length of the first audio stream."""
    raw = path.with_suffix(".raw")
    ffmpeg("-i", path, "-map", "0:a:0", "-f", "s16le", "-ar", "1000", "-ac", "1", raw)
    return raw.stat().st_size / 2 / 1000


@pytest.mark.parametrize(
    ("name", "suffix", "codec"),
    [
        ("aac.mp4", ".mp4", "aac"),
        ("aac.mp4", ".mkv", "aac"),
        ("aac.mp4", ".mov", "aac"),
        ("vorbis.mkv", ".mkv", "vorbis"),
        ("vorbis.mkv", ".mp4", "aac"),
        ("vorbis.mkv", ".mov", "aac"),
    ],
)
@pytest.mark.parametrize("start", [Fraction(0), Fraction(1001, 2000)])
def test_sound_is_carried_over(source, tmp_path, name, suffix, codec, start):
    path = tmp_path / f"out{suffix}"
    audio = audio_of(source / name, start, 25 / FPS)
    write_video(frames(25), path, fps=FPS, audio=audio)
    facts = probe_facts(path)
    assert facts.audio_tracks[0].codec == codec
    assert (facts.num_frames, facts.fps) == (25, FPS)
    assert abs(audio_seconds(path) - float(25 / FPS)) < 0.08
    assert find_comment(path) is None  # the source's own metadata stays with the source


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("codec", ["aac", "libvorbis"])
def test_sound_stays_in_time(tmp_path, suffix, codec):
    # A tone that begins at 1.0 s, under a clip that begins at 0.51 s: it begins at 0.49 s.
    tone = ["-f", "lavfi", "-i", "aevalsrc='sin(880*PI*t)*gte(t,1)':d=3:s=44100", "-c:a", codec]
    picture = ["-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=3"]
    ffmpeg(*picture, *tone, "-g", "250", tmp_path / "tone.mkv")
    path = tmp_path / f"out{suffix}"
    audio = audio_of(tmp_path / "tone.mkv", Fraction(51, 100), Fraction(1))
    write_video(frames(25), path, fps=Fraction(25), audio=audio)
    timed = ["-af", "aresample=async=1:first_pts=0", "-f", "s16le", "-ac", "1", "-ar", "8000", "-"]
    samples = np.frombuffer(ffmpeg("-i", path, "-map", "0:a", *timed), np.int16).astype(int)
    assert abs(np.argmax(np.abs(samples) > 3000) / 8000 - 0.49) < 0.005


def test_sound_that_ends_early_does_not_cut_the_picture(source, tmp_path):
    audio = audio_of(source / "short_sound.mp4", Fraction(0), 25 / FPS)
    write_video(frames(25), tmp_path / "out.mp4", fps=FPS, audio=audio)
    assert probe_facts(tmp_path / "out.mp4").num_frames == 25
    late = audio_of(source / "short_sound.mp4", Fraction(1), 25 / FPS)
    write_video(frames(25), tmp_path / "late.mp4", fps=FPS, audio=late)
    assert probe_facts(tmp_path / "late.mp4").num_frames == 25


def test_sound_window_must_exist(source, tmp_path):
    for start, duration in ((Fraction(-1), Fraction(1)), (Fraction(0), Fraction(0))):
        audio = audio_of(source / "aac.mp4", start, duration)
        with pytest.raises(UsageError, match="no audio"):
            write_video(frames(), tmp_path / "out.mp4", fps=FPS, audio=audio)


def test_silent_source_gives_a_silent_video(source, tmp_path):
    audio = AudioSource(source / "silent.mp4", Fraction(0), 9 / FPS, None)
    write_video(frames(), tmp_path / "out.mp4", fps=FPS, audio=audio)
    assert not probe_facts(tmp_path / "out.mp4").audio_tracks


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("out.webm", {}, ".mp4, .mov or .mkv"),
        ("out", {}, ".mp4"),
        ("out.mp4", {"fps": Fraction(0)}, "0 frames per second"),
        ("out.mp4", {"fps": Fraction(-25)}, "-25 frames per second"),
        ("out.mp4", {"encoding": Encoding(crf=52)}, "crf is 52"),
        ("out.mp4", {"comment": "a\0b"}, "NUL"),
        ("out.mp4", {"comment": "x" * 100_001}, "100000 bytes"),
    ],
)
def test_usage_errors(tmp_path, name, change, text):
    with pytest.raises(UsageError) as caught:
        write_video(frames(), tmp_path / name, **{"fps": FPS, **change})
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)],
)
def test_frames_that_are_not_frames(tmp_path, bad):
    with pytest.raises(UsageError, match="frames must be uint8"):
        write_video(bad, tmp_path / "out.mp4", fps=FPS)


def test_odd_size_is_refused_and_not_cut(tmp_path):
    with pytest.raises(UsageError, match="63x48"):
        write_video(frames(1, 48, 63), tmp_path / "out.mp4", fps=FPS)


def test_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"out\.mp4") as caught:
        write_video(frames(), tmp_path / "no" / "out.mp4", fps=FPS)
    assert caught.value.exit_code == 7
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(StorageError, match="it is a folder"):
        write_video(frames(), tmp_path / "out.mp4", fps=FPS)


def wrapper(tmp_path, monkeypatch, lines):
    """Put a shell script in ffmpeg's place; "$REAL" is the real one."""
    script = tmp_path / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\nREAL='{imageio_ffmpeg.get_ffmpeg_exe()}'\n{lines}\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("lines", "text"),
    [
        # A full disk, as the kernel reports it to a process at its file-size limit.
        ('ulimit -f 8; trap \'\' XFSZ; exec "$REAL" "$@"', "File too large"),
        ('ulimit -f 8; exec "$REAL" "$@"', "larger than this process may write"),
        ("exit 3", "ffmpeg ended with 3"),
        ("head -c 10000 >/dev/null; echo '[error] Permission denied' >&2; exit 1", "Permission"),
        ("exit 0", "does not read back"),
    ],
)
def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, lines, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.mp4").write_bytes(b"old")
    wrapper(tmp_path, monkeypatch, lines)
    noise = np.random.default_rng(0).integers(0, 256, (9, 96, 96, 3), dtype=np.uint8)
    with pytest.raises(StorageError, match=text):
        write_video(noise, out / "old.mp4", fps=FPS)
    assert (out / "old.mp4").read_bytes() == b"old"
    assert [entry.name for entry in out.iterdir()] == ["old.mp4"]


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_an_encoder_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "STALL_TIMEOUT", 0.5)
    wrapper(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(StorageError, match=r"out\.mp4"):
        write_video(frames(), tmp_path / "out.mp4", fps=FPS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bin"]


def test_lost_frame_is_noticed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    # ffmpeg says that all went well, and has written one frame too few.
    short = ["-c:v", "libx264", "-vf", "trim=end_frame=8,format=yuv420p"]
    monkeypatch.setattr(Encoding, "args", lambda self, fps: short)
    with pytest.raises(StorageError, match="8 of 9 frames"):
        write_video(frames(), out / "out.mp4", fps=FPS)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("at", ["cogedit.media.writer.list_packets", "os.fsync"])
def test_interrupt_leaves_nothing(tmp_path, monkeypatch, at):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_video(frames(), tmp_path / "out.mp4", fps=FPS)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_encoding_leaves_nothing(tmp_path, monkeypatch):
    class Frames(np.ndarray):
        def __iter__(self):
            yield np.asarray(self[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(frames().view(Frames), tmp_path / "out.mp4", fps=FPS)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_replaced_with_ordinary_permissions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = type(tmp_path)("-out: 100%d.mp4")
    path.write_bytes(b"old")
    write_video(frames(), path, fps=FPS)
    assert probe_facts(path).num_frames == 9
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_images_that_another_process_replaces_are_no_files_of_others(tmp_path):
    folder, aside = tmp_path / "images", tmp_path / "aside"
    write_video(frames(3), aside, fps=FPS, encoding=Encoding("png", crf=None))
    looks = at_every_moment(
        lambda: aside.rename(folder),
        lambda: folder.rename(aside),
        lambda: check_image_folder(folder),
    )
    assert {*looks} == {None}


def test_images_are_written_through_no_link(tmp_path):
    """That somebody who may write there too has put in the place of the next one."""
    (tmp_path / "mine").write_bytes(b"mine")

    def planting():
        yield frames()[0]
        [folder] = tmp_path.glob(".cogedit-*")
        (folder / "frame-0001.png").symlink_to(tmp_path / "mine")
        yield frames()[1]

    clip = FrameStream(planting(), num_frames=2, height=48, width=64)
    with pytest.raises(UsageError, match="another process"):
        write_video(clip, tmp_path / "images", fps=FPS, encoding=Encoding("png", crf=None))
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_a_comment_is_added_through_no_link(tmp_path):
    (tmp_path / "mine").write_bytes(bytes(20))
    (tmp_path / "out.gif").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic"):
        add_gif_comment(tmp_path / "out.gif", "recipe")
    assert (tmp_path / "mine").read_bytes() == bytes(20)


def test_frames_written_and_loaded_again_are_the_same_numbers(tmp_path):
    make_counter(tmp_path / "in.mp4", num_frames=9)
    clip = read_back(tmp_path / "in.mp4", width=64, height=48)
    write_video(clip, tmp_path / "out.mp4", fps=Fraction(25))
    again = read_back(tmp_path / "out.mp4", width=64, height=48)
    assert np.abs(again.astype(int) - clip.astype(int)).max() <= 2
