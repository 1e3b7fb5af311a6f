"""`cogedit report`: what the page says, and how it behaves in a browser."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from PIL import Image
from pipelines import TINY_MODEL, decode, decode_source, tiny_settings
from typer.testing import CliRunner
from videos import make_video

import cogedit
from cogedit.artifacts import content_key, read_artifact, read_record, record_text
from cogedit.cli import app
from cogedit.media.metrics import psnr
from cogedit.stages.pass_times import FILE, read_notes
from cogedit.tools.captions import distinctions
from cogedit.types import ExportSettings

HOSTILE = "<script>document.title = 'owned'</script> \"a\" & 'b' <img src=x onerror=alert(1)>"
MASK = "0,0,48,64"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with two edits, one of them under a mask and with its steps; its settings."""
    folder = tmp_path_factory.mktemp("report")
    video = make_video(folder / "clip.mp4", width=96, height=64, num_frames=9, fps="8")
    flags = {
        "load.width": 96,
        "load.height": 64,
        "load.max_num_frames": 9,
        "load.frame_rate": "spread",
        "invert.num_inference_steps": 4,
        "reconstruct.guidance_scale": 1.0,
        "reconstruct.start": "random",
        "reconstruct.seed": 7,
    }
    settings = tiny_settings(video, flags)
    cogedit.reconstruct(video, [HOSTILE], settings)
    cogedit.reconstruct(video, ["a blue cat"], settings, mask=MASK, save_trajectory=True)
    return folder / "clip.cogedit", settings


def report(*args):
    return CliRunner().invoke(app, ["report", *map(str, args), *TINY_MODEL])


