"""The stages over artifacts: numbers, reuse, and models with other traits."""

import json
import os
import secrets
import sys
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from pipelines import GOLDEN_PIPELINE, TINY_PIPELINE, make_i2v_like, small_settings
from videos import make_video, read_back

import cogedit
from cogedit.artifacts import LatentsRecord, leases, read_artifact, write_artifact
from cogedit.artifacts.codec import canonical_text, encode_record
from cogedit.errors import ArtifactMismatch, ModelError, StorageError, UsageError, VideoError
from cogedit.media.recipe_comment import find_comment
from cogedit.stages.claim import claim
from cogedit.stages.invert import check_inversion
from cogedit.stages.model import checkpoint_for, model_record, transformer_record
from cogedit.types import EncodeSettings

PROMPT = "a blue cat running in snow"


def listening_run():
    """A run, and the list of what it is told that it is doing."""
    doing = []

    def progress(what, total):
        doing.append(what)
        return nullcontext(lambda info: None)

    return doing, cogedit.Run(progress=progress)


@pytest.fixture
def video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_video(tmp_path / "clip.mp4", width=176, height=144, num_frames=20)


def settings_of(source, model, config=None, **flags):
    usual = {
        "model": str(model),
        "load__max_num_frames": 9,
        "load__frame_rate": "spread",
        "invert__num_inference_steps": 4,
    }
    return small_settings(source, config=config, **usual | flags)


def latents_artifact(path, latents, video, settings):
    """An artifact of given latents, as `encode` would have made it of the video."""
    frames = cogedit.load(video, settings).record
    model = model_record(checkpoint_for(settings), settings)
    write_artifact(path, {"latents": latents}, LatentsRecord(frames, model, EncodeSettings()))
    return path


@pytest.mark.parametrize("guidance", [1, 6])
def test_upstream_inversion_through_the_stage(golden, video, tmp_path, guidance):
    settings = settings_of(
        video,
        GOLDEN_PIPELINE,
        invert__inverse="upstream",
        invert__guidance_scale=guidance,
        invert__num_inference_steps=10,
    )
    source = latents_artifact(tmp_path / "z.safetensors", golden["latents"], video, settings)
    written = cogedit.invert(source, settings)
    tensors = read_artifact(written.path, "trajectory").tensors
    expected = golden[f"inversion_g{guidance}"]
    assert (tensors["trajectory"] - expected).abs().max() / expected.std() < 1e-3
    assert torch.equal(tensors["latents"], golden["latents"])
    assert tensors["timesteps"].tolist() == list(range(99, 1000, 100))


def test_low_levels_are_levels_of_the_inversion_and_of_its_edits(video):
    settings = settings_of(video, TINY_PIPELINE, invert__low_levels=2)
    source = cogedit.encode(video, settings).path
    plain = cogedit.invert(source, settings_of(video, TINY_PIPELINE))
    assert '"low_levels"' not in canonical_text(encode_record(plain.record))  # as in 0.1.0
    written = cogedit.invert(source, settings)
    assert written.record.settings.num_levels == 4
    timesteps = read_artifact(written.path, "trajectory").tensors["timesteps"].tolist()
    assert len(timesteps) == 4
    assert timesteps[2:] == [499, 999]
    (edit,) = cogedit.reconstruct(written.path, [PROMPT], settings, save_trajectory=True)
    assert edit.record.settings.num_inference_steps is None
    assert len(read_artifact(edit.path, "edit").tensors["trajectory"]) == 4


