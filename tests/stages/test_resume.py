"""A long stage that was stopped goes on where it stopped, and ends with the same bytes."""

import errno
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from pipelines import small_settings
from videos import make_video

import cogedit
import cogedit.stages.run as run_module
from cogedit.artifacts import UNFINISHED_SUFFIX, newest_step, write_artifact
from cogedit.artifacts.leases import acquire, lease_of
from cogedit.errors import (
    DeviceMemoryError,
    Interrupted,
    NumericalError,
    StorageError,
    Terminated,
)
from cogedit.models.denoiser import Denoiser

STEPS = 6


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small video, its settings, and the bytes of an uninterrupted inversion."""
    folder = tmp_path_factory.mktemp("clip")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=9)
    return video, inversion_of(video, folder / "whole")


def copied(clip, folder, *kinds):
    """A workspace with artifacts of the clip's uninterrupted inversion."""
    folder.mkdir()
    for kind in kinds:
        [path] = (clip[0].parent / "whole").glob(f"{kind}-*.safetensors")
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def workspace(clip, tmp_path):
    """A workspace in which the clip is encoded."""
    return copied(clip, tmp_path / "w", "frames", "latents")


@pytest.fixture
def inverted(clip, tmp_path):
    """A workspace in which the clip is inverted, and another one like it."""
    kinds = ("frames", "latents", "trajectory")
    return [copied(clip, tmp_path / name, *kinds) for name in ("w", "whole")]


def settings_of(video, workspace, **flags):
    usual = {
        "load__max_num_frames": 9,
        "load__frame_rate": "spread",
        "invert__num_inference_steps": STEPS,
        "workspace": workspace,
    }
    return small_settings(video, **usual | flags)


def inversion_of(video, workspace, **flags):
    return cogedit.invert(video, settings_of(video, workspace, **flags)).path.read_bytes()


class Told:
    """A run that remembers what it was told, and does something after a step."""

    def __init__(self, after=None, do=None):
        self.said, self.steps, self._after, self._do = [], [], after, do
        self.run = cogedit.Run(notify=self.said.append, progress=self._progress)

    @contextmanager
    def _progress(self, doing, total):
        def on_step(info):
            self.steps.append(info.index)
            if info.index + 1 == self._after:
                self._do(self.run)

        yield on_step


def kept(workspace):
    """How many steps are kept in a workspace, where there are no other leftovers."""
    [folder] = workspace.glob(f"*{UNFINISHED_SUFFIX}")
    assert {p.suffix for p in folder.iterdir()} == {".safetensors"}
    return newest_step(folder).info.index + 1


def goes_on(clip, workspace, count, **flags):
    """The same inversion goes on after `count` steps, and leaves what an uninterrupted one does."""
    video, whole = clip
    told = Told()
    written = cogedit.invert(video, settings_of(video, workspace, **flags), run=told.run)
    assert told.steps == list(range(count, STEPS))
    assert f"going on after step {count} of {STEPS}" in told.said
    assert written.path.read_bytes() == whole
    assert not list(workspace.glob(f"*{UNFINISHED_SUFFIX}"))


@pytest.mark.parametrize(
    ("signum", "error", "code"),
    [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Terminated, 143)],
)
def test_a_wish_to_stop_is_granted_after_the_step(clip, workspace, signum, error, code):
    told = Told(2, lambda run: run.cancellation.request(signum))
    with pytest.raises(error, match="after step 3 of 6") as raised:
        cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
    assert raised.value.exit_code == code
    assert raised.value.hint == "the same command goes on from there"
    assert kept(workspace) == 3
    goes_on(clip, workspace, 3)


@pytest.mark.parametrize(
    "flags", [{"invert__inverse": "upstream"}, {"invert__inversion_iterations": "auto"}]
)
def test_every_method_goes_on(clip, workspace, tmp_path, flags):
    whole = inversion_of(clip[0], tmp_path / "whole", **flags)
    told = Told(3, lambda run: run.cancellation.request())
    with pytest.raises(Interrupted):
        cogedit.invert(clip[0], settings_of(clip[0], workspace, **flags), run=told.run)
    goes_on((clip[0], whole), workspace, 4, **flags)


def test_a_wish_in_the_last_step_keeps_all_of_them(clip, workspace):
    told = Told(STEPS, lambda run: run.cancellation.request())
    with pytest.raises(Interrupted, match="after the last step"):
        cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
    goes_on(clip, workspace, STEPS)


def test_outside_of_a_loop_nobody_grants_a_wish():
    stop = cogedit.Run().cancellation
    assert not stop.request(signal.SIGINT)
    with pytest.raises(Interrupted), stop.between_steps():
        assert not stop.request(signal.SIGINT), "the second wish is for at once"


