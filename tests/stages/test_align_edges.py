"""`--align-edges` through the stages: what an export shows, and what it says where it cannot."""

import json
import re
import shlex
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fits import align_edges
from PIL import Image
from pipelines import TINY_PIPELINE, decode, settings_of
from typer.testing import CliRunner
from videos import make_video, read_back

import cogedit
from cogedit.artifacts import read_artifact
from cogedit.cli import app
from cogedit.diffusion.latent_mask import feather_mask
from cogedit.errors import ArtifactDamaged, ArtifactError, UsageError, VideoError
from cogedit.stages.recipe import read_recipe

PROMPT = "a blue cat running in snow"
BOX = "40,30,120,100"
RADIUS = 5


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A video of 176x144, an edit of it and one with a mask, and its frames at the clip's size."""
    folder = tmp_path_factory.mktemp("aligned")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=12)
    [plain] = cogedit.reconstruct(video, [PROMPT], settings_of(video))
    [masked] = cogedit.reconstruct(video, [PROMPT], settings_of(video), mask=BOX)
    loaded = cogedit.load(video, settings_of(video)).path
    frames = read_artifact(loaded, "frames").tensors["frames"].numpy()
    return video, plain.path, masked.path, frames


def decoded(video, artifact, **flags):
    return decode(artifact, settings_of(video, **flags))


def test_the_edit_is_fitted_to_the_source_s_own_frames(edited):
    video, plain, _, frames = edited
    as_it_is = decoded(video, plain)
    round_trip = decoded(video, cogedit.encode(video, settings_of(video)).path)
    shown = decoded(video, plain, export__align_edges=RADIUS)
    assert np.array_equal(shown, align_edges(as_it_is, round_trip, frames, radius=RADIUS))
    assert not np.array_equal(shown, as_it_is)


def test_a_mask_then_shows_the_source_s_own_frames(edited):
    video, _, masked, frames = edited
    shown = decoded(video, masked, export__align_edges=RADIUS)
    outside = read_artifact(masked, "edit").tensors["mask"].numpy() == 0
    assert np.array_equal(shown[outside], frames[outside])
    everywhere = decoded(video, masked, export__align_edges=RADIUS, export__composite="none")
    assert np.array_equal(everywhere[~outside], shown[~outside])
    assert not np.array_equal(everywhere[outside], frames[outside])


def test_the_round_trip_does_not_go_around_the_source_s_grain(edited):
    video, _, masked, _ = edited
    asked = {"export__align_edges": RADIUS, "export__composite": "decode"}
    settings = settings_of(video, export__every_frame=True, **asked)
    for run in (
        lambda: decode(masked, settings),
        lambda: cogedit.edit(video, [PROMPT], settings, mask=BOX),
    ):
        with pytest.raises(UsageError, match="--align-edges shows the grain") as caught:
            run()
        assert "--align-edges 0 --no-every-frame" in caught.value.hint


def test_only_edits_are_aligned(edited):
    video, *_ = edited
    latents = cogedit.encode(video, settings_of(video)).path
    plain = decoded(video, latents)
    assert np.array_equal(decoded(video, latents, export__align_edges=RADIUS), plain)


def test_the_recipe_tells_exports_apart(edited, tmp_path):
    video, plain, *_ = edited
    output = tmp_path / "out.mp4"
    for radius in (0, RADIUS, RADIUS + 1):
        settings = settings_of(video, export__align_edges=radius)
        assert not cogedit.export(plain, settings, output=output).reused
        assert cogedit.export(plain, settings, output=output).reused
        assert read_recipe(output).options["align_edges"] == radius


def test_without_the_source_s_frames_it_says_so(edited, tmp_path):
    video, plain, *_ = edited
    settings = settings_of(video, export__align_edges=RADIUS)
    alone = replace(settings, workspace=tmp_path / "empty.cogedit")
    with pytest.raises(ArtifactError, match=r"source's frames.*are not in") as raised:
        decode(plain, alone)
    assert "cogedit load clip.mp4" in raised.value.hint
    there = "` and the path of clip.mp4, which is not here, or use --align-edges 0"
    assert raised.value.hint.endswith(there)


