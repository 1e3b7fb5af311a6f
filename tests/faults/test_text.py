"""Texts and names as they come: kept to the letter, shown without effect, never run."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
from pathlib import Path
from typing import Any

import processes
import pytest
from corpus import H264, make
from pipelines import TINY_MODEL, tiny_settings
from soak import take_turns
from typer.testing import CliRunner, Result

import cogedit
from cogedit.artifacts import read_record
from cogedit.cli import app

pytestmark = pytest.mark.faults


TEXTS = (
    "[bold red]a bear[/bold red] [link=file:///etc/passwd]x[/link]",
    "\x1b[31ma red bear\x1b[0m \x1b]0;title\x07 \x1b[2J\x1b[H",
    "a bear\nerror: forged\nhint: rm -rf /",
    "a bear\r\x08\x08over\x0b\x0c\x85\u2028\u2029",
    "a bear " * 1430,
    "\u05d3\u05d5\u05d1 \u202e\u2066evil\u2069\u202c \u200f",
    "$(touch owned) `touch owned` ; touch owned | & > owned",
    "{0} {prompt} %s %n \\n \\x1b ${HOME} ~ * ?",
    "'; DROP TABLE edits; --",
    '<script>alert("x")</script>&amp;',
    "-p --prompt --force",
    "../../../etc/passwd",
    "\U0001f43b\u0301\u200d zalgo\u0336",
    "\u718a" * 400,
    "\u2764\ufe0f heart 1\ufe0f\u20e3",
    " ",
    "",
)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def harmless(text: str) -> bool:
    """Whether nothing in it but line ends has an effect on a terminal."""
    return text.replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    video = make(folder / "clip.mp4", *H264)
    flags = {"load.width": 96, "load.height": 64, "load.max_num_frames": 1}
    return cogedit.invert(video, tiny_settings(video, flags)).path


def test_prompts(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = [part for text in TEXTS for part in ("--prompt", text)]
    place = ("--workspace", tmp_path / "work")
    made = run("reconstruct", trajectory, *prompts, *TINY_MODEL, *place, "--json", "-v")
    with score("text: prompt") as cases:
        cases.case(made.exit_code == 0, f"{made.output} {made.exception!r}")
        cases.case(harmless(made.output), f"shows {made.output!r}")
        cases.case(not any(line.startswith("hint: rm") for line in made.output.splitlines()), "")
        paths = [Path(row["path"]) for row in json.loads(made.stdout)["outputs"]]
        for text, path in zip(TEXTS, paths, strict=True):
            cases.case(read_record(path, "edit").settings.prompt == text, f"keeps {text!r:.60}")
            cases.case(path.name.isascii(), f"names {path}")
            shown = run("inspect", path)
            cases.case(shown.exit_code == 0 and harmless(shown.stdout), f"inspects {text!r:.60}")
            forged = [row for row in shown.stdout.splitlines() if row.startswith(("error", "hint"))]
            cases.case(not forged, f"inspects {text!r:.60} over several lines")
            told = json.loads(run("inspect", path, "--json").stdout)
            cases.case(told["record"]["settings"]["prompt"] == text, f"as JSON {text!r:.60}")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_prompts_of_a_whole_edit(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    """Names of the videos are made of prompts, and their recipe is in the videos."""
    monkeypatch.chdir(tmp_path)
    prompts = [part for text in TEXTS for part in ("--prompt", text)]
    made = run("edit", trajectory, *prompts, *TINY_MODEL, "-o", "videos", "--json")
    with score("text: prompt of an edit") as cases:
        cases.case(made.exit_code == 0, f"{made.output} {made.exception!r}")
        cases.case(harmless(made.output), f"shows {made.output!r}")
        for row in json.loads(made.stdout)["outputs"]:
            path = Path(row["path"])
            cases.case(path.parent == Path("videos") and path.is_file(), f"{path}")
            cases.case(re.fullmatch(r"[\w.\u0300-\u036f-]+", path.name) is not None, f"{path!r}")
        cases.case(len(list(Path("videos").glob("*.mp4"))) == len(TEXTS), "a video each")
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_other_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    """Whatever argument is wrong, its text has no effect on the terminal.

    Two texts for each argument, which take turns; in the soak all of them.
    """
    monkeypatch.chdir(tmp_path)
    places: list[list[str]] = [
        ["load", "{}"],
        ["load", "a.mp4", "--width", "{}"],
        ["load", "a.mp4", "--resize-mode", "{}"],
        ["load", "a.mp4", "--{}"],
        ["load", "a.mp4", "--model", "{}"],
        ["load", "a.mp4", "--config", "{}"],
        ["load", "a.mp4", "{}"],
        ["encode", "{}.safetensors"],
        ["export", "{}.safetensors"],
        ["inspect", "{}"],
        ["reconstruct", "{}", "-p", "x", "--mask", "{}"],
        ["reconstruct", "{}", "-p", "x", "--injection-steps", "{}"],
        ["sweep", "{}", "-p", "x", "--vary", "{}={}"],
        ["{}"],
    ]
    with score("text: other argument") as cases:
        for number, place in enumerate(places):
            for text in take_turns(TEXTS[:7], number, 2):
                result = run(*(part.format(*[text] * 2) for part in place))
                said = f"{place} {text!r:.40}: {result.exit_code} {result.output!r:.600}"
                cases.case(result.exit_code in (2, 3, 4, 5, 7), f"{said} {result.exception!r}")
                cases.case(not result.stdout and "Traceback" not in result.stderr, said)
                # The parser draws a frame around its message.
                cases.case(harmless(result.stderr), said)
    assert not list(tmp_path.iterdir())


def test_paths_on_a_terminal(tmp_path: Path, score: Any) -> None:
    """stdout has the bytes of a name for a program, and what is in it for a person."""
    name = "a\x1b[31m\nb"
    make(tmp_path / "plain.mp4", *H264)
    (tmp_path / "plain.mp4").rename(tmp_path / f"{name}.mp4")
    size = ("--width", "96", "--height", "64", "--max-num-frames", "1")
    command = ["load", *size, *TINY_MODEL, "--", f"{name}.mp4"]
    with score("text: path on stdout") as cases:
        cases.case(processes.run(command, tmp_path) == 0, processes.log(tmp_path))
        piped = (tmp_path / processes.OUT).read_bytes()
        found = list(tmp_path.glob("*.cogedit/*.safetensors"))
        expected = os.fsencode(found[0].relative_to(tmp_path)) if found else b""
        cases.case(piped == expected + b"\n", f"{piped!r}")
        ours, theirs = pty.openpty()
        terminal = Path(os.ttyname(theirs))
        process = processes.start(command, tmp_path, stdout=terminal, stderr=terminal)
        cases.case(processes.finish(process) == 0, "on a terminal")
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # what reading a closed terminal gives on Linux
        os.close(ours)
        # On a slow machine cogedit erases a line of its own, of what is being waited for.
        cases.case(b"\x1b[31m" not in shown and b"\\x1b[31m\\nb.cogedit" in shown, f"{shown!r}")


FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load",
    "np.load", "numpy.load", "torch.hub.load",
}  # fmt: skip


BETWEEN_OWN_PROCESSES = {
    "batch_local.py": ["pickle"],
    "batch_ray.py": ["pickle"],
    "messages.py": ["pickle"],
}
"""What processes of one command tell each other, sealed or over pipes; no file, and no text."""


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _findings(tree: ast.AST) -> list[str]:
    """Ways to run what a text or a file says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] * (node.module.split(".")[0] in FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.Call):
            name = _name(node.func)
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            # Without its tensors alone, torch's own format is a pickle.
            is_safe = name == "torch.load" and ast.unparse(node).count("weights_only=True")
            found += [name] * (name in FORBIDDEN_CALLS and not is_safe)
            found += [f"{name}({o})" for o in ("shell", "trust_remote_code") if o in options]
            if name.endswith("from_pretrained") and "use_safetensors" not in options:
                found.append(f"{name} without use_safetensors")
    return found


def test_nothing_runs_what_a_text_or_a_file_says(score: Any) -> None:
    package = Path(cogedit.__file__).parent
    # Configurations, tokenizers and schedulers hold no weights.
    bare = ("Scheduler", "AutoTokenizer", "Tokenizer", "Config")
    with score("text: no shell, pickle or foreign code") as cases:
        for path in sorted(package.rglob("*.py")):
            found = [
                finding
                for finding in _findings(ast.parse(path.read_text()))
                if not any(part in finding for part in bare)
            ]
            allowed = BETWEEN_OWN_PROCESSES.get(path.name, [])
            assert set(allowed) <= set(found), "what is no longer done needs no leave"
            found = [finding for finding in found if finding not in allowed]
            cases.case(not found, f"{path.name}: {found}")
    tree = ast.parse("import pickle\nsubprocess.run(x, shell=True)\neval(x)\nA.from_pretrained(b)")
    assert len(_findings(tree)) == 4
