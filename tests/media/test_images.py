"""Folders and patterns of pictures, and animated ones: which are read, in which order, and how."""

import json
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cogedit.errors import VideoError
from cogedit.media.animation import find_animation, iterate_animation
from cogedit.media.images import are_images, find_images, read_image

BLACK = (0, 0, 0)


def picture(path, level=0, size=(8, 6), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path, **how)
    return path


def names(folder, pattern=None):
    return [file.name for file in find_images(folder / pattern if pattern else folder).files]


def test_numbers_are_sorted_by_value(tmp_path):
    for number in (10, 9, 2, 1):
        picture(tmp_path / f"frame{number}.png")
    assert names(tmp_path) == ["frame1.png", "frame2.png", "frame9.png", "frame10.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("%04d.png", ["0002.png", "0010.png", "12345.png"]),
        ("%d.png", ["0002.png", "03.png", "0010.png", "12345.png"]),
        ("*.png", ["0002.png", "03.png", "0010.png", "12345.png", "a-1.png"]),
        ("a-*", ["a-1.png"]),
        ("000[0-9].png", ["0002.png"]),
        ("00??.png", ["0002.png", "0010.png"]),
    ],
)
def test_patterns_choose_pictures(tmp_path, pattern, expected):
    for name in ("0010.png", "0002.png", "12345.png", "03.png", "a-1.png", "1.jpg", ".0001.png"):
        picture(tmp_path / name)
    assert are_images(tmp_path / pattern)
    assert names(tmp_path, pattern) == expected


@pytest.mark.parametrize("name", ["clip.mp4", "clip[1].mp4", "*.mp4", "shot%d.mov", "a.png"])
def test_other_names_are_no_patterns(tmp_path, name):
    assert not are_images(tmp_path / name)


def test_a_file_that_exists_is_no_pattern(tmp_path):
    picture(tmp_path / "frame%d.png")
    assert not are_images(tmp_path / "frame%d.png")


def test_what_is_no_picture_is_named_and_what_systems_leave_is_not(tmp_path):
    picture(tmp_path / "1.png")
    for name in (".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "take.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "other").mkdir()
    found = find_images(tmp_path)
    assert [file.name for file in found.files] == ["1.png"]
    [note] = found.notes
    assert note.endswith(": notes.txt, other, take.json")


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ((1, 2, 3), None),
        ((0, 10, 20, 30), None),
        ((5,), None),
        ((1, 2, 4), "3"),
        ((1, 2, 6, 7, 10), "3 to 5, 8 to 9"),
        ((0, 10, 30), "20"),
    ],
)
def test_gaps_in_the_numbers_are_named(tmp_path, numbers, named):
    for number in numbers:
        picture(tmp_path / f"take2-{number:03d}.png")
    notes = find_images(tmp_path).notes
    assert [note.rpartition(": ")[2] for note in notes] == ([named] if named else [])


def test_the_same_number_twice_is_said(tmp_path):
    for name in ("1.png", "01.png", "2.png"):
        picture(tmp_path / name)
    [note] = find_images(tmp_path).notes
    assert "same number" in note


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["frame-1.png", "frame-2.png", "cover.png"], ["frame-#.png", "cover.png"]),
        (["1.png", "2.png", "1.jpg"], ["#.png", "#.jpg"]),
        (["depth1.png", "color1.png"], ["depth#.png", "color#.png"]),
    ],
)
def test_pictures_of_several_kinds_are_not_mixed(tmp_path, files, named):
    for name in files:
        picture(tmp_path / name)
    with pytest.raises(VideoError) as caught:
        find_images(tmp_path)
    for text in named:
        assert text in caught.value.message
    assert "*" in caught.value.hint
    assert names(tmp_path, "*.*") == sorted(files)  # who names a pattern means it


def test_a_folder_of_clips_is_not_the_picture_that_lies_there(tmp_path):
    picture(tmp_path / "sheet.png")
    for name in ("a.mp4", "b.MOV", "c.m4v"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VideoError) as caught:
        find_images(tmp_path)
    for text in ("a.mp4", "b.MOV", "c.m4v", "sheet.png"):
        assert text in caught.value.message
    assert names(tmp_path, "*.png") == ["sheet.png"]
    picture(tmp_path / "cover.png")
    assert names(tmp_path) == ["cover.png", "sheet.png"]  # beside a preview, for one


def test_names_without_numbers_are_in_the_order_of_the_alphabet(tmp_path):
    for name in ("b.png", "a.png", "c.jpeg"):
        picture(tmp_path / name)
    assert names(tmp_path) == ["a.png", "b.png", "c.jpeg"]


def test_pictures_of_two_sizes_are_refused_with_both(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png", size=(6, 8))
    with pytest.raises(VideoError) as caught:
        find_images(tmp_path)
    for text in ("1.png", "2.png", "8x6", "6x8"):
        assert text in caught.value.message


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"no picture", "1.png"), (b"", "1.png"), (None, ""), (None, "*.png"), (None, "no/%d.png")],
)
def test_what_holds_no_picture_is_refused(tmp_path, content, place):
    if content is not None:
        (tmp_path / place).write_bytes(content)
        place = ""
    with pytest.raises(VideoError, match=str(tmp_path)):
        find_images(tmp_path / place)