def test_what_the_export_reads_and_is_damaged_is_removed_and_made_again(edited, tmp_path):
    video, plain, *_ = edited
    settings = settings_of(video, export__align_edges=RADIUS)
    folder = tmp_path / "some.cogedit"
    folder.mkdir()
    paths = [stage(video, settings_of(video)).path for stage in (cogedit.load, cogedit.encode)]
    copies = [Path(shutil.copy(path, folder)) for path in paths]
    for path, command in zip(copies, ("load", "encode"), strict=True):
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        with pytest.raises(ArtifactDamaged, match="is truncated") as raised:
            decode(plain, replace(settings, workspace=folder))
        path.write_bytes(good)
        words = f"rm {path}, then make (it|them) with `cogedit {command} .*`"
        assert re.match(words, raised.value.hint)


def test_the_source_s_latents_come_from_the_trajectory_or_are_missed(edited, tmp_path):
    video, plain, *_ = edited
    settings = settings_of(video, export__align_edges=RADIUS)
    expected = decode(plain, settings)
    folder = tmp_path / "some.cogedit"
    folder.mkdir()
    loaded = cogedit.load(video, settings_of(video)).path
    inverted = cogedit.invert(video, settings_of(video)).path
    for path in (loaded, inverted):
        shutil.copy(path, folder)
    elsewhere = replace(settings, workspace=folder)
    assert np.array_equal(decode(plain, elsewhere), expected)
    (folder / inverted.name).unlink()
    with pytest.raises(ArtifactError, match=r"source's latents.*are not in") as raised:
        decode(plain, elsewhere)
    again, otherwise = raised.value.hint.split("`, ")
    assert again.startswith("make them with `cogedit encode ")
    assert otherwise == "or use --align-edges 0"
    # The hint's command makes them, by the model that made the edit.
    words = shlex.split(again.partition("`cogedit ")[2])
    assert CliRunner().invoke(app, words).exit_code == 0
    assert np.array_equal(decode(plain, elsewhere), expected)


def test_at_the_source_s_size_its_detail_comes_back(edited, tmp_path):
    video, plain, *_ = edited
    lossless = {"export__size": "source", "export__lossless": True, "export__sound": False}
    shown = {}
    for radius in (0, RADIUS):
        output = tmp_path / f"{radius}.mkv"
        settings = settings_of(video, export__align_edges=radius, **lossless)
        cogedit.export(plain, settings, output=output, source_video=video)
        shown[radius] = read_back(output, width=176, height=144).astype(float)
    own = read_back(video, width=176, height=144)[: len(shown[0])].astype(float)

    def detail(clip):
        """What a mean of 5 x 5 pixels leaves."""
        strips = np.stack([clip[:, 2 + dy : 142 + dy] for dy in range(-2, 3)]).mean(axis=0)
        wide = np.stack([strips[:, :, 2 + dx : 174 + dx] for dx in range(-2, 3)]).mean(axis=0)
        return (clip[:, 2:142, 2:174] - wide).ravel()

    def likeness(clip):
        return np.corrcoef(detail(clip), detail(own))[0, 1]

    assert likeness(shown[RADIUS]) > 0.8
    assert likeness(shown[RADIUS]) > likeness(shown[0]) + 0.2