@pytest.mark.parametrize("named", [False, True])
def test_a_wish_is_heard_while_another_process_is_waited_for(clip, workspace, tmp_path, named):
    """The other process makes the same trajectory, or may still write the same output."""
    said = []
    run = cogedit.Run(notify=lambda text: (said.append(text), run.cancellation.request()))
    output = tmp_path / "mine.safetensors" if named else None
    if named:
        place = lease_of(output)
        place.mkdir()
        (place / f"{16 * 'f'}.1.1.{16 * 'f'}").touch()
    else:
        told = Told(2, lambda run: run.cancellation.request())
        with pytest.raises(Interrupted):
            cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
        [steps] = workspace.glob(f"*{UNFINISHED_SUFFIX}")
        place = steps / "lease"
        lease = acquire(place, waiting=None)
    with pytest.raises(Interrupted, match="while it waited for another process"):
        cogedit.invert(clip[0], settings_of(clip[0], workspace), output=output, run=run)
    assert "waiting" in said[-1]
    if named:
        assert place.exists()
    else:
        lease.release()
        goes_on(clip, workspace, 3)


def test_damaged_steps_are_made_again(clip, workspace):
    told = Told(4, lambda run: run.cancellation.request())
    with pytest.raises(Interrupted):
        cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
    [third] = workspace.glob(f"*{UNFINISHED_SUFFIX}/0003.safetensors")
    content = bytearray(third.read_bytes())
    content[-1] ^= 1
    third.write_bytes(content)
    goes_on(clip, workspace, 2)


def test_steps_of_other_settings_are_left_alone(clip, workspace):
    told = Told(2, lambda run: run.cancellation.request())
    with pytest.raises(Interrupted):
        cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
    cogedit.invert(clip[0], settings_of(clip[0], workspace, invert__prompt="a dog"))
    assert kept(workspace) == 3
    goes_on(clip, workspace, 3)


def test_a_named_output_goes_on_too(clip, workspace, tmp_path):
    output = tmp_path / "there" / "my trajectory.safetensors"
    output.parent.mkdir()
    told = Told(2, lambda run: run.cancellation.request())
    settings = settings_of(clip[0], workspace)
    with pytest.raises(Interrupted):
        cogedit.invert(clip[0], settings, output=output, run=told.run)
    told = Told()
    cogedit.invert(clip[0], settings, output=output, run=told.run)
    assert told.steps == [3, 4, 5]
    assert output.read_bytes() == clip[1]
    assert [p.name for p in output.parent.iterdir()] == [output.name]


def test_leftovers_of_a_finished_artifact_go_when_it_is_reused(clip, workspace):
    settings = settings_of(clip[0], workspace)
    written = cogedit.invert(clip[0], settings)
    told = Told(2, lambda run: run.cancellation.request())
    forced = cogedit.Run(force=True, progress=told.run.progress, cancellation=told.run.cancellation)
    with pytest.raises(Interrupted):
        cogedit.invert(clip[0], settings, run=forced)
    assert kept(workspace) == 3
    assert cogedit.invert(clip[0], settings).reused
    assert written.path.read_bytes() == clip[1]
    assert not list(workspace.glob(f"*{UNFINISHED_SUFFIX}"))


def test_nan_names_step_and_tensor_and_keeps_the_last_good_step(clip, workspace, monkeypatch):
    velocity = Denoiser.velocity

    def overflowing(self, sample, timestep):
        v = velocity(self, sample, timestep)
        return v if timestep < 600 else torch.full_like(v, torch.inf)

    told = Told()
    with monkeypatch.context() as patched:
        patched.setattr(Denoiser, "velocity", overflowing)
        with pytest.raises(NumericalError, match=r"the inverted sample .* at step 4") as raised:
            cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
    assert raised.value.exit_code == 8
    assert told.said[-1] == "kept: 3 of 6 steps; the same command goes on from there"
    assert kept(workspace) == 3
    goes_on(clip, workspace, 3)


def test_a_full_device_keeps_the_last_good_step(clip, workspace, monkeypatch):
    velocity = Denoiser.velocity

    def too_large(self, sample, timestep):
        if timestep > 800:
            torch.empty(2**62, dtype=torch.uint8)  # what torch itself raises
        return velocity(self, sample, timestep)

    told = Told()
    with monkeypatch.context() as patched:
        patched.setattr(Denoiser, "velocity", too_large)
        with pytest.raises(DeviceMemoryError, match="out of memory while inverting") as raised:
            cogedit.invert(clip[0], settings_of(clip[0], workspace), run=told.run)
    assert raised.value.exit_code == 6
    assert "--max-num-frames" in raised.value.hint
    assert told.said[-1] == "kept: 4 of 6 steps; the same command goes on from there"
    goes_on(clip, workspace, 4)


def test_a_full_disk_stops_the_loop_and_keeps_what_is_there(clip, workspace, monkeypatch):
    replace, names = os.replace, []

    def full(source, target):
        names.append(str(target))
        if "0003" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StorageError, match="the disk is full"):
            cogedit.invert(clip[0], settings_of(clip[0], workspace))
    assert not [name for name in names if "0004" in name]
    assert kept(workspace) == 2
    goes_on(clip, workspace, 2)


