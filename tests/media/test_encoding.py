"""Every codec on real frames: what a decoder reads back, and what is refused."""

import errno
import re
import sys
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import BARS, bars, ffmpeg, middles, read_back

from cogedit.errors import StorageError, UsageError, VideoError
from cogedit.media.encoding import Encoding, plan_encoding
from cogedit.media.ffmpeg import find_ffmpeg, input_args, run_ffmpeg
from cogedit.media.probe import probe_facts
from cogedit.media.recipe_comment import add_gif_comment, find_comment
from cogedit.media.stream import FrameStream
from cogedit.media.writer import write_video

FPS = Fraction(30000, 1001)
COMMENT = '{"prompt":"a \\"cat\\"; #1 \\u00fc"}' + "x" * 700
LOSSY = [
    ("h264", ".mp4"), ("h264", ".mkv"), ("h265", ".mp4"), ("h265", ".mov"), ("h265", ".mkv"),
    ("av1", ".mp4"), ("av1", ".mkv"), ("prores", ".mov"), ("prores", ".mkv"),
]  # fmt: skip
LOSSLESS = [
    ("h264", ".mp4"), ("h264", ".mov"), ("h264", ".mkv"), ("h265", ".mp4"), ("h265", ".mkv"),
    ("ffv1", ".mkv"),
]  # fmt: skip
# Without it swscale itself is three levels off from 10 bits.
EXACT_SCALING = ("-sws_flags", "accurate_rnd+full_chroma_int+bitexact")


def noise(count=9, height=48, width=64):
    shape = (count, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def stream_line(path):
    stderr = run_ffmpeg(input_args(path), timeout=60).stderr
    return re.search(r"Stream #0:0.*: (Video: .*)", stderr).group(1)


@pytest.mark.parametrize(("codec", "suffix"), LOSSY)
def test_colours_of_lossy_codecs_at_their_default_quality(tmp_path, codec, suffix):
    path = tmp_path / f"bars{suffix}"
    encoding = plan_encoding(path, codec)
    write_video(bars(9), path, fps=FPS, encoding=encoding, comment=COMMENT)
    height, width = bars(1).shape[1:3]
    found = read_back(path, width=width, height=height, options=EXACT_SCALING)
    assert len(found) == 9
    for colour, middle in zip(BARS, middles(found[4]), strict=True):
        assert np.abs(middle - colour).max() <= 2, colour
    # ProRes is always in limited range, and mov has no place for it: older ffmpeg prints none.
    assert re.search(r"\((tv, )?bt709" if codec == "prores" else r"\(tv, bt709", stream_line(path))
    facts = probe_facts(path)
    assert (facts.codec, facts.fps) == ({"h265": "hevc"}.get(codec, codec), FPS)
    assert find_comment(path) == COMMENT


@pytest.mark.parametrize(("codec", "suffix"), LOSSLESS)
def test_lossless_is_exact(tmp_path, codec, suffix):
    path = tmp_path / f"noise{suffix}"
    encoding = plan_encoding(path, codec, lossless=True)
    write_video(noise(), path, fps=FPS, encoding=encoding, comment=COMMENT)
    assert np.array_equal(read_back(path, width=64, height=48), noise())
    assert "gbr/bt709/bt709" in stream_line(path)
    assert probe_facts(path).fps == FPS
    assert find_comment(path) == COMMENT


def test_ffv1_is_lossless_unasked_and_takes_odd_sizes(tmp_path):
    odd = noise(3, 37, 51)
    write_video(odd, tmp_path / "a.mkv", fps=FPS, encoding=plan_encoding(None, "ffv1"))
    assert np.array_equal(read_back(tmp_path / "a.mkv", width=51, height=37), odd)
    lossless = plan_encoding(None, "h264", lossless=True)
    write_video(odd, tmp_path / "b.mp4", fps=FPS, encoding=lossless)
    assert np.array_equal(read_back(tmp_path / "b.mp4", width=51, height=37), odd)


def test_hevc_has_the_tag_that_quicktime_wants(tmp_path):
    for encoding in (plan_encoding(None, "h265"), plan_encoding(None, "h265", lossless=True)):
        write_video(noise(), tmp_path / "a.mp4", fps=FPS, encoding=encoding)
        assert "(hvc1 / " in stream_line(tmp_path / "a.mp4")


def test_pictures_are_exact_and_carry_the_comment(tmp_path):
    folder = tmp_path / "frames"
    encoding = plan_encoding(folder, "png")
    write_video(noise(3), folder, fps=FPS, encoding=encoding, comment=COMMENT)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["frame-0000.png", "frame-0001.png", "frame-0002.png"]
    found = np.stack([np.asarray(Image.open(folder / name)) for name in names])
    assert np.array_equal(found, noise(3))
    assert find_comment(folder) == COMMENT
    assert find_comment(folder / names[1]) == COMMENT
    # ffmpeg reads them as a sequence.
    pattern = ["-i", folder / "frame-%04d.png", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    assert ffmpeg(*pattern) == noise(3).tobytes()


def test_pictures_replace_pictures_and_nothing_else(tmp_path):
    folder = tmp_path / "frames"
    encoding = plan_encoding(folder, "png")
    write_video(noise(5), folder, fps=FPS, encoding=encoding)
    write_video(noise(3), folder, fps=FPS, encoding=encoding)
    assert len(list(folder.iterdir())) == 3
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match=r"thesis\.txt"):
        write_video(noise(3), folder, fps=FPS, encoding=encoding)
    assert len(list(folder.iterdir())) == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_video(noise(3), tmp_path / "file", fps=FPS, encoding=encoding)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "frames"]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(8), Fraction(15000, 1001)])