def test_at_the_source_s_size_a_mask_leaves_the_source_s_pixels(edited, tmp_path):
    video, _, masked, _ = edited
    output = tmp_path / "out.mkv"
    settings = settings_of(
        video, export__align_edges=RADIUS, export__size="source", export__lossless=True
    )
    cogedit.export(masked, settings, output=output, source_video=video)
    shown = read_back(output, width=176, height=144)
    own = read_back(video, width=176, height=144)[: len(shown)]
    # The box, and as far as one pixel of the clip, which is less than 3 of the source, may mix.
    inside = np.zeros(own.shape, dtype=bool)
    inside[:, 27:103, 37:123] = True
    assert np.array_equal(shown[~inside], own[~inside])
    assert np.abs(shown[inside].astype(int) - own[inside]).mean() > 2


@pytest.mark.parametrize("radius", [0, RADIUS])
def test_at_the_source_s_size_a_feather_counts_once(edited, tmp_path, radius):
    video, _, masked, _ = edited
    shown = {}
    asked = {"export__size": "source", "export__lossless": True, "export__align_edges": radius}
    for name, changes in {
        "edit": {"export__composite": "none"},
        "soft": {"export__composite": "source", "export__feather": 6},
    }.items():
        output = tmp_path / f"{name}.mkv"
        cogedit.export(
            masked, settings_of(video, **asked, **changes), output=output, source_video=video
        )
        shown[name] = read_back(output, width=176, height=144).astype(float)
    own = read_back(video, width=176, height=144)[: len(shown["edit"])].astype(float)
    mask = read_artifact(masked, "edit").tensors["mask"]
    weights = feather_mask(mask, 6).numpy()
    large = np.stack([
        np.asarray(Image.fromarray(one).resize((176, 144), Image.Resampling.BILINEAR))
        for one in weights
    ])[..., None]  # fmt: skip
    ramp = np.broadcast_to((large > 0.2) & (large < 0.8), own.shape)
    assert ramp.any()
    mixed = own + large * (shown["edit"] - own)
    assert np.abs(shown["soft"] - mixed)[ramp].max() <= 1.5


def test_models_with_two_latent_frames_to_a_token(pipeline_15, tmp_path, monkeypatch):
    """Their inversion pads the latents; the source's latents in the workspace are without."""
    monkeypatch.chdir(tmp_path)
    video = make_video(tmp_path / "clip.mp4", width=176, height=144, num_frames=20)
    plain = settings_of(video, model=str(pipeline_15))
    aligned = replace(plain, export=replace(plain.export, align_edges=RADIUS))
    frames = read_artifact(cogedit.load(video, plain).path, "frames").tensors["frames"].numpy()
    latents = cogedit.encode(video, plain).path
    round_trip = decode(latents, plain)
    [written] = cogedit.reconstruct(video, [PROMPT], plain)
    as_it_is = decode(written.path, plain)
    expected = align_edges(as_it_is, round_trip, frames, radius=RADIUS)
    assert np.array_equal(decode(written.path, aligned), expected)
    latents.unlink()  # then they are the trajectory's
    assert np.array_equal(decode(written.path, aligned), expected)
    [masked] = cogedit.reconstruct(video, [PROMPT], plain, mask=BOX)
    inside = read_artifact(masked.path, "edit").tensors["mask"].numpy() != 0
    whole = replace(plain, export=replace(plain.export, composite="none"))
    everywhere = decode(masked.path, whole)
    expected = align_edges(everywhere, round_trip, frames, radius=RADIUS)
    assert np.array_equal(decode(masked.path, aligned)[inside], expected[inside])


def test_bars_stay_black_and_say_nothing(tmp_path):
    video = make_video(tmp_path / "clip.mp4", width=176, height=144, num_frames=12)
    settings = settings_of(video, load__resize_mode="pad", export__align_edges=RADIUS)
    [written] = cogedit.reconstruct(video, [PROMPT], settings)
    box = written.record.trajectory.latents.frames.box
    shown = decode(written.path, settings)
    assert box.left > 0
    columns = slice(box.left, box.left + box.scaled_width)
    assert np.delete(shown, np.r_[columns], axis=2).max() == 0
    edited, own = (
        decode(path, settings_of(video, load__resize_mode="pad"))[:, :, columns]
        for path in (written.path, cogedit.encode(video, settings).path)
    )
    frames = read_artifact(cogedit.load(video, settings).path, "frames").tensors["frames"].numpy()
    expected = align_edges(edited, own, frames[:, :, columns], radius=RADIUS)
    assert np.array_equal(shown[:, :, columns], expected)


