import pytest
from videos import ffmpeg, make_counter, make_video


@pytest.fixture(scope="module", autouse=True)
def with_decord(decord):
    """Both readers are under test."""


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A folder of small videos, made once."""
    folder = tmp_path_factory.mktemp("clips")
    make_video(folder / "plain.mp4", num_frames=60, sound=True)
    make_video(
        folder / "odd.mp4",
        width=131,
        height=97,
        sound=True,
        options=("-c:v", "libx264", "-pix_fmt", "yuv444p"),
    )
    make_counter(folder / "counter.mp4")
    ffmpeg("-i", folder / "counter.mp4", "-c", "copy", folder / "counter.mkv")
    ffmpeg("-i", folder / "counter.mp4", "-c", "copy", folder / "counter.ts")
    ffmpeg("-ss", "0.7", "-i", folder / "counter.mp4", "-c", "copy", folder / "edit_list.mp4")
    make_counter(folder / "counter.webm", options=("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"))
    make_video(folder / "clip.gif", fps="10", num_frames=12, options=())
    plain = folder / "plain.mp4"
    for degrees in (90, 180, 270):
        turned = folder / f"turned{degrees}.mp4"
        ffmpeg("-display_rotation", degrees_ccw(degrees), "-i", plain, "-c", "copy", turned)
    ffmpeg("-display_hflip", "-i", plain, "-c", "copy", folder / "mirrored.mp4")
    ffmpeg("-i", plain, "-vf", "setsar=3/2", "-an", folder / "wide_pixels.mp4")
    ffmpeg("-i", plain, "-vf", "select=not(eq(mod(n\\,3)\\,1))", "-fps_mode", "vfr", "-an",
           folder / "varying.mp4")  # fmt: skip
    ffmpeg("-i", plain, "-vn", "-c:a", "copy", folder / "sound.m4a")
    ffmpeg("-i", plain, "-c", "copy", "-movflags", "+faststart", folder / "streamable.mp4")
    data = (folder / "streamable.mp4").read_bytes()
    (folder / "cut_short.mp4").write_bytes(data[: len(data) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n")
    (folder / "hls.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ncounter.ts\n#EXT-X-ENDLIST\n"
    )
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile plain.mp4\n")
    ffmpeg("-i", plain, "-frames:v", "1", folder / "picture.png")
    (folder / "picture.png").rename(folder / "picture.mp4")
    return folder


def degrees_ccw(clockwise):
    return str(-clockwise)
