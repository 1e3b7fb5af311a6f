"""A whole video with an edit in its place: every frame, its time, its colours and its sound."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import ffmpeg, make_counter, make_video, read_sound

from cogedit.errors import UsageError, VideoError
from cogedit.media.encoding import plan_encoding
from cogedit.media.ffmpeg_output import ColourTags
from cogedit.media.probe import probe_stored
from cogedit.media.reader import iterate_frames
from cogedit.media.sound import choose_whole_audio
from cogedit.media.splice import fade_weight, write_splice
from cogedit.media.stream import FrameStream

CLIPS = Path(__file__).parent.parent / "data" / "clips"
RED = (200, 40, 40)
FIRST, COUNT = 10, 8


@pytest.fixture(scope="module", autouse=True)
def with_decord():
    """ffmpeg alone reads: that decord gives the same frames is shown by `test_reader`."""


def splice(source, output, *, codec=None, lossless=False, first=FIRST, count=COUNT, **more):
    """Put red frames into a video, and return the probes of both."""
    facts = probe_stored(source)
    red = np.full((count, facts.height, facts.width, 3), RED, np.uint8)
    audio = None
    if facts.audio_tracks:
        audio, _ = choose_whole_audio(source, facts.audio_tracks, wanted=None, suffix=output.suffix)
    write_splice(
        FrameStream(red, count, facts.height, facts.width),
        output,
        source=source,
        facts=facts,
        first=first,
        encoding=plan_encoding(output, codec, lossless=lossless, for_splice=True),
        audio=audio,
        **more,
    )
    return facts, probe_stored(output)


def read(path, facts):
    return np.stack(list(iterate_frames(path, facts, indices=range(facts.num_frames))))


def times(facts):
    first = facts.timing.timestamps[0]
    return [(ticks - first) * facts.timing.time_base for ticks in facts.timing.timestamps]


def audio_hash(path):
    return ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "streamhash", "-")


def is_red(frame):
    return np.abs(frame.astype(int) - RED).max() <= 6


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("phone-jitter.mp4", ".mp4"),
        ("varying-rate.mp4", ".mp4"),
        ("varying-rate.mp4", ".mkv"),
        ("default-audio-track.mkv", ".mkv"),
        ("mediarecorder.webm", ".mp4"),
        ("open-gop-cut-sound.mkv", ".mov"),
    ],
)
def test_frames_times_and_sound_are_the_source_s(tmp_path, name, suffix):
    source, output = CLIPS / name, tmp_path / f"out{suffix}"
    before, after = splice(source, output)
    clock = Fraction(1, 1000) if suffix == ".mkv" else Fraction(0)
    assert after.num_frames == before.num_frames
    assert max(abs(a - b) for a, b in zip(times(before), times(after), strict=True)) <= clock
    moved = after.timing.start - before.timing.start
    assert abs(moved) <= Fraction(30, 1000)  # of audio that begins earlier
    assert [track.codec for track in after.audio_tracks] == [
        track.codec for track in before.audio_tracks
    ]
    assert audio_hash(output) == audio_hash(source)
    own, made = read(source, before), read(output, after)
    edited = slice(FIRST, FIRST + COUNT)
    assert all(map(is_red, made[edited]))
    error = np.delete(made.astype(float), edited, axis=0) - np.delete(own, edited, axis=0)
    assert 10 * np.log10(255**2 / (error**2).mean(axis=(1, 2, 3)).max()) > 40
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


TAGGED = "range=tv:colorspace=bt470bg:color_primaries=bt470bg:color_trc=bt470bg"
DEEP = "range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=bt2020-10"
H264 = ("-c:v", "libx264", "-crf", "1")
HEVC = ("-c:v", "libx265", "-x265-params", "log-level=error")


@pytest.mark.parametrize(
    ("options", "codec", "suffix", "pixels"),
    [
        (("-vf", f"format=yuv420p,setparams={TAGGED}", *H264), "h264", ".mp4", "yuv420p"),
        (("-pix_fmt", "yuvj420p", *H264), "h264", ".mp4", "yuvj420p"),
        (("-pix_fmt", "yuv444p", *H264), "h265", ".mov", "yuv444p"),
        (("-vf", f"format=yuv420p10le,setparams={DEEP}", *HEVC), "ffv1", ".mkv", "yuv420p10le"),
    ],
)
def test_without_loss_every_sample_outside_is_the_source_s(
    tmp_path, options, codec, suffix, pixels
):
    """Decoded to the same samples, and read as the same colours."""
    source = make_video(tmp_path / "in.mov", width=64, height=48, num_frames=24, options=options)
    output = tmp_path / f"out{suffix}"
    before, after = splice(source, output, codec=codec, lossless=codec != "ffv1")
    assert before.pictures.pixel_format == after.pictures.pixel_format == pixels
    limited = ColourTags(range="tv")  # which some encoders say in any case
    assert after.pictures.tags.or_else(limited) == before.pictures.tags.or_else(limited)
    raw = ["-f", "rawvideo", "-fps_mode", "passthrough", "-"]
    own, made = (
        np.frombuffer(ffmpeg("-i", path, *raw), np.uint8).reshape(24, -1)
        for path in (source, output)
    )
    outside = [*range(FIRST), *range(FIRST + COUNT, 24)]
    np.testing.assert_array_equal(made[outside], own[outside])
    assert all(map(is_red, read(output, after)[FIRST : FIRST + COUNT]))


@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_ten_bits_stay_ten_bits_where_players_show_them(tmp_path, codec):
    options = ("-vf", f"format=yuv420p10le,setparams={DEEP}", *HEVC)
    source = make_video(tmp_path / "in.mp4", width=64, height=48, num_frames=12, options=options)
    before, after = splice(source, tmp_path / "out.mp4", codec=codec, first=4, count=2)
    assert after.pictures.pixel_format == "yuv420p10le"
    assert after.pictures.tags == before.pictures.tags
    assert (
        splice(source, tmp_path / "8.mp4", first=4, count=2)[1].pictures.pixel_format == "yuv420p"
    )


def test_a_rotation_is_undone_and_its_tag_is_gone(tmp_path):
    upright = make_video(tmp_path / "upright.mp4", width=96, height=64, num_frames=24)
    source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
    ffmpeg("-display_rotation", "-90", "-i", upright, "-c", "copy", source)
    before, after = splice(source, output)
    assert (before.rotation, after.rotation) == (90, 0)
    assert (after.width, after.height) == (64, 96)
    own, made = read(source, before).astype(int), read(output, after)
    assert np.abs(own[0] - made[0]).mean() < 3


def test_an_odd_size_goes_into_ffv1_alone(tmp_path):
    options = ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-deadline", "realtime")
    source = make_video(tmp_path / "in.webm", width=63, height=49, num_frames=24, options=options)
    splice(source, tmp_path / "out.mkv", codec="ffv1")
    # As samples: what a scaler makes of the last column may be anything.
    own, made = (
        np.frombuffer(ffmpeg("-i", path, "-f", "rawvideo", "-"), np.uint8).reshape(24, -1)
        for path in (source, tmp_path / "out.mkv")
    )
    np.testing.assert_array_equal(np.delete(made, range(FIRST, FIRST + COUNT), axis=0),
                                  np.delete(own, range(FIRST, FIRST + COUNT), axis=0))  # fmt: skip
    for lossless in (False, True):
        with pytest.raises(UsageError, match="63x49"):
            splice(source, tmp_path / "out.mp4", lossless=lossless)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_last_frame_that_is_held_stays_as_long(tmp_path, suffix):
    source = tmp_path / "in.mp4"
    held = "setts=pts=PTS:dts=DTS:duration=if(eq(N\\,19)\\,30720\\,DURATION)"
    moving = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=2", "-pix_fmt", "yuv420p"]
    ffmpeg(*moving, "-c:v", "libx264", "-bf", "0", "-bsf:v", held, source)
    before, after = splice(source, tmp_path / f"out{suffix}")
    [shown, wanted] = [one.timing.last_duration * one.timing.time_base for one in (after, before)]
    assert wanted > 100
    assert shown == wanted


def test_a_crossfade_goes_from_the_source_to_the_edit_and_back(tmp_path):
    source = make_counter(tmp_path / "in.mp4", num_frames=24)
    black = FrameStream(np.zeros((COUNT, 48, 64, 3), np.uint8), COUNT, 48, 64)
    facts = probe_stored(source)
    encoding = plan_encoding(None, "ffv1", for_splice=True)
    output = tmp_path / "out.mkv"
    write_splice(
        black, output, source=source, facts=facts, first=FIRST, encoding=encoding, crossfade=3
    )
    own, made = (read(path, probe_stored(path)).mean(axis=(1, 2, 3)) for path in (source, output))
    shares = 1 - made[FIRST : FIRST + COUNT] / own[FIRST : FIRST + COUNT]
    np.testing.assert_allclose(shares, [1 / 4, 2 / 4, 3 / 4, 1, 1, 3 / 4, 2 / 4, 1 / 4], atol=0.03)
    np.testing.assert_array_equal(np.delete(made, range(FIRST, FIRST + COUNT)),
                                  np.delete(own, range(FIRST, FIRST + COUNT)))  # fmt: skip


@pytest.mark.parametrize(
    ("crossfade", "cuts", "weights"),
    [
        (0, (True, True), [1, 1, 1, 1]),
        (1, (True, True), [1 / 2, 1, 1, 1 / 2]),
        (1, (False, True), [1, 1, 1, 1 / 2]),
        (1, (True, False), [1 / 2, 1, 1, 1]),
        (9, (True, True), [0.1, 0.2, 0.2, 0.1]),
    ],
)
def test_no_crossfade_where_nothing_is_cut(crossfade, cuts, weights):
    found = [fade_weight(place, 4, crossfade, cuts=cuts) for place in range(4)]
    assert found == pytest.approx(weights)


def test_the_whole_video_may_be_the_edit(tmp_path):
    source = make_counter(tmp_path / "in.mp4", num_frames=12)
    _, after = splice(source, tmp_path / "out.mp4", first=0, count=12, crossfade=3)
    assert all(map(is_red, read(tmp_path / "out.mp4", after)))


def test_an_edit_that_ends_early_leaves_nothing_behind(tmp_path):
    source = make_counter(tmp_path / "in.mp4", num_frames=24)
    facts = probe_stored(source)
    short = FrameStream(iter(np.zeros((3, 48, 64, 3), np.uint8)), COUNT, 48, 64)
    output = tmp_path / "out.mp4"
    output.write_text("an earlier one")
    encoding = plan_encoding(output, for_splice=True)
    with pytest.raises(VideoError, match="frame 13"):
        write_splice(short, output, source=source, facts=facts, first=FIRST, encoding=encoding)
    assert output.read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_what_makes_the_edit_comes_to_its_end(tmp_path):
    """There it reports on it. Of this size two frames are converted at a time."""
    source = make_video(tmp_path / "in.mp4", width=2560, height=1440, num_frames=4)
    facts, output = probe_stored(source), tmp_path / "out.mp4"
    encoding = plan_encoding(output, for_splice=True)
    ended = []

    def frames(count):
        for _ in range(count):
            yield np.zeros((1440, 2560, 3), np.uint8)
        ended.append(count)

    def write(count):
        edited = FrameStream(frames(count), 2, 1440, 2560)
        write_splice(edited, output, source=source, facts=facts, first=1, encoding=encoding)

    write(2)
    assert ended == [2]
    output.unlink()
    with pytest.raises(VideoError, match="goes on after frame 2"):
        write(3)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_what_cannot_be_kept_is_refused_in_a_sentence(tmp_path):
    full = make_video(
        tmp_path / "full.mp4", width=64, height=48, options=("-pix_fmt", "yuvj420p", *H264)
    )
    with pytest.raises(UsageError, match="full range") as refused:
        splice(full, tmp_path / "out.mkv", codec="ffv1")
    assert "--lossless" in str(refused.value)
    with pytest.raises(UsageError, match=r"rgba|argb|bgra"):
        splice(CLIPS / "alpha.mov", tmp_path / "out.mkv", codec="ffv1", first=0, count=2)
    for codec in ("png", "gif"):
        with pytest.raises(UsageError, match=codec):
            plan_encoding(None, codec, for_splice=True)


def test_a_transparent_video_is_laid_on_its_background(tmp_path):
    before, after = splice(CLIPS / "alpha.mov", tmp_path / "out.mp4", first=1, count=1)
    own, made = read(CLIPS / "alpha.mov", before).astype(int), read(tmp_path / "out.mp4", after)
    assert np.abs(own[0] - made[0]).mean() < 8
    assert after.pictures.tags.matrix == "bt709"


def test_a_video_in_hdr_is_written_as_it_is_read(tmp_path):
    source, output = CLIPS / "hdr-partial-tags-no-matrix.mp4", tmp_path / "out.mp4"
    before, after = splice(source, output, first=3, count=2)
    assert set(vars(after.pictures.tags).values()) == {"tv", "bt709"}
    own, made = read(source, before).astype(int), read(output, after)
    assert np.abs(own[0] - made[0]).mean() < 4
    assert is_red(made[3])


def test_tracks_keep_their_order_and_language(tmp_path):
    plain = make_video(tmp_path / "plain.mp4", width=64, height=48, sound=True)
    source, output = tmp_path / "in.mkv", tmp_path / "out.mp4"
    languages = ["-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu"]
    ffmpeg("-i", plain, "-map", "0:v", "-map", "0:a", "-map", "0:a", "-c", "copy", *languages,
           "-disposition:a:0", "0", "-disposition:a:1", "default", source)  # fmt: skip
    before, after = splice(source, output)
    assert after.audio_tracks == before.audio_tracks
    listed = ffmpeg("-i", output, "-map", "0:a", "-c", "copy", "-f", "ffmetadata", "-").decode()
    assert [line for line in listed.splitlines() if line.startswith("language=")] == [
        "language=eng",
        "language=deu",
    ]


SOUND_OF_MATROSKA = {
    **{name: name for name in ("aac", "ac3", "alac", "eac3", "flac", "mp2", "tta", "wavpack")},
    **{name: name for name in ("wmav1", "wmav2", "adpcm_ima_wav", "adpcm_ms", "truehd", "mlp")},
    **{f"pcm_{name}": f"pcm_{name}" for name in ("s16le", "s24le", "s32le", "s16be", "s24be")},
    **{f"pcm_{name}": f"pcm_{name}" for name in ("s32be", "u8", "f32le", "f64le", "alaw")},
    **{"pcm_mulaw": "pcm_mulaw", "dca": "dts", "libmp3lame": "mp3", "libopus": "opus"},
    "libvorbis": "vorbis",
}
"""ffmpeg's encoders, and the names of what they write."""