def test_a_midpoint_inversion_and_the_edits_of_it(video):
    settings = settings_of(
        video, TINY_PIPELINE, invert__inverse="midpoint", reconstruct__solver="midpoint"
    )
    source = cogedit.encode(video, settings).path
    written = cogedit.invert(source, settings)
    timesteps = read_artifact(written.path, "trajectory").tensors["timesteps"].tolist()
    assert len(timesteps) == written.record.settings.num_levels == 5
    assert timesteps[-1] == 999
    # The model is not asked about the noise, neither up nor down.
    (edit,) = cogedit.reconstruct(written.path, [PROMPT], settings, save_trajectory=True)
    assert len(read_artifact(edit.path, "edit").tensors["trajectory"]) == 4
    assert check_inversion(written.path, settings).psnr > 20
    flow = settings_of(video, TINY_PIPELINE, reconstruct__solver="midpoint", config=None)
    flow = replace(flow, reconstruct=replace(flow.reconstruct, method="flow"))
    with pytest.raises(UsageError):
        cogedit.reconstruct(written.path, [PROMPT], flow)


@pytest.mark.parametrize(
    "levels",
    [
        {"inverse": "midpoint", "num_inference_steps": 1000},
        {"num_inference_steps": 10, "low_levels": 10},
    ],
)
def test_levels_that_the_model_lacks_are_refused_before_it_is_loaded(video, levels):
    settings = settings_of(video, TINY_PIPELINE)
    settings = replace(settings, invert=replace(settings.invert, **levels))
    source, told = cogedit.encode(video, settings).path, []
    with pytest.raises(UsageError):
        cogedit.invert(source, settings, run=cogedit.Run(notify=told.append))
    assert told == []
    with pytest.raises(UsageError):
        cogedit.estimate(source, settings)


@pytest.mark.parametrize("guidance", [1, 6])
def test_upstream_reconstruction_through_the_stage(golden, video, tmp_path, monkeypatch, guidance):
    """The stage draws its own noise; given the golden noise, it gives the golden edit."""
    monkeypatch.setattr("cogedit.diffusion.denoise.draw_noise", lambda shape, seed: golden["noise"])
    settings = settings_of(
        video,
        GOLDEN_PIPELINE,
        invert__inverse="upstream",
        invert__guidance_scale=6,
        invert__num_inference_steps=10,
        config="upstream",
        reconstruct__guidance_scale=guidance,
        reconstruct__seed=7,
    )
    source = latents_artifact(tmp_path / "z.safetensors", golden["latents"], video, settings)
    (written,) = cogedit.reconstruct(source, [PROMPT], settings, save_trajectory=True)
    found = read_artifact(written.path, "edit").tensors
    expected = golden[f"reconstruction_g{guidance}"]
    assert (found["trajectory"] - expected).abs().max() / expected.std() < 1e-3
    assert torch.equal(found["latents"], found["trajectory"][-1])


def test_frames_are_encoded_as_upstream_encodes_them(golden_pipeline, video):
    settings = settings_of(video, GOLDEN_PIPELINE)
    written = cogedit.encode(video, settings)
    frames = read_artifact(cogedit.load(video, settings).path, "frames").tensors["frames"]
    from cogedit.ddim_inversion import encode_video_frames

    expected = encode_video_frames(golden_pipeline.vae, frames.permute(0, 3, 1, 2) / 255 * 2 - 1)
    found = read_artifact(written.path, "latents").tensors["latents"]
    assert torch.allclose(found, expected, atol=1e-5)


def test_everything_is_reused_and_settings_are_told_apart(video):
    said = []
    run = cogedit.Run(notify=said.append)
    settings = settings_of(video, TINY_PIPELINE)
    first = cogedit.edit(str(video), [PROMPT, "a dog"], settings, run=run)
    assert [e.reused for e in first] == [False, False]
    again = cogedit.edit(video, [PROMPT, "a dog"], settings, run=run)
    assert [(e.path, e.reused) for e in again] == [(e.path, True) for e in first]

    for seed in (42, 43):
        seeded = settings_of(
            video, TINY_PIPELINE, reconstruct__start="random", reconstruct__seed=seed
        )
        (edit,) = cogedit.reconstruct(video, [PROMPT], seeded)
        assert not edit.reused
        assert cogedit.invert(video, seeded).reused

    forced = cogedit.invert(video, settings, run=cogedit.Run(force=True))
    assert not forced.reused


