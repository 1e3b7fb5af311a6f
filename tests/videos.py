"""Small real videos, made by ffmpeg while the tests run."""

import hashlib
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

GRAY_STEP = 4
BARS = (
    (255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255),
    (255, 0, 0), (0, 0, 255), (0, 0, 0), (200, 120, 40), (128, 128, 128),
)  # fmt: skip


def ffmpeg(*args: str | Path, stdin: bytes = b"") -> bytes:
    """Run ffmpeg, fail loudly with its messages, and return its stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    done = subprocess.run(
        [*command, *map(str, args)], input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


_MADE: dict[tuple[object, ...], bytes] = {}


def write_once(path: Path, *args: str, stdin: bytes = b"") -> Path:
    """Write a video by ffmpeg; what was written before with these arguments is copied."""
    key = (path.suffix, *args, hashlib.sha256(stdin).digest())
    if key not in _MADE:
        ffmpeg(*args, path, stdin=stdin)
        _MADE[key] = path.read_bytes()
    path.write_bytes(_MADE[key])
    return path


def make_video(
    path: Path,
    *,
    width: int = 160,
    height: int = 96,
    fps: str = "30000/1001",
    num_frames: int = 30,
    sound: bool = False,
    options: tuple[str, ...] = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "12"),
) -> Path:
    """A test pattern; x264 takes odd sizes with "-pix_fmt yuv444p" only."""
    # testsrc2 itself rounds its size down to even.
    picture = f"testsrc2=s={width + width % 2}x{height + height % 2}:r={fps}"
    picture += f",scale={width}:{height}"
    seconds = float(num_frames / Fraction(fps))
    tone = ["-f", "lavfi", "-i", f"sine=d={seconds:.6f}", "-c:a", "aac"] if sound else []
    made = ["-f", "lavfi", "-i", picture, *tone, "-frames:v", str(num_frames), *options]
    return write_once(path, *made)


def make_counter(
    path: Path,
    *,
    num_frames: int = 50,
    fps: str = "25",
    options: tuple[str, ...] = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "12"),
) -> Path:
    """Gray frames of 64x48 whose level is the number of the frame: see `read_counter`."""
    levels = (16 + GRAY_STEP * np.arange(num_frames)).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (num_frames, 48, 64, 3))
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", fps, "-i", "-"]
    return write_once(path, *source, "-crf", "8", *options, stdin=frames.tobytes())


def read_counter(frames: np.ndarray) -> list[int]:
    """The number in each frame [F, H, W, 3] of a counter video."""
    levels = frames.reshape(len(frames), -1).mean(axis=1)
    return [round(float(level - 16) / GRAY_STEP) for level in levels]


def bars(num_frames: int) -> np.ndarray:
    """Colour bars of 32 pixels, [F, 64, 320, 3]."""
    row = np.repeat(np.array(BARS, np.uint8), 32, axis=0)
    return np.tile(row, (num_frames, 64, 1, 1))


def middles(frame: np.ndarray) -> list[np.ndarray]:
    """The inside of each of the `bars` in a frame, [N, 3] each, away from the edges."""
    insides = [frame[20:44, number * 32 + 10 : number * 32 + 22] for number in range(len(BARS))]
    return [inside.reshape(-1, 3).astype(int) for inside in insides]


def read_back(path: Path, *, width: int, height: int, options: tuple[str, ...] = ()) -> np.ndarray:
    """All frames of a video as uint8 RGB [F, H, W, 3], by ffmpeg itself and none of our code."""
    raw = ["-fps_mode", "passthrough", *options, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = np.frombuffer(ffmpeg("-i", path, *raw), np.uint8)
    return pixels.reshape(-1, height, width, 3)


def read_sound(path: Path) -> np.ndarray:
    """The first audio track in time with the pictures: 8000 samples of 16 bits a second."""
    raw = ["-af", "aresample=async=1:first_pts=0", "-f", "s16le", "-ac", "1", "-ar", "8000", "-"]
    return np.frombuffer(ffmpeg("-i", path, "-map", "0:a:0", *raw), np.int16).astype(int)
