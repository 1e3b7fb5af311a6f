"""Which audio an export has: listened to, by the tone of each track."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from pipelines import small_settings
from videos import ffmpeg, make_video, read_sound

import cogedit
from cogedit.errors import UsageError
from cogedit.media import reader
from cogedit.media.probe import probe_facts
from cogedit.media.writer import AudioSource, write_video

CLIPS = Path(__file__).parent.parent / "data" / "clips"


def settings_of(source, **flags):
    usual = {"load__max_num_frames": 25, "load__frame_rate": "spread"}
    return small_settings(source, **usual | flags)


def export(name, folder, **flags):
    """Export the source clip of a file, and return the video and what was said."""
    said = []
    run = cogedit.Run(notify=said.append)
    video = CLIPS / name
    frames = cogedit.load(video, settings_of(video, workspace=folder / "w"), run=run).path
    made = cogedit.export(
        frames,
        settings_of(frames, **flags),
        output=folder / "out.mp4",
        source_video=video,
        run=run,
    )
    return made.path, "\n".join(said)


def tone(path) -> float:
    """The loudest frequency in Hz."""
    samples = read_sound(path)
    return float(np.abs(np.fft.rfft(samples)).argmax() * 8000 / len(samples))


@pytest.mark.parametrize(
    ("name", "flags", "hertz"),
    [
        ("default-audio-track.mkv", {}, 1000),
        ("default-audio-track.mkv", {"export__audio_track": 1}, 300),
        ("default-audio-track.mkv", {"export__audio_track": 2}, 1000),
        ("undecodable-first-audio.mp4", {}, 1000),
    ],
)
def test_the_track_is_the_default_one_that_can_be_decoded(tmp_path, name, flags, hertz):
    path, _ = export(name, tmp_path, **flags)
    assert tone(path) == pytest.approx(hertz, abs=20)


@pytest.mark.parametrize(
    "name",
    ["mediarecorder.webm", "remux-1ms-clock.mp4", "phone-jitter.mp4", "varying-rate.mp4",
     "open-gop-cut-sound.mkv"],
)  # fmt: skip
def test_sound_is_carried(tmp_path, name):
    path, said = export(name, tmp_path)
    assert "no audio" not in said
    assert np.abs(read_sound(path)).max() > 1000


def test_a_file_that_cannot_be_sought_in_keeps_its_sound(tmp_path):
    """FLV as it is written by default has no index."""
    video = tmp_path / "clip.flv"
    sine = ["-f", "lavfi", "-i", "sine=frequency=1000:sample_rate=44100:duration=1"]
    pictures = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=1"]
    ffmpeg(*pictures, *sine, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", video)
    frames = cogedit.load(video, settings_of(video, workspace=tmp_path / "w")).path
    made = cogedit.export(
        frames, settings_of(frames), output=tmp_path / "out.mp4", source_video=video
    )
    assert tone(made.path) == pytest.approx(1000, abs=20)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize("delays", [(0.0, 0.5), (0.5, 0.0)])
def test_sound_and_pictures_that_do_not_start_together_stay_together(tmp_path, suffix, delays):
    """ffmpeg counts the time of MPEG-TS from the first packet of those streams that it reads."""
    video = tmp_path / f"clip.{suffix}"
    late_video, late_audio = delays
    heard_at = 1 + late_video  # a second after the first picture
    wave = f"if(gt(t,{heard_at - late_audio}),0.5*sin(2*PI*1000*t),0)"
    pictures = ["-itsoffset", str(late_video), "-f", "lavfi"]
    pictures += ["-i", "testsrc2=size=64x64:rate=25:duration=2"]
    sound = ["-itsoffset", str(late_audio), "-f", "lavfi", "-i", f"aevalsrc='{wave}':d=3:s=48000"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    ffmpeg(*pictures, *sound, "-map", "0:v", "-map", "1:a", *coded, video)
    settings = settings_of(
        video, workspace=tmp_path / "w", load__max_num_frames=49, load__frame_rate="spread"
    )
    frames = cogedit.load(video, settings).path
    made = cogedit.export(
        frames, settings_of(frames), output=tmp_path / "out.mp4", source_video=video
    )
    onset = np.argmax(np.abs(read_sound(made.path)) > 4000) / 8000
    assert onset == pytest.approx(1, abs=0.06)


def test_sound_that_ends_before_the_clip_is_missed_in_a_sentence(tmp_path):
    video = tmp_path / "clip.mp4"
    sine = ["-f", "lavfi", "-i", "sine=frequency=1000:duration=0.2"]
    pictures = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=2"]
    ffmpeg(*pictures, *sine, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac", video)
    said = []
    run = cogedit.Run(notify=said.append)
    settings = settings_of(video, workspace=tmp_path / "w", load__skip_frames_start=25)
    frames = cogedit.load(video, settings, run=run).path
    cogedit.export(
        frames, settings_of(frames), output=tmp_path / "out.mp4", source_video=video, run=run
    )
    reason = next(text for text in said if "without audio" in text)
    assert str(video) in reason


def test_a_track_that_cannot_be_decoded_gives_silence_and_the_reason(tmp_path):
    path, said = export("undecodable-first-audio.mp4", tmp_path, export__audio_track=1)
    assert "exported without audio: " in said
    assert "apple_apac" in said
    assert not probe_facts(path).audio_tracks
    with pytest.raises(UsageError, match="2 audio tracks"):
        export("undecodable-first-audio.mp4", tmp_path, export__audio_track=3)


def test_sound_that_begins_after_the_clip_is_not_early(tmp_path):
    sine = ["-f", "lavfi", "-i", "sine=1000:d=2"]
    ffmpeg(*sine, "-c:a", "aac", tmp_path / "tone.m4a")
    audio = AudioSource(tmp_path / "tone.m4a", Fraction(-1, 4), Fraction(1), "aac")
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"out{suffix}"
        write_video(frames, path, fps=Fraction(25), audio=audio)
        begins = np.argmax(np.abs(read_sound(path)) > 500) / 8000
        assert begins == pytest.approx(0.25, abs=0.03)


def test_the_record_names_the_reader_that_read(tmp_path, monkeypatch, decord):
    video = make_video(tmp_path / "clip.mp4", width=96, height=64)
    first = cogedit.load(video, settings_of(video, workspace=tmp_path / "v")).record
    assert first.source.reader == "decord"
    child = tmp_path / "child.py"
    child.write_text("raise SystemExit(3)")
    monkeypatch.setattr(reader, "DECORD_PROGRAM", child)
    again = cogedit.load(video, settings_of(video, workspace=tmp_path / "w")).record
    assert again.source.reader == "ffmpeg"
    assert again.tensors == first.tensors
