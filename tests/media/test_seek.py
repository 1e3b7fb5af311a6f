"""Frames after a seek are those of reading from the start, of every kind of file that is sought."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus import AV1, CORPUS, H264, HEVC, MPEG2, VP9, Good, make
from videos import ffmpeg

from cogedit.media import probe
from cogedit.media.probe import changes_size_within, probe_facts
from cogedit.media.reader import iterate_frames
from cogedit.media.seek import find_seek

CLIPS = Path(__file__).parent.parent / "data" / "clips"
G8 = ("-g", "8", "-keyint_min", "8")
REORDERED = ("-bf", "3", "-b_strategy", "0")

SOUGHT = {
    "h264.mp4": H264,
    "h264.mkv": H264,
    "h264.mov": H264,
    "b-frames.mp4": (*H264, *REORDERED),
    "b-frames.mkv": (*H264, *REORDERED),
    "fragmented.mp4": (*H264, *REORDERED, "-movflags", "frag_keyframe+empty_moov"),
    "ten-bits.mp4": ("-c:v", "libx264", "-crf", "6", "-pix_fmt", "yuv420p10le", "-g", "8"),
    "interlaced.mp4": (*H264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"),
    "hevc.mp4": (*HEVC[:4], "-x265-params", "log-level=none:crf=6:keyint=8:bframes=3:open-gop=0"),
    "hevc-open-gop.mkv": (*HEVC[:4], "-x265-params", "log-level=none:crf=6:keyint=8:bframes=3"),
    "vp9.webm": (*VP9, "-g", "8"),
    "vp9.mp4": (*VP9, "-g", "8"),
    "av1.mp4": (*AV1, "-g", "8"),
    "av1.webm": (*AV1, "-g", "8"),
    "mpeg4.mp4": ("-c:v", "mpeg4", "-q:v", "1", "-g", "8", "-bf", "2"),
    "prores.mov": ("-c:v", "prores_ks"),
    "ffv1.mkv": ("-c:v", "ffv1", "-g", "8"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj420p"),
    "pixels.mp4": ("-vf", "setsar=2/1", *H264),
    "varying.mp4": ("-vf", "select=not(eq(mod(n\\,3)\\,1))", "-fps_mode", "vfr", *H264),
    "varying.mkv": ("-vf", "select=not(eq(mod(n\\,3)\\,1))", "-fps_mode", "vfr", *H264),
    "sound.mp4": (*H264, *REORDERED, "-c:a", "aac"),
}
"""Kinds that are read from the keyframe before a frame, and how ffmpeg writes them."""

FROM_THE_START = {
    "h264-open-gop.mp4": (*H264, *REORDERED, "-x264-params", "open-gop=1:keyint=8:scenecut=0"),
    "intra-refresh.mp4": (*H264, "-x264-params", "intra-refresh=1:keyint=8"),
    "h264.avi": H264,
    "h264.flv": H264,
    "h264.ts": H264,
    "h264.h264": H264,
    "mpeg2.mpg": MPEG2,
    "theora.ogv": ("-c:v", "libtheora", "-q:v", "10", "-g", "8"),
}
"""Kinds that a seek is not proven for."""

TURNED = {
    "turned.mp4": "rotated 90",
    "mirrored.mp4": "mirrored",
    "delayed.mp4": "edit list that delays",
}
CUT = {"cut.mp4": "edit list at the start", "hdr.mp4": "hdr pq"}


@pytest.fixture(scope="module", autouse=True)
def with_decord():
    """ffmpeg alone reads: that decord gives the same frames is shown by `test_reader`."""


def write(path: Path) -> Path:
    kinds = SOUGHT | FROM_THE_START
    if path.name in kinds:
        sound = ("-f", "lavfi", "-i", "sine=d=1.32") if path.name == "sound.mp4" else ()
        return make(path, *kinds[path.name], before=sound)
    case = CORPUS[(TURNED | CUT)[path.name]]
    assert isinstance(case, Good)
    case.make(path)
    return path


def check_seeks(path: Path) -> list[bool]:
    """Read parts of a video both ways; whether each part was sought."""
    facts = probe_facts(path)
    from_start = replace(facts, keyframes=())
    total = facts.num_frames
    whole = list(iterate_frames(path, from_start, indices=range(total)))
    sought = []
    for indices in (range(total // 2, total, 2), range(3)):
        found = list(iterate_frames(path, facts, indices=indices))
        assert len(found) == len(indices)
        for index, frame in zip(indices, found, strict=True):
            assert np.array_equal(frame, whole[index]), index
        first = indices[0] if facts.grid is None else facts.timing.shown(facts.grid)[indices[0]]
        sought.append(find_seek(path, facts, first) is not None)
    assert any(not np.array_equal(before, after) for before, after in pairwise(whole))
    return sought


@pytest.mark.parametrize("name", [*SOUGHT, *TURNED])
def test_a_seek_gives_the_frames_of_the_start(tmp_path, name):
    assert check_seeks(write(tmp_path / name)) == [True, False]


@pytest.mark.parametrize("name", [*FROM_THE_START, *CUT])
def test_what_is_not_proven_is_read_from_the_start(tmp_path, name):
    assert check_seeks(write(tmp_path / name)) == [False, False]


@pytest.mark.parametrize(
    "name", sorted(path.name for path in CLIPS.iterdir() if path.suffix != ".avif")
)
def test_clips_that_people_have_are_the_same(name):
    check_seeks(CLIPS / name)


def test_of_a_long_video_the_headers_of_the_clip_are_looked_at(tmp_path, monkeypatch):
    """It changes its size at frame 17 of each 34, and its only keyframe is the first of them."""
    monkeypatch.setattr(probe, "MANY_KEYFRAMES", 1)
    path = tmp_path / "long.webm"
    clip = CLIPS / "size-changes-between-keyframes.webm"
    ffmpeg("-stream_loop", "1", "-i", clip, "-c", "copy", path)
    facts = probe_facts(path)
    assert facts.is_sampled
    for indices, changes in ((range(9), False), (range(9, 18), True), (range(20, 30), True)):
        assert changes_size_within(path, facts, indices) is changes
    assert not changes_size_within(path, facts, range(34, 51))
    assert changes_size_within(path, facts, range(34, 52))


def test_of_a_long_video_the_pictures_of_the_clip_are_looked_at(tmp_path, monkeypatch):
    """It turns from portrait to landscape at frame 17."""
    monkeypatch.setattr(probe, "MANY_KEYFRAMES", 1)
    path = shutil.copy(CLIPS / "size-changes.mkv", tmp_path / "long.mkv")
    facts = probe_facts(path)
    assert facts.is_sampled
    assert facts.first_resized is None
    assert not changes_size_within(path, facts, range(9))
    assert changes_size_within(path, facts, range(9, 20))
    assert changes_size_within(path, facts, range(20, 25))
    thorough = probe_facts(path, thorough=True)
    assert (thorough.first_resized, thorough.keyframes) == (17, ())
    assert not changes_size_within(path, thorough, range(9, 20))
