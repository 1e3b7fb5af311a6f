"""Frames one by one, and those of a file without a name."""

import resource
import sys

import numpy as np
import pytest

from cogedit.errors import StorageError, VideoError
from cogedit.media.stream import FrameFile, FrameStream


def clip(num_frames=5):
    return np.random.default_rng(0).integers(0, 256, (num_frames, 6, 8, 3), dtype=np.uint8)


def test_frames_are_read_as_often_as_they_are_wanted(tmp_path):
    frames = clip()
    kept = FrameFile(FrameStream(iter(frames), 5, 6, 8), tmp_path)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert np.array_equal(np.stack(list(kept.stream.frames)), frames)
    assert np.array_equal(kept[-1], frames[-1])
    assert np.array_equal(np.stack(kept[1:3]), frames[1:3])
    with pytest.raises(IndexError):
        kept[5]


def test_a_folder_that_takes_no_file_is_not_needed(tmp_path):
    frames = clip()
    kept = FrameFile(FrameStream(frames, 5, 6, 8), tmp_path / "missing")
    assert np.array_equal(np.stack(list(kept)), frames)


def test_a_stream_that_ends_early_is_refused(tmp_path):
    with pytest.raises(VideoError, match=r"4 frames.*5"):
        FrameFile(FrameStream(iter(clip(4)), 5, 6, 8), tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_is_said(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(StorageError, match=str(tmp_path)):
            FrameFile(FrameStream(clip(), 5, 6, 8), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_leaving_a_stream_ends_what_computes_it():
    ended = []

    def frames():
        try:
            yield from clip()
        finally:
            ended.append(True)

    stream = FrameStream(frames(), 5, 6, 8)
    next(iter(stream.frames))
    stream.close()
    assert ended == [True]
    FrameStream(clip(), 5, 6, 8).close()
