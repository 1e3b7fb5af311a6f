"""LoRAs through all stages: what they change, what reuses what, and who says so."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loras import write_lora
from pipelines import TINY_PIPELINE, small_settings
from typer.testing import CliRunner
from videos import make_video

import cogedit
import cogedit.models.loading
from cogedit.artifacts import content_key, read_artifact, read_record
from cogedit.cli import app
from cogedit.config import read_batch
from cogedit.errors import ArtifactMismatch, Interrupted, ModelError, UsageError
from cogedit.models.lora import find_lora
from cogedit.tools.batch_nodes import missing_here, needed_for
from cogedit.tools.batch_plan import plan_batch

STEPS = 3
USUAL = ("--model", TINY_PIPELINE, "--dtype", "fp32", "--device", "cpu")
SHAPE = ("--num-inference-steps", STEPS, "--guidance-scale", 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A clip, and two LoRAs."""
    folder = tmp_path_factory.mktemp("lora")
    make_video(folder / "clip.mp4", width=96, height=64, num_frames=9)
    write_lora(folder / "style.safetensors", TINY_PIPELINE, seed=1, metadata={"lora_alpha": "2"})
    write_lora(folder / "other.safetensors", TINY_PIPELINE, seed=2)
    return folder


def run(*words, code=0):
    """A command's last word on stdout, and what it said."""
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.stderr
    return (done.stdout.split() or [""])[-1], done.stderr + done.stdout


def settings_of(home, workspace, **flags):
    usual = {
        "workspace": workspace,
        "invert__num_inference_steps": STEPS,
        "reconstruct__guidance_scale": 1.0,
    }
    return small_settings(home / "clip.mp4", cwd=home, **usual | flags)


def interrupting(after):
    """A run that is asked to stop once this many steps are done."""

    @contextmanager
    def progress(doing, total):
        def on_step(step):
            if total == STEPS and step.index + 1 == after:
                told.cancellation.request()

        yield on_step

    told = cogedit.Run(progress=progress)
    return told


@pytest.fixture(scope="module")
def made(home):
    """The artifacts of all five commands, the inversion and the edit stopped once and resumed."""
    work = home / "work"
    style, other = home / "style.safetensors", home / "other.safetensors"
    loras = ["--lora", f"{style}:0.8", "--inversion-lora", f"{other}:0.5"]
    usual = [*USUAL, "--workspace", work]
    found = {"frames": run("load", home / "clip.mp4", *usual)[0]}
    found["latents"] = run("encode", found["frames"], *usual, *loras)[0]
    settings = settings_of(home, work, lora=[f"{style}:0.8"], inversion_lora=[f"{other}:0.5"])
    with pytest.raises(Interrupted):
        cogedit.invert(found["latents"], settings, run=interrupting(2))
    invert = ["invert", found["latents"], *usual, *loras, "--num-inference-steps", STEPS]
    found["trajectory"], said = run(*invert)
    assert "going on after step" in said
    with pytest.raises(Interrupted):
        cogedit.reconstruct(found["trajectory"], "a cat", settings, run=interrupting(1))
    edit = ["reconstruct", found["trajectory"], "-p", "a cat", "--guidance-scale", 1]
    found["edit"], said = run(*edit, *usual, *loras)
    assert "going on after step" in said
    assert "style.safetensors is added 0.4 times" in said
    run("export", found["edit"], *usual, *loras, "-o", home / "cat.mp4")
    return {kind: Path(path) for kind, path in found.items()}


def test_a_run_that_was_stopped_ends_with_the_same_bytes(home, made, tmp_path):
    style, other = home / "style.safetensors", home / "other.safetensors"
    again = settings_of(home, tmp_path, lora=[f"{style}:0.8"], inversion_lora=[f"{other}:0.5"])
    [edit] = cogedit.reconstruct(home / "clip.mp4", "a cat", again)
    trajectory = next(tmp_path.glob("trajectory-*.safetensors"))
    assert trajectory.name == made["trajectory"].name
    assert trajectory.read_bytes() == made["trajectory"].read_bytes()
    assert edit.path.read_bytes() == made["edit"].read_bytes()


