"""Masks from boxes, pictures and videos: what becomes of each pixel, and what is refused."""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import ffmpeg

from cogedit.errors import UsageError, VideoError
from cogedit.media import probe
from cogedit.media.clip import plan_resize
from cogedit.media.masks import check_mask, open_mask, outside_of, read_mask
from cogedit.sources import MaskSource, SourceVideo
from cogedit.types import LoadSettings

CLIPS = Path(__file__).parents[1] / "data" / "clips"
SOURCE = SourceVideo(
    name="clip.mp4",
    sha256="ab" * 32,
    width=64,
    height=48,
    rotation=0,
    fps=Fraction(25),
    num_frames=20,
    reader="decord",
    has_audio=False,
)
INDICES = tuple(range(0, 18, 2))


def read(given, *, width=64, height=48, mode="stretch", indices=INDICES, source=SOURCE):
    settings = LoadSettings(width=width, height=height, resize_mode=mode)
    resize = plan_resize(source.width, source.height, settings=settings)
    packed = read_mask(open_mask(given), source, indices=indices, resize=resize)
    mask = np.stack(list(packed))
    assert packed.shape == mask.shape
    assert packed.num_white == mask.sum()
    assert mask.shape == (len(indices), height, width)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    return mask


def bounds(frame):
    """x0, y0, x1, y1 of the white of a frame, which must be a full rectangle."""
    rows, columns = frame.any(axis=1).nonzero()[0], frame.any(axis=0).nonzero()[0]
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    assert frame[box[1] : box[3], box[0] : box[2]].all()
    return box


def picture(path, white, *, width=64, height=48, options=()):
    """A black picture with a white rectangle (x0, y0, x1, y1)."""
    frame = np.zeros((height, width), np.uint8)
    frame[white[1] : white[3], white[0] : white[2]] = 255
    size = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-i", "-"]
    ffmpeg(*size, *options, "-update", "1", path, stdin=frame.tobytes())
    return path


def video(path, *, num_frames=20, width=64, height=48, options=()):
    """A white column 4 pixels wide (of 64) that stands at 2k in frame k."""
    frames = np.zeros((num_frames, height, width), np.uint8)
    scale = width // 64
    for number in range(num_frames):
        frames[number, :, 2 * number * scale : (2 * number + 4) * scale] = 255
    size = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{width}x{height}", "-r", "25", "-i", "-"]
    options = options or ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "4")
    ffmpeg(*size, *options, path, stdin=frames.tobytes())
    return path


# Boxes


def test_a_box_in_every_frame():
    mask = read("8,4,24,20")
    assert all(bounds(frame) == (8, 4, 24, 20) for frame in mask)


def test_a_box_over_a_range_of_source_frames():
    # Frames 4 to 9 of the source are frames 2, 3 and 4 of a clip of every second one.
    mask = read("8,4,24,20@4:10")
    assert [int(frame.any()) for frame in mask] == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert [int(frame.any()) for frame in read("8,4,24,20@15:END")] == [0] * 8 + [1]
    assert [int(frame.any()) for frame in read("8,4,24,20@16:20")] == [0] * 8 + [1]


@pytest.mark.parametrize(
    ("width", "height", "mode", "expected"),
    [
        (128, 24, "stretch", (16, 2, 48, 10)),
        # 64x48 to 32x32: scaled to 43x32, 5 columns cut off at the left. 8*43/64 = 5.4, 16.1.
        (32, 32, "crop", (0, 2, 12, 14)),
        # Scaled to 32x24, 4 rows of black above.
        (32, 32, "pad", (4, 6, 12, 14)),
        # A pixel that the box touches belongs to it: 8/64*40 = 5, 24/64*40 = 15; 4/48*30 = 2.5.
        (40, 30, "stretch", (5, 2, 15, 13)),
    ],
)
def test_a_box_through_the_resize_box(width, height, mode, expected):
    mask = read("8,4,24,20", width=width, height=height, mode=mode)
    assert all(bounds(frame) == expected for frame in mask)