def test_gif(tmp_path, fps):
    path = tmp_path / "bars.gif"
    frames = bars(9)
    frames[:, :, :8] = 28 * np.arange(9, dtype=np.uint8)[:, None, None, None]
    encoding = plan_encoding(path)
    assert encoding.codec == "gif"
    write_video(frames, path, fps=fps, encoding=encoding, comment=COMMENT)
    facts = probe_facts(path)
    assert (facts.codec, facts.num_frames, facts.audio_tracks) == ("gif", 9, ())
    found = read_back(path, width=frames.shape[2], height=frames.shape[1])
    for colour, middle in zip(BARS[1:], middles(found[4])[1:], strict=True):
        assert np.abs(middle - colour).max() <= 6, colour
    assert find_comment(path) == COMMENT
    with Image.open(path) as picture:
        assert picture.n_frames == 9  # type: ignore[attr-defined]
        assert picture.info["loop"] == 0
        assert abs(picture.info["duration"] - 1000 / fps) <= 10


class Few(Sequence):
    """Frames of noise in 64 colours, made as they are read: their own bytes are not in memory."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, number):
        if not 0 <= number < self._count:
            raise IndexError(number)
        shape = (240, 320, 3)
        return 64 * np.random.default_rng(number).integers(0, 4, shape, dtype=np.uint8)


def peaks_of_ffmpeg(folder, monkeypatch):
    """Have ffmpeg's peaks of memory, in bytes, written into a file; a function that reads them."""
    log, program = folder / "peaks", folder / "ffmpeg.py"
    unit = 1 if sys.platform == "darwin" else 1024
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, resource, subprocess, sys\n"
        f"status = subprocess.run([{find_ffmpeg()!r}, *sys.argv[1:]]).returncode\n"
        f"peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * {unit}\n"
        f"print(peak, file=open({str(log)!r}, 'a'))\n"
        "sys.exit(status)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))

    def largest():
        peaks = [int(line) for line in log.read_text().split()]
        log.unlink()
        return max(peaks)

    return largest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not run a script as a program")
def test_a_gif_needs_no_more_memory_for_more_frames(tmp_path, monkeypatch):
    largest = peaks_of_ffmpeg(tmp_path, monkeypatch)

    def peak(count):
        stream = FrameStream(Few(count), count, 240, 320)
        write_video(stream, tmp_path / "a.gif", fps=FPS, encoding=Encoding("gif", None))
        return largest()

    short, long = peak(10), peak(250)
    assert long - short < 240 * 320 * 240  # of the frames, a third of their bytes


def test_a_gif_of_a_stream_is_that_of_its_frames(tmp_path):
    encoding = Encoding("gif", None)
    write_video(noise(), tmp_path / "a.gif", fps=FPS, encoding=encoding)
    once = FrameStream((frame for frame in noise()), 9, 48, 64)
    write_video(once, tmp_path / "b.gif", fps=FPS, encoding=encoding)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    for short in (FrameStream(noise(5), 9, 48, 64), FrameStream(iter(noise(5)), 9, 48, 64)):
        with pytest.raises((StorageError, VideoError), match=r"5 .*9"):
            write_video(short, tmp_path / "a.gif", fps=FPS, encoding=encoding)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "b.gif"]


