"""`--align-edges` through the stages: what an export shows, and what it says where it cannot."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from pipelines import GOLDEN_PIPELINE
from typer.testing import CliRunner
from videos import make_video, read_back

import cogedit
from cogedit.artifacts import read_artifact
from cogedit.cli import app
from cogedit.errors import ArtifactError, UsageError, VideoError
from cogedit.media.edges import align_edges
from cogedit.stages.decode import Decoder
from cogedit.stages.recipe import read_recipe

PROMPT = "a blue cat running in snow"
BOX = "40,30,120,100"
RADIUS = 5


def settings_of(video, **flags):
    given = {
        "model": str(GOLDEN_PIPELINE),
        "dtype": "fp32",
        "device": "cpu",
        "workspace": video.parent / "clip.cogedit",
        "load.max_num_frames": 9,
        "load.resize_mode": "stretch",
        "invert.num_inference_steps": 3,
        "reconstruct.guidance_scale": 1.0,
    }
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return cogedit.settings_for(video, given | dotted, environ={}, cwd=video.parent).settings


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
    return Decoder(settings_of(video, **flags)).decode(artifact)


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
    # Unless one asks for something else.
    other = decoded(video, masked, export__align_edges=RADIUS, export__composite="decode")
    assert np.array_equal(other[~outside], shown[~outside])
    assert not np.array_equal(other[outside], frames[outside])


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
        Decoder(alone).decode(plain)
    assert "cogedit load clip.mp4" in raised.value.hint
    assert "leave --align-edges out" in raised.value.hint


def test_the_source_s_latents_come_from_the_trajectory_or_are_missed(edited, tmp_path):
    video, plain, *_ = edited
    settings = settings_of(video, export__align_edges=RADIUS)
    expected = Decoder(settings).decode(plain)
    folder = tmp_path / "some.cogedit"
    folder.mkdir()
    loaded = cogedit.load(video, settings_of(video)).path
    inverted = cogedit.invert(video, settings_of(video)).path
    for path in (loaded, inverted):
        shutil.copy(path, folder)
    elsewhere = replace(settings, workspace=folder)
    assert np.array_equal(Decoder(elsewhere).decode(plain), expected)
    (folder / inverted.name).unlink()
    with pytest.raises(ArtifactError, match=r"source's latents.*are not in") as raised:
        Decoder(elsewhere).decode(plain)
    assert raised.value.hint == "leave --align-edges out"


def test_at_the_source_s_size_its_detail_comes_back(edited, tmp_path):
    """An edit that changes next to nothing: the video is the source's own, at its full size."""
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
    command = ["export", str(plain), "--model", str(GOLDEN_PIPELINE), "--dtype", "fp32"]
    command += ["--device", "cpu", "--workspace", str(video.parent / "clip.cogedit")]
    refused = run.invoke(app, [*command, "--align-edges", "-1", "-o", str(tmp_path / "no.mp4")])
    assert refused.exit_code == UsageError("").exit_code
    assert not (tmp_path / "no.mp4").exists()
    for flags, radius in ((["--align-edges", "3"], 3), (["--config", "recolor"], 16)):
        output = tmp_path / f"{radius}.mp4"
        done = run.invoke(app, [*command, *flags, "-o", str(output)])
        assert done.exit_code == 0, done.output
        assert read_recipe(output).options["align_edges"] == radius
