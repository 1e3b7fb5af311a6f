"""What is begun for a large file before it is asked for: the same results, each made once."""

import hashlib
import os

import numpy as np
import pytest
from videos import make_video

from cogedit.errors import VideoError
from cogedit.media import ahead
from cogedit.media.ahead import read_ahead
from cogedit.media.ffmpeg import find_ffmpeg
from cogedit.media.files import file_digest
from cogedit.media.probe import identify, probe_facts


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch):
    monkeypatch.setattr(ahead, "LARGE", 1)


def test_a_probe_finds_what_was_begun(tmp_path, monkeypatch):
    video = make_video(tmp_path / "clip.mp4", num_frames=9)
    expected = identify(video, probe_facts(video))
    again = video.rename(tmp_path / "again.mp4")
    counter, real = tmp_path / "ffmpeg", find_ffmpeg()
    counter.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/runs\nexec {real} "$@"\n')
    counter.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(counter))
    with read_ahead(again) as is_large:
        assert is_large
        source = identify(again, probe_facts(again))
    assert source.sha256 == hashlib.sha256(again.read_bytes()).hexdigest()
    assert (source.num_frames, source.sha256) == (expected.num_frames, expected.sha256)
    listings = [run for run in (tmp_path / "runs").read_text().splitlines() if "copyinkf" in run]
    assert len(listings) == 1


def test_errors_come_from_where_they_are_asked_for(tmp_path):
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(4096))
    with read_ahead(noise), pytest.raises(VideoError, match=r"noise\.mp4"):
        probe_facts(noise)
    with read_ahead(tmp_path / "none.mp4") as is_large:
        assert not is_large
    with read_ahead(tmp_path / "a\0b") as is_large:
        assert not is_large


def test_nothing_is_hashed_to_the_end_for_nobody(tmp_path):
    """A terabyte would take an hour."""
    sparse = tmp_path / "sparse.mp4"
    sparse.touch()
    os.truncate(sparse, 2**40)
    with read_ahead(sparse) as is_large:
        assert is_large


def test_another_file_of_the_name_is_hashed_again(tmp_path):
    path = tmp_path / "clip.mp4"
    for content in (b"one", b"another"):
        path.write_bytes(content)
        with read_ahead(path):
            assert file_digest(path) == hashlib.sha256(content).hexdigest()