def test_the_whole_picture_under_pad_leaves_the_bars_alone():
    assert bounds(read("0,0,64,48", width=32, height=32, mode="pad")[0]) == (0, 4, 32, 28)


def test_outside_of_a_mask_under_pad_leaves_the_bars_alone():
    settings = LoadSettings(width=32, height=32, resize_mode="pad")
    resize = plan_resize(SOURCE.width, SOURCE.height, settings=settings)
    mask = read_mask(open_mask("0,0,32,48"), SOURCE, indices=INDICES, resize=resize)
    for frame in outside_of(mask, resize):
        assert bounds(frame) == (16, 4, 32, 28)


def test_a_box_is_recorded_as_one_text():
    assert open_mask("8,4,24,20").source == MaskSource("box", "8,4,24,20")
    assert open_mask("8,4,24,20@0:END").source == MaskSource("box", "8,4,24,20")
    assert open_mask("08,4,24,20@04:9").source == MaskSource("box", "8,4,24,20@4:9")
    assert open_mask("8,4,24,20@4:END").source == MaskSource("box", "8,4,24,20@4:END")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, "x0,y0,x1,y1") for text in ("8,4,24", "8,4,24,-1", "8,4,24,20.5", "8, 4, 24, 20")),
        ("8,4,24,20@5", "FIRST:LAST"),
        ("24,4,8,20", "x0 < x1"),
        ("8,4,24,4", "y0 < y1"),
        ("8,4,24,20@9:9", "FIRST < LAST"),
        ("8,4,65,20", "64x48"),
        ("8,4,24,49", "64x48"),
        ("8,4,24,20@20:END", "20 frames"),
        ("8,4,24,20@0:21", "20 frames"),
        ("8,4,24,20@17:20", "0 to 16"),
    ],
)
def test_boxes_that_are_refused(text, expected):
    with pytest.raises(UsageError) as caught:
        check_mask(open_mask(text), SOURCE, indices=INDICES)
    assert text in caught.value.message
    assert expected in caught.value.message


def test_a_box_that_the_crop_cuts_off_is_empty():
    with pytest.raises(UsageError, match="box 0,0,8,4") as caught:
        read("0,0,8,4", width=16, height=48, mode="crop")
    kept = caught.value.message.rpartition(" ")[2]
    assert read(kept, width=16, height=48, mode="crop").all()
    assert read("0,0,8,4", width=16, height=48, mode="pad").any()


# Pictures


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask.png", ()),
        ("mask.bmp", ()),
        ("mask.tif", ()),
        ("mask.webp", ("-lossless", "1")),
        ("mask.jpg", ("-q:v", "2", "-pix_fmt", "yuvj444p")),
        ("mask.pgm", ()),
        ("mask.ppm", ("-pix_fmt", "rgb24")),
        ("16 bits.png", ("-pix_fmt", "gray16be")),
        ("16 bits.pgm", ("-pix_fmt", "gray16be")),
        ("50%d*, hé.png", ()),
    ],
)
def test_a_picture_is_for_all_frames(tmp_path, name, options):
    plain = picture(tmp_path / "plain.png", (8, 4, 24, 20), options=options)
    path = plain if name == "plain.png" else tmp_path / name
    if plain.suffix == path.suffix:
        plain.rename(path)
    else:
        picture(path, (8, 4, 24, 20), options=options)
    mask = read(path)
    assert all(bounds(frame) == (8, 4, 24, 20) for frame in mask)
    source = open_mask(path).source
    assert (source.kind, source.name, len(source.sha256)) == ("picture", name, 64)


def test_a_picture_goes_through_the_resize_plan(tmp_path):
    path = picture(tmp_path / "mask.png", (16, 8, 32, 40))
    assert bounds(read(path, width=32, height=32, mode="pad")[0]) == (8, 8, 16, 24)
    assert bounds(read(path, width=64, height=32, mode="crop")[0]) == (16, 0, 32, 32)
    assert bounds(read(path, width=128, height=24, mode="stretch")[0]) == (32, 4, 64, 20)


