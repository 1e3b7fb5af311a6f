"""Videos of every kind, made by ffmpeg: what each holds is known frame by frame.

Frame k of the pattern is gray of level 16 + 6 k, with a white square in its upper left corner: the
gray tells which frame it is, the square which way up.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from videos import ffmpeg, write_once

NUM_FRAMES = 33
WIDTH, HEIGHT = 96, 64
GRAY_STEP = 6
ALL = tuple(range(NUM_FRAMES))

H264 = ("-c:v", "libx264", "-crf", "6", "-pix_fmt", "yuv420p", "-g", "8")
VP9 = ("-c:v", "libvpx-vp9", "-crf", "10", "-b:v", "0", "-cpu-used", "8", "-pix_fmt", "yuv420p")
AV1 = ("-c:v", "libsvtav1", "-preset", "12", "-crf", "10", "-pix_fmt", "yuv420p")
HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:crf=6")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "1", "-pix_fmt", "yuv420p", "-g", "8")


def pattern(width: int = WIDTH, height: int = HEIGHT, num_frames: int = NUM_FRAMES) -> bytes:
    """The frames as rgb24."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = (16 + GRAY_STEP * np.arange(num_frames))[:, None, None, None]
    frames[:, : height // 3, : width // 4] = 235
    return frames.tobytes()


def make(
    path: Path,
    *options: str,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    num_frames: int = NUM_FRAMES,
    before: Sequence[str] = (),
) -> Path:
    """Write the pattern as `path`; `before` are further inputs and their options."""
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*size), "-r", "25"]
    stdin = pattern(*size, num_frames)
    return write_once(path, *source, "-i", "-", *before, *options, stdin=stdin)


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The number in each frame [F, H, W, 3], from the middle of the picture."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 2 - 4 : height // 2 + 4, width // 2 - 8 : width // 2 + 8]
    # Conversions from other formats come out darker by up to two levels.
    return [round(float(level - 15.5) / GRAY_STEP) for level in middle.mean(axis=(1, 2, 3))]


def white_corner(frame: np.ndarray) -> str:
    """Which corner of a frame [H, W, 3] is the brightest: "top left" and so on."""
    corners = {
        "top left": frame[:8, :8],
        "top right": frame[:8, -8:],
        "bottom left": frame[-8:, :8],
        "bottom right": frame[-8:, -8:],
    }
    return max(corners, key=lambda name: float(corners[name].mean()))


@dataclass(frozen=True)
class Good:
    """A file that is read.

    Attributes:
        make: Writes it.
        suffix: Ending of its name.
        numbers: Numbers of its frames; for a damaged file, a prefix of them is enough.
        size: Displayed width and height.
        corner: Where the white square is.
        says: What the user is told, in parts.
        is_damaged: Whether frames may be missing at the end.
        exact: Whether the gray levels come back within half a step.
    """

    make: Callable[[Path], object]
    suffix: str = ".mp4"
    numbers: Sequence[int] = ALL
    size: tuple[int, int] = (WIDTH, HEIGHT)
    corner: str = "top left"
    says: Sequence[str] = ()
    is_damaged: bool = False
    exact: bool = True


@dataclass(frozen=True)
class Bad:
    """A file that is refused with exit code 3, in a sentence that holds `says`."""

    make: Callable[[Path], object]
    says: str
    suffix: str = ".mp4"


def _from(options: Sequence[str], *, suffix: str = ".mp4", before: Sequence[str] = ()) -> Good:
    return Good(lambda path: make(path, *options, before=before), suffix)


def _remade(*options: str, first: Sequence[str] = (), base: Sequence[str] = H264):
    """Write the pattern, then copy it with other options of the container."""

    def write(path: Path) -> None:
        plain = path.with_name("plain.mp4")
        make(plain, *base)
        ffmpeg(*first, "-i", plain, *options, path)
        plain.unlink()

    return write


def _turned(degrees: int):
    return _remade("-c", "copy", first=("-display_rotation", str(-degrees)))


def _cut(share: float, options: Sequence[str], *, suffix: str = ".mp4", head: int = 0):
    def write(path: Path) -> None:
        make(path, *options)
        data = path.read_bytes()
        path.write_bytes(data[head : int(len(data) * share)])

    return write


