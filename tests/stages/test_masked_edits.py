"""Masks through the stages: what is recorded, what is locked, and what a user reads."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from pipelines import TINY_MODEL, decode, settings_of
from typer.testing import CliRunner
from videos import ffmpeg, make_video, read_back

import cogedit
from cogedit.artifacts import content_key, read_artifact, read_record, record_text, verify_artifact
from cogedit.cli import app
from cogedit.errors import ArtifactError, ArtifactMismatch, UsageError

PROMPT = "a blue cat running in snow"
BOX = "40,30,120,100"


@pytest.fixture(scope="module")
def inverted(tmp_path_factory):
    """A folder with a video of 176x144, its artifacts, and masks of its left half."""
    folder = tmp_path_factory.mktemp("masked")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=12)
    settings = settings_of(video)
    half = np.zeros((12, 144, 176), np.uint8)
    half[:, :, :88] = 255
    raw = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "176x144", "-r", "30000/1001", "-i", "-"]
    ffmpeg(*raw, "-c:v", "ffv1", folder / "half.mkv", stdin=half.tobytes())
    ffmpeg(*raw, "-frames:v", "1", "-update", "1", folder / "half.png", stdin=half.tobytes())
    ffmpeg(*raw, "-frames:v", "5", "-c:v", "ffv1", folder / "short.mkv", stdin=half.tobytes())
    black = np.zeros_like(half[:1]).tobytes()
    ffmpeg(*raw, "-frames:v", "1", "-update", "1", folder / "black.png", stdin=black)
    return folder, cogedit.invert(video, settings)


def edit_under(inverted, mask=None, prompt=PROMPT, run=None, **flags):
    folder, trajectory = inverted
    settings = settings_of(folder / "clip.mp4", **flags)
    [written] = cogedit.reconstruct(trajectory.path, [prompt], settings, mask=mask, run=run)
    return written, settings


# What is written


@pytest.mark.parametrize("name", ["half.mkv", "half.png", "box"])
def test_the_artifact_holds_its_mask(inverted, name):
    folder, trajectory = inverted
    given = "0,0,88,144" if name == "box" else folder / name
    written, _ = edit_under(inverted, given)
    record = verify_artifact(written.path)
    assert record == written.record
    assert record.has_mask
    tensors = read_artifact(written.path, "edit").tensors
    assert set(tensors) == {"latents", "mask", "source_latents"}
    # 176 -> 96 columns of the clip, the white half of them.
    expected = torch.zeros(9, 64, 96, dtype=torch.uint8)
    expected[:, :, :48] = 1
    assert torch.equal(tensors["mask"], expected)
    z0 = read_artifact(trajectory.path, "trajectory").tensors["latents"]
    assert torch.equal(tensors["source_latents"], z0)
    # 12 columns of latents, 6 in the mask and one more by dilation.
    assert torch.equal(tensors["latents"][..., 7:], z0[..., 7:])
    assert (tensors["latents"][..., :7] - z0[..., :7]).abs().mean() > 0.1


def test_the_record_names_the_mask_and_no_folder(inverted):
    folder, _ = inverted
    written, _ = edit_under(inverted, folder / "half.png")
    mask = json.loads(record_text(written.record))["mask"]
    assert mask["kind"] == "picture"
    assert mask["name"] == "half.png"
    assert len(mask["sha256"]) == 64
    assert str(folder) not in record_text(written.record)
    box, _ = edit_under(inverted, BOX + "@0:END")
    assert json.loads(record_text(box.record))["mask"] == {
        "kind": "box",
        "name": BOX,
        "sha256": None,
    }


def test_masks_and_their_settings_tell_edits_apart(inverted):
    folder, _ = inverted
    bytes_alone = folder / "same name" / "half.png"
    bytes_alone.parent.mkdir(exist_ok=True)
    bytes_alone.write_bytes((folder / "half.png").read_bytes() + b"\0")
    keys = [
        content_key(edit_under(inverted, mask, **flags)[0].record)
        for mask, flags in (
            (None, {}),
            (BOX, {}),
            (BOX + "@0:5", {}),
            (BOX, {"reconstruct__mask_dilation": 0}),
            (BOX, {"reconstruct__mask_keep": True}),
            (folder / "half.png", {}),
            (bytes_alone, {}),
            (None, {"reconstruct__auto_mask": True}),
            (None, {"reconstruct__auto_mask": True, "reconstruct__auto_mask_threshold": 0.4}),
        )
    ]
    assert len(set(keys)) == len(keys)
    again, _ = edit_under(inverted, BOX)
    assert again.reused


def test_an_edit_without_a_mask_holds_none(inverted):
    written, settings = edit_under(inverted)
    assert not written.record.has_mask
    assert set(read_artifact(written.path, "edit").tensors) == {"latents"}
    assert settings.export.composite is None


@pytest.mark.parametrize("method", ["injection", "flow"])
@pytest.mark.parametrize(("dilation", "reach"), [(3, 9), (0, 6), (None, 7)])
def test_dilation_is_the_settings(inverted, method, dilation, reach):
    flags = {"reconstruct__method": method}
    if dilation is not None:
        flags["reconstruct__mask_dilation"] = dilation
    written, _ = edit_under(inverted, "0,0,88,144", **flags)
    tensors = read_artifact(written.path, "edit").tensors
    changed = (tensors["latents"] != tensors["source_latents"]).any(dim=(0, 1, 2, 3))
    assert changed.tolist() == [True] * reach + [False] * (12 - reach)


# What is locked


def outside(written):
    return read_artifact(written.path, "edit").tensors["mask"].numpy() == 0


def test_outside_of_a_mask_the_rest_of_the_picture_may_change(inverted):
    inside, _ = edit_under(inverted, BOX)
    around, settings = edit_under(inverted, BOX, reconstruct__mask_keep=True)
    assert np.array_equal(outside(inside), ~outside(around))
    folder, _ = inverted
    source = decode(cogedit.encode(folder / "clip.mp4", settings).path, settings)
    kept, shown = outside(around), decode(around.path, settings)
    assert np.array_equal(shown[kept], source[kept])
    assert not np.array_equal(shown[~kept], source[~kept])


def test_outside_the_mask_is_the_source_s_decode_to_the_bit(inverted):
    folder, _ = inverted
    written, settings = edit_under(inverted, BOX)
    shown = decode(written.path, settings)
    source = decode(cogedit.encode(folder / "clip.mp4", settings).path, settings)
    beyond = outside(written)
    assert beyond.mean() > 0.5
    assert np.array_equal(shown[beyond], source[beyond])
    plain = replace(settings, export=replace(settings.export, composite="none"))
    edited = decode(written.path, plain)
    assert np.array_equal(shown[~beyond], edited[~beyond])
    # Without the composite the VAE lets the edit through to pixels outside.
    assert not np.array_equal(edited[beyond], source[beyond])


def test_outside_the_mask_are_the_source_s_own_frames(inverted):
    folder, _ = inverted
    written, settings = edit_under(inverted, BOX, export__composite="source")
    shown = decode(written.path, settings)
    frames = read_artifact(cogedit.load(folder / "clip.mp4", settings).path).tensors["frames"]
    beyond = outside(written)
    assert np.array_equal(shown[beyond], frames.numpy()[beyond])


@pytest.mark.parametrize("composite", ["decode", "source"])
def test_feather_lies_inside(inverted, composite):
    written, hard = edit_under(inverted, BOX, export__composite=composite)
    soft = replace(hard, export=replace(hard.export, feather=4))
    sharp, smooth = decode(written.path, hard), decode(written.path, soft)
    beyond = outside(written)
    assert np.array_equal(smooth[beyond], sharp[beyond])
    assert not np.array_equal(smooth[~beyond], sharp[~beyond])


def test_an_export_needs_the_artifact_alone(inverted, tmp_path):
    written, settings = edit_under(inverted, BOX)
    alone = tmp_path / "moved.safetensors"
    alone.write_bytes(written.path.read_bytes())
    elsewhere = replace(settings, workspace=tmp_path / "empty")
    shown = decode(alone, elsewhere)
    assert np.array_equal(shown, decode(written.path, settings))


def test_frames_that_are_gone_are_missed_with_their_command(inverted, tmp_path):
    folder, _ = inverted
    written, settings = edit_under(inverted, BOX, export__composite="source")
    elsewhere = replace(settings, workspace=tmp_path / "an empty one")
    with pytest.raises(ArtifactError, match=r"frames-\w{12}\.safetensors, are not in") as caught:
        decode(written.path, elsewhere)
    assert "or use --composite decode" in caught.value.hint
    command = caught.value.hint.split("`")[1]
    assert "--frame-sample-step" not in command
    words = shlex.split(command)
    assert words[:3] == ["cogedit", "load", "clip.mp4"]
    words[2] = str(folder / "clip.mp4")
    made = CliRunner().invoke(app, [*words[1:], *TINY_MODEL])
    assert made.exit_code == 0, made.stderr
    assert np.array_equal(decode(written.path, elsewhere), decode(written.path, settings))


def test_frames_of_other_pixels_are_refused(inverted, tmp_path):
    from cogedit.artifacts import write_artifact

    folder, _ = inverted
    written, settings = edit_under(inverted, BOX, export__composite="source")
    frames = read_artifact(cogedit.load(folder / "clip.mp4", settings).path, "frames")
    other = cogedit.artifacts.Workspace(tmp_path / "other")
    other.create()
    inverse = {"frames": 255 - frames.tensors["frames"]}
    write_artifact(other.path_for(frames.record), inverse, frames.record)
    with pytest.raises(ArtifactMismatch, match="holds other pixels than"):
        decode(written.path, replace(settings, workspace=other.root))


def test_exports_with_other_composites_are_told_apart(inverted, tmp_path):
    written, settings = edit_under(inverted, BOX)
    output = tmp_path / "out.mp4"
    assert not cogedit.export(written.path, settings, output=output).reused
    assert cogedit.export(written.path, settings, output=output).reused
    explicit = replace(settings, export=replace(settings.export, composite="decode"))
    assert cogedit.export(written.path, explicit, output=output).reused
    for changes in ({"composite": "none"}, {"composite": "source"}, {"feather": 2}):
        other = replace(settings, export=replace(settings.export, **changes))
        assert not cogedit.export(written.path, other, output=output).reused
        assert cogedit.export(written.path, other, output=output).reused
    assert read_back(output, width=96, height=64).shape == (9, 64, 96, 3)


@pytest.mark.parametrize("composite", ["decode", "source"])
def test_a_composite_without_a_mask_is_refused(inverted, composite):
    folder, trajectory = inverted
    written, settings = edit_under(inverted, export__composite=composite)
    for path in (written.path, trajectory.path):
        with pytest.raises(UsageError, match=f"--composite {composite} needs an edit with a mask"):
            cogedit.export(path, settings)
    with pytest.raises(UsageError, match=f"--composite {composite} needs a mask"):
        cogedit.edit(folder / "clip.mp4", [PROMPT], settings)


def test_padded_models(pipeline_15, tmp_path, monkeypatch):
    """Two latent frames to a token: the pad frames are masked as the first, and stripped."""
    monkeypatch.chdir(tmp_path)
    video = make_video(tmp_path / "clip.mp4", width=176, height=144, num_frames=20)
    settings = settings_of(video, model=str(pipeline_15))
    [written] = cogedit.reconstruct(video, [PROMPT], settings, mask="0,0,88,144@0:1")
    tensors = read_artifact(written.path, "edit").tensors
    changed = (tensors["latents"] != tensors["source_latents"]).any(dim=(0, 2, 3, 4))
    assert changed.tolist() == [True, True, False, False]
    shown = decode(written.path, settings)
    source = decode(cogedit.encode(video, settings).path, settings)
    beyond = tensors["mask"].numpy() == 0
    assert np.array_equal(shown[beyond], source[beyond])
    assert not np.array_equal(shown[0, :, :32], source[0, :, :32])
    said = []
    [found] = cogedit.reconstruct(
        video,
        [PROMPT],
        settings_of(video, model=str(pipeline_15), **AUTO, invert__prompt="a dog in snow"),
        run=cogedit.Run(notify=said.append),
    )
    assert said
    assert not any("--source-prompt" in line for line in said)
    assert read_artifact(found.path, "edit").tensors["mask"].shape == (9, 64, 64)


# The automatic mask

AUTO = {
    "reconstruct__auto_mask": True,
    "reconstruct__auto_mask_threshold": 0.8,
}


def test_a_missing_source_prompt_is_named_before_the_inversion(tmp_path):
    video = make_video(tmp_path / "clip.mp4", width=96, height=64, num_frames=9)
    said = []
    run = cogedit.Run(notify=said.append)
    cogedit.reconstruct(video, PROMPT, settings_of(video, **AUTO), run=run)
    [named] = [place for place, line in enumerate(said) if "--source-prompt" in line]
    [made] = [place for place, line in enumerate(said) if "trajectory-" in line]
    assert named < made


def test_a_found_mask_is_kept_and_shown(inverted):
    said = []
    run = cogedit.Run(notify=said.append, force=True)
    written, settings = edit_under(inverted, run=run, **AUTO)
    assert written.record.mask is None
    assert written.record.has_mask
    tensors = read_artifact(written.path, "edit").tensors
    mask = tensors["mask"]
    assert 0 < mask.float().mean() < 1
    latents = mask[0, ::8, ::8]
    assert torch.equal(mask[0], latents.repeat_interleave(8, 0).repeat_interleave(8, 1))
    assert torch.equal(mask[1], mask[4])
    changed = (tensors["latents"] != tensors["source_latents"])[0, 0].any(dim=0)
    assert torch.equal(changed, latents.bool())
    picture = written.path.with_name(f"{written.path.stem}-mask.mp4")
    assert any(line.startswith(f"wrote {picture} (") for line in said)
    assert sum("--source-prompt says what the source shows" in line for line in said) == 1
    shown = read_back(picture, width=96, height=64)
    assert np.array_equal(shown.mean(axis=-1) > 128, mask.numpy() == 1)
    frames = decode(written.path, settings)
    folder, _ = inverted
    source = decode(cogedit.encode(folder / "clip.mp4", settings).path, settings)
    assert np.array_equal(frames[mask.numpy() == 0], source[mask.numpy() == 0])


def test_equal_texts_find_nothing(inverted):
    with pytest.raises(UsageError, match="the automatic mask is empty: the prompt and the invers"):
        edit_under(inverted, prompt="", **AUTO)


# What a user reads


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--mask", "half.pgn"], 3, "half.pgn"),
        (["--mask", "notes.png"], 3, "notes.png"),
        (["--mask", "broken.png"], 3, "broken.png"),
        (["--mask", "square.png"], 3, "64x64"),
        (["--mask", "short.mkv"], 3, "5 frames"),
        (["--mask", "black.png"], 2, "black.png"),
        (["--mask", "0,0,177,20"], 2, "176x144"),
        (["--mask", "9,0,9,20"], 2, "9,0,9,20"),
        (["--mask", "1,2,3"], 2, "1,2,3"),
        (["--mask-keep"], 2, "--mask-keep needs a mask"),
        (["--mask", "0,0,176,144", "--mask-keep"], 2, "leave --mask-keep out"),
        (["--mask", BOX, "--auto-mask"], 2, "--mask and --auto-mask exclude each other"),
        (["--mask", BOX, "--mask-dilation", "-1"], 2, "--mask-dilation is -1"),
        (["--auto-mask", "--auto-mask-threshold", "2"], 2, "--auto-mask-threshold is 2"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(inverted, monkeypatch, options, code, text):
    folder, trajectory = inverted
    monkeypatch.chdir(folder)
    (folder / "notes.png").write_text("dear diary\n" * 100)
    (folder / "broken.png").write_bytes((folder / "half.png").read_bytes()[:30])
    square = ["-f", "lavfi", "-i", "color=white:s=64x64", "-frames:v", "1", "-update", "1"]
    ffmpeg(*square, folder / "square.png")
    before = sorted((folder / "clip.cogedit").iterdir())
    arguments = ["reconstruct", trajectory.path, "--prompt", "new", *TINY_MODEL, *options]
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((folder / "clip.cogedit").iterdir()) == before


def test_a_mask_that_does_not_fit_is_refused_before_the_inversion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", width=176, height=144, num_frames=12)
    arguments = ["edit", "clip.mp4", "-p", "x", "--mask", "0,0,999,9", *TINY_MODEL]
    done = CliRunner().invoke(app, [*arguments, "--max-num-frames", "9", "--frame-rate", "spread"])
    assert done.exit_code == 2
    assert "0,0,999,9" in done.stderr
    kinds = {path.name.partition("-")[0] for path in (tmp_path / "clip.cogedit").iterdir()}
    assert kinds == {"frames"}


def test_the_commands(inverted, monkeypatch):
    folder, _ = inverted
    monkeypatch.chdir(folder)
    given = [
        "--max-num-frames",
        "9",
        "--frame-rate",
        "spread",
        "--resize-mode",
        "stretch",
        "--num-inference-steps",
        "3",
    ]
    arguments = ["edit", "clip.mp4", "-p", PROMPT, "--mask", "half.png", *TINY_MODEL, *given]
    done = CliRunner().invoke(app, [*arguments, "--composite", "source", "--feather", "2"])
    assert done.exit_code == 0, done.stderr
    assert read_back(folder / done.stdout.strip(), width=96, height=64).shape == (9, 64, 96, 3)
    [edit] = [
        path
        for path in (folder / "clip.cogedit").glob("edit-*.safetensors")
        if content_key(read_record(path))[:8] in done.stdout
    ]
    shown = CliRunner().invoke(app, ["inspect", str(edit)])
    assert "picture half.png, sha256" in shown.stdout
    assert "tensor mask" in shown.stdout
    exported = CliRunner().invoke(
        app, ["export", str(edit), "-o", "plain.mp4", "--composite", "none", *TINY_MODEL]
    )
    assert exported.exit_code == 0, exported.stderr
