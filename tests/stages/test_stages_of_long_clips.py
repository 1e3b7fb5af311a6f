"""Clips longer than the model's own, through the stages: records, resuming, and one field."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from pipelines import TINY_MODEL, TINY_PIPELINE, small_settings
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import (
    UNFINISHED_SUFFIX,
    content_key,
    read_artifact,
    read_record,
    record_text,
    write_artifact,
)
from cogedit.cli import app
from cogedit.errors import ArtifactMismatch, UsageError
from cogedit.progress import WindowInfo
from cogedit.stages.model import checkpoint_for
from cogedit.stages.trajectory import open_trajectory
from cogedit.types import WindowPlan

STEPS = 4
WINDOWS = WindowPlan(3, 1, 1)
"""Of the tiny pipeline, whose clips have 9 frames in 3 latent frames."""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return make_video(folder / "clip.mp4", width=96, height=64, num_frames=17)


def settings_of(video, workspace, model=TINY_PIPELINE, **flags):
    usual = {
        "model": str(model),
        "load__max_num_frames": 17,
        "load__frame_rate": "source",
        "invert__num_inference_steps": STEPS,
        "workspace": workspace,
    }
    return small_settings(video, **usual | flags)


@pytest.fixture(scope="module")
def inverted(video):
    """The trajectory of 5 latent frames, 2 windows."""
    return cogedit.invert(video, settings_of(video, video.parent / "whole")).path


@pytest.fixture
def reported():
    """A run that remembers sentences and progress."""
    said, steps = [], []

    @contextmanager
    def progress(doing, total):
        yield steps.append

    run = cogedit.Run(notify=said.append, progress=progress)
    return run, said, steps


def test_a_long_clip_is_inverted_in_windows(inverted):
    record = read_record(inverted, "trajectory")
    assert record.windows == WINDOWS
    assert record.settings.window_overlap is None, "it is told by the windows"
    assert read_artifact(inverted, "trajectory").tensors["latents"].shape[1] == 5


def test_a_long_clip_is_encoded_as_clips_of_a_span(video, tmp_path):
    flags = {"encode__vae_span": 9}
    long = cogedit.encode(video, settings_of(video, tmp_path, **flags)).path
    assert read_record(long, "latents").settings.vae_span == 9
    assert "vae_span = 9" in CliRunner().invoke(app, ["inspect", str(long)]).output
    part = settings_of(video, tmp_path, load__start="8f", load__max_num_frames=9, **flags)
    second = cogedit.encode(video, part).path
    assert "vae_span" not in record_text(read_record(second, "latents"))
    own, latents = (read_artifact(path, "latents").tensors["latents"] for path in (second, long))
    assert torch.equal(latents[:, 3:], own[:, 1:])


def test_the_span_is_that_of_a_clip(video, tmp_path):
    with pytest.raises(UsageError, match="--vae-span is 8"):
        cogedit.encode(video, settings_of(video, tmp_path, encode__vae_span=8))


def test_the_embedded_model_encodes_in_spans_of_its_clips(video, tmp_path):
    assert settings_of(video, tmp_path, "shapes").encode.vae_span == 9
    assert settings_of(video, tmp_path).encode.vae_span is None
    asked = settings_of(video, tmp_path, "shapes", encode__vae_span=17)
    assert asked.encode.vae_span == 17


def test_another_overlap_is_another_trajectory(video, inverted, tmp_path):
    record = read_record(inverted, "trajectory")
    told = settings_of(video, inverted.parent, invert__window_overlap=1)
    assert cogedit.invert(video, told).path == inverted, "one is what it is by default"
    wide = settings_of(video, inverted.parent, invert__window_overlap=2)
    other = read_record(cogedit.invert(video, wide).path, "trajectory")
    assert other.windows == WindowPlan(3, 2, 0)
    assert content_key(other) != content_key(record)


def test_a_clip_of_one_window_has_the_record_that_it_had(video, tmp_path, reported):
    run, said, _ = reported
    short = {"load__max_num_frames": 9, "invert__num_inference_steps": 2}
    plain = cogedit.invert(video, settings_of(video, tmp_path, **short)).path
    told = settings_of(video, tmp_path, invert__window_overlap=2, **short)
    assert cogedit.invert(video, told, run=run).path == plain
    assert any("--window-overlap" in text for text in said)
    record = read_record(plain, "trajectory")
    assert record.windows is None
    assert "window" not in record_text(record)


@pytest.mark.parametrize("overlap", [3, 100])
def test_windows_that_overlap_whole_are_refused_before_any_stage(video, tmp_path, overlap):
    settings = settings_of(video, tmp_path / "w", invert__window_overlap=overlap)
    for run in (
        lambda: cogedit.invert(video, settings),
        lambda: cogedit.reconstruct(video, "a fox", settings),
        lambda: cogedit.estimate(video, settings, prompts=["a fox"]),
    ):
        with pytest.raises(UsageError, match=f"window_overlap is {overlap}.* 0 to 2"):
            run()
    assert not list((tmp_path / "w").glob("*.safetensors"))


class Killed(BaseException):
    """What no stage catches."""


def killed_at(step, window):
    """A run that dies after a window of a step."""

    @contextmanager
    def progress(doing, total):
        def on_step(info):
            if isinstance(info, WindowInfo) and (info.index, info.window) == (step, window):
                raise Killed

        yield on_step

    return cogedit.Run(progress=progress)


def test_an_inversion_and_an_edit_killed_between_two_windows_end_with_the_same_bytes(
    video, inverted, tmp_path
):
    """With resuming, the whole chain is the uninterrupted one's; it lies in another workspace."""
    flags = {"reconstruct__auto_mask": True, "reconstruct__auto_mask_threshold": 0.0}
    whole, here = (settings_of(video, w, **flags) for w in (inverted.parent, tmp_path / "w"))
    with pytest.raises(Killed):
        cogedit.invert(video, here, run=killed_at(2, 0))
    assert list((tmp_path / "w").glob(f"*{UNFINISHED_SUFFIX}"))
    assert cogedit.invert(video, here).path.read_bytes() == inverted.read_bytes()
    [expected] = cogedit.reconstruct(video, "a fox", whole)
    with pytest.raises(Killed):
        cogedit.reconstruct(video, "a fox", here, run=killed_at(3, 1))
    [found] = cogedit.reconstruct(video, "a fox", here)
    assert found.path.read_bytes() == expected.path.read_bytes()


