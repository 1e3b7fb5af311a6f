"""Small pictures of an edit while it forms: what they show, and that they change nothing."""

import math

import pytest
import torch
from pipelines import tiny_artifacts, tiny_settings
from videos import make_video

import cogedit
from cogedit.artifacts import read_artifact
from cogedit.diffusion.clean_estimate import clean_sample, fit_colors, paint
from cogedit.diffusion.schedule import CLEAN, Schedule

TABLE = torch.cat([torch.linspace(0.999, 0.001, 999, dtype=torch.float64).square(), torch.zeros(1)])
"""Noise levels that end at zero terminal SNR."""


@pytest.mark.parametrize(("t", "s"), [(999, 899), (500, 3), (100, CLEAN)])
def test_both_ends_of_a_step_tell_the_clean_sample(t, s):
    schedule = Schedule.trailing(TABLE, 10)
    z0, eps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    x_t, x_s = (
        math.sqrt(schedule.alpha_cumprod(level)) * z0
        + math.sqrt(1 - schedule.alpha_cumprod(level)) * eps
        for level in (t, s)
    )
    torch.testing.assert_close(
        clean_sample(x_t, x_s, schedule=schedule, t=t, s=s), z0, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("num_frames", "num_latents"), [(9, 3), (1, 1)])
def test_colors_that_are_linear_in_the_latents_come_back(num_frames, num_latents):
    drawn = torch.Generator().manual_seed(2)
    colors = torch.randint(0, 256, (num_latents, 5, 6, 3), generator=drawn, dtype=torch.uint8)
    firsts, rest = colors[:1], colors[1:].repeat_interleave(4, dim=0)
    frames = torch.cat([firsts, rest]).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    assert len(frames) == num_frames
    mixing = torch.randn(3, 16, generator=drawn)
    latents = (colors.float() @ mixing + 1).permute(0, 3, 1, 2)
    painted = paint(latents, fit_colors(latents, frames)).int()
    assert (painted - colors.int()).abs().max() <= 1


@pytest.fixture
def inverted(tmp_path, monkeypatch):
    """A video and its trajectory under the tiny pipeline."""
    monkeypatch.chdir(tmp_path)
    video = make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)
    return video, tiny_artifacts(video, {"invert.num_inference_steps": 4})


@pytest.mark.parametrize(("method", "num_pictures"), [("injection", 3), ("flow", 4)])
def test_edits_are_shown_beside_each_other_and_stay_what_they_are(inverted, method, num_pictures):
    video, artifacts = inverted
    flags = {"invert.num_inference_steps": 4, "reconstruct.method": method}
    settings = tiny_settings(video, flags)
    shown, said = [], []
    run = cogedit.Run(preview=shown.append, notify=said.append, force=True)
    prompts = ["a dog", "a cat"]
    watched = cogedit.reconstruct(artifacts["trajectory"], prompts, settings, run=run)
    with_pictures = [read_artifact(one.path, "edit").tensors["latents"] for one in watched]
    unseen = cogedit.Run(force=True)
    alone = cogedit.reconstruct(artifacts["trajectory"], prompts, settings, run=unseen)
    for latents, again in zip(with_pictures, alone, strict=True):
        assert torch.equal(latents, read_artifact(again.path, "edit").tensors["latents"])
    assert [(one.width, one.height) for one in shown] == [(24, 8)] * num_pictures
    assert len({one.pixels for one in shown}) == num_pictures
    # The last picture is the edit itself, in the source's colours.
    clean = read_artifact(artifacts["trajectory"], "trajectory").tensors["latents"][0]
    frames = read_artifact(artifacts["frames"], "frames").tensors["frames"]
    colors = fit_colors(clean, frames)
    painted = [paint(latents[0], colors)[len(clean) // 2] for latents in with_pictures]
    expected = torch.cat(painted, dim=1).int()
    picture = torch.tensor(list(shown[-1].pixels), dtype=torch.int32).view_as(expected)
    # The fit is solved a second time here, and its sums may come in another order: one grey level.
    assert (picture - expected).abs().max() <= 1


def test_without_the_source_s_frames_there_is_none_and_it_says_so(inverted):
    video, artifacts = inverted
    artifacts["frames"].unlink()
    shown, said = [], []
    run = cogedit.Run(preview=shown.append, notify=said.append)
    settings = tiny_settings(video, {"invert.num_inference_steps": 4})
    [edit] = cogedit.reconstruct(artifacts["trajectory"], "a dog", settings, run=run)
    assert edit.path.exists()
    assert not shown
    assert any(line.startswith("no preview: the source's frames") for line in said)
