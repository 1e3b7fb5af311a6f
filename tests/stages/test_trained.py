"""What is said of clips of other sizes and lengths than the published models were trained on."""

import pipelines
import pytest
from videos import make_video

import cogedit
from cogedit.errors import UsageError
from cogedit.stages.load import find_clip

BROKEN = "other sizes give blurred or broken clips"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of 30 frames per second by their number of frames, and a portrait one."""
    folder = tmp_path_factory.mktemp("videos")
    found = {
        count: make_video(folder / f"{count}.mp4", fps="30", num_frames=count)
        for count in (30, 34, 60, 120, 240)
    }
    found["portrait"] = make_video(folder / "portrait.mp4", width=90, height=160, num_frames=60)
    return found


def notes(video, model, **flags):
    """What is said of a clip; "a model of these authors" needs no files of it."""
    given = {"model": model} | {key.replace("__", "."): value for key, value in flags.items()}
    settings = cogedit.settings_for(video, given, environ={}, cwd=video.parent).settings
    return find_clip(video, settings).notes


def having(said, text):
    return [note for note in said if text in note]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("zai-org/CogVideoX-2b", "720x480"),
        ("THUDM/CogVideoX-5b", "720x480"),
        ("zai-org/CogVideoX1.5-5B", "1360x768"),
    ],
)
def test_a_size_that_a_model_was_not_trained_at_is_told_once(videos, model, size):
    assert not having(notes(videos[240], model), BROKEN)
    [note] = having(notes(videos[240], model, load__width=768, load__height=432), BROKEN)
    assert f"trained at {size} alone" in note
    assert "--resize-mode pad" in note
    assert "1.5-5B-I2V" not in note


def test_a_portrait_clip_is_told_of_the_model_that_takes_one(videos):
    portrait, flags = videos["portrait"], {"load__width": 480, "load__height": 720}
    [note] = having(notes(portrait, "zai-org/CogVideoX-5b", **flags), BROKEN)
    assert "zai-org/CogVideoX1.5-5B-I2V takes portrait clips (768x1360)" in note
    flags = {"load__width": 768, "load__height": 1360}
    assert not having(notes(portrait, "zai-org/CogVideoX1.5-5B-I2V", **flags), BROKEN)
    flags = {"load__width": 576, "load__height": 1024}
    [note] = having(notes(portrait, "zai-org/CogVideoX1.5-5B-I2V", **flags), BROKEN)
    assert "--width 768 --height 1360 is nearest" in note


def test_the_note_of_a_crop_offers_no_size_that_the_model_does_not_take(videos):
    portrait = videos["portrait"]
    [note] = having(notes(portrait, "zai-org/CogVideoX-5b"), "cropping")
    assert note.endswith("--resize-mode pad keeps it")
    [note] = having(notes(portrait, "zai-org/CogVideoX1.5-5B-I2V"), "cropping")
    assert "--width 768 --height 1360 crops less" in note


def test_of_other_models_no_size_is_known(videos):
    portrait, tiny = videos["portrait"], str(pipelines.TINY_PIPELINE)
    said = notes(portrait, tiny, load__width=128, load__height=64)
    assert not having(said, BROKEN)
    assert "aspect ratio crops less" in having(said, "cropping")[0]
    assert not having(notes(portrait, "shapes", load__width=96), BROKEN)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    own = {"transformer_file": pipelines.TINY_PIPELINE / weights, "load__width": 480}
    assert not having(notes(portrait, "zai-org/CogVideoX-5b", **own), BROKEN)


def test_a_clip_of_less_than_half_the_models_frames_is_told_what_takes_more(videos):
    assert not having(notes(videos[120], "zai-org/CogVideoX-5b"), "fewer than half")  # 30 of 49
    [note] = having(notes(videos[60], "zai-org/CogVideoX-5b"), "fewer than half")
    assert "the clip has 15 frames, fewer than half of the 49 that CogVideoX-5b" in note
    assert "--frame-rate source takes 49 frames, 1.6 s of it" in note
    assert "spread" not in note  # which takes the same frames
    assert "--frame-rate" not in having(notes(videos[30], "zai-org/CogVideoX-5b"), "half")[0]


def test_what_covers_more_of_the_video_is_named_first(videos):
    [note] = having(notes(videos[120], "zai-org/CogVideoX-5b", load__max_num_frames=17), "half")
    without = "without --max-num-frames takes 49 frames"
    spread, source = f"spread {without}, 3.3 s", f"source {without}, 1.6 s"
    assert note.index(spread) < note.index(source)
    [note] = having(notes(videos[120], "zai-org/CogVideoX-5b", load__frame_rate="4"), "half")
    assert note.index("spread takes 49 frames, 3.3 s") < note.index("source takes 49 frames, 1.6 s")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """A model with learned positions, for 17 frames of 64x96 alone."""
    return pipelines.make_pipeline(
        tmp_path_factory.mktemp("models") / "fixed",
        in_channels=32,
        sample_width=12,
        sample_frames=17,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )


def test_a_model_of_one_length_names_what_gives_it_that(videos, fixed):
    with pytest.raises(UsageError, match="takes 17 frames of 96x64 alone") as caught:
        notes(videos[34], str(fixed))
    assert caught.value.hint == (
        "--frame-rate spread takes 17 frames, 1.1 s of it; or "
        "--frame-rate source takes 17 frames, 0.6 s of it"
    )
    for rate in ("spread", "source"):
        notes(videos[34], str(fixed), load__frame_rate=rate)
    with pytest.raises(UsageError) as caught:
        notes(videos[34], str(fixed), load__end="0.2", load__frame_rate="source")
    assert caught.value.hint.startswith("take more of the video: this part of it has 6 frames")
    with pytest.raises(UsageError) as caught:
        notes(make_video(videos[34].with_name("5.mp4"), fps="30", num_frames=5), str(fixed))
    assert caught.value.hint == "take a video of 10 frames or more, or a text-to-video model"
    with pytest.raises(UsageError) as caught:
        notes(videos[34], str(fixed), load__max_num_frames=33, load__frame_rate="source")
    assert "leave --width, --height and --max-num-frames out" in caught.value.hint