def test_what_it_would_take(video, tmp_path, inverted, reported):
    run, _, steps = reported
    once = {"invert__num_inference_steps": 12, "invert__inversion_iterations": 1}
    settings = settings_of(video, tmp_path, **once)
    found = cogedit.estimate(video, settings, prompts=["a fox"])
    assert (found.latent_shape[0], found.windows, found.num_windows) == (5, WINDOWS, 2)
    load = replace(settings.load, max_num_frames=9)
    short = cogedit.estimate(video, replace(settings, load=load))
    assert (short.windows, short.num_windows) == (None, 1)
    assert found.num_tokens == short.num_tokens
    cogedit.reconstruct(video, "a fox", settings, run=run)
    windows = [step for step in steps if isinstance(step, WindowInfo)]
    up, down = (stage.work.calls for stage in found.stages)
    assert len(windows) == pytest.approx(up + down, rel=0.1)


def test_windows_are_shown(video, inverted, tmp_path):
    shown = CliRunner().invoke(app, ["inspect", str(inverted)])
    assert shown.exit_code == 0
    assert re.search(r"windows +of 3 latent frames.* overlap by 1 .* move by 1 ", shown.stdout)
    flags = [*TINY_MODEL, "--max-num-frames", "17", "--frame-rate", "source", "--dry-run"]
    flags += ["--workspace", str(tmp_path)]
    dry = CliRunner().invoke(app, ["invert", str(video), *flags])
    assert dry.exit_code == 0, dry.output
    assert re.search(r"latents 5x\d+x\d+ in 2 or more windows of 3, ", dry.stdout)