def test_a_picture_of_another_size_and_the_same_shape(tmp_path):
    path = picture(tmp_path / "mask.png", (32, 16, 64, 80), width=128, height=96)
    assert bounds(read(path)[0]) == (16, 8, 32, 40)
    assert bounds(read(path, width=32, height=32, mode="pad")[0]) == (8, 8, 16, 24)
    # 85x64 is 4:3 but for a third of a pixel.
    near = picture(tmp_path / "near.png", (0, 0, 85, 64), width=85, height=64)
    assert read(near).all()


def test_gray_counts_from_half(tmp_path):
    for level, expected in ((127, 0), (128, 1)):
        frame = np.full((48, 64), level, np.uint8)
        frame[0, 0] = 255
        size = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "64x48", "-i", "-"]
        ffmpeg(*size, "-update", "1", tmp_path / f"{level}.png", stdin=frame.tobytes())
        assert read(tmp_path / f"{level}.png")[0, 10, 10] == expected


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 46)])
def test_a_picture_of_another_shape_is_refused(tmp_path, size):
    width, height = size
    path = picture(tmp_path / "mask.png", (0, 0, 9, 9), width=width, height=height)
    with pytest.raises(VideoError, match=f"{width}x{height}"):
        check_mask(open_mask(path), SOURCE, indices=INDICES)


def test_pictures_that_cannot_be_read(tmp_path):
    whole = picture(tmp_path / "mask.png", (8, 4, 24, 20)).read_bytes()
    for name, content in (("head.png", whole[:20]), ("noise.png", whole[:8] + b"x" * 500)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=name):
            check_mask(open_mask(tmp_path / name), SOURCE, indices=INDICES)


def test_a_black_picture_is_empty(tmp_path):
    path = picture(tmp_path / "mask.png", (0, 0, 0, 0))
    with pytest.raises(UsageError, match=r"mask\.png"):
        read(path)


# Videos


@pytest.mark.parametrize("width", [64, 128])
def test_frame_k_of_a_mask_is_frame_k_of_the_source(tmp_path, width):
    path = video(tmp_path / "mask.mp4", width=width, height=48 * width // 64)
    mask = read(path)
    for number, index in enumerate(INDICES):
        assert bounds(mask[number]) == (2 * index, 0, 2 * index + 4, 48)
    assert open_mask(path).source.kind == "video"
    later = read(path, indices=(3, 4, 5))
    assert [bounds(frame)[0] for frame in later] == [6, 8, 10]


def test_a_video_goes_through_the_resize_plan(tmp_path):
    path = video(tmp_path / "mask.mkv", options=("-c:v", "ffv1"))
    mask = read(path, width=32, height=32, mode="pad")
    assert bounds(mask[4]) == (8, 4, 10, 28)


def test_a_long_video_that_changes_its_size_is_read_as_a_short_one(tmp_path, monkeypatch):
    """From frame 17 on it is portrait, and has bars; of a long one one keyframe is sampled."""
    source = replace(SOURCE, width=192, height=128, num_frames=34)
    masks = []
    for name, most in (("short.mkv", 32), ("long.mkv", 1)):
        monkeypatch.setattr(probe, "MANY_KEYFRAMES", most)
        path = shutil.copy(CLIPS / "size-changes.mkv", tmp_path / name)
        assert probe.probe_facts(Path(path)).is_sampled == (most == 1)
        masks.append(read(path, width=192, height=128, source=source, indices=(0, 20)))
    assert not masks[0][1][:, :52].any()
    assert np.array_equal(*masks)


@pytest.mark.parametrize("num_frames", [16, 21])
def test_a_video_of_another_length_is_refused(tmp_path, num_frames):
    path = video(tmp_path / "mask.mp4", num_frames=num_frames)
    with pytest.raises(VideoError) as caught:
        check_mask(open_mask(path), SOURCE, indices=INDICES[:2])
    assert all(f"{count}" in caught.value.message for count in (num_frames, 20))


def test_a_video_of_another_rate_is_refused(tmp_path):
    path = video(tmp_path / "mask.mp4")
    with pytest.raises(VideoError) as caught:
        check_mask(open_mask(path), replace(SOURCE, fps=Fraction(30)), indices=INDICES)
    assert all(rate in caught.value.message for rate in ("25 fps", "30"))
    check_mask(open_mask(path), replace(SOURCE, fps=Fraction(2501, 100)), indices=INDICES)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask.png", ("-c:v", "png", "-pix_fmt", "rgba")),
        ("mask16.png", ("-c:v", "png", "-pix_fmt", "rgba64be")),
        ("gray.png", ("-c:v", "png", "-pix_fmt", "ya8")),
        ("mask.webp", ("-c:v", "libwebp", "-lossless", "1")),
        ("mask.mov", ("-c:v", "qtrle", "-pix_fmt", "argb")),
    ],
)
def test_what_is_transparent_is_black(tmp_path, name, options):
    # White all over, and clear outside a rectangle.
    frame = np.full((48, 64, 4), 255, np.uint8)
    frame[..., 3] = 0
    frame[8:24, 4:20, 3] = 255
    count = 20 if name.endswith(".mov") else 1
    raw = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", "25", "-i", "-"]
    ffmpeg(*raw, *options, tmp_path / name, stdin=frame.tobytes() * count)
    mask = open_mask(tmp_path / name)
    assert mask.source.has_alpha
    assert bounds(read(tmp_path / name)[0]) == (4, 8, 20, 24)