def test_each_record_has_its_own(home, made):
    names = {
        kind: [(one.name, one.scale) for one in read_record(made[kind]).model.lora]
        for kind in ("latents", "trajectory", "edit")
    }
    assert names == {
        "latents": [],
        "trajectory": [("other.safetensors", 0.5)],
        "edit": [("style.safetensors", 0.8)],
    }
    _, said = run("inspect", made["edit"])
    assert "style.safetensors at 0.8" in said
    assert "other.safetensors at 0.5" in said


def edit_of(home, made, *loras):
    settings = settings_of(home, made["edit"].parent, lora=list(loras))
    return cogedit.reconstruct(made["trajectory"], "a cat", settings)[0]


def test_the_key_has_digest_and_scale_and_not_the_name(home, made, tmp_path):
    style = home / "style.safetensors"
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(style.read_bytes())
    same = edit_of(home, made, f"{renamed}:0.8")
    assert same.reused
    assert same.path == made["edit"]
    others = [
        edit_of(home, made),
        edit_of(home, made, f"{style}:0.7"),
        edit_of(home, made, f"{home / 'other.safetensors'}:0.8"),
        edit_of(home, made, f"{style}:0.8", f"{style}:0.8"),
    ]
    assert not any(edit.reused for edit in others)
    assert len({content_key(edit.record) for edit in (same, *others)}) == 5
    latents = [read_artifact(edit.path, "edit").tensors["latents"] for edit in (same, *others)]
    for number, one in enumerate(latents):
        assert not any(torch.equal(one, other) for other in latents[:number])
    nothing = edit_of(home, made, f"{style}:0")
    assert torch.equal(read_artifact(nothing.path, "edit").tensors["latents"], latents[1])


def test_an_inversion_without_serves_edits_with_and_the_model_is_loaded_for_each_set(
    home, tmp_path, monkeypatch
):
    loads, load = Counter(), cogedit.models.loading.load_transformer

    def counted(*args, **kwargs):
        loads["transformer"] += 1
        return load(*args, **kwargs)

    monkeypatch.setattr("cogedit.models.loading.load_transformer", counted)
    style = f"{home / 'style.safetensors'}:0.8"
    with cogedit.Session() as session:

        def edit(prompt, **flags):
            settings = settings_of(home, tmp_path, **flags)
            return cogedit.reconstruct(home / "clip.mp4", prompt, settings, session=session)

        edit("a cat", lora=[style], inversion_lora=[style])
        assert loads["transformer"] == 1
        [plain] = edit("a cat")
        assert loads["transformer"] == 2
        [styled] = edit("a cat", lora=[style])
        assert loads["transformer"] == 3
    assert styled.record.trajectory == plain.record.trajectory
    assert styled.record.trajectory.model.lora == ()


def test_an_inversion_is_checked_with_its_own(home, made):
    other = f"{home / 'other.safetensors'}:0.5"
    found = cogedit.check_inversion(
        made["trajectory"], settings_of(home, None, inversion_lora=[other])
    )
    assert found.psnr > 20
    for loras in ([], [f"{home / 'other.safetensors'}:0.4"]):
        with pytest.raises(ArtifactMismatch, match=r"other\.safetensors at 0\.5"):
            cogedit.check_inversion(
                made["trajectory"], settings_of(home, None, inversion_lora=loras)
            )


def test_a_flag_of_an_earlier_stage_may_be_said_again_and_not_otherwise(home, made):
    command = ["reconstruct", made["trajectory"], "-p", "a cat", "--guidance-scale", 1, *USUAL]
    other = home / "other.safetensors"
    _, said = run(*command, "--inversion-lora", f"{other}:0.4", code=UsageError.exit_code)
    assert "--inversion-lora" in said
    assert "other.safetensors:0.5" in said
    export = ["export", made["edit"], *USUAL, "-o", home / "cat.mp4"]
    _, said = run(*export, "--lora", "none", code=UsageError.exit_code)
    assert "style.safetensors:0.8" in said