def test_the_colours_of_a_gif_are_found_in_all_frames(tmp_path):
    frames = np.zeros((9, 48, 64, 3), np.uint8)
    frames[:5, ..., 0] = 200
    frames[5:, ..., 2] = 200
    write_video(frames, tmp_path / "a.gif", fps=FPS, encoding=Encoding("gif", None))
    found = read_back(tmp_path / "a.gif", width=64, height=48)
    assert np.abs(found.astype(int) - frames).max() <= 6


def test_the_comment_of_a_long_gif_goes_between_its_bytes(tmp_path):
    """They are moved piece by piece."""
    path, encoding = tmp_path / "a.gif", Encoding("gif", None)
    write_video(FrameStream(Few(60), 60, 240, 320), path, fps=FPS, encoding=encoding)
    plain = path.read_bytes()
    assert len(plain) > 3_000_000
    tracemalloc.start()
    try:
        add_gif_comment(path, COMMENT)
        assert tracemalloc.get_traced_memory()[1] < len(plain)
    finally:
        tracemalloc.stop()
    made, start = path.read_bytes(), 13 + 3 * 256  # the header, and 256 colours
    assert made.startswith(plain[:start] + b"\x21\xfe")
    assert made.endswith(plain[start:])
    assert find_comment(path) == COMMENT


def test_a_full_disk_behind_the_frames_of_a_gif_is_a_sentence(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(StorageError, match=r"a\.gif"):
        write_video(
            bars(3), tmp_path / "a.gif", fps=FPS, encoding=Encoding("gif", None), comment="c"
        )
    assert list(tmp_path.iterdir()) == []


def test_still_frames_of_a_gif_are_all_there(tmp_path):
    still = np.repeat(noise(1), 9, axis=0)
    write_video(still, tmp_path / "a.gif", fps=Fraction(10), encoding=Encoding("gif", None))
    assert probe_facts(tmp_path / "a.gif").num_frames == 9


def test_a_stream_is_written_as_it_comes(tmp_path):
    made = FrameStream((frame for frame in noise()), 9, 48, 64)
    write_video(made, tmp_path / "a.mkv", fps=FPS, encoding=plan_encoding(None, "ffv1"))
    assert np.array_equal(read_back(tmp_path / "a.mkv", width=64, height=48), noise())
    short = FrameStream((frame for frame in noise(5)), 9, 48, 64)
    with pytest.raises(StorageError, match="5 of 9 frames"):
        write_video(short, tmp_path / "b.mp4", fps=FPS)


@pytest.mark.parametrize(
    ("name", "codec", "change", "text"),
    [
        ("a.mp4", "ffv1", {}, ".mkv"),
        ("a.mp4", "prores", {}, ".mov or .mkv"),
        ("a.mov", "av1", {}, "--codec h264 or h265 or prores"),
        ("a.gif", "h264", {}, "--codec gif"),
        ("a.webm", None, {}, ".webm"),
        ("a.png", "png", {}, "a.png"),
        ("a.png", None, {}, "--codec png"),
        (None, "av1", {"lossless": True}, "h264, h265"),
        ("a.gif", None, {"lossless": True}, "gif"),
        (None, "prores", {"lossless": True}, "prores"),
        (None, "h264", {"crf": 52}, "0 to 51"),
        (None, "av1", {"crf": 64}, "0 to 63"),
        (None, "ffv1", {"crf": 1}, "--crf"),
        (None, "h265", {"crf": 3, "lossless": True}, "crf is 3"),
    ],
)
def test_impossible_combinations(name, codec, change, text):
    with pytest.raises(UsageError) as caught:
        plan_encoding(None if name is None else Path(name), codec, **change)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "size", "text"),
    [
        ("h264", (51, 48), "51x48"),
        ("h265", (52, 47), "52x47"),
        ("av1", (51, 48), "51x48"),
        ("prores", (51, 48), "51x48"),
    ],
)
def test_odd_sizes(tmp_path, codec, size, text):
    with pytest.raises(UsageError, match=re.escape(text)):
        plan_encoding(None, codec).check_frames(*size, fps=FPS)


def test_a_gif_has_a_coarse_clock():
    with pytest.raises(UsageError, match="60 frames per second"):
        plan_encoding(None, "gif").check_frames(64, 64, fps=Fraction(60))