def test_a_seed_without_effect_and_an_empty_prompt_are_said(video):
    said = []
    run = cogedit.Run(notify=said.append)

    def edit(prompt, **flags):
        said.clear()
        settings = settings_of(video, TINY_PIPELINE, **flags)
        [written] = cogedit.reconstruct(video, prompt, settings, run=run)
        return read_artifact(written.path, "edit").tensors["latents"]

    def told(text):
        return sum(text in line for line in said)

    first = edit(PROMPT)
    assert not told("seed")
    assert torch.equal(edit(PROMPT, reconstruct__seed=43), first)
    assert told("--start-noise") == 1
    mixed = edit(PROMPT, reconstruct__seed=43, reconstruct__start_noise=0.3)
    assert not told("seed")
    assert not torch.equal(mixed, edit(PROMPT, reconstruct__start_noise=0.3))
    edit("", reconstruct__seed=43, reconstruct__start="random")
    assert not told("seed")
    assert told("the prompt is empty") == 1


def test_equal_prompts_of_one_call_give_one_edit_each(video):
    settings = settings_of(video, TINY_PIPELINE)
    first, second, third = cogedit.reconstruct(video, [PROMPT, PROMPT, "a dog"], settings)
    assert first.path == second.path != third.path
    assert (first.reused, second.reused, third.reused) == (False, True, False)
    assert third.record.settings.prompt == "a dog"


def test_prompts_made_together_are_the_edits_made_alone(video, tmp_path):
    """One pass for what is missing; the same files but for rounding."""
    settings = settings_of(video, TINY_PIPELINE)
    inverted = cogedit.invert(video, settings)
    prompts = [PROMPT, "a dog", "", "a red bus"]
    alone = [
        cogedit.reconstruct(inverted.path, p, replace(settings, workspace=tmp_path / "alone"))[0]
        for p in prompts
    ]
    (first,) = cogedit.reconstruct(inverted.path, prompts[0], settings)
    passes, run = listening_run()
    together = cogedit.reconstruct(inverted.path, prompts, settings, run=run)
    assert passes == ["editing: 3 edits"]
    assert [edit.reused for edit in together] == [True, False, False, False]
    assert first.path == together[0].path
    for one, many, prompt in zip(alone, together, prompts, strict=True):
        assert one.path.name == many.path.name
        assert many.record.settings.prompt == prompt
        found = read_artifact(many.path, "edit").tensors["latents"]
        expected = read_artifact(one.path, "edit").tensors["latents"]
        assert torch.allclose(found, expected, atol=1e-4)
    assert cogedit.reconstruct(inverted.path, prompts, settings)[3].reused


def test_edits_that_differ_in_more_than_the_prompt_are_grouped(video):
    settings = settings_of(video, TINY_PIPELINE, reconstruct__start="random")
    inverted = cogedit.invert(video, settings)
    passes, run = listening_run()
    vary = ["guidance-scale=2,4", "seed=1,2"]
    swept = cogedit.sweep(inverted.path, ["a cat", "a dog"], settings, vary=vary, run=run)
    assert passes == ["editing: 4 edits"] * 2 + ["decoding"]
    found = [(e.record.settings.prompt, e.record.settings.seed) for e in swept.edits]
    assert found == [("a cat", 1), ("a cat", 2)] * 2 + [("a dog", 1), ("a dog", 2)] * 2
    assert len({edit.path for edit in swept.edits}) == 8


def test_how_the_rows_run_is_no_part_of_an_edit(video):
    settings = settings_of(video, TINY_PIPELINE)
    (edit,) = cogedit.reconstruct(video, PROMPT, settings)
    few = settings_of(video, TINY_PIPELINE, transformer__max_rows=1)
    assert cogedit.reconstruct(video, PROMPT, few)[0].reused
    (anew,) = cogedit.reconstruct(video, PROMPT, few, run=cogedit.Run(force=True))
    assert anew.path == edit.path


