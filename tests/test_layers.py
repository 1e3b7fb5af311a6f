"""Who may import whom, and who owns which library. Imports run one way; see `ROOMS`.

Every import counts: also those inside functions and under TYPE_CHECKING, where a room would merely
name the type of another. That the walk finds what it should is shown on trees with violations.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cogedit

PACKAGE = Path(cogedit.__file__).parent

LEAVES = {"errors", "types", "sources", "progress", "cancellation", "schema", "places", "disk"}
LEAVES |= {"version", "clip_times", "wording", "one_at_a_time", "platforms"}
COMPUTING = {"models", "media", "artifacts", "config", "diffusion"}

ROOMS = {
    "errors": set(),
    "types": {"schema"},
    "sources": {"types", "schema"},
    "progress": set(),
    "cancellation": {"errors"},
    "schema": {"clip_times"},
    "clip_times": set(),
    "wording": set(),
    "places": set(),
    "version": set(),
    "disk": set(),
    "platforms": set(),
    "one_at_a_time": set(),
    "diffusion": {"types", "progress", "errors"},
    "models": {"diffusion", "types", "progress", "wording", "errors", "disk", "one_at_a_time"},
    "media": {"types", "sources", "clip_times", "wording", "errors", "places", "disk"}
    | {"one_at_a_time", "platforms"},
    "artifacts": {"types", "sources", "clip_times", "schema", "errors", "disk"}
    | {"progress", "version"},
    "config": {"types", "schema", "errors", "places"},
    "stages": COMPUTING | LEAVES,
    "tools": {"stages"} | COMPUTING | LEAVES,
    # The command line shows records and finds the newest trajectory; neither is a stage. What it
    # may take from `artifacts` is narrowed below: nothing with tensors.
    "cli": {"tools", "stages", "config", "artifacts"} | LEAVES,
    # Weights, and the function that says where they lie.
    "shapes": set(),
    # Not in the wheel; nothing imports it. The row "upstream" of the speed table is that script.
    "lab": {"shapes", "stages", "tools", "ddim_inversion"} | COMPUTING | LEAVES,
    # Faces over the rooms.
    "ddim_inversion": {"models", "media", "diffusion", "types", "progress", "errors"},
    "__init__": {"stages", "tools", "errors", "version"},
    "__main__": {"cli"},
}
"""Room: the rooms of the package that it may import."""

OWNERS = {
    "diffusers": {"models", "lab"},
    "transformers": {"models", "lab"},
    "huggingface_hub": {"models"},
    "safetensors": {"models"},
    "decord": {"media"},
    "imageio_ffmpeg": {"media"},
    "typer": {"cli"},
    "rich": {"cli", "lab"},
    "tomllib": {"config"},
    "jinja2": {"tools"},
    "ray": {"tools"},
}
"""Library: the rooms that may import it."""

TYPES_ONLY = {("ddim_inversion", "diffusers"), ("stages", "diffusers")}
"""Rooms that hand another room's objects on, and name their types under TYPE_CHECKING."""

NO_TORCH = {"errors", "types", "version", "config", "cli"}
"""Rooms that compute nothing."""

TENSOR_FUNCTIONS = {"read_artifact", "write_artifact", "atomic_write", "Artifact"}
"""What the command line leaves to the stages."""

DIFFUSION_LIBRARIES = {
    "__future__",
    "collections",
    "dataclasses",
    "itertools",
    "math",
    "torch",
    "typing",
}
"""All that the mathematics may import: no file, no clock, no other random generator."""

DRAWS = {"randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial"}
DRAWS |= {"randn_like", "rand_like", "randint_like"}
OUTSIDE = {"print", "open", "input", "exec", "eval"}
TORCH_OUTSIDE = {"save", "load", "manual_seed", "seed", "set_rng_state", "set_default_dtype"}


@dataclass(frozen=True)
class Import:
    """One import of one module."""

    room: str
    file: str
    line: int
    target: str
    names: frozenset[str]
    for_types: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.room}) imports {self.target}"


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by dotted name, without the package's own."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def room_of(module: str) -> str:
    """The row of `ROOMS` that a module stands in."""
    return module if module in ROOMS else module.partition(".")[0]