def with_sound(path, encoders):
    """A video of a second with a track by each encoder."""
    tone = ["-f", "lavfi", "-i", "sine=d=1:r=48000", "-ac", "2", "-strict", "-2"]
    coded = [
        option
        for number, encoder in enumerate(encoders)
        for option in ("-map", "1:a", f"-c:a:{number}", encoder)
    ]
    picture = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1"]
    ffmpeg(*picture, *tone, "-map", "0:v", "-c:v", "libx264", "-pix_fmt", "yuv420p", *coded, path)
    return path


def test_sound_that_matroska_holds_stays_as_it_is(tmp_path):
    source = with_sound(tmp_path / "in.mkv", SOUND_OF_MATROSKA)
    output = tmp_path / "out.mkv"
    _, after = splice(source, output)
    assert [track.codec for track in after.audio_tracks] == [*SOUND_OF_MATROSKA.values()]
    assert audio_hash(output) == audio_hash(source)


def test_sound_that_matroska_does_not_hold_becomes_aac(tmp_path):
    encoders = ("pcm_s16be", "adpcm_ima_qt", "pcm_s8", "pcm_f32be", "pcm_f64be")
    source, output = with_sound(tmp_path / "in.mov", encoders), tmp_path / "out.mkv"
    before, after = splice(source, output)
    assert [track.codec for track in before.audio_tracks] == [*encoders]
    assert [track.codec for track in after.audio_tracks] == ["pcm_s16be", *["aac"] * 4]
    for number in range(len(encoders)):
        raw = ["-map", f"0:a:{number}", "-f", "s16le", "-ac", "1", "-ar", "8000", "-"]
        samples = np.frombuffer(ffmpeg("-i", output, *raw), np.int16).astype(int)
        loudest = np.abs(np.fft.rfft(samples)).argmax() * 8000 / len(samples)
        assert loudest == pytest.approx(440, abs=20)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_track_that_no_one_can_decode_is_named(tmp_path, suffix):
    source, output = CLIPS / "undecodable-first-audio.mp4", tmp_path / f"out{suffix}"
    facts = probe_stored(source)
    audio, lost = choose_whole_audio(source, facts.audio_tracks, wanted=None, suffix=suffix)
    assert audio.tracks == (1,)
    assert facts.audio_tracks[0].codec in lost
    assert len(splice(source, output)[1].audio_tracks) == 1
    with pytest.raises(UsageError, match="--audio-track is 9"):
        choose_whole_audio(source, facts.audio_tracks, wanted=9, suffix=".mp4")


def test_sound_and_pictures_of_a_transport_stream_stay_together(tmp_path):
    """ffmpeg counts its time anew for each set of streams that it reads."""
    source, output = tmp_path / "in.ts", tmp_path / "out.mp4"
    moving = ["-itsoffset", "0.5", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=2"]
    tone = ["-f", "lavfi", "-i", "aevalsrc='if(gt(t,1.5),0.5*sin(2*PI*1000*t),0)':d=3:s=48000"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    ffmpeg(*moving, *tone, "-map", "0:v", "-map", "1:a", *coded, source)
    splice(source, output)
    start = float(probe_stored(output).timing.start)
    # A second after the first picture.
    assert np.argmax(np.abs(read_sound(output)) > 4000) / 8000 - start == pytest.approx(1, abs=0.06)