def _with_noise(path: Path) -> None:
    """The same container with noise over a part of the compressed pictures."""
    make(path, *H264)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    middle = begin + (data.index(b"moov") - begin) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)


def _content(data: bytes):
    return lambda path: path.write_bytes(data)


def _picture(kind: str):
    def write(path: Path) -> None:
        picture = path.with_name(f"picture.{kind}")
        make(picture, "-frames:v", "1", "-update", "1")
        picture.rename(path)

    return write


def _sound(*options: str):
    return lambda path: ffmpeg("-f", "lavfi", "-i", "sine=d=1", *options, path)


def _big(path: Path) -> None:
    """A frame of 16384x8192, which would take 400 MB."""
    picture = ["-f", "lavfi", "-i", "color=s=16384x8192:r=25:d=0.04"]
    ffmpeg(*picture, "-c:v", "mjpeg", "-q:v", "31", "-threads", "1", path)


def _declared_big(path: Path) -> None:
    """A few bytes that say they are frames of 60000x60000."""
    path.write_bytes(b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420\n" + b"FRAME\n" * 20)


def _varying(path: Path) -> None:
    # Every third frame is missing: its predecessor is shown for twice as long.
    make(path, "-vf", "select=not(eq(mod(n\\,3)\\,1))", "-fps_mode", "vfr", *H264)


def _external(path: Path) -> None:
    """A movie whose pictures lie in another file, by path, as QuickTime's reference movies do."""
    canary = path.with_name("canary.mp4")
    make(canary, *H264)
    data = bytearray(canary.read_bytes())
    media, index = data.index(b"mdat"), data.index(b"moov")
    data[media + 4 : index - 4] = bytes(index - media - 8)  # the pictures are not in this one
    name = str(canary).encode()
    alias = bytearray(150)
    alias[10:38] = bytes([4]) + b"disk".ljust(27, b"\0")
    alias[50:114] = bytes([len(canary.name)]) + canary.name.encode().ljust(63, b"\0")
    alias += struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)
    alias += struct.pack(">Hh", 0xFFFF, 0)
    at = data.index(b"url ", data.index(b"dref"))
    data[at : at + 8] = b"alis" + bytes(4) + alias
    struct.pack_into(">I", data, at - 4, 12 + len(alias))
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = data.index(box, index) - 4
        (size,) = struct.unpack_from(">I", data, place)
        struct.pack_into(">I", data, place, size + len(alias))
    path.write_bytes(data)


def hdr(transfer: str):
    """10-bit BT.2020 with this transfer function, from the pattern shown at 203 nits."""

    def write(path: Path) -> None:
        chain = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
        chain = f"scale=out_color_matrix=bt709:out_range=tv,format=yuv444p10,{chain}"
        chain += f",zscale=t={transfer}:p=bt2020:m=bt2020nc:npl=203,format=yuv420p10le"
        make(path, "-vf", chain, *HEVC, "-tag:v", "hvc1")

    return write


GIF_PALETTE = "split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=none"
# A frame that is missing is filled by the one before.
HELD = tuple(number - (number % 3 == 1) for number in ALL)