def test_a_kernel_that_cannot_run_is_refused_before_anything_is_computed(video, tmp_path):
    settings = settings_of(video, TINY_PIPELINE, transformer__attention_backend="sage")
    for stage in (cogedit.invert, lambda *given: cogedit.reconstruct(given[0], PROMPT, given[1])):
        with pytest.raises(UsageError, match="--attention-backend sage needs a CUDA device"):
            stage(video, settings)
    assert not (tmp_path / "clip.cogedit").exists()
    checkpoint = checkpoint_for(settings)
    assert transformer_record(checkpoint, settings, loras=()).attention_backend == "sage"
    exact = settings_of(video, TINY_PIPELINE, transformer__attention_backend="cudnn")
    assert transformer_record(checkpoint, exact, loras=()) == model_record(checkpoint, exact)


def test_a_pass_holds_no_more_edits_than_fit(video, monkeypatch):
    settings = settings_of(video, TINY_PIPELINE)
    inverted = cogedit.invert(video, settings)
    # The package's attribute of this name is the function.
    module = sys.modules["cogedit.stages.reconstruct"]
    monkeypatch.setattr(module, "MAX_VALUES", 2 * 3 * 16 * 8 * 12)
    passes, run = listening_run()
    cogedit.reconstruct(inverted.path, ["a", "b", "c"], settings, run=run)
    assert passes == ["editing: 2 edits", "editing: c"]


def test_equal_runs_give_equal_bytes(video):
    settings = settings_of(video, TINY_PIPELINE)
    written = cogedit.reconstruct(video, [PROMPT], settings)[0].path
    content = written.read_bytes()
    cogedit.reconstruct(video, [PROMPT], settings, run=cogedit.Run(force=True))
    assert written.read_bytes() == content


@pytest.mark.parametrize("name", ["pipeline_2b", "pipeline_15"])
def test_other_models_go_through_all_stages(video, request, name):
    folder = request.getfixturevalue(name)
    settings = settings_of(video, folder)
    assert (settings.load.width, settings.load.height) == (64, 64)
    inverted = cogedit.invert(video, settings)
    (edit,) = cogedit.reconstruct(inverted.path, [PROMPT], settings)
    exported = cogedit.export(edit.path, settings)
    assert read_back(exported.path, width=64, height=64).shape == (9, 64, 64, 3)
    latent_frames = read_artifact(inverted.path, "trajectory").tensors["latents"].shape[1]
    padded = name == "pipeline_15"
    assert inverted.record.num_pad_frames == (1 if padded else 0)
    assert latent_frames == (4 if padded else 3)


def test_padding_repeats_the_first_latent_frame_and_is_stripped(video, pipeline_15):
    settings = settings_of(video, pipeline_15)
    encoded = cogedit.encode(video, settings)
    latents = read_artifact(encoded.path, "latents").tensors["latents"]
    inverted = cogedit.invert(video, settings)
    padded = read_artifact(inverted.path, "trajectory").tensors["latents"]
    assert torch.equal(padded[:, 1:], latents)
    assert torch.equal(padded[:, :1], latents[:, :1])


def round_trip_error(video, model, **flags):
    """Plain sampling from the inverted noise, under the same prompt: how far from the clip."""
    settings = settings_of(
        video,
        model,
        invert__num_inference_steps=25,
        reconstruct__guidance_scale=1,
        reconstruct__start="inverted",
        reconstruct__injection_strength=0,
        **flags,
    )
    inverted = cogedit.invert(video, settings)
    (edit,) = cogedit.reconstruct(inverted.path, [""], settings)
    clean = read_artifact(inverted.path, "trajectory").tensors["latents"]
    back = read_artifact(edit.path, "edit").tensors["latents"]
    return float((back - clean).std() / clean.std())


