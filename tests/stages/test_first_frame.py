"""Edits by a first frame: what is recorded, what the model is shown, and what is refused."""

import hashlib
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import TINY_PIPELINE, make_15_i2v_like, make_i2v_like, small_settings
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import content_key, read_artifact, record_text, verify_artifact
from cogedit.cli import app
from cogedit.errors import Interrupted, UsageError, VideoError
from cogedit.models.first_frame import encode_first_frame
from cogedit.models.loading import load_vae
from cogedit.stages.invert import check_inversion
from cogedit.stages.load import find_clip
from cogedit.stages.model import checkpoint_for

STEPS = 4


@pytest.fixture(scope="module", params=[make_i2v_like, make_15_i2v_like])
def inverted(request, tmp_path_factory):
    """A folder with a tiny model, a video, its inversion, and two edited first frames."""
    folder = tmp_path_factory.mktemp("clip")
    request.param(folder / "model")
    video = make_video(folder / "clip.mp4", width=176, height=144, num_frames=9)
    trajectory = cogedit.invert(video, settings_of(folder)).path
    path = cogedit.save_frame(video, settings_of(folder), output=folder / "first.png")
    for name, turns in (("red.png", 1), ("blue.png", 2)):
        Image.fromarray(np.roll(np.asarray(Image.open(path)), turns, axis=-1)).save(folder / name)
    return folder, trajectory


def settings_of(folder, **flags):
    usual = {
        "model": str(folder / "model"),
        "load__frame_rate": "source",
        "load__resize_mode": "stretch",
        "invert__num_inference_steps": STEPS,
        "workspace": folder / "w",
    }
    return small_settings(folder / "clip.mp4", cwd=folder, **usual | flags)


class Told:
    """A run that remembers what it is told and which loops it runs, and may stop one."""

    def __init__(self, after=None):
        self.said, self.loops, self._after = [], [], after
        self.run = cogedit.Run(notify=self.said.append, progress=self._progress)

    @contextmanager
    def _progress(self, doing, total):
        self.loops.append(doing)

        def on_step(info):
            if info.index + 1 == self._after:
                self.run.cancellation.request()

        yield on_step


def edit_by(inverted, name=None, prompt="", run=None, **flags):
    folder, trajectory = inverted
    given = None if name is None else folder / name
    settings = settings_of(folder, **flags)
    [made] = cogedit.reconstruct(trajectory, prompt, settings, first_frame=given, run=run)
    return made


def latents_of(made):
    return read_artifact(made.path, "edit").tensors["latents"]


def test_latents_and_trajectory_hold_the_first_frame_encoded_alone(inverted):
    folder, trajectory = inverted
    settings = settings_of(folder)
    [clip, latents] = (
        read_artifact(next((folder / "w").glob(f"{kind}-*"))) for kind in ("frames", "latents")
    )
    vae = load_vae(checkpoint_for(settings), device=torch.device("cpu"), dtype=torch.float32)
    expected = encode_first_frame(vae, clip.tensors["frames"][:1])
    first = latents.tensors["first_frame"]
    assert torch.equal(first, expected)
    assert torch.equal(read_artifact(trajectory).tensors["first_frame"], first)
    assert first.shape == latents.tensors["latents"][:, :1].shape
    assert verify_artifact(trajectory).latents.has_first_frame


def test_a_dry_run_says_what_the_artifacts_hold(inverted, tmp_path):
    folder, trajectory = inverted
    video, picture = folder / "clip.mp4", folder / "red.png"
    keep = {"first_frame": picture, "save_trajectory": True}
    empty = settings_of(folder, workspace=tmp_path / "w")
    found = cogedit.estimate(video, empty, prompts=[""], **keep)
    [edit] = cogedit.reconstruct(trajectory, (), settings_of(folder), **keep)
    frames, latents = (next((folder / "w").glob(f"{kind}-*")) for kind in ("frames", "latents"))
    sizes = [
        sum(
            tensor.nbytes
            for name, tensor in read_artifact(path).tensors.items()
            if name != "timesteps"
        )
        for path in (frames, latents, trajectory, edit.path)
    ]
    assert found.earlier_bytes == sizes[0] + sizes[1]
    assert [stage.disk_bytes for stage in found.stages] == sizes[2:]