def test_before_anything_runs_it_is_read_and_compared_with_the_model(home, tmp_path):
    clip, model = home / "clip.mp4", [*USUAL, "--workspace", tmp_path / "work"]
    lora = ["--lora", home / "style.safetensors", "--inversion-lora", home / "other.safetensors"]
    edit = ["edit", clip, "-p", "a cat", *SHAPE, *model]
    _, said = run(*edit, *lora, "--dry-run")
    assert "style.safetensors:1.0 for edits" in said
    assert "other.safetensors:1.0 for the inversion" in said
    _, said = run(*edit, *lora, "--dry-run", "--json")
    assert json.loads(said.splitlines()[-1])["lora"] == [f"{home / 'style.safetensors'}:1.0"]
    _, said = run("doctor", *USUAL, *lora)
    assert "LoRA style.safetensors" in said
    assert "rank 4 in 8 matrices" in said

    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"GGUF\3\0\0\0")
    rows = tmp_path / "rows.toml"
    rows.write_text(
        f'[[edit]]\nvideo = "{clip}"\nprompt = "a cat"\nlora = ["bad.safetensors:0.5"]\n'
    )
    for command in (edit, [*edit, "--dry-run"], ["invert", clip, *model]):
        _, said = run(*command, "--lora", bad, code=ModelError.exit_code)
        assert "GGUF" in said
    _, said = run("batch", rows, *model, code=ModelError.exit_code)
    assert "row 1 of rows.toml" in said
    assert str(bad) in said
    assert not (tmp_path / "work").exists()


def test_no_output_replaces_a_lora(home, made):
    style = home / "style.safetensors"
    before = style.read_bytes()
    edit = ["reconstruct", made["trajectory"], "-p", "a dog", "--force", "-o", style, *USUAL]
    run(*edit, "--lora", style, code=UsageError.exit_code)
    assert style.read_bytes() == before


def test_a_batch_and_a_file_of_settings_have_them(home, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cogedit.toml").write_text('lora = ["missing.safetensors"]\n')
    _, said = run("config", "show", "--lora", "a b.safetensors", "--lora", "c:0.5")
    assert 'lora = ["a b.safetensors:1.0", "c:0.5"]' in said
    _, said = run("config", "show", "--json")
    shown = json.loads(said)["settings"]["lora"]
    assert shown == {"value": ["missing.safetensors:1.0"], "origin": "cogedit.toml"}
    rows = home / "rows.csv"
    rows.write_text(
        "video,prompt,lora,inversion_lora\n"
        "clip.mp4,a cat,style.safetensors:0.8,other.safetensors:0.5\n"
        "clip.mp4,a cat,style.safetensors:0.8; other.safetensors,other.safetensors:0.5\n"
    )
    _, said = run("batch", rows, *SHAPE, *USUAL, "--workspace", made["edit"].parent)
    edits = made["edit"].parent.glob("edit-*.safetensors")
    several = [[one.scale for one in read_record(path).model.lora] for path in edits]
    assert [0.8, 1.0] in several


def test_files_of_a_batch_lie_beside_it_and_on_every_machine(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = home / "rows.toml"
    row = 'video = "clip.mp4"\nprompt = "a cat"\nlora = ["style.safetensors:0.8"]\n'
    rows.write_text(f'transformer_file = "mine.safetensors"\n[[edit]]\n{row}')
    [read] = read_batch(str(rows))
    assert read.values["rows.toml"]["transformer_file"] == home / "mine.safetensors"
    rows.write_text(f"[[edit]]\n{row}")
    flags = {"model": str(TINY_PIPELINE), "device": "cpu", "workspace": str(tmp_path)}
    with needed_for(plan_batch(read_batch(str(rows)), flags)) as needed:
        assert missing_here(needed) == []
        sizes = dict(needed.videos)
        style = str(home / "style.safetensors")
        assert sizes[style] == Path(style).stat().st_size
        other = replace(needed, videos=((style, sizes[style] + 1),))
        [problem] = missing_here(other)
        assert style in problem.message
        assert dict(needed.loras) == {style: find_lora(Path(style)).digest}
        [problem] = missing_here(replace(needed, loras=((style, "0" * 64),)))
        assert style in problem.message
