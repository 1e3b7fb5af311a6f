"""The video corpus: each file is read right or refused, and none leads anywhere else."""

from __future__ import annotations

import json
import os
import resource
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import (
    CORPUS,
    GRAY_STEP,
    H264,
    HEIGHT,
    NAMES,
    NUM_FRAMES,
    WIDTH,
    Good,
    frame_numbers,
    hdr,
    make,
    playlists,
    white_corner,
)
from pipelines import TINY_PIPELINE
from soak import take_turns
from typer.testing import CliRunner, Result
from videos import ffmpeg

from cogedit.artifacts import read_artifact
from cogedit.cli import app

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("decord")]

MAX_BYTES = 2 * 2**30


def load(video: Path | str, width: int = WIDTH, height: int = HEIGHT) -> Result:
    """`cogedit load` of every frame."""
    size = ("--width", str(width), "--height", str(height), "--resize-mode", "stretch")
    frames = ("--frame-sample-step", "1", "--max-num-frames", "81")
    model = ("--model", str(TINY_PIPELINE), "--device", "cpu")
    largest = _largest_child()
    result = CliRunner().invoke(app, ["load", *size, *frames, *model, "--json", "--", str(video)])
    assert _largest_child() < max(largest + 1, MAX_BYTES)
    return result


def _largest_child() -> int:
    """Bytes of the largest child process so far: those that decode, and those of the tests."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def wrong_refusal(result: Result, says: str, name: str) -> str | None:
    """What is wrong with how a file was refused; None if nothing is."""
    lines = result.stderr.strip().split("\n")
    if result.exit_code != 3:
        return f"exit code {result.exit_code}: {result.output[-300:]} {result.exception!r}"
    if result.stdout or len(lines) > 2 or not lines[0].startswith("error: "):
        return f"not one sentence: {result.output}"
    if says not in lines[0] or name not in lines[0]:
        return f"says {lines[0]!r}"
    return None


def frames_of(result: Result) -> np.ndarray:
    path = json.loads(result.stdout)["outputs"][0]["path"]
    return read_artifact(Path(path), "frames").tensors["frames"].numpy()


def wrong_frames(result: Result, case: Good) -> str | None:
    """What is wrong with what was read; None if nothing is."""
    if result.exit_code != 0:
        return f"exit code {result.exit_code}: {result.output[-300:]} {result.exception!r}"
    frames = frames_of(result)
    found = frame_numbers(frames)
    expected = list(case.numbers)
    expected += expected[-1:] * (-(len(expected) - 1) % 8)  # the VAE takes 8n + 1
    if case.is_damaged:
        if not found or any(b < a for a, b in pairwise(found)):
            return f"frames {found}"
    elif case.exact and found != expected:
        return f"frames {found}, expected {expected}"
    elif len(found) != len(expected):
        return f"{len(found)} frames, expected {len(expected)}"
    if white_corner(frames[0]) != case.corner:
        return f"{white_corner(frames[0])} is white, expected {case.corner}"
    if f"of {case.size[0]}x{case.size[1]} at" not in result.stderr:
        return f"not of size {case.size}: {result.stderr}"
    for part in case.says:
        if part not in result.stderr:
            return f"does not say {part!r}: {result.stderr}"
    return None


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    monkeypatch.chdir(tmp_path)
    case = CORPUS[name]
    video = tmp_path / f"video{case.suffix}"
    case.make(video)
    if isinstance(case, Good):
        with score("video: read right") as cases:
            shown = (WIDTH, HEIGHT) if case.size[0] > case.size[1] else (HEIGHT, WIDTH)
            cases.case((found := wrong_frames(load(video, *shown), case)) is None, f"{found}")
        return
    with score("video: refused") as cases:
        found = wrong_refusal(load(video), case.says, str(video))
        cases.case(found is None, f"{found}")
    assert not list(tmp_path.glob("*.cogedit"))


def test_playlists_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    canary = make(tmp_path / "canary.ts", *H264)
    with socket.create_server(("127.0.0.1", 0)) as server, score("video: reference") as cases:
        server.setblocking(False)
        texts = playlists(canary, server.getsockname()[1])
        for number, (name, text) in enumerate(texts.items()):
            for suffix in take_turns((".mp4", ".m3u8", ".ts", ".mkv"), number, 2):
                video = tmp_path / f"video{suffix}"
                video.write_bytes(text)
                found = wrong_refusal(load(video), "", str(video))
                cases.case(found is None, f"{name} as {suffix}: {found}")
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody called


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "plain.mp4", *H264)
    (tmp_path / "plain.mp4").rename(tmp_path / name)
    with score("video: name") as cases:
        result = load(name)
        found = wrong_frames(result, Good(make))
        cases.case(found is None, f"{found}")
        record = None
        if found is None:
            path = json.loads(result.stdout)["outputs"][0]["path"]
            record = read_artifact(Path(path), "frames").record
        cases.case(record is not None and record.source.name == name, "the name in the record")
        cases.case(record is not None and not record.source.has_audio, "what the name says")
        shown = result.stderr.replace("\n", "")
        cases.case(shown.isprintable(), f"control characters are shown: {shown!r}")
        lines = result.stderr.splitlines()
        forged = [line for line in lines if line.startswith(("[info]", "[error]"))]
        cases.case(not forged, f"lines of the name: {lines}")
    assert not (tmp_path / "owned").exists()


def test_files_that_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "nowhere.mp4").symlink_to("missing.mp4")
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    with score("video: no file") as cases:
        for name in ("folder.mp4", "pipe.mp4", "nowhere.mp4", "missing.mp4", "folder.mp4/a.mp4"):
            found = wrong_refusal(load(name), "", name)
            cases.case(found is None, f"{name}: {found}")
        for name in ("circle.mp4", "n" * 300 + ".mp4", "/dev/zero"):
            result = load(name)
            cases.case(result.exit_code in (3, 7) and not result.stdout, f"{name}: {result.output}")


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_looks_like_what_it_was_made_of(
    transfer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames in order, black near black, and brightness near that of the picture before."""
    monkeypatch.chdir(tmp_path)
    hdr(transfer)(tmp_path / "hdr.mp4")
    frames = frames_of(load(tmp_path / "hdr.mp4")).astype(float)
    middle = frames[:, 28:36, 40:56].mean(axis=(1, 2, 3))
    assert np.all(np.diff(middle) > 0)
    # What is darker than the compression's start comes back as it was; white is white enough.
    expected = 16 + GRAY_STEP * np.arange(NUM_FRAMES)
    assert np.abs(middle - expected)[expected < 140].max() < 4, middle
    assert 200 < frames[:, :8, :8].mean() < 225


def test_the_pattern_is_what_the_corpus_says(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain.mp4", *H264)
    raw = ffmpeg("-i", plain, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    frames = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    assert frame_numbers(frames) == list(range(NUM_FRAMES))
    assert white_corner(frames[0]) == "top left"