def imports(package: Path) -> Iterator[Import]:
    """All imports of a package, wherever they stand."""
    known = modules(package)
    for module, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typed = {
            id(node)
            for test in ast.walk(tree)
            if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
            for statement in test.body
            for node in ast.walk(statement)
        }
        here = [package.name, *module.split(".")]
        parent = here if path.name == "__init__.py" and module != "__init__" else here[:-1]
        for node in ast.walk(tree):
            for target, names in _targets(node, parent, known):
                yield Import(
                    room=room_of(module),
                    file=path.relative_to(package.parent).as_posix(),
                    line=node.lineno,  # type: ignore[attr-defined]
                    target=target,
                    names=frozenset(names),
                    for_types=id(node) in typed,
                )


def _targets(
    node: ast.AST, parent: list[str], known: dict[str, Path]
) -> Iterator[tuple[str, list[str]]]:
    """The modules that one statement or call imports, and the names that it takes."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, []
    elif isinstance(node, ast.ImportFrom):
        base = parent[: len(parent) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{module}.{alias.name}"
            is_module = inner.partition(".")[2] in known
            yield (inner, []) if is_module else (module, [alias.name])
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__")
    ):
        constant = node.args[0] if node.args else None
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
            yield constant.value, []


def violations(package: Path) -> list[str]:
    """Every import that the tables forbid."""
    found = [f"{m} stands in no room" for m in modules(package) if room_of(m) not in ROOMS]
    for item in imports(package):
        top, _, rest = item.target.partition(".")
        if top == package.name:
            found += _inside(item, room_of(rest or "__init__"))
        else:
            found += _outside(item, top)
    return found


def _inside(item: Import, target: str) -> list[str]:
    own = {item.room, item.room.partition(".")[0]}
    if target not in own | ROOMS.get(item.room, set()):
        return [str(item)]
    if item.room == "cli" and target == "artifacts" and item.names & TENSOR_FUNCTIONS:
        return [f"{item}: {', '.join(sorted(item.names))} is for the stages"]
    return []


def _outside(item: Import, top: str) -> list[str]:
    if item.room == "diffusion" and top not in DIFFUSION_LIBRARIES:
        return [str(item)]
    if item.room in NO_TORCH and top == "torch":
        return [str(item)]
    allowed = OWNERS.get(top)
    if allowed is None or item.room.partition(".")[0] in allowed:
        return []
    return [] if item.for_types and (item.room, top) in TYPES_ONLY else [str(item)]


def effects(package: Path) -> list[str]:
    """What `diffusion` does besides tensors in, tensors out."""
    found = []
    for path in sorted((package / "diffusion").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            reason = _effect(node)
            if reason is not None:
                line = node.lineno  # type: ignore[attr-defined]
                found.append(f"{path.name}:{line} {reason}")
    return found


def _effect(node: ast.AST) -> str | None:
    if isinstance(node, ast.Global | ast.Nonlocal):
        return "changes a variable of another scope"
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AugAssign):
        targets = [node.target]
    if any(isinstance(target, ast.Subscript | ast.Attribute) for target in targets):
        return f"changes {ast.unparse(targets[0])} in place"
    if not isinstance(node, ast.Call):
        return None
    name, last = ast.unparse(node.func), ast.unparse(node.func).rpartition(".")[2]
    if name in OUTSIDE or name in {f"torch.{call}" for call in TORCH_OUTSIDE}:
        return f"calls {name}"
    if last in DRAWS and "generator" not in {keyword.arg for keyword in node.keywords}:
        return f"calls {name} without a generator"
    if last.endswith("_") and not last.endswith("__"):
        return f"calls {name}, which changes a tensor in place"
    return None


def test_imports_run_one_way():
    assert violations(PACKAGE) == []


def test_diffusion_is_tensors_in_tensors_out():
    assert effects(PACKAGE) == []


def test_the_walk_sees_the_package():
    """An empty walk would find no violation either."""
    seen = {(item.room, room_of(item.target.partition(".")[2])) for item in imports(PACKAGE)}
    expected = {
        ("cli", "stages"),
        ("stages", "models"),
        ("stages", "diffusion"),
        ("models", "diffusion"),
        ("diffusion", "types"),
        ("artifacts", "errors"),
        ("__init__", "stages"),
        ("__main__", "cli"),
        ("ddim_inversion", "models"),
    }
    assert expected <= seen


def tree(folder, files):
    """Write a package of the same shape with some files of its own."""
    package = folder / "cogedit"
    for name in ("__init__.py", "errors.py", "types.py", "diffusion/__init__.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


LATE = "def f():\n    {}\n"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("errors.py", "from cogedit.types import Kind"),  # up
        ("diffusion/ddim.py", "from cogedit.models import x"),
        ("diffusion/ddim.py", LATE.format("import cogedit.models.vae")),
        ("models/vae.py", TYPED.format("from cogedit.stages import Run")),
        ("models/vae.py", "from cogedit import media"),
        ("media/reader.py", "from cogedit.artifacts import read_record"),  # sideways
        ("media/reader.py", "from ..artifacts import read_record"),
        ("media/__init__.py", "from ..artifacts.store import read_record"),
        ("config.py", LATE.format("from . import models")),
        ("artifacts/store.py", "import cogedit"),  # the face
        ("stages/run.py", "from cogedit.cli.screen import Screen"),
        ("cli/app.py", "from cogedit.models.device import DTYPES"),
        ("cli/show.py", "from cogedit.artifacts import read_artifact"),
        ("shapes/__init__.py", "from cogedit.stages import edit"),
        ("helpers.py", "pass"),  # no such room
        ("stages/load.py", LATE.format("import diffusers")),
        ("stages/load.py", TYPED.format("import transformers")),
        ("ddim_inversion.py", "from diffusers import CogVideoXPipeline"),
        ("stages/load.py", "from safetensors.torch import load_file"),
        ("models/loading.py", "import importlib\nimportlib.import_module('decord')"),
        ("media/reader.py", "import rich.progress"),
        ("cli/app.py", LATE.format("import torch")),
        ("diffusion/ddim.py", "import numpy as np"),
        ("diffusion/ddim.py", TYPED.format("from diffusers import CogVideoXDDIMScheduler")),
        ("diffusion/ddim.py", "from pathlib import Path"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, text):
    found = violations(tree(tmp_path, {"models/__init__.py": "", file: text}))
    assert len(found) == 1, found
    assert file.removesuffix(".py") in found[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cli/app.py", "import typer\nfrom cogedit.stages import edit\nfrom .show import describe"),
        ("cli/show.py", "from cogedit.artifacts import read_record"),
        ("stages/edit.py", TYPED.format("from diffusers import CogVideoXTransformer3DModel")),
        ("models/vae.py", LATE.format("from diffusers.models.embeddings import x")),
        ("models/vae.py", "from . import rotary"),
        ("lab/demo.py", "from cogedit.stages import edit\nfrom cogedit.shapes import model_dir"),
        ("ddim_inversion.py", "from cogedit.models.vae import encode_frames"),
    ],
)
def test_an_allowed_import_is_left_alone(tmp_path, file, text):
    assert violations(tree(tmp_path, {file: text})) == []


@pytest.mark.parametrize(
    "line",
    [
        "print(x)",
        "open('x')",
        "torch.manual_seed(0)",
        "torch.save(x, 'x')",
        "torch.randn(3)",
        "torch.randn_like(x)",
        "x.normal_()",
        "x.add_(1)",
        "x[0] = 1",
        "x[0] += 1",
        "self.x = 1",
        "global x",
    ],
)
def test_an_effect_is_found(tmp_path, line):
    package = tree(tmp_path, {"diffusion/ddim.py": f"def f(x):\n    {line}\n"})
    assert len(effects(package)) == 1


@pytest.mark.parametrize(
    "line",
    ["torch.randn(3, generator=g)", "torch.Generator().manual_seed(0)", "y = x + 1", "n += 1"],
)
def test_a_pure_line_is_left_alone(tmp_path, line):
    assert effects(tree(tmp_path, {"diffusion/ddim.py": f"def f(x):\n    {line}\n"})) == []


def test_libraries_of_the_table_are_libraries():
    """A misspelt name in `OWNERS` would guard nothing."""
    used = {item.target.partition(".")[0] for item in imports(PACKAGE)}
    assert set(OWNERS) <= used
    assert not set(OWNERS) & (sys.stdlib_module_names - {"tomllib"})
