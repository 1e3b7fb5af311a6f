"""Geometry, colours, fields and transparency of the clips that people have, and of their kinds."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import ffmpeg, make_video

from cogedit.errors import VideoError
from cogedit.media.probe import identify, probe_facts
from cogedit.media.reader import iterate_frames
from cogedit.types import LoadSettings

CLIPS = Path(__file__).parents[1] / "data" / "clips"
RGB709 = "setparams=colorspace=gbr:color_primaries=bt709:color_trc=bt709"
COLOURS = [(200, 30, 30), (30, 180, 30), (40, 40, 200), (220, 170, 130)]
GREEN = (10, 200, 30)


def read(path, **settings):
    """All frames of a video, [F, H, W, 3], and its facts."""
    facts = probe_facts(path).read_with(LoadSettings(**settings))
    return np.stack(list(iterate_frames(path, facts, indices=range(facts.num_frames)))), facts


def patches(frame):
    """The four colours in the lower half of a frame."""
    height, width = frame.shape[:2]
    rows = slice(height * 7 // 10, height * 9 // 10)
    columns = [slice(width * (4 * k + 1) // 16, width * (4 * k + 3) // 16) for k in range(4)]
    return [tuple(frame[rows, part].reshape(-1, 3).mean(axis=0)) for part in columns]


def assert_colours(frame, expected=COLOURS, *, within=3):
    assert np.abs(np.array(patches(frame)) - np.array(expected)).max() <= within


def number(frame):
    """The number that a frame shows in its top third, in 8 bars."""
    levels = frame[5:25].mean(axis=(0, 2)).reshape(8, -1)[:, 4:-4].mean(axis=1)
    return int("".join("1" if level > 128 else "0" for level in levels), 2)


def make_colours(path, *options, size="320x192", num_frames=2):
    """The four colours over gray, from exact RGB."""
    width, height = map(int, size.split("x"))
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[height // 2 :] = np.repeat(np.array(COLOURS, np.uint8), width // 4, axis=0)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "25", "-i", "-"]
    ffmpeg(*raw, *options, path, stdin=frame.tobytes() * num_frames)
    return path


# Clean aperture


@pytest.mark.parametrize("name", ["clean-aperture.mp4", "pixel-crop.mkv"])
def test_the_clean_aperture_is_what_is_shown(name):
    frames, facts = read(CLIPS / name)
    assert frames.shape == (9, 128, 160, 3)
    assert facts.reader == "ffmpeg"
    source = identify(CLIPS / name, facts)
    assert (source.width, source.height) == (160, 128)
    red = np.abs(frames[0, 100].astype(int) - COLOURS[0]).max(axis=-1) < 30
    assert red.sum() in (31, 32, 33)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_clean_aperture_is_turned_with_its_picture(tmp_path, suffix):
    turned = tmp_path / f"turned.{suffix}"
    ffmpeg("-display_rotation", "-90", "-i", CLIPS / "clean-aperture.mp4", "-c", "copy", turned)
    frames, facts = read(turned)
    assert (facts.width, facts.height, facts.rotation) == (128, 160, 90)
    upright, _ = read(CLIPS / "clean-aperture.mp4")
    assert np.abs(np.rot90(frames[0]).astype(int) - upright[0]).mean() < 5


def test_a_clean_aperture_with_wide_pixels(tmp_path):
    ffmpeg(
        *("-i", CLIPS / "clean-aperture.mp4", "-c", "copy", "-aspect", "3:1"), tmp_path / "wide.mkv"
    )
    frames, _ = read(tmp_path / "wide.mkv")
    assert frames.shape == (9, 128, 320, 3)
    upright, _ = read(CLIPS / "clean-aperture.mp4")
    assert np.abs(frames[:, :, ::2].astype(int) - upright).mean() < 5


# Sizes that change


def test_a_changed_size_is_fitted_into_the_first_with_bars():
    frames, facts = read(CLIPS / "size-changes.mkv")
    assert frames.shape == (34, 128, 192, 3)
    assert facts.first_resized == 17
    assert any("17" in n and "192x128" in n and "128x192" in n for n in facts.notes)
    assert identify(CLIPS / "size-changes.mkv", facts).changes_size
    assert [number(frame) for frame in frames[:17]] == list(range(17))
    for frame in frames[17:]:
        # 128x192 becomes 85x128 in the middle: black beside it, its own shape within.
        assert frame[:, :52].max() == 0
        assert frame[:, 140:].max() == 0
        assert_colours(frame[:, 54:138], within=8)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mkv", ("-c:v", "libx264")),
        ("ts", ("-c:v", "libx264")),
        ("mkv", ("-c:v", "libx265", "-x265-params", "log-level=error:repeat-headers=1")),
        ("webm", ("-c:v", "libvpx", "-b:v", "1M")),
        ("webm", ("-c:v", "libvpx-vp9", "-b:v", "1M")),
        ("mkv", ("-c:v", "mjpeg", "-q:v", "2", "-strict", "-1")),
    ],
)
def test_every_kind_of_stream_that_changes_its_size(tmp_path, suffix, options):
    pixels = ("-pix_fmt", "yuv420p")
    first = make_colours(tmp_path / f"a.{suffix}", *options, *pixels, num_frames=5)
    second = make_colours(tmp_path / f"b.{suffix}", *options, *pixels, size="192x320", num_frames=5)
    (tmp_path / "list.txt").write_text(f"file {first.name}\nfile {second.name}\n")
    joined = tmp_path / f"joined.{suffix}"
    ffmpeg("-f", "concat", "-i", tmp_path / "list.txt", "-c", "copy", joined)
    frames, facts = read(joined)
    assert facts.first_resized == 5
    assert facts.reader == "ffmpeg"
    assert frames.shape == (10, 192, 320, 3)
    assert_colours(frames[4], within=20)
    # 115 columns of 320 are left of a picture that is 192 wide and 320 high.
    assert frames[5:, :, :100].max() == 0
    assert frames[5:, 20:80, 104:214].min() > 60


@pytest.mark.parametrize("suffix", ["webm", "mkv", "mp4"])
def test_a_vp9_stream_that_changes_its_size_between_keyframes(tmp_path, suffix):
    """A call at the rate of its line: 192x128, from frame 17 on 96x64, from 26 on 128x128."""
    path = tmp_path / f"call.{suffix}"
    ffmpeg("-i", CLIPS / "size-changes-between-keyframes.webm", "-c", "copy", path)
    frames, facts = read(path)
    assert frames.shape == (34, 128, 192, 3)
    assert (facts.first_resized, facts.reader) == (17, "ffmpeg")
    assert any("17" in n and "192x128" in n and "96x64" in n for n in facts.notes)
    assert identify(path, facts).changes_size
    # Of the same shape: the whole frame. Of another: bars.
    pictures = [*frames[:26], *frames[26:, :, 32:160]]
    assert frames[26:, :, :32].max() == frames[26:, :, 160:].max() == 0
    for k, picture in enumerate(pictures):
        assert number(picture) == k
        assert_colours(picture, within=25)


def test_an_av1_stream_of_which_each_frame_has_a_size_of_its_own(tmp_path):
    coder = ("-c:v", "libaom-av1", "-usage", "realtime", "-cpu-used", "8", "-pix_fmt", "yuv420p")
    path = make_colours(
        tmp_path / "sizes.mkv", *coder, "-aom-params", "resize-mode=2", num_frames=6
    )
    frames, facts = read(path)
    assert facts.first_resized == 1
    assert len(facts.pictures.size_changes) >= 4
    for frame in frames:
        assert frame[:60].min() > 60  # gray up to each edge: no bars of a pixel
        assert_colours(frame, within=25)


def test_a_turned_video_that_changes_its_size_is_refused(tmp_path):
    turned = tmp_path / "turned.mkv"
    ffmpeg("-display_rotation", "90", "-i", CLIPS / "size-changes.mkv", "-c", "copy", turned)
    with pytest.raises(VideoError, match=r"turned\.mkv.*frame 17"):
        probe_facts(turned)


# Transparency


@pytest.mark.parametrize(
    ("name", "options", "within"),
    [
        ("alpha.mov", None, 0),
        ("rle.mov", ("-c:v", "qtrle", "-pix_fmt", "argb"), 0),
        ("prores.mov", ("-c:v", "prores_ks", "-profile:v", "4", "-pix_fmt", "yuva444p10le"), 3),
        ("ffv1.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuva420p"), 3),
        ("gbrap10.mkv", ("-c:v", "ffv1", "-pix_fmt", "gbrap10le"), 1),
        ("rgba64.mov", ("-c:v", "png", "-pix_fmt", "rgba64be"), 1),
        ("raw.avi", ("-c:v", "rawvideo", "-pix_fmt", "bgra"), 0),
        ("vp8.webm", ("-c:v", "libvpx", "-pix_fmt", "yuva420p", "-b:v", "2M"), 6),
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-b:v", "2M"), 6),
    ],
)
def test_transparent_pixels_show_the_background(tmp_path, name, options, within):
    path = CLIPS / name
    if options is not None:
        path = tmp_path / name
        ffmpeg("-i", CLIPS / "alpha.mov", "-auto-alt-ref", "0", *options, path)
    frames, facts = read(path, background="#0ac81e")
    assert identify(path, facts).has_alpha
    assert facts.reader == "ffmpeg"
    assert any("--background" in note for note in facts.notes)
    assert np.abs(frames[:, 45:62].astype(int) - GREEN).max() <= max(within, 2)
    assert_colours(frames[0], within=within)
    assert [number(frame) for frame in frames] == list(range(9))


def test_a_transparent_gif_shows_the_background(tmp_path):
    palette = "split[a][b];[a]palettegen=reserve_transparent=1[p];[b][p]paletteuse=dither=none"
    ffmpeg("-i", CLIPS / "alpha.mov", "-filter_complex", palette, tmp_path / "alpha.gif")
    frames, facts = read(tmp_path / "alpha.gif")
    assert facts.pictures.has_alpha
    assert frames[:, 45:62].max() == 0
    assert_colours(frames[0], within=1)


@pytest.mark.parametrize(
    ("name", "filters"),
    [
        # Nothing is transparent, and a channel that nobody filled.
        ("opaque.avi", "format=rgb24,format=bgra"),
        ("unused.avi", "format=bgra,colorchannelmixer=aa=0"),
    ],
)
def test_an_alpha_channel_without_meaning_is_ignored(tmp_path, name, filters):
    path = tmp_path / name
    ffmpeg("-i", CLIPS / "alpha.mov", "-vf", filters, "-c:v", "rawvideo", path)
    frames, facts = read(path, background="green")
    assert not facts.pictures.has_alpha
    [note] = facts.notes
    assert note.startswith("--background changes nothing")
    assert_colours(frames[0], within=0)


# HDR


def test_missing_tags_of_hdr_are_filled_in():
    full, facts = read(CLIPS / "hdr-partial-tags-full-tags.mp4")
    assert facts.pictures.filled_tags == ""
    expected = [(190, 28, 29), (35, 177, 31), (38, 38, 190), (200, 155, 117)]
    assert_colours(full[0], expected)
    for name in ("container-only", "no-matrix", "no-primaries"):
        frames, facts = read(CLIPS / f"hdr-partial-tags-{name}.mp4")
        assert facts.reader == "ffmpeg-tonemap"
        assert np.abs(frames.astype(int) - full).max() <= 3


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_hlg_of_which_only_the_transfer_is_known(tmp_path, suffix):
    hevc = ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-crf", "8"]
    to_hlg = (
        "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt2020,"
        "zscale=transfer=arib-std-b67:matrix=bt2020nc:range=tv,format=yuv420p10le"
    )
    tagged = [*hevc, "-x265-params", "log-level=error:colorprim=9:transfer=18:colormatrix=9"]
    full = make_colours(tmp_path / f"full.{suffix}", "-vf", f"{RGB709},{to_hlg}", *tagged)
    bare = tmp_path / f"bare.{suffix}"
    untag = "hevc_metadata=colour_primaries=2:matrix_coefficients=2"
    ffmpeg("-i", full, "-c", "copy", "-bsf:v", untag, bare)
    expected, _ = read(full)
    found, facts = read(bare)
    assert facts.pictures.is_hdr
    assert np.abs(found.astype(int) - expected).max() <= 3


# HD without tags

X264 = ("-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p")
BT709 = "scale=out_color_matrix=bt709:out_range=tv,format={},setparams=colorspace=unknown"
BT601 = "scale=out_color_matrix=bt601:out_range=tv,format={},setparams=colorspace=unknown"


def test_hd_without_tags_is_bt709():
    frames, facts = read(CLIPS / "hd-untagged.mp4")
    expected = [(198, 29, 30), (29, 178, 29), (38, 39, 198), (219, 169, 129)]
    assert_colours(frames[0], expected, within=1)
    assert identify(CLIPS / "hd-untagged.mp4", facts).filled_tags == "colorspace=bt709"
    assert facts.reader == "ffmpeg"


@pytest.mark.parametrize(
    ("name", "size", "filters", "codec", "filled"),
    [
        ("hd.mkv", "1280x720", BT709.format("yuv420p10le"), ("-c:v", "ffv1"), "colorspace=bt709"),
        ("wide.mkv", "1280x96", BT709.format("yuv444p"), ("-c:v", "ffv1"), "colorspace=bt709"),
        ("portrait.mp4", "320x720", BT709.format("yuv420p"), X264, "colorspace=bt709"),
        ("vp9.webm", "1280x720", BT709.format("yuv420p"), ("-c:v", "libvpx-vp9", "-b:v", "4M"),
         "colorspace=bt709"),
        ("full.mp4", "1280x720", "scale=out_color_matrix=bt709:out_range=pc,format=yuvj420p,"
         "setparams=colorspace=unknown", ("-c:v", "libx264", "-crf", "8"), "colorspace=bt709"),
        ("sd.mp4", "320x192", BT601.format("yuv420p"), X264, ""),
        ("rgb.mkv", "1280x720", "format=gbrp", ("-c:v", "ffv1"), ""),
        ("jpeg.mkv", "1280x720", "format=yuvj420p", ("-c:v", "mjpeg", "-q:v", "1"), ""),
        ("tagged.mp4", "1280x720", "scale=out_color_matrix=bt601,format=yuv420p",
         (*X264, "-colorspace", "smpte170m", "-color_primaries", "bt709", "-color_trc", "bt709"),
         ""),
    ],
)  # fmt: skip
def test_colours_are_those_of_the_tags_or_of_the_size(tmp_path, name, size, filters, codec, filled):
    path = make_colours(tmp_path / name, "-vf", filters, *codec, size=size)
    frames, facts = read(path)
    assert facts.pictures.filled_tags == filled
    assert_colours(frames[0], within=4)


@pytest.mark.parametrize("codec", [X264, ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-crf", "8")])
def test_tags_of_the_container_alone_count(tmp_path, codec):
    # The stream is told nothing, the box of the mp4 says BT.709: SD that is not BT.601.
    bare = make_colours(tmp_path / "bare.mp4", "-vf", BT709.format("yuv420p"), *codec)
    named = tmp_path / "named.mp4"
    tags = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
    ffmpeg("-i", bare, "-c", "copy", *tags, "-movflags", "+write_colr", named)
    assert_colours(read(named)[0][0])


# Fields


def combing(frames):
    """How much every other row differs from its neighbours, on average."""
    rows = frames.astype(float).mean(axis=-1)
    return np.abs(rows[:, 1:-1:2] - (rows[:, :-2:2] + rows[:, 2::2]) / 2).mean()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dv.avi", ("-c:v", "dvvideo", "-pix_fmt", "yuv420p")),
        ("mpeg2.ts", ("-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "2")),
        ("h264.mp4", ("-c:v", "libx264", "-flags", "+ilme+ildct", "-pix_fmt", "yuv420p")),
        ("ffv1.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuv422p", "-field_order", "bt")),
    ],
)
def test_fields_are_noticed_and_made_whole(tmp_path, name, options):
    weave = "testsrc2=s=720x576:r=50,interlace=scan=bff:lowpass=off"
    path = tmp_path / name
    ffmpeg("-f", "lavfi", "-i", weave, "-frames:v", "9", *options, path)
    woven, facts = read(path)
    assert any("interlaced" in note and "--deinterlace" in note for note in facts.notes)
    whole, asked = read(path, deinterlace=True)
    assert asked.reader == "ffmpeg"
    assert len(whole) == len(woven) == 9
    assert combing(whole) < 0.6 * combing(woven)


def test_deinterlacing_leaves_whole_frames_alone(tmp_path):
    path = make_video(tmp_path / "plain.mp4", num_frames=9)
    woven, _ = read(path)
    whole, facts = read(path, deinterlace=True)
    assert np.array_equal(woven, whole)
    assert any("--deinterlace" in note for note in facts.notes)


# AVIF


def test_animated_avif_is_read_whole():
    frames, facts = read(CLIPS / "animated-avif.avif")
    assert (facts.num_frames, facts.fps) == (17, Fraction(25))
    assert [number(frame) for frame in frames] == list(range(17))


def test_avif_with_transparency_is_refused(tmp_path):
    planes = (
        "[0:v]split[a][b];[b]alphaextract,format=gray,setparams=colorspace=bt709[m];"
        "[a]format=yuv420p,setparams=colorspace=bt709[c]"
    )
    path = tmp_path / "clear.avif"
    maps = ["-filter_complex", planes, "-map", "[c]", "-map", "[m]", "-c:v", "libaom-av1"]
    ffmpeg("-i", CLIPS / "alpha.mov", *maps, "-cpu-used", "8", path)
    with pytest.raises(VideoError, match=r"clear\.avif"):
        probe_facts(path)


# What earlier versions recorded


@pytest.mark.parametrize(
    ("name", "unlike"),
    [
        ("hd-untagged.mp4", {"filled_tags": ""}),
        ("alpha.mov", {"has_alpha": False}),
        ("size-changes.mkv", {"changes_size": False}),
    ],
)
def test_a_clip_of_before_is_read_as_it_was(name, unlike):
    path = CLIPS / name
    facts = probe_facts(path)
    now = identify(path, facts)
    before = replace(now, **unlike)
    assert before != now
    settings = LoadSettings()

    def last(chosen):
        index = facts.num_frames - 1
        return next(iterate_frames(path, chosen, indices=[index]))

    assert np.array_equal(last(facts.read_as(now, settings)), last(facts))
    assert not np.array_equal(last(facts.read_as(before, settings)), last(facts))