@pytest.mark.parametrize("size", ["clip", "source"])
def test_what_takes_its_time_is_counted(edited, tmp_path, size):
    video, plain, _, _ = edited
    settings = settings_of(video, export__align_edges=RADIUS, export__size=size)
    told = []

    @contextmanager
    def progress(doing, total):
        steps = []
        yield steps.append
        assert [(one.index, one.total) for one in steps] == [(i, total) for i in range(total)]
        told.append((doing, total))

    run = cogedit.Run(progress=progress)
    cogedit.export(plain, settings, output=tmp_path / "shown.mp4", run=run)
    assert told == [("decoding the source", 1), ("decoding", 1)]


def test_rows_of_a_batch_are_each_shown_as_they_say(edited, tmp_path):
    """They share a model and a decoder, and nothing of their exports."""
    video, plain, _, _ = edited
    rows = [{"video": str(video), "prompt": PROMPT, "output": str(tmp_path / "plain.mkv")}]
    rows.append(rows[0] | {"output": str(tmp_path / "aligned.mkv"), "export.align_edges": 5})
    listed = tmp_path / "edits.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", str(TINY_PIPELINE), "--dtype", "fp32", "--device", "cpu"]
    flags += [
        "--workspace",
        str(plain.parent),
        "--max-num-frames",
        "9",
        "--frame-rate",
        "spread",
        "--resize-mode",
        "stretch",
    ]
    flags += ["--num-inference-steps", "3", "--guidance-scale", "1", "--lossless"]
    done = CliRunner().invoke(app, ["batch", str(listed), *flags])
    assert done.exit_code == 0, done.output
    as_it_is, aligned = (
        read_back(tmp_path / f"{name}.mkv", width=96, height=64) for name in ("plain", "aligned")
    )
    assert np.array_equal(as_it_is, decoded(video, plain))
    assert np.array_equal(aligned, decoded(video, plain, export__align_edges=5))


def test_a_sweep_compares_the_edits_themselves(edited, tmp_path):
    video, *_ = edited
    figures = []
    for radius in (0, RADIUS):
        settings = settings_of(video, export__align_edges=radius)
        output = tmp_path / f"{radius}.png"
        swept = cogedit.sweep(
            video, [PROMPT], settings, vary=["injection-strength=0,1"], output=output
        )
        figures.append(json.loads(swept.figures.read_text())["edits"])
    assert figures[0] == figures[1]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / f"{RADIUS}.png").read_bytes()


# Before the GPU minutes


def elsewhere(tmp_path, video, *made):
    """A trajectory by itself, and a workspace with some of what belongs to it."""
    folder = tmp_path / "far" / "some.cogedit"
    folder.mkdir(parents=True)
    for stage in made:
        shutil.copy(stage(video, settings_of(video)).path, folder)
    alone = tmp_path / "alone.safetensors"
    shutil.copy(cogedit.invert(video, settings_of(video)).path, alone)
    return alone, folder


def test_a_masked_edit_carries_the_latents(edited, tmp_path):
    video, *_ = edited
    alone, folder = elsewhere(tmp_path, video, cogedit.load)
    settings = replace(settings_of(video, export__align_edges=RADIUS), workspace=folder)
    [exported] = cogedit.edit(alone, [PROMPT], settings, mask=BOX)
    assert exported.path.exists()


