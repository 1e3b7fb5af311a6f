"""The same weights are the same model, whatever they are called and wherever they lie."""

import shutil
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
from hub import COMMIT, fill_cache
from huggingface_hub import constants
from pipelines import TINY_PIPELINE, settings_of
from videos import make_video

import cogedit
from cogedit.artifacts import (
    EditRecord,
    LatentsRecord,
    TrajectoryRecord,
    Unfinished,
    Workspace,
    content_key,
    read_artifact,
    read_record,
    write_artifact,
)
from cogedit.artifacts.records import earlier_record
from cogedit.stages.run import Written
from cogedit.tools.estimate import estimate

OLD, NEW = "THUDM/CogVideoX-tiny", "zai-org/CogVideoX-tiny"


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Five names of one model: a folder, a renamed copy, two hub ids and a snapshot's folder."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    copy = shutil.copytree(TINY_PIPELINE, tmp_path / "my copy")
    for name, commit in ((OLD, COMMIT), (NEW, "f" * 40)):
        fill_cache(cache, name, TINY_PIPELINE, commit=commit)
    snapshot = cache / f"models--{NEW.replace('/', '--')}" / "snapshots" / ("f" * 40)
    return [str(TINY_PIPELINE), str(copy), OLD, NEW, str(snapshot)]


def settings_under(name, video):
    size = {"load__width": 96, "load__height": 64}
    return settings_of(video, model=name, **size)


def test_another_name_computes_nothing_again(video, names):
    first, *others = names
    settings = settings_under(first, video)
    made = cogedit.invert(video, settings)
    edited = cogedit.edit(video, ["a blue cat"], settings)
    files = sorted(made.path.parent.glob("*.safetensors"))
    for name in others:
        settings = settings_under(name, video)
        again = cogedit.invert(video, settings)
        assert (again.path, again.reused) == (made.path, True)
        plan = estimate(video, settings, prompts=["a blue cat"])
        assert [stage.reused for stage in plan.stages] == [1, 1]
        assert cogedit.edit(video, ["a blue cat"], settings)[0].path == edited[0].path
        assert sorted(made.path.parent.glob("*.safetensors")) == files


def test_an_inversion_made_under_one_name_is_edited_under_another(video, names):
    made = cogedit.invert(video, settings_under(names[0], video))
    [edit] = cogedit.reconstruct(made.path, ["a blue cat"], settings_under(NEW, video))
    assert not edit.reused
    assert edit.record.model.id == NEW
    assert edit.record.trajectory == read_record(made.path)
    [again] = cogedit.reconstruct(made.path, ["a blue cat"], settings_under(OLD, video))
    assert (again.path, again.reused) == (edit.path, True)


def test_device_and_version_are_in_the_record_and_not_in_the_key(video):
    settings = settings_of(video, load__width=96, load__height=64)
    record = cogedit.encode(video, settings).record
    assert (record.model.device, record.model.torch) == ("cpu", version("torch"))
    elsewhere = replace(record, model=replace(record.model, device="cuda", torch="9.9"))
    assert content_key(elsewhere) == content_key(record)
    for changed in ({"digest": "0" * 64}, {"dtype": "bf16"}, {"weights": "fp8"}):
        other = replace(record, model=replace(record.model, **changed))
        assert content_key(other) != content_key(record)


def as_version_0_1_0(path):
    """Write an artifact as cogedit 0.1.0 did, at its place then, and remove it."""
    artifact = read_artifact(path)
    earlier = earlier_record(artifact.record)
    at = Workspace(path.parent).path_for(earlier)
    assert at != path
    write_artifact(at, artifact.tensors, earlier)
    path.unlink()
    return at


def test_what_0_1_0_made_is_reused(video):
    settings = settings_of(video, load__width=96, load__height=64)
    latents, inverted = cogedit.encode(video, settings), cogedit.invert(video, settings)
    [edit] = cogedit.reconstruct(inverted.path, ["a blue cat"], settings)
    made = [as_version_0_1_0(written.path) for written in (latents, inverted, edit)]
    reused: list[Written[Any]] = [
        cogedit.encode(video, settings),
        cogedit.invert(video, settings),
        *cogedit.reconstruct(video, ["a blue cat"], settings),
    ]
    assert [(written.path, written.reused) for written in reused] == [(p, True) for p in made]
    plan = estimate(video, settings, prompts=["a blue cat"])
    assert [stage.reused for stage in plan.stages] == [1, 1]


def test_what_0_1_0_began_goes_on(video):
    settings = settings_of(video, load__width=96, load__height=64)
    inverted = cogedit.invert(video, settings)
    workspace, record = Workspace(inverted.path.parent), inverted.record
    inverted.path.unlink()
    assert workspace.as_kept(record) == record
    key = content_key(earlier_record(record))
    Unfinished.of(workspace.root, "trajectory", [key]).root.mkdir()
    assert workspace.as_kept(record) == earlier_record(record)
    again = cogedit.invert(video, settings)
    assert content_key(again.record) == key
    assert again.record.model.torch is None


def test_the_record_of_0_1_0_is_that_of_every_model_in_it(video):
    settings = settings_of(video, load__width=96, load__height=64)
    [edit] = cogedit.reconstruct(video, ["a blue cat"], settings)
    earlier = earlier_record(edit.record)
    assert isinstance(earlier, EditRecord)
    assert isinstance(earlier.trajectory, TrajectoryRecord)
    assert isinstance(earlier.trajectory.latents, LatentsRecord)
    for link in (earlier, earlier.trajectory, earlier.trajectory.latents):
        assert link.model.torch is None
        assert replace(link.model, id="other") != link.model
    assert earlier.trajectory.latents.frames == edit.record.trajectory.latents.frames
    renamed = replace(earlier, model=replace(earlier.model, id="other"))
    assert content_key(renamed) != content_key(earlier)
