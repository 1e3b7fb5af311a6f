"""What was removed is made again only where something that needs it is missing."""

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from pipelines import TINY_PIPELINE, settings_of
from videos import make_video, read_back

import cogedit
import cogedit.models.loading
from cogedit.artifacts import Workspace, read_artifact, write_artifact
from cogedit.artifacts.records import earlier_record
from cogedit.config import read_batch
from cogedit.errors import UsageError
from cogedit.tools.batch import batch
from cogedit.tools.batch_plan import plan_batch, preview_batch
from cogedit.tools.sweep import sweep

CAT, FOX, DOG = "a blue cat", "a red fox", "a dog"
SMALL = {"load__width": 96, "load__height": 64}
BEFORE = ("frames", "latents", "trajectory")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a video, of which two edits and their videos were made."""
    folder = tmp_path_factory.mktemp("made")
    video = make_video(folder / "clip.mp4", width=96, height=64, num_frames=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cogedit.edit(video, [CAT, FOX], settings_of(video, **SMALL))
    return folder


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """A copy of it, which is the current folder; `loads` counts the parts of the model."""
    folder = shutil.copytree(made, tmp_path / "made")
    monkeypatch.chdir(folder)
    loads = Counter()
    for part in ("transformer", "vae", "text_encoder"):
        monkeypatch.setattr(f"cogedit.models.loading.load_{part}", counting(part, loads))
    video = folder / "clip.mp4"
    settings = settings_of(video, **SMALL)
    return SimpleNamespace(
        folder=folder / "clip.cogedit", video=video, settings=settings, loads=loads
    )


def counting(part, loads):
    load = getattr(cogedit.models.loading, f"load_{part}")

    def loaded(*args, **kwargs):
        loads[part] += 1
        return load(*args, **kwargs)

    return loaded


def remove(folder, *kinds):
    for kind in kinds:
        [path] = folder.glob(f"{kind}-*.safetensors")
        path.unlink()


def kinds_in(folder):
    return {path.name.partition("-")[0] for path in folder.glob("*.safetensors")}


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


REMOVED = pytest.mark.parametrize("kinds", [("trajectory",), ("frames",), ("latents",), BEFORE])


@REMOVED
def test_an_edit_that_exists_needs_nothing_that_came_before(there, kinds):
    remove(there.folder, *kinds)
    before = files(there.folder)
    plan = cogedit.estimate(there.video, there.settings, prompts=[CAT, FOX])
    assert [stage.reused for stage in plan.stages] == [1, 2]
    assert plan.seconds == plan.disk_bytes == 0
    said = []
    run = cogedit.Run(notify=said.append)
    edits = cogedit.edit(there.video, [CAT, FOX], there.settings, run=run)
    assert [edit.reused for edit in edits] == [True, True]
    assert cogedit.reconstruct(there.video, FOX, there.settings)[0].reused
    assert files(there.folder) == before
    assert not there.loads
    assert sum(line.startswith("clip.mp4: 9 frames") for line in said) == 1


@REMOVED
def test_a_batch_that_is_done_needs_nothing_that_came_before(there, kinds):
    remove(there.folder, *kinds)
    before = files(there.folder)
    edits = planned(there, CAT, FOX)
    assert [plan.export for plan in preview_batch(edits)] == [True, True]
    assert [one.status for one in batch(edits)] == ["reused", "reused"]
    assert files(there.folder) == before
    assert not there.loads


def planned(there, *prompts, **more):
    rows = "".join(f"clip.mp4,{prompt}\n" for prompt in prompts)
    (there.video.parent / "edits.csv").write_text(f"video,prompt\n{rows}")
    flags = {
        "model": str(TINY_PIPELINE),
        "dtype": "fp32",
        "device": "cpu",
        "load.width": 96,
        "load.height": 64,
        "load.max_num_frames": 9,
        "load.frame_rate": "spread",
        "load.resize_mode": "stretch",
        "invert.num_inference_steps": 3,
        "reconstruct.guidance_scale": 1.0,
    }
    return plan_batch(read_batch(there.video.parent / "edits.csv"), flags | more)


def test_a_missing_edit_beside_others_inverts(there):
    remove(there.folder, *BEFORE)
    plan = cogedit.estimate(there.video, there.settings, prompts=[CAT, DOG])
    assert plan.stages[0].reused == 0
    assert plan.stages[0].work.calls > 0
    assert plan.earlier_bytes > 0
    edits = planned(there, CAT, DOG)
    plans = preview_batch(edits)
    assert [(plan.inversion, plan.edit) for plan in plans] == [(True, True), (False, False)]
    assert [one.status for one in batch(edits)] == ["reused", "written"]
    assert there.loads["transformer"] == 1
    assert kinds_in(there.folder) == {*BEFORE, "edit"}


def test_a_trajectory_that_is_there_serves_another_edit(there):
    """Only the frames come back, for what is shown of them."""
    remove(there.folder, "frames", "latents")
    plan = cogedit.estimate(there.video, there.settings, prompts=[DOG])
    assert [stage.reused for stage in plan.stages] == [1, 0]
    assert plan.earlier_bytes == 9 * 96 * 64 * 3
    [edit] = cogedit.reconstruct(there.video, DOG, there.settings)
    assert not edit.reused
    assert (there.loads["transformer"], there.loads["vae"]) == (1, 0)
    assert kinds_in(there.folder) == {"frames", "trajectory", "edit"}


def test_force_recomputes_what_was_removed(there):
    remove(there.folder, *BEFORE)
    forced = cogedit.Run(force=True)
    plan = cogedit.estimate(there.video, there.settings, prompts=[CAT], run=forced)
    assert [stage.reused for stage in plan.stages] == [0, 0]
    [preview] = preview_batch(planned(there, CAT), run=forced)
    assert (preview.inversion, preview.edit) == (False, False)
    [edit] = cogedit.edit(there.video, CAT, there.settings, run=forced)
    assert not edit.reused
    assert there.loads["transformer"] == 1
    assert kinds_in(there.folder) == {*BEFORE, "edit"}


def test_an_output_of_its_own_is_found_without_a_workspace(there, tmp_path):
    output = tmp_path / "own.safetensors"
    cogedit.reconstruct(there.video, DOG, there.settings, output=output)
    shutil.rmtree(there.folder)
    there.loads.clear()
    [again] = cogedit.reconstruct(there.video, DOG, there.settings, output=output)
    assert (again.path, again.reused) == (output, True)
    assert not there.loads


def test_edits_of_two_devices_are_found(there):
    """Their trajectories have one content key, and differ in rounding."""
    [path] = there.folder.glob("trajectory-*")
    artifact = read_artifact(path, "trajectory")
    tensors = dict(artifact.tensors.items())
    tensors["trajectory"] = tensors["trajectory"] * 1.0001
    write_artifact(path, tensors, artifact.record)
    [other] = cogedit.reconstruct(there.video, DOG, there.settings)
    remove(there.folder, *BEFORE)
    there.loads.clear()
    for prompt in (CAT, DOG):
        [edit] = cogedit.reconstruct(there.video, prompt, there.settings)
        assert edit.reused
    assert edit.path == other.path
    assert not there.loads


def test_what_0_1_0_made_is_found(there):
    for kind in ("latents", "trajectory", "edit"):
        for path in there.folder.glob(f"{kind}-*"):
            artifact = read_artifact(path)
            earlier = earlier_record(artifact.record)
            write_artifact(Workspace(there.folder).path_for(earlier), artifact.tensors, earlier)
            path.unlink()
    remove(there.folder, *BEFORE)
    assert all(edit.reused for edit in cogedit.reconstruct(there.video, [CAT, FOX], there.settings))
    assert not there.loads


@pytest.mark.parametrize("mask", [None, "16,16,64,48"])
def test_an_export_gets_back_what_it_shows_of_the_source(there, mask):
    """Aligned edges need the frames and, without a mask, the latents."""
    settings = replace(there.settings, export=replace(there.settings.export, align_edges=5))
    [first] = cogedit.edit(there.video, DOG, settings, mask=mask)
    shown = read_back(first.path, width=96, height=64)
    first.path.unlink()
    remove(there.folder, *BEFORE)
    there.loads.clear()
    [again] = cogedit.edit(there.video, DOG, settings, mask=mask)
    assert (read_back(again.path, width=96, height=64) == shown).all()
    assert there.loads == {"vae": 1}
    assert kinds_in(there.folder) == {"frames", "edit", *(["latents"] if mask is None else [])}
    before = files(there.folder)
    remove(there.folder, "frames")
    assert cogedit.edit(there.video, DOG, settings, mask=mask)[0].reused
    assert files(there.folder).keys() < before.keys()


def test_the_source_clip_beside_an_export_is_read_again(there):
    remove(there.folder, *BEFORE)
    [edit] = cogedit.edit(there.video, CAT, there.settings, with_source=True)
    assert edit.source.is_file()
    assert kinds_in(there.folder) == {"frames", "edit"}
    assert not there.loads


def test_a_source_clip_with_other_settings_is_written_anew(there, tmp_path):
    def export(crf, **options):
        settings = replace(there.settings, export=replace(there.settings.export, crf=crf))
        output = tmp_path / "shown.mp4"
        return cogedit.edit(there.video, CAT, settings, output=output, **options)[0]

    other = export(18, with_source=True).source.read_bytes()
    export(23)
    remove(there.folder, *BEFORE)
    assert export(23, with_source=True).source.read_bytes() != other


@pytest.mark.parametrize("kind", ["frames", "latents"])
def test_an_edit_of_an_artifact_gets_back_what_comes_after_it(there, tmp_path, kind):
    """The latents that aligned edges need, where they lie elsewhere or were removed."""
    [source] = there.folder.glob(f"{kind}-*")
    if kind == "latents":
        source = shutil.move(source, tmp_path / "mine.safetensors")
    settings = settings_of(
        source, **SMALL, export__align_edges=5, workspace=there.folder, model=str(TINY_PIPELINE)
    )
    settings = replace(settings, reconstruct=there.settings.reconstruct)
    remove(
        there.folder,
        *[one for one in ("latents", "trajectory") if list(there.folder.glob(f"{one}-*"))],
    )
    [made] = cogedit.edit(source, CAT, settings, output=tmp_path / "shown.mp4")
    assert made.path.is_file()
    assert len(list(there.folder.glob("edit-*"))) == 2


def test_a_sweep_inverts_again_for_the_source_that_it_shows(there):
    swept = sweep(there.video, [CAT], there.settings, vary=["seed=0"])
    remove(there.folder, *BEFORE)
    swept.sheet.unlink()
    swept.figures.unlink()
    there.loads.clear()
    plan = cogedit.estimate(there.video, there.settings, prompts=[CAT], vary=["seed=0"])
    assert [stage.reused for stage in plan.stages] == [0, 0]
    again = sweep(there.video, [CAT], there.settings, vary=["seed=0"])
    assert again.sheet.is_file()
    assert there.loads["transformer"] == 1


def test_only_the_clip_and_its_settings_are_recalled(there):
    """Edits of another inversion or of other frames say nothing of this one."""
    remove(there.folder, *BEFORE)
    for changes in ({"invert__num_inference_steps": 2}, {"load__width": 64}):
        other = settings_of(there.video, **SMALL | changes)
        plan = cogedit.estimate(there.video, other, prompts=[CAT])
        assert [stage.reused for stage in plan.stages] == [0, 0]


def test_what_exists_needs_nothing_that_this_machine_lacks(there):
    """It was made where the kernel was, or before it was asked for."""
    settings = settings_of(there.video, **SMALL, transformer__attention_backend="flash")
    [trajectory] = there.folder.glob("trajectory-*")
    plan = cogedit.estimate(there.video, settings, prompts=[CAT, FOX])
    assert [stage.reused for stage in plan.stages] == [1, 2]
    assert all(edit.reused for edit in cogedit.edit(there.video, [CAT, FOX], settings))
    assert cogedit.reconstruct(trajectory, CAT, settings)[0].reused
    for start in (there.video, trajectory):
        for call in (
            partial(cogedit.reconstruct, start, [CAT, DOG], settings),
            partial(cogedit.reconstruct, start, CAT, settings, run=cogedit.Run(force=True)),
            partial(cogedit.estimate, start, settings, prompts=[CAT, DOG]),
            partial(cogedit.estimate, start, settings, prompts=CAT, run=cogedit.Run(force=True)),
        ):
            with pytest.raises(UsageError, match="flash needs a CUDA device"):
                call()
    assert not there.loads


def test_an_inversion_that_exists_needs_nothing_that_this_machine_lacks(there, tmp_path):
    settings = settings_of(there.video, **SMALL, transformer__attention_backend="flash")
    named = tmp_path / "named.safetensors"
    cogedit.invert(there.video, there.settings, output=named)
    [frames], [latents] = there.folder.glob("frames-*"), there.folder.glob("latents-*")
    there.loads.clear()
    for start in (there.video, frames, latents):
        for output in (None, named):
            assert cogedit.invert(start, settings, output=output).reused
            plan = cogedit.estimate(start, settings, output=output)
            assert [stage.reused for stage in plan.stages] == [1]
    force, elsewhere = cogedit.Run(force=True), tmp_path / "elsewhere.safetensors"
    for call in (
        partial(cogedit.invert, there.video, settings, run=force),
        partial(cogedit.invert, latents, settings, output=elsewhere),
        partial(cogedit.estimate, there.video, settings, run=force),
        partial(cogedit.estimate, latents, settings, output=elsewhere),
        partial(cogedit.estimate, there.video, settings, check=True),
        partial(cogedit.check_inversion, named, settings),
    ):
        with pytest.raises(UsageError, match="flash needs a CUDA device"):
            call()
    assert not elsewhere.exists()
    assert not there.loads


def test_a_sweep_whose_edits_exist_needs_no_kernel(there):
    """It is drawn anew by the VAE alone; for its source the trajectory must be there, too."""
    settings = settings_of(there.video, **SMALL, transformer__attention_backend="flash")
    [trajectory] = there.folder.glob("trajectory-*")
    for start in (there.video, trajectory):
        plan = cogedit.estimate(start, settings, prompts=[CAT], vary=["seed=0"])
        assert [stage.reused for stage in plan.stages] == [1, 1]
        swept = sweep(start, [CAT], settings, vary=["seed=0"], run=cogedit.Run(force=True))
        assert [edit.reused for edit in swept.edits] == [True]
    assert there.loads == {"vae": 2}
    for start in (there.video, trajectory):
        for call in (sweep, cogedit.estimate):
            with pytest.raises(UsageError, match="flash needs a CUDA device"):
                call(start, settings=settings, prompts=[CAT, DOG], vary=["seed=0"])
    trajectory.unlink()
    for call in (sweep, cogedit.estimate):
        with pytest.raises(UsageError, match="flash needs a CUDA device"):
            call(there.video, settings=settings, prompts=[CAT], vary=["seed=0"])
    assert there.loads == {"vae": 2}


def test_a_batch_reuses_what_exists_beside_what_this_machine_cannot_make(there):
    edits = planned(there, CAT, DOG, FOX, **{"transformer.attention_backend": "flash"})
    assert [plan.error is None for plan in preview_batch(edits)] == [True, False, True]
    assert [one.status for one in batch(edits)] == ["reused", "failed", "reused"]
    assert not there.loads
