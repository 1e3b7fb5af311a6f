"""Frames in memory become a source without loss, and clips are measured by cogedit's figures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import settings_of
from videos import make_video

import cogedit
from cogedit.errors import ArtifactMismatch, UsageError
from cogedit.media import probe
from cogedit.media.probe import probe_facts


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip"])
def test_frames_come_back_as_they_were_written(tmp_path, frames, name):
    path = cogedit.write_clip(frames, tmp_path / name, fps=23.976)
    assert np.array_equal(cogedit.read_clip(path), frames)
    assert float(probe_facts(path).fps) == pytest.approx(23.976, abs=1e-3)
    # At its own size a stage takes them as they are, too.
    loaded = cogedit.load(path, settings_of(path, load__width=96, load__height=64))
    assert np.array_equal(cogedit.read_clip(loaded.path), frames)


def test_frames_that_no_video_shows_are_left_out(tmp_path):
    """They fill a clip up to 8n + 1: source and edit have the same frames."""
    video = make_video(tmp_path / "clip.mp4", num_frames=6)
    settings = settings_of(video, load__frame_rate="source")
    loaded = cogedit.load(video, settings)
    assert loaded.record.num_extra_frames == 3
    assert len(cogedit.read_clip(loaded.path)) == 6
    exported = cogedit.export(loaded.path, settings, output=tmp_path / "shown.mp4")
    assert len(cogedit.read_clip(exported.path)) == 6


def test_a_long_video_that_changes_its_size_is_not_stretched(tmp_path, monkeypatch):
    """At frame 17; of a long one the keyframes are not all looked at unasked."""
    clip = Path(__file__).parent.parent / "data" / "clips" / "size-changes.mkv"
    fitted = cogedit.read_clip(shutil.copy(clip, tmp_path / "short.mkv"))
    monkeypatch.setattr(probe, "MANY_KEYFRAMES", 1)
    assert probe_facts(Path(shutil.copy(clip, tmp_path / "long.mkv"))).is_sampled
    assert np.array_equal(cogedit.read_clip(tmp_path / "long.mkv"), fitted)


@pytest.mark.parametrize("kind", [list, Image.fromarray, torch.from_numpy])
def test_pictures_tensors_and_arrays_are_frames(tmp_path, frames, kind):
    given = frames if kind is list else (kind(frame) for frame in frames)
    path = cogedit.write_clip(given, str(tmp_path / "clip"), fps="30000/1001")
    assert np.array_equal(cogedit.read_clip(str(path)), frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames / 255.0, r"float64 \[64, 96, 3\], expected uint8"),
        (lambda frames: frames.transpose(0, 3, 1, 2), r"uint8 \[3, 64, 96\], expected uint8"),
        (lambda frames: frames[0], r"uint8 \[96, 3\], expected uint8"),
        (lambda frames: [*frames, frames[0][1:]], "different sizes"),
        (lambda frames: [], "there are no frames"),
    ],
)
def test_what_is_no_clip_is_refused(tmp_path, frames, change, message):
    with pytest.raises(UsageError, match=message):
        cogedit.write_clip(change(frames), tmp_path / "clip.mp4", fps=8)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webm"])
def test_what_is_written_without_loss_is_said(tmp_path, frames, name):
    with pytest.raises(UsageError, match=r"\.mp4, \.mov, \.mkv or a folder"):
        cogedit.write_clip(frames, tmp_path / name, fps=8)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_appears_while_frames_are_made_is_kept(tmp_path, frames):
    path = tmp_path / "clip.mp4"

    def slowly():
        yield from frames[:2]
        path.write_bytes(b"another's")
        yield from frames[2:]

    with pytest.raises(UsageError, match="by another process"):
        cogedit.write_clip(slowly(), path, fps=8)
    assert path.read_bytes() == b"another's"


def test_a_clip_is_not_replaced_without_force(tmp_path, frames):
    path = tmp_path / "clip.mkv"
    for fps in (0, "fast", None):
        with pytest.raises(UsageError, match=r"fps is .*, expected a number"):
            cogedit.write_clip(frames, path, fps=fps)
    cogedit.write_clip(frames, path, fps=8)
    with pytest.raises(UsageError, match="exists"):
        cogedit.write_clip(frames[::-1], path, fps=8)
    cogedit.write_clip(frames[::-1], path, fps=8, run=cogedit.Run(force=True))
    assert np.array_equal(cogedit.read_clip(path), frames[::-1])


def test_an_artifact_that_is_no_clip_is_named(tmp_path):
    video = make_video(tmp_path / "clip.mp4", num_frames=9)
    latents = cogedit.encode(video, settings_of(video)).path
    with pytest.raises(ArtifactMismatch, match="frames"):
        cogedit.read_clip(latents)


@pytest.mark.parametrize("measure", [cogedit.psnr, cogedit.ssim])
def test_clips_that_do_not_go_together_are_not_measured(frames, measure):
    assert measure(frames, frames) == {"psnr": 100.0, "ssim": 1.0}[measure.__name__]
    with pytest.raises(UsageError, match="one ends after frame 8"):
        measure(frames, frames[:8])
    with pytest.raises(UsageError, match=r"frame 0 is \(64, 96, 3\) in one clip, \(1, 96, 3\)"):
        measure(frames, frames[:, :1])