CORPUS: dict[str, Good | Bad] = {
    "h264 mp4": _from(H264),
    "h264 mov": _from(H264, suffix=".mov"),
    "h264 mkv": _from(H264, suffix=".mkv"),
    "h264 avi": _from(H264, suffix=".avi"),
    "h264 flv": _from(H264, suffix=".flv"),
    "h264 mpeg-ts": _from(H264, suffix=".ts"),
    "h264 m2ts": _from((*H264, "-f", "mpegts", "-mpegts_m2ts_mode", "1"), suffix=".m2ts"),
    "h264 fragmented mp4": _from((*H264, "-movflags", "frag_keyframe+empty_moov")),
    "h264 with B-frames": _from((*H264, "-bf", "3", "-b_strategy", "0")),
    "h264 with sound": _from((*H264, "-c:a", "aac"), before=("-f", "lavfi", "-i", "sine=d=1.32")),
    "h264 4:4:4": _from(("-c:v", "libx264", "-crf", "6", "-pix_fmt", "yuv444p")),
    "h264 10-bit": _from(("-c:v", "libx264", "-crf", "6", "-pix_fmt", "yuv420p10le")),
    "h264 full range": _from(
        ("-vf", "scale=out_range=pc,format=yuvj420p", "-c:v", "libx264", "-crf", "6")
    ),
    "h264 interlaced": Good(
        lambda path: make(path, *H264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"),
        says=("interlaced",),
    ),
    "hevc mp4": _from((*HEVC, "-pix_fmt", "yuv420p")),
    "vp8 webm": _from(("-c:v", "libvpx", "-crf", "4", "-b:v", "4M"), suffix=".webm"),
    "vp9 webm": _from(VP9, suffix=".webm"),
    "vp9 ivf": _from(VP9, suffix=".ivf"),
    "vp9 mp4": _from(VP9),
    "av1 mp4": _from(AV1),
    "av1 webm": _from(AV1, suffix=".webm"),
    "mpeg-4 avi": _from(("-c:v", "mpeg4", "-q:v", "1"), suffix=".avi"),
    "mpeg-2 program stream": _from(MPEG2, suffix=".mpg"),
    "mpeg-2 transport stream": _from(MPEG2, suffix=".ts"),
    "mpeg-2 interlaced": Good(
        lambda path: make(path, *MPEG2, "-flags", "+ildct+ilme", "-field_order", "tt"),
        ".mpg",
        says=("interlaced",),
    ),
    "wmv asf": _from(("-c:v", "wmv2", "-q:v", "1"), suffix=".wmv"),
    "theora ogg": _from(("-c:v", "libtheora", "-q:v", "10"), suffix=".ogv"),
    "motion jpeg avi": _from(("-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj420p"), suffix=".avi"),
    "prores mov": _from(("-c:v", "prores_ks"), suffix=".mov"),
    "ffv1 mkv": _from(("-c:v", "ffv1"), suffix=".mkv"),
    "raw avi": _from(("-c:v", "rawvideo", "-pix_fmt", "yuv420p"), suffix=".avi"),
    "y4m": _from(("-pix_fmt", "yuv420p"), suffix=".y4m"),
    "gif": _from(("-vf", GIF_PALETTE), suffix=".gif"),
    "gif under a video's name": _from(("-vf", GIF_PALETTE, "-f", "gif")),
    "mkv under mp4's name": _from((*H264, "-f", "matroska")),
    "rotated 90": Good(_turned(90), size=(HEIGHT, WIDTH), corner="top right"),
    "rotated 180": Good(_turned(180), corner="bottom right"),
    "rotated 270": Good(_turned(270), size=(HEIGHT, WIDTH), corner="bottom left"),
    "mirrored": Good(_remade("-c", "copy", first=("-display_hflip",)), corner="top right"),
    "variable rate mp4": Good(_varying, numbers=HELD, says=("frame rate varies",)),
    "variable rate mkv": Good(_varying, ".mkv", numbers=HELD, says=("frame rate varies",)),
    "edit list at the start": Good(_remade("-c", "copy", first=("-ss", "0.5")), numbers=ALL[13:]),
    "edit list at start and end": Good(
        _remade("-c", "copy", first=("-ss", "0.44", "-t", "0.6"), base=(*H264, "-bf", "0")),
        numbers=ALL[11:26],
    ),
    "edit list that delays": Good(_remade("-c", "copy", first=("-itsoffset", "1.5"))),
    "odd size": Good(
        lambda path: make(
            path, "-c:v", "libx264", "-crf", "6", "-pix_fmt", "yuv444p", size=(97, 65)
        ),
        size=(97, 65),
    ),
    "pixels that are not square": Good(
        lambda path: make(path, "-vf", "setsar=2/1", *H264), size=(192, 64), says=("not square",)
    ),
    "hdr pq": Good(hdr("smpte2084"), says=("tone mapped",), exact=False),
    "hdr hlg": Good(hdr("arib-std-b67"), says=("tone mapped",), exact=False),
    "single frame mp4": Good(lambda path: make(path, *H264, num_frames=1), numbers=(0,)),
    "single frame gif": Good(
        lambda path: make(path, "-vf", GIF_PALETTE, num_frames=1), ".gif", numbers=(0,)
    ),
    "two video streams": _from(
        (*H264, "-map", "0:v", "-map", "1:v"),
        before=("-f", "lavfi", "-i", "color=white:s=32x32:d=1.32"),
    ),
    "truncated, index in front": Good(
        _cut(0.9, (*H264, "-movflags", "+faststart")), is_damaged=True, says=("cut short",)
    ),
    "truncated mkv": Good(_cut(0.6, H264, suffix=".mkv"), ".mkv", is_damaged=True),
    "truncated mpeg-ts": Good(_cut(0.6, H264, suffix=".ts"), ".ts", is_damaged=True),
    "truncated gif": Good(_cut(0.6, ("-vf", GIF_PALETTE)), ".gif", is_damaged=True),
    "mpeg-ts that starts in mid-packet": Good(_cut(1.0, H264, head=101), ".ts", is_damaged=True),
    "noise in the pictures": Good(_with_noise, is_damaged=True, says=("is damaged",)),
    "truncated, index at the end": Bad(_cut(0.6, H264), "video"),
    "zero bytes": Bad(_content(b""), "is empty"),
    "one byte": Bad(_content(b"\0"), "not a video"),
    "text": Bad(_content(b"hello\n" * 500), "not a video"),
    "random bytes": Bad(_content(np.random.default_rng(1).bytes(50_000)), "not a video"),
    "zeros": Bad(_content(bytes(100_000)), "not a video"),
    "zip": Bad(_content(b"PK\x03\x04" + bytes(5_000)), "not a video"),
    "header alone": Bad(_content(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"), "not a video"),
    "sound only m4a": Bad(_sound("-c:a", "aac"), "no video stream", ".m4a"),
    "sound only mp4": Bad(_sound("-c:a", "aac"), "no video stream"),
    "sound only wav": Bad(_sound(), "no video stream", ".wav"),
    "png": Bad(_picture("png"), "single picture"),
    "jpeg": Bad(_picture("jpg"), "not a video"),
    "huge frames": Bad(_big, "at most", ".avi"),
    "huge frames declared": Bad(_declared_big, "at most", ".y4m"),
    "pictures in another file": Bad(_external, "", ".mov"),
}


def playlists(canary: Path, port: int) -> dict[str, bytes]:
    """Texts that refer to a video, by path and by host."""
    url, file = f"http://127.0.0.1:{port}/a.ts", str(canary)
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "hls, file": hls.format(file).encode(),
        "hls, relative": hls.format(canary.name).encode(),
        "hls, host": hls.format(url).encode(),
        "hls after a BOM": b"\xef\xbb\xbf" + hls.format(file).encode(),
        "hls after spaces": b" " * 300 + hls.format(file).encode(),
        "hls with a key": hls.format(file)
        .replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF')
        .encode(),
        "concat, file": f"ffconcat version 1.0\nfile '{file}'\n".encode(),
        "concat, host": f"ffconcat version 1.0\nfile '{url}'\n".encode(),
        "concat without a head": f"file '{file}'\n".encode(),
        "dash": (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
            f"<Period><AdaptationSet><Representation><BaseURL>{url}</BaseURL>"
            "</Representation></AdaptationSet></Period></MPD>"
        ).encode(),
        "smil": f'<smil><body><video src="{url}"/></body></smil>'.encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        + f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n".encode(),
        "pls": f"[playlist]\nFile1={url}\nNumberOfEntries=1\n".encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>'.encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode(),
    }


NAMES = (
    "with spaces.mp4",
    " leading space.mp4",
    "a:b.mp4",
    "http:a.mp4",
    "concat:a|b.mp4",
    "-i.mp4",
    "--help.mp4",
    "%03d.mp4",
    "%n%s%x.mp4",
    "a\nb.mp4",
    "a\n[info]   Stream #0:1: Audio: aac\n[error] boom.mp4",
    "a\rb\tc.mp4",
    "\x1b[31mred\x1b[0m.mp4",
    "[bold]markup[red].mp4",
    "a'b\"c`d$(touch owned)e;f&g|h.mp4",
    "{a,b}*?[0-9].mp4",
    "\u05e9\u05dc\u05d5\u05dd \u202egpm.4pm.mp4",
    "\u732b.mp4",
    "n" * 250 + ".mp4",
    os.fsdecode(b"caf\xe9.mp4"),
)