@pytest.mark.parametrize("name", ["pipeline_2b", "pipeline_15", "pipeline_5b"])
def test_check_of_an_inversion(video, request, name):
    model = request.getfixturevalue(name)

    def check(**flags):
        settings = settings_of(video, model, invert__num_inference_steps=25, **flags)
        return cogedit.check_inversion(cogedit.invert(video, settings).path, settings)

    good, bad = check(invert__inversion_iterations="auto"), check(invert__inverse="upstream")
    assert good.psnr > 45
    assert good.psnr > bad.psnr + 10
    assert 0.1 < good.std < 3


def test_inversion_round_trips_when_injection_is_off(video, pipeline_15):
    """Padded; the inversions of the other models are checked above, and compared below."""
    assert round_trip_error(video, pipeline_15, invert__inversion_iterations=8) < 0.02


def test_2b_round_trips_as_well_as_5b(video, pipeline_2b, pipeline_5b):
    """At one model call per step; with the shift of 2B's levels dropped it does not."""
    assert round_trip_error(video, pipeline_2b) < 1.5 * round_trip_error(video, pipeline_5b)


def blocks(frames):
    """Mean of every 8x8 block of frames [F, H, W, 3]."""
    count, height, width, _ = frames.shape
    return frames.reshape(count, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))


def test_exports_of_every_kind(video):
    settings = settings_of(video, TINY_PIPELINE)
    written: dict[str, Any] = {
        "frames": cogedit.load(video, settings),
        "latents": cogedit.encode(video, settings),
        "trajectory": cogedit.invert(video, settings),
        "edit": cogedit.reconstruct(video, [PROMPT], settings)[0],
    }
    shown = {}
    for kind, artifact in written.items():
        exported = cogedit.export(artifact.path, settings)
        assert exported.path == artifact.path.with_suffix(".mp4")
        shown[kind] = read_back(exported.path, width=96, height=64).astype(float)
        assert shown[kind].shape == (9, 64, 96, 3)
    source = read_artifact(written["frames"].path, "frames").tensors["frames"].numpy()
    # Colour is stored at half the size: compare what 8x8 pixels have in common.
    assert abs(blocks(shown["frames"]) - blocks(source.astype(float))).max() < 12
    assert abs(shown["trajectory"] - shown["latents"]).mean() > 4


def test_export_keeps_what_it_did_not_make(video, tmp_path):
    settings = settings_of(video, TINY_PIPELINE)
    frames = cogedit.load(video, settings)
    before = video.read_bytes()
    with pytest.raises(UsageError, match=r"clip.mp4 exists and is no export of this artifact"):
        cogedit.export(frames.path, settings, output=video)
    beside = cogedit.load(video, settings, output=tmp_path / "clip.safetensors").path
    for force in (False, True):  # the name beside the artifact is the user's own video
        with pytest.raises(UsageError, match="is no export of this artifact"):
            cogedit.export(beside, settings, run=cogedit.Run(force=force))
    for stage in (cogedit.load, cogedit.encode, cogedit.invert):
        with pytest.raises(UsageError, match="is what the run starts from"):
            stage(video, settings, output=video, run=cogedit.Run(force=True))
    assert video.read_bytes() == before


def test_an_export_of_the_same_artifact_is_replaced_when_its_options_change(video, tmp_path):
    settings = settings_of(video, TINY_PIPELINE)
    frames = cogedit.load(video, settings)
    output = tmp_path / "out.mp4"
    assert not cogedit.export(frames.path, settings, output=output).reused
    assert cogedit.export(frames.path, settings, output=output).reused
    slower = replace(settings, export=replace(settings.export, fps=Fraction(10)))
    said = []
    run = cogedit.Run(notify=said.append)
    assert not cogedit.export(frames.path, slower, output=output, run=run).reused
    assert said[-1].endswith(" fps), in place of one with other export settings (-o keeps both)")
    latents = cogedit.encode(video, settings)
    with pytest.raises(UsageError, match="no export of this artifact"):
        cogedit.export(latents.path, settings, output=output)
    assert not cogedit.export(
        latents.path, settings, output=output, run=cogedit.Run(force=True)
    ).reused
    tiled = replace(settings, decode_tiling=True)
    assert not cogedit.export(latents.path, tiled, output=output).reused
    half = replace(settings, dtype="bf16")
    assert not cogedit.export(latents.path, half, output=output).reused