@pytest.mark.parametrize(("overlap", "exit_code"), [("1", 0), ("auto", 0), ("0", 2)])
def test_the_overlap_of_a_trajectory_may_be_said_again(inverted, overlap, exit_code):
    flags = [*TINY_MODEL, "--window-overlap", overlap, "--dry-run", "--prompt", "a fox"]
    said = CliRunner().invoke(app, ["reconstruct", str(inverted), *flags])
    assert said.exit_code == exit_code, said.output


def test_every_window_is_reported(video, tmp_path, inverted, reported):
    run, _, steps = reported
    cogedit.reconstruct(
        inverted, "a fox", settings_of(video, tmp_path), output=tmp_path / "e", run=run
    )
    windows = [step for step in steps if isinstance(step, WindowInfo)]
    assert {step.index for step in windows} == set(range(STEPS))
    for index in range(STEPS):
        own = [step for step in windows if step.index == index]
        assert [step.window for step in own] == list(range(own[0].num_windows))
    assert {step.num_windows for step in windows} == {2, 3}
    assert [step.index for step in steps if step not in windows] == list(range(STEPS))


def test_an_edit_takes_the_windows_from_its_trajectory(video, inverted, tmp_path):
    plain = settings_of(video, tmp_path)
    other = settings_of(video, tmp_path, invert__window_overlap=0)
    [one] = cogedit.reconstruct(inverted, "a fox", plain, output=tmp_path / "one.safetensors")
    [two] = cogedit.reconstruct(inverted, "a fox", other, output=tmp_path / "two.safetensors")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_the_noise_gives_the_clip_back(video, tmp_path):
    settings = settings_of(
        video, tmp_path, invert__inversion_iterations=8, invert__num_inference_steps=12
    )
    written = cogedit.invert(video, settings)
    assert cogedit.check_inversion(written.path, settings).psnr > 45


def test_windows_of_two_frames_to_a_token(video, tmp_path, pipeline_15):
    """9 frames are 3 latent frames and one to fill a token: windows of 4, which begin evenly."""
    size = {"load__width": 64, "load__height": 64}
    settings = settings_of(video, tmp_path, pipeline_15, **size)
    path = cogedit.invert(video, settings).path
    record = read_record(path, "trajectory")
    assert record.num_pad_frames == 1
    assert record.windows == WindowPlan(4, 2, 0)
    with pytest.raises(UsageError, match="multiple of 2"):
        odd = settings_of(video, tmp_path, pipeline_15, **size, invert__window_overlap=1)
        cogedit.invert(video, odd)
    artifact = read_artifact(path, "trajectory")
    odd = tmp_path / "odd.safetensors"
    windows = WindowPlan(4, 1, 0)
    write_artifact(odd, artifact.tensors, replace(artifact.record, windows=windows, tensors=()))
    with pytest.raises(ArtifactMismatch, match="multiples of 2"):
        open_trajectory(odd, checkpoint_for(settings))


def test_a_trajectory_of_one_pass_is_edited_in_one_pass(video, inverted, tmp_path):
    """What cogedit wrote before there were windows: longer than the model, and without any."""
    settings = settings_of(video, tmp_path)
    artifact = read_artifact(inverted, "trajectory")
    old = tmp_path / "old.safetensors"
    write_artifact(old, artifact.tensors, replace(artifact.record, windows=None, tensors=()))
    outputs = [tmp_path / name for name in ("one.safetensors", "other.safetensors")]
    for path, output in zip((old, inverted), outputs, strict=True):
        cogedit.reconstruct(path, "a fox", settings, output=output)
    one, other = (read_artifact(path, "edit").tensors["latents"] for path in outputs)
    assert not torch.allclose(one, other, atol=1e-3)