def test_at_the_source_s_size_a_composite_needs_the_video_alone(edited, tmp_path):
    video, *_ = edited
    alone, folder = elsewhere(tmp_path, video)
    settings = settings_of(video, export__composite="source", export__size="source")
    settings = replace(settings, workspace=folder)
    [exported] = cogedit.edit(alone, [PROMPT], settings, mask=BOX, source_video=video)
    assert exported.path.exists()


def test_the_video_is_looked_for_where_the_export_looks(edited, tmp_path):
    video, *_ = edited
    alone, folder = elsewhere(tmp_path, video, cogedit.load, cogedit.encode)
    settings = settings_of(video, export__align_edges=RADIUS, export__size="source")
    settings = replace(settings, workspace=folder)
    shutil.copy(video, alone.parent)  # beside the trajectory, which is not where the edit will be
    with pytest.raises(VideoError, match=r"needs frames of clip\.mp4 itself"):
        cogedit.edit(alone, [PROMPT], settings)
    assert not list(folder.glob("edit-*"))
    shutil.copy(video, folder.parent)
    [exported] = cogedit.edit(alone, [PROMPT], settings)
    assert exported.path.exists()


@pytest.mark.parametrize("missing", ["frames", "latents"])
def test_what_will_be_missing_is_said_before_anything_is_computed(edited, tmp_path, missing):
    video, *_ = edited
    inverted = cogedit.invert(video, settings_of(video)).path
    folder = tmp_path / "some.cogedit"
    folder.mkdir()
    alone = tmp_path / "alone.safetensors"
    shutil.copy(inverted, alone)
    if missing == "latents":
        shutil.copy(cogedit.load(video, settings_of(video)).path, folder)
    settings = replace(settings_of(video, export__align_edges=RADIUS), workspace=folder)
    before = sorted(folder.iterdir())
    with pytest.raises(ArtifactError, match=f"the source's {missing}.*are not in"):
        cogedit.edit(alone, [PROMPT], settings)
    assert sorted(folder.iterdir()) == before


def test_a_missing_source_video_is_said_before_anything_is_computed(edited, tmp_path):
    video, *_ = edited
    folder = tmp_path / "far" / "some.cogedit"
    folder.mkdir(parents=True)
    for made in (cogedit.load, cogedit.encode, cogedit.invert):
        shutil.copy(made(video, settings_of(video)).path, folder)
    [trajectory] = folder.glob("trajectory-*")
    settings = settings_of(video, export__align_edges=RADIUS, export__size="source")
    with pytest.raises(VideoError, match=r"needs frames of clip\.mp4 itself"):
        cogedit.edit(trajectory, [PROMPT], replace(settings, workspace=folder))
    assert not list(folder.glob("edit-*"))


def test_at_the_source_s_size_the_source_is_needed(edited, tmp_path):
    video, plain, *_ = edited
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    kept = moved / plain.name
    kept.write_bytes(plain.read_bytes())
    settings = settings_of(video, export__align_edges=RADIUS, export__size="source")
    with pytest.raises(VideoError, match=r"--size source needs frames of clip\.mp4 itself"):
        cogedit.export(kept, replace(settings, workspace=moved), output=moved / "out.mp4")


def test_the_flag_and_the_preset(edited, tmp_path):
    video, plain, *_ = edited
    run = CliRunner()
    command = ["export", str(plain), "--model", str(TINY_PIPELINE), "--dtype", "fp32"]
    command += ["--device", "cpu", "--workspace", str(video.parent / "clip.cogedit")]
    refused = run.invoke(app, [*command, "--align-edges", "-1", "-o", str(tmp_path / "no.mp4")])
    assert refused.exit_code == UsageError("").exit_code
    assert not (tmp_path / "no.mp4").exists()
    for flags, radius in ((["--align-edges", "3"], 3), (["--config", "recolor"], 16)):
        output = tmp_path / f"{radius}.mp4"
        done = run.invoke(app, [*command, *flags, "-o", str(output)])
        assert done.exit_code == 0, done.output
        assert read_recipe(output).options["align_edges"] == radius