def test_force_makes_the_last_stage_anew_and_reuses_the_others(video):
    settings = settings_of(video, TINY_PIPELINE)
    cogedit.edit(video, PROMPT, settings)
    said = []
    cogedit.edit(video, PROMPT, settings, run=cogedit.Run(force=True, notify=said.append))
    assert [line.split()[0] for line in said if line.split()[0] in ("wrote", "reused")] == [
        "reused",
        "reused",
        "reused",
        "wrote",
        "wrote",
    ]
    assert not any("--force" in line for line in said)


def test_a_video_that_stays_is_found_before_the_edit_is_made(video, tmp_path):
    settings = settings_of(video, TINY_PIPELINE)
    [first] = cogedit.edit(video, PROMPT, settings, output=tmp_path / "out.mp4")
    foreign = make_video(tmp_path / "foreign.mp4", width=64, height=64, num_frames=2)
    before = [first.path.read_bytes(), foreign.read_bytes()]
    for output in (first.path, foreign):
        passes, run = listening_run()
        with pytest.raises(UsageError, match=f"{output.name} exists and is no export of this edit"):
            cogedit.edit(video, "another prompt", settings, output=output, run=run)
        assert passes == []
    for name, value in (("guidance_scale", 2.5), ("injection_steps", "0.0:0.5")):
        other = settings_of(video, TINY_PIPELINE, **{f"reconstruct__{name}": value})
        passes, run = listening_run()
        with pytest.raises(UsageError, match=r"out\.mp4 exists and is no export of this edit"):
            cogedit.edit(video, PROMPT, other, output=first.path, run=run)
        assert passes == []
    assert [first.path.read_bytes(), foreign.read_bytes()] == before
    assert cogedit.edit(video, PROMPT, settings, output=first.path)[0].reused
    forced = cogedit.Run(force=True)
    assert not cogedit.edit(video, "more", settings, output=foreign, run=forced)[0].reused


def test_what_cannot_be_written_is_found_out_before_anything_is_computed(video, tmp_path):
    settings = settings_of(video, TINY_PIPELINE)
    nowhere = tmp_path / "missing" / "edit.safetensors"
    with pytest.raises(StorageError, match="there is no folder"):
        cogedit.reconstruct(video, PROMPT, settings, output=nowhere)
    beyond = settings_of(video, TINY_PIPELINE, reconstruct__injection_layers="0:99")
    with pytest.raises(UsageError, match="injection_layers is 0:99; tiny has layers 0:2"):
        cogedit.reconstruct(video, PROMPT, beyond)
    for strength, mode in (("1.5", "queries-keys"), ("0.0:1.5", "image-queries-keys")):
        mixed = settings_of(
            video,
            TINY_PIPELINE,
            reconstruct__injection_mode=mode,
            reconstruct__injection_strength=strength,
        )
        expected = f"injection_strength is {strength}, expected 0 to 1 with injection_mode {mode}"
        with pytest.raises(UsageError, match=expected):
            cogedit.reconstruct(video, PROMPT, mixed)
    once = settings_of(video, TINY_PIPELINE, invert__num_inference_steps=1)
    with pytest.raises(UsageError, match="at least 2 inference steps"):
        cogedit.invert(video, once)
    with pytest.raises(UsageError, match="seed is -1"):
        replace(settings, reconstruct=replace(settings.reconstruct, seed=-1))
    assert not (tmp_path / "clip.cogedit").exists()


def test_an_edit_of_one_prompt_may_name_its_video(video, tmp_path):
    settings = settings_of(video, TINY_PIPELINE)
    (edited,) = cogedit.edit(video, PROMPT, settings, output=tmp_path / "mine.mp4")
    assert edited.path == tmp_path / "mine.mp4"
    assert edited.path.is_file()
    with pytest.raises(UsageError, match="-o names one video, and there are 2 prompts"):
        cogedit.edit(video, [PROMPT, "a dog"], settings, output=tmp_path / "two.mp4")


