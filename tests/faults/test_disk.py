"""Full disks and refused calls: the old file stays, nothing is left, a second try succeeds."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from corpus import H264, make
from pipelines import TINY_MODEL, tiny_artifacts
from soak import SOAK
from typer.testing import CliRunner, Result
from videos import ffmpeg

from cogedit.artifacts import verify_artifact
from cogedit.cli import app

pytestmark = pytest.mark.faults

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
CLIP = ("--width", "96", "--height", "64", "--max-num-frames", "9", "--frame-rate", "spread")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but those of an unfinished run, which are meant to stay."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".unfinished" not in str(path)
    }


class FailingCalls:
    """Lets one call of the system's writing functions below a folder fail.

    Counts opens, writes, fsyncs, renames and new folders, and raises at number `n`.
    """

    def __init__(self, folder: Path, n: int, number: int) -> None:
        self._folder = f"{folder}{os.sep}"
        self._n = n
        self._number = number
        self.count = 0

    def tick(self, path: Any) -> None:
        """Count a call on a path or a descriptor, and fail if it is the one."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        text = str(Path(os.fsdecode(path)).absolute())
        if not f"{text}{os.sep}".startswith(self._folder):
            return
        self.count += 1
        if self.count == self._n:
            raise OSError(self._number, os.strerror(self._number), text)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, name in (
            (os, "open"),
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "mkdir"),
        ):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))
        real_fdopen, real_open = os.fdopen, io.open

        def fdopen(descriptor: int, *args: Any, **options: Any) -> Any:
            return _Writes(real_fdopen(descriptor, *args, **options), self)

        def open_file(file: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(file, int):
                self.tick(file)
            return real_open(file, *args, **options)

        monkeypatch.setattr(os, "fdopen", fdopen)
        monkeypatch.setattr(io, "open", open_file)

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            self.tick(target)
            return real(target, *args, **options)

        return call


class _Writes:
    """A file whose writes count."""

    def __init__(self, file: Any, calls: FailingCalls) -> None:
        self._file = file
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        self._calls.tick(self._file.fileno())
        return self._file.write(data)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video and its artifacts, which the tests start from."""
    folder = tmp_path_factory.mktemp("made")
    video = make(folder / "clip.mp4", *H264)
    flags = {
        "load.width": 96,
        "load.height": 64,
        "load.max_num_frames": 9,
        "load.frame_rate": "spread",
    }
    return tiny_artifacts(video, flags)


def commands(made: dict[str, Path]) -> dict[str, tuple[list[object], str]]:
    """Name: a command and the file that it writes."""
    steps = ("--num-inference-steps", 2)
    return {
        "load": (["load", made["video"], *CLIP, *TINY_MODEL], "new.safetensors"),
        "encode": (["encode", made["frames"], *TINY_MODEL], "new.safetensors"),
        "invert": (["invert", made["latents"], *steps, *TINY_MODEL], "new.safetensors"),
        "reconstruct": (
            ["reconstruct", made["trajectory"], "-p", "x", *TINY_MODEL],
            "new.safetensors",
        ),
        "export": (["export", made["frames"]], "new.mp4"),
    }


STAGES = ("load", "encode", "invert", "reconstruct", "export")
WRITES = list(itertools.product(STAGES, (False, True)))
"""A stage, and whether its output replaces a file."""

if not SOAK:  # they all write by the same function
    WRITES = [(name, replaces) for name, replaces in WRITES if replaces == (name != "invert")]


@pytest.mark.parametrize(("name", "replaces"), WRITES)
def test_every_call_fails_once(
    name: str,
    replaces: bool,
    made: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    score: Any,
) -> None:
    """Without `replaces` into a new workspace, with it over an older file."""
    command, output = commands(made)[name]
    monkeypatch.chdir(tmp_path)
    old = b"an older file" if name == "export" else made["frames"].read_bytes()
    place = ["-o", f"out/{output}", "--force"] if replaces else ["--workspace", "out/work"]
    if name == "export" and not replaces:
        place = ["-o", f"out/{output}"]
    # Every call with every error in the soak; otherwise some, and the errors take turns.
    stride = 1 if SOAK else 4 if name in ("load", "export") else 11
    with score("disk: n-th call fails") as cases:
        for n in itertools.count(1 + (2 * replaces) % stride, stride):
            fired = False
            errors = ERRORS if SOAK else ERRORS[n % 3 :][:1]
            for number in errors:
                folder = tmp_path / "out"
                folder.mkdir()
                if replaces:
                    (folder / output).write_bytes(old)
                before = files(folder)
                with monkeypatch.context() as patched:
                    calls = FailingCalls(folder, n, number)
                    calls.patch(patched)
                    result = run(*command, *place)
                fired = fired or calls.count >= n
                found = _wrong(result, before, files(folder)) if calls.count >= n else None
                if found is None:
                    again = run(*command, *place)
                    if again.exit_code != 0:
                        found = f"the second try: {again.output} {again.exception!r}"
                    elif [path for path in folder.rglob("*") if ".unfinished" in path.name]:
                        found = "steps are left after the second try"
                    else:
                        found = _wrong_result(again)
                cases.case(found is None, f"{name}, call {n}, {os.strerror(number)}: {found}")
                _remove(folder)
            if not fired:
                return


def _wrong(result: Result, before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    """What is wrong with how a command took a failing call."""
    if result.exit_code == 0:  # a call that it can do without
        return _wrong_result(result)
    if result.exit_code != 7:
        return f"exit code {result.exit_code}: {result.output} {result.exception!r}"
    if result.stdout or "Traceback" in result.stderr:
        return f"says {result.output}"
    if not result.stderr.splitlines()[-1].startswith(("error: ", "hint: ")):
        return f"says {result.stderr}"
    # After the rename the new file is there, whole, though its folder may not be on the disk yet.
    stray = [name for name in after if name not in before and not _is_whole(after[name])]
    if stray:
        return f"leaves {stray}"
    lost = [n for n in before if after.get(n) != before[n] and not _is_whole(after.get(n, b""))]
    return f"lost {lost}" if lost else None


def _is_whole(content: bytes) -> bool:
    """Whether this is an artifact, a video, or the journal of the runs with every line whole."""
    if content[8:23] == b'{"__metadata__"' or content[4:8] == b"ftyp":
        return True
    try:
        return bool(content) and all(json.loads(line) for line in content.splitlines())
    except ValueError:
        return False


def _wrong_result(result: Result) -> str | None:
    path = Path(result.stdout.strip())
    if path.suffix == ".mp4":
        ffmpeg("-xerror", "-i", path, "-f", "null", "-")
    else:
        verify_artifact(path)
    return None


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


# --- real limits ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of noise, of which no encoder makes less than a megabyte."""
    folder = tmp_path_factory.mktemp("noise")
    raw = np.random.default_rng(0).bytes(17 * 144 * 176 * 3)
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "176x144", "-r", "25", "-i", "-")
    ffmpeg(*source, "-c:v", "libx264", "-qp", "0", folder / "noise.mp4", stdin=raw)
    size = ("--width", 176, "--height", 144, "--max-num-frames", 17)
    result = run("load", folder / "noise.mp4", *size, *TINY_MODEL, "--workspace", folder / "work")
    assert result.exit_code == 0, result.output
    return Path(result.stdout.strip())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No process may write a file larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["load", "export"])
