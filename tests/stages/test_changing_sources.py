"""A source that changes while it is read is not taken for the one that it was."""

import shutil
from contextlib import contextmanager

import pytest
from pipelines import settings_of
from videos import ffmpeg, make_counter

import cogedit
from cogedit.artifacts import read_record
from cogedit.errors import VideoError
from cogedit.stages.source import find_source


@pytest.fixture
def video(here):
    return make_counter(here / "clip.mp4", num_frames=9)


def settings_for(source, **flags):
    return settings_of(source, load__frame_rate="source", **flags)


def changing(change):
    """A run in which something happens before the frames are read."""

    @contextmanager
    def wait(doing):
        if doing == "reading the frames":
            change()
        yield

    return cogedit.Run(wait=wait)


def append(path):
    """A byte that no decoder looks at."""
    with path.open("ab") as file:
        file.write(b"\0")


def test_no_frames_of_another_video_lie_under_the_digest_of_the_first(here, video):
    other = make_counter(here / "other.mp4", num_frames=10)
    run = changing(lambda: shutil.copy(other, video))
    with pytest.raises(VideoError, match=r"clip\.mp4 changed while it was read") as refused:
        cogedit.load(video, settings_for(video), run=run)
    assert "again" in refused.value.hint
    assert not [*here.rglob("frames-*")]
    found = cogedit.load(video, settings_for(video))
    assert found.record.source.num_frames == 10


@pytest.mark.parametrize("change", ["another", "one more", "one less"])
def test_pictures_that_change_while_they_are_read_are_refused(here, video, change):
    folder = here / "pictures"
    folder.mkdir()
    ffmpeg("-i", video, folder / "%03d.png")

    def write():
        if change == "one less":
            (folder / "009.png").rename(here / "gone.png")
        else:
            shutil.copy(
                folder / "001.png", folder / f"{'005' if change == 'another' else '010'}.png"
            )

    with pytest.raises(VideoError, match="pictures"):
        cogedit.load(folder, settings_for(folder), run=changing(write))
    assert not [*here.rglob("frames-*")]


def test_a_video_that_is_only_touched_is_the_same(here, video):
    run = changing(lambda: video.write_bytes(video.read_bytes()))
    assert cogedit.load(video, settings_for(video), run=run).path.exists()


def test_frames_that_are_shown_beside_an_edit_are_those_of_its_source(here, video):
    frames = cogedit.load(video, settings_for(video)).path
    record = read_record(frames, "frames")
    found = find_source(record, frames, video)
    for indices in ([4], [0, 8], range(9)):
        assert len([*found.read(indices)]) == len(indices)
    append(video)
    own = found.read([0, 8])
    next(own)
    with pytest.raises(VideoError, match=r"clip\.mp4 changed while it was read"):
        next(own)