def test_a_size_that_no_model_takes_is_named_first(video):
    """And not that a codec takes none with an odd width: another codec would not help."""
    settings = settings_of(video, TINY_PIPELINE, load__width=63)
    with pytest.raises(UsageError, match="width 63 does not suit this model"):
        cogedit.edit(video, PROMPT, settings)


def test_a_clip_of_another_size_than_the_models_one_is_refused_before_any_stage(video, tmp_path):
    model = make_i2v_like(tmp_path / "tiny-i2v")
    with pytest.raises(UsageError, match=r"9 frames of 80x64.*9 frames of 96x64"):
        cogedit.edit(video, PROMPT, settings_of(video, model, load__width=80))
    assert not (tmp_path / "clip.cogedit").exists()
    short = settings_of(video, TINY_PIPELINE, load__max_num_frames=1)
    frames = cogedit.load(video, short).path  # of another model
    with pytest.raises(UsageError, match=r"1 frame of 96x64.*9 frames of 96x64"):
        cogedit.invert(frames, settings_of(frames, model))


def test_a_missing_video_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="no such video"):
        cogedit.edit("missing.mp4", PROMPT, settings_of(None, TINY_PIPELINE))
    assert not list(tmp_path.iterdir())


def test_a_number_format_is_handed_on_with_the_artifact(video):
    inverted = cogedit.invert(video, settings_of(video, TINY_PIPELINE, dtype="bf16"))
    given = {"model": str(TINY_PIPELINE), "device": "cpu"}
    resolved = cogedit.settings_for(str(inverted.path), given, environ={})
    assert resolved.settings.dtype == "bf16"
    assert resolved.origins["dtype"] == f"artifact {inverted.path.name}"


@pytest.mark.parametrize(
    ("flags", "config", "strength"),
    [
        ({}, None, (2.5, 0.0)),
        ({"reconstruct.injection_mode": "queries-keys"}, None, 1.0),
        ({"reconstruct.injection_mode": "image-queries-keys"}, None, 1.0),
        ({"reconstruct.injection_mode": "queries-keys"}, "upstream", 1.0),
        ({"reconstruct.injection_mode": "queries-keys"}, "faithful", 2.0),
        (
            {"reconstruct.injection_mode": "queries-keys", "reconstruct.injection_strength": "0.5"},
            None,
            0.5,
        ),
    ],
)
def test_a_strength_that_nobody_gave_follows_the_mode(video, flags, config, strength):
    given = {"model": str(TINY_PIPELINE), "device": "cpu"} | flags
    resolved = cogedit.settings_for(video, given, config=config, environ={})
    assert resolved.settings.reconstruct.injection_strength == strength


def test_a_model_that_is_nowhere_is_no_reason_to_guess_a_size(video):
    with pytest.raises(ModelError, match="'nope'"):
        cogedit.settings_for(video, {"model": "nope"}, environ={})
    with pytest.raises(ModelError, match="what size of clip it takes is not known") as caught:
        cogedit.settings_for(video, {"model": "somebody/fine-tune"}, environ={})
    assert "or give --width, --height and --max-num-frames" in caught.value.hint
    size = {
        "load.width": 64,
        "load.height": 64,
        "load.max_num_frames": 9,
        "load.frame_rate": "spread",
    }
    assert cogedit.settings_for(video, {"model": "somebody/fine-tune"} | size, environ={})


def test_cropping_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    portrait = make_video(tmp_path / "portrait.mp4", width=96, height=170, num_frames=9)
    said = []
    cogedit.load(
        portrait, settings_of(portrait, TINY_PIPELINE), run=cogedit.Run(notify=said.append)
    )
    assert any("62%" in s and "--resize-mode pad" in s for s in said)