@pytest.fixture(scope="module")
def page(made):
    """The page of the workspace, and what the command said."""
    path = made[0].parent / "report.html"
    result = report(made[0], "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n"
    return path


class Reader(HTMLParser):
    """Collects elements with their attributes, and the texts outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        if data.strip() and self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_text_is_text(page):
    reader = Reader(page.read_text())
    assert HOSTILE in reader.texts
    assert len(reader.all("script")) == 1
    assert not [a for _, a in reader.elements for name in a if name.startswith("on")]


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    without_names = text.replace("http://www.w3.org/2000/svg", "")  # of the cursor in the style
    assert not re.search(r"https?:|//[a-z]+\.|@import", without_names)
    reader = Reader(text)
    for tag in ("img", "video"):
        assert all(a["src"].startswith("data:") for a in reader.all(tag))
    assert len(reader.all("video")) == 1 + 2 * 2


def test_everything_shown_has_a_name(page):
    reader = Reader(page.read_text())
    assert all("alt" in a for a in reader.all("img"))
    assert all(a.get("aria-label") for a in reader.all("video") + reader.all("input"))
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_figures_and_settings_are_those_of_the_edits(made, page):
    workspace, settings = made
    (trajectory,) = workspace.glob("trajectory-*")
    source = decode_source(trajectory, settings)
    texts = Reader(page.read_text()).texts
    for path in workspace.glob("edit-*.safetensors"):
        # A composite by the decode is what an edit with a mask shows unasked.
        assert f"{psnr(decode(path, settings), source):.1f} dB" in texts
        assert path.name in texts
    assert texts.count("seed") == 4  # changed, and among all, of both
    noise = read_artifact(trajectory, "trajectory").tensors["trajectory"][-1]
    assert f"{float(noise.std()):.3f}" in texts


def test_outside_the_mask_is_measured_what_the_model_made(made, page):
    workspace, settings = made
    (trajectory,) = workspace.glob("trajectory-*")
    source = decode_source(trajectory, settings)
    path = edit_with(workspace, "a blue cat")
    outside = read_artifact(path, "edit").tensors["mask"].numpy() == 0
    plain = replace(settings, export=ExportSettings(composite="none"))
    value = psnr(decode(path, plain), source, where=outside)
    texts = Reader(page.read_text()).texts
    note = "what the model made there, before the source after the VAE is put back"
    figure = ("Model's PSNR outside the mask", f"{value:.1f} dB", note)
    assert figure in zip(texts, texts[1:], texts[2:], strict=False)
    assert not [text for text in texts if text.startswith("Background")]


def test_without_its_source_an_edit_still_shows_it_outside_the_mask(made, tmp_path):
    workspace = tmp_path / "w"
    shutil.copytree(made[0], workspace)
    path = edit_with(workspace, "a blue cat")
    for other in [path for path in workspace.glob("*-*") if not path.name.startswith("edit-")]:
        other.unlink()
    assert report(workspace).exit_code == 0
    expected = decode(path, replace(made[1], export=ExportSettings(composite="decode")))
    poster = Reader((workspace / "report.html").read_text()).all("video")[1]["poster"]
    picture = Image.open(io.BytesIO(base64.b64decode(poster.partition(",")[2])))
    assert np.array_equal(np.asarray(picture), expected[0])


def test_it_says_that_edges_are_not_aligned(made, page, tmp_path):
    config = tmp_path / "own.toml"
    config.write_text("[export]\nalign_edges = 8\n")
    path = tmp_path / "report.html"
    result = report(made[0], "-o", path, "--config", config)
    assert result.exit_code == 0, result.output
    assert "align-edges 8" in result.stderr
    assert "align-edges 8" in path.read_text()
    assert "align-edges 8" not in page.read_text()


def test_edits_under_one_prompt_are_told_apart(made, tmp_path):
    workspace = tmp_path / "w"
    shutil.copytree(made[0], workspace)
    (trajectory,) = workspace.glob("trajectory-*")
    settings = replace(made[1], workspace=workspace)
    other = replace(
        settings,
        reconstruct=replace(settings.reconstruct, seed=8, num_inference_steps=2, auto_mask=True),
    )
    cogedit.reconstruct(trajectory, ["a blue cat"], other)
    cogedit.reconstruct(trajectory, ["a blue cat"], settings)
    assert report(workspace).exit_code == 0
    text = (workspace / "report.html").read_text()
    overview = text[text.index("<table>") : text.index("</tbody>")]
    rows = [Reader(row.removesuffix("</tr>")).texts for row in overview.split("<tr>")[2:]]
    assert [row[1] for row in rows if row[0] != HOSTILE] == [
        "mask box 0,0,48,64, num-inference-steps auto, seed 7, auto-mask false",
        "mask none, num-inference-steps 2, seed 8, auto-mask true",
        "mask none, num-inference-steps auto, seed 7, auto-mask false",
    ]
    (alone,) = [row for row in rows if row[0] == HOSTILE]
    assert not [text for text in alone if "seed" in text]
    # Under its name stands each figure, also where the first edit does not have it.
    heads = Reader(overview[: overview.index("</thead>")]).texts[1:]
    masked = next(row for row in rows if "mask box 0,0,48,64" in row[1])
    assert len(masked) == 2 + len(heads)
    shown = dict(zip(heads, masked[2:], strict=True))
    assert shown["PSNR against the source"].endswith(" dB")
    assert shown["Model's PSNR outside the mask"].endswith(" dB")
    assert shown["Time"].endswith(" s")


def test_edits_that_no_setting_tells_apart_have_their_file_names(made):
    path = edit_with(made[0], "a blue cat")
    record = read_record(path)
    again = replace(record, mask=replace(record.mask, sha256="0" * 64))
    other = path.with_name("other.safetensors")
    edits = [(path, record), (other, again)]
    assert distinctions(edits) == [{"file": path.name}, {"file": other.name}]
    assert distinctions(edits[:1]) == [{}]


def test_settings_are_written_as_in_toml(page):
    reader = Reader(page.read_text())
    facts = list(zip(reader.texts, reader.texts[1:], strict=False))
    assert facts.count(("mask", f"box {MASK}")) == 2  # changed, and among all settings
    assert facts.count(("auto-mask", "false")) == 2
    assert facts.count(("injection-layers", "0:END")) == 2
    # A setting without a value is left out.
    assert not {"mask-dilation", "auto", "None", "False"} & set(reader.texts)


@pytest.mark.parametrize("kind", ["frames", "edit"])
def test_inspect_shows_settings_as_their_toml_has_them(made, kind):
    path = sorted(made[0].glob(f"{kind}-*.safetensors"))[0]
    shown = CliRunner().invoke(app, ["inspect", str(path)]).stdout
    assert not re.search(r"= (None|True|False)\b", shown)
    assert "frame_sample_step" not in shown
    assert 'resize_mode = "crop"' in shown
    if kind == "edit":
        assert "vae_tiling = false" in shown
        assert "auto_mask = false" in shown
        assert 'guidance_steps = "0.1:0.8"' in shown
        assert "mask_dilation" not in shown
    told = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert told["record"] == json.loads(record_text(read_record(path)))


def edit_with(workspace, prompt):
    """The first edit of a workspace under a prompt."""
    edits = sorted(workspace.glob("edit-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    return next(path for path in edits if read_record(path).settings.prompt == prompt)


def test_times_and_residuals_are_shown_where_they_were_noted(made, page, tmp_path):
    workspace, _ = made
    (trajectory,) = workspace.glob("trajectory-*")
    notes = read_notes(workspace)
    inverted = notes[content_key(read_record(trajectory))]
    assert len(inverted.steps) == 4
    assert inverted.device == "cpu"
    assert len(notes) == 3
    texts = Reader(page.read_text()).texts
    assert texts.count("Time") == 4  # of the inversion, the edits, and in the overview
    assert f"{inverted.seconds:.1f} s" in texts
    assert f"{max(size for _, size, _ in inverted.steps):.2g}" in texts
    copy = tmp_path / "w"
    shutil.copytree(workspace, copy)
    (copy / FILE).write_text('none\n{"content_keys": 3}\n[]\n')
    assert read_notes(copy) == {}
    assert report(copy).exit_code == 0
    texts = Reader((copy / "report.html").read_text()).texts
    assert not {"Time", "Residual"} & set(texts)


def test_the_videos_are_the_clips(made, page):
    workspace, _ = made
    (frames,) = workspace.glob("frames-*")
    clip = read_artifact(frames, "frames").tensors["frames"].numpy()
    poster = next(a["poster"] for a in Reader(page.read_text()).all("video"))
    picture = Image.open(io.BytesIO(base64.b64decode(poster.partition(",")[2])))
    assert np.array_equal(np.asarray(picture), clip[0])


@pytest.fixture(scope="module")
def beside(made, tmp_path_factory):
    """The page with its videos beside it."""
    path = tmp_path_factory.mktemp("beside") / "my page.html"
    assert report(made[0], "-o", path, "--beside").exit_code == 0
    return path


def test_videos_beside_the_page(beside):
    sources = [a["src"] for a in Reader(beside.read_text()).all("video")]
    assert set(sources) == {
        f"my%20page-videos/{file.name}" for file in beside.with_name("my page-videos").iterdir()
    }
    assert len(set(sources)) == 3


def test_what_cannot_be_shown_is_listed(made, tmp_path):
    workspace = tmp_path / "w"
    shutil.copytree(made[0], workspace)
    first, second = sorted(workspace.glob("edit-*.safetensors"))
    damaged = bytearray(first.read_bytes())
    damaged[-1] ^= 1
    first.write_bytes(damaged)
    (workspace / "edit-none.safetensors").write_bytes(b"none")
    result = report(workspace)
    assert result.exit_code == 0, result.output
    assert f"left out {first.name}: " in result.stderr
    texts = Reader((workspace / "report.html").read_text()).texts
    assert {first.name, "edit-none.safetensors", second.name} <= set(texts)
    assert "Not shown" in texts
    # The page is ours: it is replaced unasked.
    assert report(workspace).exit_code == 0


@pytest.mark.parametrize(
    ("gone", "label", "videos"),
    [
        (["frames-*"], "source after the VAE", 5),
        (["frames-*", "latents-*"], "source after the VAE", 5),
        (["frames-*", "latents-*", "trajectory-*"], None, 2),
    ],
)
def test_a_workspace_that_was_cleaned(made, tmp_path, gone, label, videos):
    workspace = tmp_path / "w"
    shutil.copytree(made[0], workspace)
    for path in [path for pattern in gone for path in workspace.glob(pattern)]:
        path.unlink()
    assert report(workspace).exit_code == 0
    reader = Reader((workspace / "report.html").read_text())
    assert len(reader.all("video")) == videos
    assert label is None or label in reader.texts


def test_bad_input(made, tmp_path):
    other, page, empty = tmp_path / "mine.html", tmp_path / "page.pdf", tmp_path / "empty"
    other.write_text("<p>mine</p>")
    empty.mkdir()
    for args, named in [
        ([made[0], "-o", other], other),
        ([made[0], "-o", page], page),
        ([empty], empty),
        ([tmp_path / "none"], tmp_path / "none"),
    ]:
        result = report(*args)
        assert result.exit_code == 2
        assert str(named) in result.stderr
    assert other.read_text() == "<p>mine</p>"
    assert report(made[0], "-o", other, "--force").exit_code == 0


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    """A browser; nothing may go wrong in it."""
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    opened = browser.Page()
    yield opened
    opened.close()


READY = "[...document.querySelectorAll('video')].every(video => video.readyState >= 2)"
EDIT = "document.querySelectorAll('.player')[1]"


@pytest.fixture
def shown(chromium, page):
    """The page in the browser, its videos loaded."""
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(page)
    chromium.wait(READY)
    yield chromium
    assert chromium.errors == []
    assert {url.partition(":")[0] for url in chromium.requests} <= {"file", "data"}
    assert [url for url in chromium.requests if url.startswith("file")] == [page.as_uri()]


def test_nothing_of_a_prompt_runs(shown):
    assert shown.run("document.title") == "clip.mp4"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_window_and_can_be_read(shown, width, dark):
    shown.resize(width, 844, dark=dark)
    assert shown.run("document.documentElement.scrollWidth") == width
    paper, ink, quiet = (
        shown.run(f"getComputedStyle(document.querySelector('{name}')).{what}")
        for name, what in (("body", "backgroundColor"), ("body", "color"), ("footer", "color"))
    )
    assert (luminance(paper) < 0.1) == dark
    assert contrast(paper, ink) > 10
    assert contrast(paper, quiet) > 4.5


def luminance(color):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    levels = [int(level) / 255 for level in re.findall(r"\d+", color)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def place_of(shown, what):
    return shown.run(
        f"(() => {{ const e = {what}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
        "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )


def test_the_line_moves_by_keys_and_by_mouse(shown):
    at = f"{EDIT}.style.getPropertyValue('--at')"
    assert shown.run(at) == "50%"
    shown.run(f"{EDIT}.querySelector('.compare').focus()")
    for _ in range(3):
        shown.press("ArrowRight", 39)
    assert shown.run(at) == "53%"
    shown.press("Home", 36)
    assert shown.run(at) == "0%"
    x, y, width, height = place_of(shown, f"{EDIT}.querySelector('.compare')")
    shown.drag((x + 0.2 * width, y + height / 2), (x + 0.75 * width, y + height / 2))
    assert abs(int(shown.run(at).rstrip("%")) - 75) <= 2
    said = shown.run(f"{EDIT}.querySelector('.compare').getAttribute('aria-valuetext')")
    assert said.startswith("source on the left 7")


def test_the_keyboard_reaches_every_control(shown):
    shown.run("document.body.focus()")
    controls = "button, input, summary, a[href]"
    total = shown.run(f"document.querySelectorAll('{controls}').length")
    reached = set()
    for _ in range(total + 4):
        shown.press("Tab", 9)
        reached.add(
            shown.run(
                f"[...document.querySelectorAll('{controls}')].indexOf(document.activeElement)"
            )
        )
    assert reached >= set(range(total))


def test_left_of_the_line_is_the_source_and_right_of_it_the_edit(shown, page, tmp_path):
    shown.run(f"{EDIT}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y, width, height = shown.run(
        f"(() => {{ const b = {EDIT}.querySelector('.stage').getBoundingClientRect();"
        "return [b.x + scrollX, b.y + scrollY, b.width, b.height]; })()"
    )
    shown.screenshot(tmp_path / "page.png")
    screen = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"), dtype=float)
    posters = [a["poster"] for a in Reader(page.read_text()).all("video")][1:3]
    for poster, left, right in zip(posters, (0.05, 0.55), (0.45, 0.95), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(poster.partition(",")[2])))
        enlarged = np.asarray(
            picture.resize((round(width), round(height)), Image.Resampling.NEAREST)
        )
        # Below the tags and away from the handle of the line.
        rows = slice(round(0.7 * height), round(0.95 * height))
        columns = slice(round(left * width), round(right * width))
        top, start = round(y), round(x)
        seen = screen[top : top + round(height), start : start + round(width)]
        difference = np.abs(seen[rows, columns] - enlarged[rows, columns].astype(float))
        assert difference.mean() < 12


def test_source_and_edit_play_together(shown):
    times = f"[...{EDIT}.querySelectorAll('video')].map(video => video.currentTime)"
    shown.run(f"{EDIT}.querySelector('.on').click()")
    shown.wait(f"{EDIT}.querySelector('.frame').textContent === '2 / 9'")
    assert shown.run(times) == pytest.approx([1.5 / 8] * 2)
    shown.run(f"{EDIT}.querySelector('.play').click()")
    shown.wait(f"{EDIT}.querySelector('.play').textContent === 'Pause'")
    # At one moment: a little later they may be over, and begin again.
    in_the_middle = f"{times}.every(time => time > 3 / 8 && time < 7 / 8)"
    shown.wait(f"{in_the_middle} && ({EDIT}.querySelector('.play').click(), true)")
    shown.wait(f"{EDIT}.querySelector('.play').textContent === 'Play'")
    source, edited = shown.run(times)
    assert abs(source - edited) <= 1 / 8
    seek = f"{EDIT}.querySelector('.seek')"
    shown.run(f"{seek}.value = 7, {seek}.dispatchEvent(new Event('input'))")
    shown.wait(f"{EDIT}.querySelector('.frame').textContent === '8 / 9'")
    assert shown.run(times) == pytest.approx([7.5 / 8] * 2)


def test_videos_beside_the_page_play(beside, chromium):
    chromium.errors.clear()
    chromium.open(beside)
    chromium.wait(READY)
    assert chromium.errors == []


def test_without_script_both_videos_stand_beside_each_other(shown, page):
    shown.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown.open(page)
        tree = shown.send("DOM.getDocument", depth=1)["root"]["nodeId"]
        found = shown.send("DOM.querySelectorAll", nodeId=tree, selector=".player video")
        boxes = [
            shown.send("DOM.getBoxModel", nodeId=n)["model"]["border"] for n in found["nodeIds"]
        ]
        source, edited = boxes[1], boxes[2]
        assert source[0] < source[2] <= edited[0]  # left and right edges
    finally:
        shown.send("Emulation.setScriptExecutionDisabled", value=False)
        shown.requests.clear()
        shown.open(page)