def test_a_picture_that_could_be_transparent_and_is_not(tmp_path):
    path = picture(tmp_path / "mask.png", (4, 8, 20, 24), options=("-pix_fmt", "rgba"))
    assert not open_mask(path).source.has_alpha
    assert bounds(read(path)[0]) == (4, 8, 20, 24)


def test_a_video_of_another_shape_is_refused(tmp_path):
    path = video(tmp_path / "mask.mp4", height=64)
    with pytest.raises(VideoError, match="64x64"):
        read(path)


def test_one_frame_is_no_frames(tmp_path):
    path = video(tmp_path / "mask.mp4", num_frames=1)
    with pytest.raises(VideoError, match="has 1 frame, expected"):
        check_mask(open_mask(path), SOURCE, indices=INDICES)
    with pytest.raises(UsageError, match="has 1 frame, 0 to 0"):
        check_mask(open_mask("0,0,9,9@1:2"), replace(SOURCE, num_frames=1), indices=[0])


def test_the_shape_is_the_one_after_rotation(tmp_path):
    path = picture(tmp_path / "mask.png", (4, 8, 20, 24), width=48, height=64)
    upright = replace(SOURCE, width=48, height=64, rotation=90)
    assert bounds(read(path, width=48, height=64, source=upright)[0]) == (4, 8, 20, 24)


def test_files_that_are_no_mask(tmp_path):
    with pytest.raises(VideoError, match=r"nothing\.png"):
        open_mask(tmp_path / "nothing.png")
    text = tmp_path / "mask.png"
    text.write_text("dear diary\n" * 100)
    with pytest.raises(VideoError, match=r"mask\.png"):
        check_mask(open_mask(text), SOURCE, indices=INDICES)
    text.write_bytes(b"")
    with pytest.raises(VideoError, match=r"mask\.png"):
        open_mask(text)
    with pytest.raises(VideoError, match=r"mask\.png"):
        open_mask(tmp_path)  # a folder with a picture that is none


def test_a_file_that_is_named_like_a_box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "mask.png", (8, 4, 24, 20)).rename(tmp_path / "1,2,3,4")
    assert open_mask("1,2,3,4").source.kind == "box"
    assert bounds(read("./1,2,3,4")[0]) == (8, 4, 24, 20)