def test_the_recipe_of_a_clip_does_not_grow_with_it(tmp_path, monkeypatch):
    """A list of 30,000 frame numbers does not fit into a video's metadata."""
    monkeypatch.chdir(tmp_path)
    video = make_video(tmp_path / "clip.mp4", width=32, height=32, num_frames=65)
    size = {
        "load__width": 32,
        "load__height": 32,
        "load__max_num_frames": 65,
        "load__frame_rate": "spread",
    }
    settings = settings_of(video, TINY_PIPELINE, **size)
    frames = cogedit.load(video, settings)
    exported = cogedit.export(frames.path, settings)
    comment = json.loads(find_comment(exported.path))
    assert comment["cogedit"]["frame_indices"] == "0:65:1"


def test_an_artifact_of_another_model_is_refused_with_both_names(video, pipeline_2b):
    inverted = cogedit.invert(video, settings_of(video, TINY_PIPELINE))
    with pytest.raises(ArtifactMismatch, match=r"made with model tiny .* uses tiny-2b"):
        cogedit.reconstruct(inverted.path, [PROMPT], settings_of(inverted.path, pipeline_2b))


def test_settings_follow_from_the_artifact(video, pipeline_2b):
    frames = cogedit.load(video, settings_of(video, pipeline_2b))
    settings = settings_of(frames.path, TINY_PIPELINE)
    with pytest.raises(UsageError, match="-o names one file, and there are 2 prompts"):
        cogedit.reconstruct(frames.path, ["a", "b"], settings, output=video.with_suffix(".x"))
    with pytest.raises(UsageError, match="needs a prompt"):
        cogedit.reconstruct(frames.path, [], settings)


def test_the_same_command_goes_on_after_the_machine_went_down(video, tmp_path, monkeypatch):
    """Its lease of the output is one of a machine that was started before."""
    monkeypatch.setattr(leases, "HEARTBEAT", 0.01)
    output, said = tmp_path / "out.safetensors", []
    left = leases.lease_of(output)
    left.mkdir()
    (left / f"{secrets.token_hex(8)}.1.1.{'0' * 16}").touch()
    os.utime(next(left.iterdir()), (0, 0))
    settings = settings_of(video, TINY_PIPELINE)
    cogedit.load(video, settings, output=output, run=cogedit.Run(notify=said.append))
    assert output.is_file()
    assert not left.exists()
    assert any("was started again" in line and str(output) in line for line in said)


def test_a_name_of_our_own_is_waited_for_and_one_that_was_given_is_refused(video, tmp_path):
    """Of two equal commands at once, the second uses what the first one writes."""
    settings = settings_of(video, TINY_PIPELINE)
    [first] = cogedit.edit(video, [PROMPT], settings)
    first.path.unlink()
    held, said = leases.acquire(leases.lease_of(first.path), waiting=None), []

    def write(text):
        said.append(text)
        if text.startswith(f"another process is making {first.path}"):
            held.release()

    [second] = cogedit.edit(video, [PROMPT], settings, run=cogedit.Run(notify=write))
    assert second.path == first.path
    assert second.path.is_file()
    assert sum("another process" in text for text in said) == 1

    given = tmp_path / "given.mp4"
    held = leases.acquire(leases.lease_of(given), waiting=None)
    with pytest.raises(UsageError, match=r"another process is writing .*given\.mp4"):
        cogedit.edit(video, [PROMPT], settings, output=given)
    assert not given.exists()
    held.release()


def test_one_place_is_claimed_once_however_it_is_written(tmp_path):
    """Else whoever waits for the claim waits for itself."""
    (tmp_path / "link").symlink_to(tmp_path)
    with claim(tmp_path / "out.mp4", cogedit.Run()) as run:
        for written in ("link/out.mp4", "link/../" + tmp_path.name + "/out.mp4"):
            with claim(tmp_path / written, run, is_ours=True) as again:
                assert again.claims == run.claims
