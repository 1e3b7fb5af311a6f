"""The embedded model that takes a first frame: its files, its preset, and what it makes of one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from PIL import Image

import cogedit
from cogedit.lab import world
from cogedit.lab.batch_pipeline import BatchPipeline
from cogedit.lab.cases import make_case
from cogedit.lab.configurations import find_configuration
from cogedit.lab.evaluation import Evaluation, names_of
from cogedit.lab.quality_tables import COPY, FLOOR
from cogedit.media.metrics import psnr
from cogedit.models.checkpoint import find_checkpoint
from cogedit.shapes import first_frame_dir, model_dir

SEED = 200  # of a held-out clip that no table is made of


def test_it_is_small_and_names_no_place_on_a_disk():
    size = sum(path.stat().st_size for path in first_frame_dir().iterdir())
    assert size <= 16_000_000
    assert "_name_or_path" not in (first_frame_dir() / "config.json").read_text(encoding="utf-8")


def test_it_is_the_other_model_with_a_transformer_of_its_own():
    text, frame = find_checkpoint("shapes"), find_checkpoint("shapes-i2v")
    assert frame.takes_first_frame
    assert not text.takes_first_frame
    assert frame.digest != text.digest
    assert frame.folder == text.folder == model_dir()
    assert list(frame.files) == ["transformer"]


@pytest.mark.parametrize("model", ["shapes-i2v", "somebody/Finetune-5b-I2V"])
def test_its_preset_is_taken_unasked(model, tmp_path):
    def settled(config=None):
        flags = {"model": model, "load.width": 64, "load.height": 64, "load.max_num_frames": 9}
        found = cogedit.settings_for(None, flags, config=config, environ={}, cwd=tmp_path)
        return found.settings.reconstruct

    def preset(name):
        return replace(find_configuration(name).reconstruct, prompt=settled().prompt)

    assert settled() == preset("first-frame")
    assert settled("bold") == preset("bold")
    # What one of them says, the other edits' say, too: nothing of it is left where they are named.
    for name in ("balanced", "faithful", "fast", "first-frame-recolor", "recolor", "upstream"):
        assert settled(name) == preset(name)


@pytest.mark.parametrize("model", ["zai-org/CogVideoX-5b-I2V", "THUDM/CogVideoX1.5-5B-I2V"])
def test_published_models_have_it_with_a_guidance_of_their_own(model, tmp_path):
    def settled(config=None):
        given = {"model": model}
        found = cogedit.settings_for(None, given, config=config, environ={}, cwd=tmp_path)
        return found.settings.reconstruct

    named = settled("first-frame")
    assert named.guidance_scale == 1.0
    assert settled() == replace(named, guidance_scale=6.0)


def test_the_library_s_own_pipeline_follows_a_first_frame():
    case = make_case(SEED, "texture")
    clip = world.render(case.right)
    pipe = CogVideoXImageToVideoPipeline.from_pretrained(
        model_dir(),
        transformer=CogVideoXTransformer3DModel.from_pretrained(first_frame_dir()),
        dtype=torch.float32,
    )
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        Image.fromarray(clip[0]),
        case.prompt,
        height=world.HEIGHT,
        width=world.WIDTH,
        num_frames=world.NUM_FRAMES,
        num_inference_steps=10,
        guidance_scale=1.0,
        max_sequence_length=12,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    frames = np.rint(255 * made).astype(np.uint8)
    apart = (world.render_mask(case.right).max(axis=0) == 0)[None]
    assert psnr(frames[:1], clip[:1]) >= 25
    assert psnr(frames[-1:], clip[-1:], where=apart) >= 25


def test_edits_follow_the_first_frame_to_the_last():
    pipeline = BatchPipeline(
        find_checkpoint("shapes-i2v"), device=torch.device("cpu"), dtype=torch.float32
    )
    presets = [
        find_configuration(name).with_steps(25)
        for name in ("first-frame=color,texture", "first-frame-recolor=color")
    ]
    evaluation = Evaluation(pipeline, presets, kinds=("color", "texture"))
    evaluation.run_batch([SEED])
    for kind, rows in evaluation.edits.items():
        [source], [copy] = rows[FLOOR], rows[COPY]
        for name in names_of(presets, kind):
            [edited] = rows[name]
            assert edited.target_seen == 1, (kind, name)
            assert edited.motion_distance <= 2, (kind, name)
            assert edited.last_frame_psnr > max(source.last_frame_psnr, copy.last_frame_psnr)