PROMPTS = ["a red fox", "a blue cat running in snow", "a dog"]
EDITS: dict[str, dict] = {
    "injection": {},
    "second order": {
        "reconstruct__solver": "dpm++2m",
        "reconstruct__injection_steps": "0.0:0.5",
    },
    "falling strength": {
        "reconstruct__solver": "dpm++2m",
        "reconstruct__injection_strength": "2:0",
    },
    "flow": {"reconstruct__method": "flow", "reconstruct__solver": "dpm++2m"},
    "automatic mask": {
        "reconstruct__auto_mask": True,
        "reconstruct__auto_mask_threshold": 0.3,
        "invert__prompt": "a bear",
    },
}


def edit(video, workspace, prompts, told=None, *, save_trajectory=False, **flags):
    """The edits, as (path, bytes)."""
    written = cogedit.reconstruct(
        video,
        prompts,
        settings_of(video, workspace, **flags),
        save_trajectory=save_trajectory,
        run=cogedit.Run() if told is None else told.run,
    )
    return [(one.path.name, one.path.read_bytes()) for one in written]


def stopped_edit(video, workspace, prompts, after, **kwargs):
    """Stop while editing, one step after `after`; the inversion is there already."""
    cogedit.invert(video, settings_of(video, workspace, **_settings(kwargs)))
    told = Told(after, lambda run: run.cancellation.request())
    with pytest.raises(Interrupted, match=f"after step {after + 1} of {STEPS}"):
        edit(video, workspace, prompts, told, **kwargs)


def _settings(kwargs):
    return {name: value for name, value in kwargs.items() if name != "save_trajectory"}


@pytest.mark.parametrize(
    ("name", "save_trajectory"),
    [*((name, False) for name in EDITS), ("injection", True), ("flow", True)],
)
def test_an_edit_goes_on_with_the_same_bytes(clip, inverted, name, save_trajectory):
    workspace, other = inverted
    kwargs = {"save_trajectory": save_trajectory, **EDITS[name]}
    whole = edit(clip[0], other, PROMPTS[:1], **kwargs)
    stopped_edit(clip[0], workspace, PROMPTS[:1], 3, **kwargs)
    [folder] = workspace.glob(f"*{UNFINISHED_SUFFIX}")
    assert kept(workspace) == 4
    assert len(list(folder.iterdir())) == (4 if save_trajectory else 2)
    told = Told()
    assert edit(clip[0], workspace, PROMPTS[:1], told, **kwargs) == whole
    assert told.steps == [4, 5]
    assert not list(workspace.glob(f"*{UNFINISHED_SUFFIX}"))


def test_edits_of_one_pass_go_on_together(clip, inverted):
    workspace, other = inverted
    flags = {"reconstruct__guidance_reuse": 0.2}  # by the next step, of 6
    whole = edit(clip[0], other, PROMPTS, **flags)
    stopped_edit(clip[0], workspace, PROMPTS, 1, **flags)
    assert kept(workspace) == 2
    told = Told()
    assert edit(clip[0], workspace, PROMPTS, told, **flags) == whole
    assert told.steps == [2, 3, 4, 5]
    assert not list(workspace.glob(f"*{UNFINISHED_SUFFIX}"))


def test_a_pass_that_was_killed_between_its_edits_gives_the_rest_of_them(
    clip, inverted, monkeypatch
):
    """The numbers of an edit depend on its company, to rounding: the rest is not edited alone."""
    workspace, other = inverted
    whole = edit(clip[0], other, PROMPTS)
    write, written = write_artifact, []

    def killed(path, *args, **kwargs):
        if path.name.startswith("edit"):
            written.append(path.name)
            if len(written) == 2:
                raise KeyboardInterrupt
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "write_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            edit(clip[0], workspace, PROMPTS)
    assert kept(workspace) == STEPS
    told = Told()
    assert edit(clip[0], workspace, PROMPTS, told) == whole
    assert told.steps == [], "nothing is computed again"
    assert not list(workspace.glob(f"*{UNFINISHED_SUFFIX}"))


def test_steps_that_went_when_another_process_had_finished(clip, inverted, monkeypatch):
    """Where a lease was lost, two processes make one artifact in one folder."""
    workspace, other = inverted
    options = {"save_trajectory": True}
    whole = edit(clip[0], other, PROMPTS[:1], **options)
    write = write_artifact

    def beaten(path, *args, **kwargs):
        if path.name.startswith("edit"):
            shutil.copy(other / path.name, path)
            for step in workspace.glob(f"*{UNFINISHED_SUFFIX}/*.safetensors"):
                step.unlink()
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "write_artifact", beaten)
        assert edit(clip[0], workspace, PROMPTS[:1], **options) == whole
    assert not list(workspace.glob(f"*{UNFINISHED_SUFFIX}"))


def test_another_command_does_not_go_on_with_a_pass_of_more_edits(clip, inverted):
    workspace, _ = inverted
    stopped_edit(clip[0], workspace, PROMPTS[:2], 2)
    told = Told()
    edit(clip[0], workspace, PROMPTS[1:2], told)
    assert told.steps == list(range(STEPS))
    assert kept(workspace) == 3