def test_any_number_of_first_frames_share_one_inversion(inverted, tmp_path):
    folder, _ = inverted
    workspace = tmp_path / "w"
    told, made = Told(), []
    for name in ("red.png", "blue.png"):
        settings = settings_of(folder, workspace=workspace)
        video = folder / "clip.mp4"
        made += cogedit.reconstruct(video, (), settings, first_frame=folder / name, run=told.run)
    assert told.loops.count("inverting") == 1
    assert told.loops[-2:] == ["editing: red.png", "editing: blue.png"]
    assert not any("prompt" in said for said in told.said)
    red, blue = made
    assert not torch.equal(latents_of(red), latents_of(blue))
    assert not torch.equal(latents_of(red), latents_of(edit_by(inverted)))
    assert (
        red.record.trajectory
        == blue.record.trajectory
        == verify_artifact(next(workspace.glob("trajectory-*")))
    )


def test_the_record_names_the_picture_and_the_key_its_pixels(inverted):
    folder, _ = inverted
    made = edit_by(inverted, "red.png")
    pixels = np.asarray(Image.open(folder / "red.png"))
    picture = json.loads(record_text(made.record))["first_frame"]
    assert picture == {"name": "red.png", "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    (folder / "other").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "other" / "copy.webp", lossless=True)
    again = edit_by(inverted, "other/copy.webp")
    assert (again.path, again.reused) == (made.path, True)
    assert content_key(edit_by(inverted, "blue.png").record) != content_key(made.record)
    assert "first_frame" not in json.loads(record_text(edit_by(inverted).record))


def test_the_source_s_own_first_frame_is_the_text_edit(inverted):
    told, session = Told(), cogedit.Session()
    with session:
        folder, trajectory = inverted
        for prompt in ("a cat", "a dog"):
            cogedit.reconstruct(
                trajectory, prompt, settings_of(folder), run=told.run, session=session
            )
    assert sum("--first-frame" in said for said in told.said) == 1
    told = Told()
    own = edit_by(inverted, "first.png", prompt="a cat", run=told.run)
    assert torch.equal(latents_of(own), latents_of(edit_by(inverted, prompt="a cat")))
    assert "first.png is the source's own first frame" in told.said
    assert not any("guidance" in said for said in told.said)
    edit_by(inverted, prompt="a cat", run=told.run)
    assert any("--guidance-scale" in said for said in told.said)


def test_the_source_comes_back(inverted, tmp_path):
    """In many steps: a transformer of random numbers is a rough one."""
    folder, _ = inverted
    plain = {"guidance_scale": 1.0, "injection_strength": 0.0, "start": "inverted"}
    flags = {f"reconstruct__{name}": value for name, value in plain.items()}
    flags |= {"invert__num_inference_steps": 16, "workspace": tmp_path / "w"}
    settings = settings_of(folder, **flags)
    trajectory = cogedit.invert(folder / "clip.mp4", settings).path
    assert check_inversion(trajectory, settings).psnr > 40
    source = read_artifact(trajectory).tensors["latents"]
    back = latents_of(edit_by((folder, trajectory), **flags)) - source
    edited = latents_of(edit_by((folder, trajectory), "red.png", **flags)) - source
    assert float(back.abs().mean()) < 0.15 * float(edited.abs().mean())


def test_what_was_stopped_goes_on(inverted, tmp_path):
    folder, trajectory = inverted
    whole = edit_by(inverted, "red.png").path.read_bytes()
    settings = settings_of(folder, workspace=tmp_path / "w")
    with pytest.raises(Interrupted):
        cogedit.invert(folder / "clip.mp4", settings, run=Told(2).run)
    again = cogedit.invert(folder / "clip.mp4", settings).path
    assert again.read_bytes() == trajectory.read_bytes()
    given = {"first_frame": folder / "red.png"}
    with pytest.raises(Interrupted):
        cogedit.reconstruct(again, "", settings, run=Told(2).run, **given)
    [made] = cogedit.reconstruct(again, "", settings, **given)
    assert made.path.read_bytes() == whole


@pytest.mark.parametrize("flags", [{"auto_mask": True}, {"method": "flow"}])
def test_other_ways_of_editing_follow_it_too(inverted, flags):
    flags = {f"reconstruct__{name}": value for name, value in flags.items()}
    own, red = (
        edit_by(inverted, prompt="a cat", **flags),
        edit_by(inverted, "red.png", prompt="a cat", **flags),
    )
    assert not torch.equal(latents_of(own), latents_of(red))


def picture(path, **options):
    """A picture of the clip's size with a transparent half, lying on its side."""
    image = Image.new("RGBA", (64, 96), (200, 40, 0, 255))
    image.paste((9, 9, 9, 0), (0, 0, 32, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("inverted", [make_i2v_like], indirect=True)
def test_a_picture_is_laid_on_the_background_and_turned_upright(inverted, tmp_path):
    folder, _ = inverted
    settings = settings_of(folder, load__background="blue", workspace=tmp_path / "w")
    told = Told()
    given = picture(tmp_path / "turned.png")
    options = {"first_frame": given, "run": told.run}
    [made] = cogedit.reconstruct(folder / "clip.mp4", "", settings, **options)
    expected = np.zeros((64, 96, 3), np.uint8)
    expected[:32], expected[32:] = (0, 0, 255), (200, 40, 0)
    assert made.record.first_frame.sha256 == hashlib.sha256(expected.tobytes()).hexdigest()
    assert any("turned.png" in said and "blue" in said for said in told.said)


def bad_pictures(folder):
    Image.new("RGB", (96, 65)).save(folder / "large.png")
    frames = [Image.new("RGB", (96, 64), (n, 0, 0)) for n in (1, 99)]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    content = (folder / "red.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("large.png", UsageError, "96x65, expected 96x64"),
        ("clip.mp4", VideoError, r"clip\.mp4"),
        ("moving.png", VideoError, r"moving\.png"),
        ("cut.png", VideoError, r"cut\.png"),
        ("empty.png", VideoError, r"empty\.png"),
        ("gone.png", VideoError, r"gone\.png"),
        ("model", VideoError, "model"),
    ],
)
@pytest.mark.parametrize("inverted", [make_i2v_like], indirect=True)
def test_what_is_no_first_frame_is_refused_before_any_stage(inverted, tmp_path, name, error, said):
    folder, trajectory = inverted
    bad_pictures(folder)
    settings = settings_of(folder, workspace=tmp_path / "w")
    for source, make in (
        (folder / "clip.mp4", cogedit.edit),
        (trajectory, cogedit.reconstruct),
        (folder / "clip.mp4", cogedit.estimate),
    ):
        texts = {"prompts": ["a cat"]}
        with pytest.raises(error, match=said) as raised:
            make(source, **texts, settings=settings, first_frame=folder / name)
        assert name in ("empty.png", "model") or "cogedit frame" in raised.value.hint
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("inverted", [make_i2v_like], indirect=True)
def test_a_model_that_takes_none_refuses_it(inverted, tmp_path):
    folder, _ = inverted
    for model, named in ((TINY_PIPELINE, "CogVideoX-5b-I2V"), ("shapes", "I2V")):
        settings = replace(settings_of(folder), model=str(model), workspace=tmp_path / "w")
        with pytest.raises(UsageError) as raised:
            cogedit.edit(folder / "clip.mp4", "a cat", settings, first_frame=folder / "red.png")
        assert named in raised.value.hint
    assert not (tmp_path / "w").exists()
    with pytest.raises(UsageError, match="first frame"):
        cogedit.edit(folder / "clip.mp4", (), settings_of(folder))


@pytest.mark.parametrize("inverted", [make_15_i2v_like], indirect=True)
def test_a_longer_clip_is_offered_where_the_model_takes_one(inverted):
    video = inverted[0] / "clip.mp4"
    settings = settings_of(inverted[0], load__max_num_frames=1)
    for model, offered in ((settings.model, False), (str(TINY_PIPELINE), True)):
        said = "\n".join(find_clip(video, replace(settings, model=model)).notes)
        assert ("--max-num-frames all" in said) == offered
        assert "--start" in said


@pytest.fixture
def run(inverted, tmp_path, monkeypatch):
    """Run a command in a folder with the clip and its edited first frames."""
    folder, _ = inverted
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "red.png", "blue.png"):
        shutil.copy(folder / name, name)
    model = ["--model", str(folder / "model"), "--dtype", "fp32", "--device", "cpu"]
    clip = ["--frame-rate", "source", "--resize-mode", "stretch", "--num-inference-steps", "2"]

    def run(command, *args, exit_code=0):
        shows = {"inspect": [], "report": model}
        done = CliRunner().invoke(app, [command, *args, *shows.get(command, model + clip)])
        assert done.exit_code == exit_code, done.output
        return done

    return run


GIVEN = ("--first-frame", "red.png")


def test_the_five_commands(run):
    frames = run("load", "clip.mp4").stdout.strip()
    latents = run("encode", frames).stdout.strip()
    trajectory = run("invert", latents).stdout.strip()
    edit = run("reconstruct", trajectory, *GIVEN).stdout.strip()
    video = run("edit", "clip.mp4", *GIVEN)
    assert f"reused {edit}" in video.stderr
    assert "prompt" not in video.stderr
    assert "clip-red-" in video.stdout
    export = run("export", edit, "-o", "out.mp4").stdout.strip()
    for file in (edit, export):
        assert "red.png, sha256" in run("inspect", file).stdout
    assert "--first-frame" in run("edit", "clip.mp4", exit_code=2).stderr


@pytest.mark.parametrize("inverted", [make_i2v_like], indirect=True)
def test_what_counts_and_shows_edits(run, tmp_path, monkeypatch):
    trajectory = run("invert", "clip.mp4").stdout.strip()
    planned = json.loads(run("reconstruct", trajectory, *GIVEN, "--dry-run", "--json").stdout)
    assert [stage["artifacts"] for stage in planned["stages"]] == [1, 1]
    run("edit", "clip.mp4", *GIVEN, *GIVEN, exit_code=2)
    run("edit", "clip.mp4", *GIVEN, "-o", "out.mp4")
    # An equal picture by another name finds the same edit, and replaces its export.
    copy = shutil.copy("red.png", "coat.png")
    for _ in range(2):
        run("edit", "clip.mp4", "--first-frame", copy, "-o", "out.mp4")
    rows = [
        {"video": "clip.mp4", "first_frame": "red.png", "output": "out.mp4"},
        {"video": "clip.mp4", "first_frame": "blue.png", "prompt": "a cat"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the paths of a list are relative to it
    listed = "../rows.jsonl", "--workspace", "../clip.cogedit"
    planned = json.loads(run("batch", *listed, "--dry-run", "--json").stdout)
    assert [edit["edit"] for edit in planned["edits"]] == [True, False]
    assert len(run("batch", *listed).stdout.split()) == 2
    monkeypatch.chdir(tmp_path)
    run("edit", "clip.mp4", "--first-frame", "blue.png", "-o", "out.mp4", exit_code=2)
    run("report", "clip.cogedit", "-o", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "red.png" in page
    assert "blue.png" in page
    sheet = run("sweep", trajectory, *GIVEN, "--vary", "guidance-scale=1,2", "-o", "sheet.png")
    assert "sheet.png" in sheet.stdout