def test_files_may_only_be_so_large(
    name: str, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    size = ("--width", 176, "--height", 144, "--max-num-frames", 17)
    video = noise.parent.parent / "noise.mp4"
    args: tuple[object, ...] = ("export", noise, "--crf", 1, "-o", "out.mp4", "--force")
    if name == "load":
        args = ("load", video, *size, *TINY_MODEL, "-o", "out.safetensors", "--force")
    assert run(*args).exit_code == 0
    before = files(tmp_path)
    (whole,) = (len(content) for content in before.values())
    with score("disk: file size limit") as cases:
        for part in range(0, 20, 1 if SOAK else 5):
            with largest_file(whole * part // 20):
                result = run(*args)
            found = _wrong(result, before, files(tmp_path))
            cases.case(result.exit_code == 7 and found is None, f"{name} {part}/20: {found}")
            cases.case("arge" in result.stderr, f"{name} {part}/20: {result.stderr}")
    assert run(*args).exit_code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("this user may not mount; the file size limit stands in")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["load", "encode", "export"])
def test_full_disk(
    name: str, noise: Path, made: dict[str, Path], small_disk: Path, tmp_path: Path, score: Any
) -> None:
    size = ("--width", 176, "--height", 144, "--max-num-frames", 17)
    video = noise.parent.parent / "noise.mp4"
    args: tuple[object, ...] = ("export", noise, "--crf", 1, "-o", small_disk / "out.mp4")
    if name == "load":
        args = ("load", video, *size, *TINY_MODEL, "--workspace", small_disk / "work")
    if name == "encode":  # its result is small: the disk is full for it only when it is full
        args = ("encode", made["frames"], *TINY_MODEL, "--workspace", small_disk / "work")
    with score("disk: full") as cases:
        for free in (0, 4096, 50_000, 200_000, 600_000):
            if free > {"load": 600_000, "encode": 4096, "export": 200_000}[name]:
                continue
            filler = small_disk / "filler"
            with filler.open("wb") as file:
                try:
                    for _ in range(2**20 // 4096):
                        file.write(bytes(4096))
                        file.flush()
                except OSError:
                    pass
            os.truncate(filler, filler.stat().st_size - free)
            result = run(*args)
            cases.case(result.exit_code == 7, f"{free} free: {result.exit_code} {result.output}")
            cases.case(not result.stdout and "Traceback" not in result.stderr, result.output)
            full = "full" in result.stderr or "No space" in result.stderr
            cases.case(full, f"{free} free: {result.stderr}")
            left = [path.name for path in small_disk.rglob("*") if path.is_file()]
            cases.case(left == ["filler"], f"{free} free: left {left}")
            filler.unlink()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to, by root neither."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("root writes to every folder, and may not mount one that is read-only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_read_only_folder(
    read_only: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    monkeypatch.chdir(read_only)
    load = ("load", made["video"], *CLIP, *TINY_MODEL)
    cases_of: list[tuple[object, ...]] = [
        load,
        (*load, "-o", "x.safetensors"),
        (*load, "-o", read_only / "x.safetensors"),
        (*load, "--workspace", read_only),
        (*load, "--workspace", "a/b/c"),
        ("invert", made["latents"], *TINY_MODEL, "-o", "x.safetensors"),
        ("invert", made["latents"], *TINY_MODEL, "--workspace", "work"),
        ("reconstruct", made["trajectory"], "-p", "x", *TINY_MODEL, "--workspace", "work"),
        ("export", made["frames"], "-o", "x.mp4"),
        ("edit", made["trajectory"], "-p", "x", *TINY_MODEL, "-o", "x.mp4"),
        ("edit", made["trajectory"], "-p", "x", *TINY_MODEL, "-o", "videos"),
        ("edit", made["video"], "-p", "x", *CLIP, *TINY_MODEL, "-o", "videos"),
    ]
    with score("disk: read-only folder") as cases:
        for args in cases_of:
            result = run(*args, "--json")
            said = f"{args}: exit code {result.exit_code}: {result.output} {result.exception!r}"
            cases.case(result.exit_code == 7 and not result.stdout, said)
            cases.case("Traceback" not in result.stderr, said)
    assert not list(read_only.iterdir())


def test_missing_folder(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with score("disk: missing folder") as cases:
        for name, (command, output) in commands(made).items():
            for folder in ("missing", "a;b $(touch owned)", "missing/x", f"{made['video']}/x"):
                result = run(*command, "-o", f"{folder}/{output}")
                said = f"{name} {folder}: {result.exit_code}: {result.output} {result.exception!r}"
                cases.case(result.exit_code == 7 and not result.stdout, said)
                hint = result.stderr.splitlines()[-1]
                quoted = "$(" not in hint or "'a;b $(touch owned)'" in hint
                cases.case(quoted, f"a hint that is no safe command: {hint}")
    assert not list(tmp_path.iterdir())


def test_full_stdout(made: dict[str, Path], tmp_path: Path, score: Any) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    args = ["load", str(made["video"]), *CLIP, *TINY_MODEL, "--workspace", str(tmp_path / "work")]
    assert run(*args).exit_code == 0
    with score("disk: stdout full") as cases:
        for more in ([], ["--json"]):
            process = processes.start([*args, *more], tmp_path, stdout=Path("/dev/full"))
            code, said = processes.finish(process), processes.log(tmp_path)
            cases.case(code == 7 and "Traceback" not in said, f"exit code {code}: {said}")
