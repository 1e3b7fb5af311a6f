"""What tests may not do: know the package's private names, or give a busy machine a time limit."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FOREIGN = ("torch.", "typer.", "pipe.", "os._exit", "attention_dispatch.", "storage.")
"""Libraries whose private names a test may need: the package itself relies on some of them."""


NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}
"""Public, whatever their first letter says."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMEDTUPLE


def findings(text: str) -> list[str]:
    """The lines of a test that break a rule."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cogedit"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            own = ast.unparse(node.value) in {"self", "cls"}
            names = [] if own or ast.unparse(node).startswith(FOREIGN) else [node.attr]
        elif isinstance(node, ast.Call):
            # `monkeypatch.setattr(module, "_name")`, `monkeypatch.setattr("cogedit.module._name")`
            is_patch = ast.unparse(node.func).endswith(("setattr", "patch.object", "patch"))
            is_patch &= not (node.args and ast.unparse(node.args[0]).startswith(FOREIGN))
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)] * is_patch
            names = [part for text in texts if isinstance(text, str) for part in text.split(".")]
            is_run = ast.unparse(node.func).startswith("subprocess.")
            limits = [keyword for keyword in node.keywords if keyword.arg == "timeout"]
            found += [f"line {node.lineno}: a time limit"] * bool(is_run and limits)
        else:
            continue
        found += [f"line {node.lineno}: {name}" for name in names if is_private(name)]
    return found


def test_tests_use_public_names_and_no_time_limits():
    found = {
        str(path.relative_to(TESTS)): findings(path.read_text(encoding="utf-8"))
        for path in TESTS.rglob("*.py")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from cogedit.tools.doctor import _disk",
        "from cogedit._private import x",
        "doctor._disk(path)",
        "stop._keeping = True",
        "monkeypatch.setattr(locks, '_try_lock', None)",
        "monkeypatch.setattr('cogedit.media.probe._TIMEOUT', 1)",
        "subprocess.run(['cogedit'], timeout=60)",
    ],
)
def test_a_broken_rule_is_found(line):
    assert len(findings(line)) == 1


@pytest.mark.parametrize(
    "line", ["self._count += 1", "torch._dynamo.reset()", "x.__class__", "queue.get(timeout=1)"]
)
def test_a_kept_rule_is_left_alone(line):
    assert findings(line) == []
