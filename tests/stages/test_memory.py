"""What a run keeps in memory: no floats of whole clips."""

import pytest
from accounting import FloatClips
from pipelines import decode, settings_of
from videos import make_video

import cogedit

NUM_FRAMES, HEIGHT, WIDTH = 17, 64, 96  # of more than one piece
BOX = "8,8,60,50"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return make_video(folder / "clip.mp4", width=WIDTH, height=HEIGHT, num_frames=NUM_FRAMES)


def settings_for(video, **flags):
    size = {
        "load.width": WIDTH,
        "load.height": HEIGHT,
        "load.max_num_frames": NUM_FRAMES,
        "load.frame_rate": "spread",
    }
    return settings_of(video, dtype="bf16", **size, **flags)


@pytest.fixture(scope="module")
def trajectory(video):
    return cogedit.invert(video, settings_for(video)).path


@pytest.fixture
def watched():
    with FloatClips(NUM_FRAMES, HEIGHT, WIDTH) as clips:
        yield clips


def test_encoding_makes_no_float_copy_of_the_clip(video, tmp_path, watched):
    cogedit.encode(video, settings_for(video), output=tmp_path / "latents.safetensors")
    assert watched.found == []


@pytest.mark.parametrize("composite", ["none", "decode", "source"])
def test_decoding_makes_no_float_copy_of_the_clip(video, trajectory, watched, composite):
    shown = settings_for(video, **{"export.composite": composite, "export.feather": 2})
    [edit] = cogedit.reconstruct(trajectory, "a cat", shown, mask=BOX)
    assert decode(edit.path, shown).shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert watched.found == []


def test_an_export_of_the_source_s_size_makes_no_float_copy(video, trajectory, tmp_path, watched):
    flags = {"export.composite": "source", "export.size": "source", "export.feather": 2}
    shown = settings_for(video, **flags)
    [edit] = cogedit.reconstruct(trajectory, "a cat", shown, mask=BOX)
    cogedit.export(edit.path, shown, output=tmp_path / "edit.mp4")
    assert watched.found == []


def test_a_check_makes_no_float_copy_of_the_clip(video, trajectory, watched):
    cogedit.check_inversion(trajectory, settings_for(video))
    assert watched.found == []


def test_a_preview_makes_no_float_copy_of_the_clip(video, trajectory, watched):
    seen = []
    run = cogedit.Run(preview=seen.append)
    cogedit.reconstruct(trajectory, "a preview", settings_for(video), run=run)
    assert seen
    assert watched.found == []