def test_a_picture_that_is_cut_short_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    whole = tmp_path / "1.png"
    Image.fromarray(noise).save(whole)
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(VideoError, match=r"1\.png"):
        read_image(whole, BLACK)


def png16(path, color, pixels):
    """A PNG of 16 bits: gray (0), RGB (2), gray and alpha (4) or RGBA (6)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, color, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + part))
        data += struct.pack(">I", len(part)) + kind + part + crc
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_16_bits_are_read_as_8(tmp_path, color):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    pixels = np.full((3, 4, channels), 0x80F0, np.uint16)
    if color >= 4:
        pixels[..., -1] = 0xFFFF
    read = read_image(png16(tmp_path / "1.png", color, pixels), BLACK)
    assert read.shape == (3, 4, 3)
    assert abs(read.astype(int) - 0x80).max() <= 1


def test_a_palette_shows_its_colours(tmp_path):
    Image.new("RGB", (8, 6), (200, 30, 30)).quantize(4).save(tmp_path / "1.png")
    assert (read_image(tmp_path / "1.png", BLACK) == (200, 30, 30)).all()


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_what_is_transparent_shows_the_background(tmp_path, mode):
    image = Image.new("RGBA", (8, 6), (200, 200, 200, 255))
    image.paste((0, 255, 0, 0), (0, 0, 4, 6))
    path = tmp_path / "1.png"
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(path)
    read = read_image(path, (10, 20, 30))
    assert (read[:, :4] == (10, 20, 30)).all()
    assert (read[:, 4:] == 200).all()
    assert find_images(tmp_path).has_alpha


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees, clockwise
    image = Image.new("RGB", (8, 6))
    image.paste((255, 255, 255), (0, 0, 8, 2))  # the top rows: the right side upright
    image.save(tmp_path / "1.png", exif=exif)
    found = find_images(tmp_path)
    assert (found.width, found.height) == (6, 8)
    read = read_image(tmp_path / "1.png", BLACK)
    assert read.shape == (8, 6, 3)
    assert (read[:, -2:] == 255).all()


def test_the_digest_covers_names_order_and_contents(tmp_path):
    picture(tmp_path / "1.png", 1)
    picture(tmp_path / "2.png", 2)
    first = find_images(tmp_path).sha256
    assert find_images(tmp_path / "%d.png").sha256 == first
    (tmp_path / "notes.txt").write_text("x")
    assert find_images(tmp_path).sha256 == first
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    renamed = find_images(tmp_path).sha256
    picture(tmp_path / "3.png", 3)
    changed = find_images(tmp_path).sha256
    assert len({first, renamed, changed}) == 3


@pytest.mark.parametrize(
    ("comment", "fps"),
    [
        (json.dumps({"export": {"fps": "24000/1001"}}), Fraction(24000, 1001)),
        (json.dumps({"export": {"fps": "0"}}), None),
        (json.dumps({"export": {"fps": "1/0"}}), None),
        (json.dumps([1]), None),
        ("a holiday", None),
    ],
)
def test_the_rate_is_the_one_that_was_recorded(tmp_path, comment, fps):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("comment", comment)
    picture(tmp_path / "1.png", pnginfo=text)
    assert find_images(tmp_path).fps == fps


ANIMATED = [Image.new("RGB", (32, 24), (20 * k, 20 * k, 20 * k)) for k in range(9)]


def animated(path, duration, **how):
    ANIMATED[0].save(path, save_all=True, append_images=ANIMATED[1:], duration=duration, **how)
    return path


@pytest.mark.parametrize(
    ("name", "duration", "times"),
    [
        ("a.webp", 40, [k * 0.04 for k in range(9)]),
        ("a.png", 40, [k * 0.04 for k in range(9)]),
        ("a.png", 1001 / 30, [k * 1001 / 30000 for k in range(9)]),
        ("a.webp", [33, 33, 34, 100, *[33] * 5], np.cumsum([0, 33, 33, 34, 100, *[33] * 4]) / 1000),
        ("a.png", [50, 25, *[50] * 7], np.cumsum([0, 50, 25, *[50] * 6]) / 1000),
    ],
)
def test_frames_of_an_animation_are_shown_when_it_says(tmp_path, name, duration, times):
    how = {"lossless": True} if name.endswith("webp") else {}
    path = animated(tmp_path / name, duration, **how)
    found = find_animation(path)
    assert [tick * found.time_base for tick in found.timestamps] == pytest.approx(times, abs=1e-9)
    levels = [int(frame.mean()) for frame in iterate_animation(path, [0, 3, 8], BLACK)]
    assert levels == [0, 60, 160]


def test_an_image_beside_the_animation_is_no_frame(tmp_path):
    path = animated(tmp_path / "a.png", 40, default_image=True)
    assert len(find_animation(path).timestamps) == 8
    [first] = iterate_animation(path, [0], BLACK)
    assert first.mean() == 20


def test_a_single_picture_is_no_animation(tmp_path):
    with pytest.raises(VideoError, match="single picture"):
        find_animation(picture(tmp_path / "a.webp"))
    assert find_animation(picture(tmp_path / "a.jpg")) is None
