"""Clips in the shape of public bug reports: every frame is read, once, at the rate that it has.

Frame k shows its number in 8 bars in the top third: white is 1, the highest bit is left.
"""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import ffmpeg

from cogedit.media.probe import probe_facts
from cogedit.media.reader import iterate_frames

CLIPS = Path(__file__).parent.parent / "data" / "clips"
NTSC = Fraction(30000, 1001)


def read_number(frame: np.ndarray) -> int:
    height, width, _ = frame.shape
    bits = frame[height // 6, width // 16 :: width // 8].mean(axis=-1) > 128
    return int("".join(map(str, bits.astype(int))), 2)


def read_numbers(path: Path, *, frame_rate: Fraction | None = None) -> list[int]:
    facts = probe_facts(path, frame_rate=frame_rate)
    frames = iterate_frames(path, facts, indices=range(facts.num_frames))
    return [read_number(frame) for frame in frames]


@pytest.mark.parametrize(
    ("name", "fps", "numbers", "reader", "num_lost"),
    [
        ("mediarecorder.webm", 30, range(49), "ffmpeg", 0),
        ("remux-1ms-clock.mp4", 60, range(60), "decord", 0),
        ("phone-jitter.mp4", NTSC, range(49), "decord", 0),
        ("open-gop-cut.mkv", 25, range(18, 73), "ffmpeg", 2),
        ("open-gop-cut-sound.mkv", 25, range(18, 73), "ffmpeg", 2),
        ("starts-mid-gop-h264.mkv", 25, range(40, 65), "ffmpeg", 14),
        ("starts-mid-gop-hevc.mkv", 25, range(40, 65), "ffmpeg", 14),
    ],
)
def test_frames_and_rate(name, fps, numbers, reader, num_lost):
    facts = probe_facts(CLIPS / name)
    assert (facts.fps, facts.grid, facts.reader) == (fps, None, reader)
    assert facts.num_lost == num_lost
    assert [str(num_lost) in note for note in facts.notes] == [True] * bool(num_lost)
    assert read_numbers(CLIPS / name) == list(numbers)


def test_a_screen_recording_plays_as_it_was_recorded():
    """24 frames at 60 fps, 3 seconds in which nothing is written, and 25 frames."""
    facts = probe_facts(CLIPS / "varying-rate.mp4")
    assert (facts.fps, facts.grid) == (60, 60)
    counts = Counter(read_numbers(CLIPS / "varying-rate.mp4"))
    assert counts.pop(23) == pytest.approx(181, abs=1)
    assert counts == dict.fromkeys([*range(23), *range(24, 49)], 1)


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(24), Fraction(24000, 1001)])
def test_another_rate_shows_what_is_on_the_screen_then(rate):
    numbers = read_numbers(CLIPS / "varying-rate.mp4", frame_rate=rate)
    times = [number / 60 + 3 * (number > 23) for number in range(49)]
    for place, number in enumerate(numbers):
        now = place / rate + Fraction(1, 1000)
        assert number == max(index for index, time in enumerate(times) if time <= now)
    constant = read_numbers(CLIPS / "remux-1ms-clock.mp4", frame_rate=Fraction(20))
    assert constant == list(range(0, 60, 3))


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
KINDS = {
    "mp4": H264,
    "mkv": (*H264, "-bf", "3"),
    "webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime"),
    "flv": H264,
    "ts": H264,
    "avi": ("-c:v", "mpeg4", "-q:v", "2"),
}


def number_pictures(num_frames: int, width: int = 64, height: int = 48) -> bytes:
    """Raw RGB frames that show their numbers."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        for bit in range(8):
            frame[: height // 3, bit * 8 : bit * 8 + 8] = 255 * (number >> (7 - bit) & 1)
    return frames.tobytes()


def make_numbers(path: Path, *options: str, fps: str, num_frames: int) -> Path:
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", fps, "-i", "-"]
    ffmpeg(*source, *options, path, stdin=number_pictures(num_frames))
    return path


RATES = ["24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60", "120"]


@pytest.mark.parametrize(
    ("suffix", "fps"),
    [
        # A clock of the rate's own, one of 1 ms and one of 90 kHz; others have one of these.
        *((suffix, fps) for suffix in ("mp4", "mkv", "ts") for fps in RATES),
        *((suffix, fps) for suffix in ("webm", "flv", "avi") for fps in ("24000/1001", "120")),
    ],
)
def test_rates_in_containers(tmp_path, suffix, fps):
    path = make_numbers(tmp_path / f"clip.{suffix}", *KINDS[suffix], fps=fps, num_frames=26)
    facts = probe_facts(path)
    assert (facts.fps, facts.grid, facts.num_frames) == (Fraction(fps), None, 26)
    # And under the clock of another container, as a remux has it.
    ffmpeg("-i", path, "-c", "copy", "-video_track_timescale", "90000", tmp_path / "remux.mp4")
    remux = probe_facts(tmp_path / "remux.mp4")
    assert (remux.fps, remux.grid, remux.num_frames) == (Fraction(fps), None, 26)


@pytest.mark.parametrize("suffix", KINDS)
def test_varying_rates_in_containers(tmp_path, suffix):
    """Frames 8, 9 and 10 are not written, and frame 7 is shown until frame 11 comes."""
    dropped = ("-vf", "select=not(between(n\\,8\\,10))", "-fps_mode", "vfr")
    path = tmp_path / f"clip.{suffix}"
    make_numbers(path, *dropped, *KINDS[suffix], fps="25", num_frames=26)
    facts = probe_facts(path)
    assert (facts.fps, facts.num_frames) == (25, 26)
    assert facts.grid == 25 or suffix == "avi"  # ffmpeg fills an AVI with empty frames
    assert read_numbers(path) == [7 if 8 <= number <= 10 else number for number in range(26)]
