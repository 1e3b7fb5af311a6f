"""LoRA adapters: what a file holds, whether it fits a transformer, and its sum with the weights.

A LoRA turns a matrix W into W + scale * (alpha / rank) * B A, with A of shape [rank, in] and B of
shape [out, rank] (Hu et al., arXiv 2106.09685, section 4.1). The sum is taken once, when the
transformer is loaded, so that what runs afterwards is a plain transformer. No torch until then.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cogedit.errors import ModelError
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.folder import FolderState, state_of_file
from cogedit.models.names import name_in_diffusers, without_prefix
from cogedit.models.single_file import kinds_in, read_weights
from cogedit.models.weights import WeightFile
from cogedit.types import LoraFile

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel
    from torch import Tensor

    _Read = Callable[[Path, str], Tensor]

_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "pipe.dit.", "transformer.")
"""What programs put before a module's name: PEFT, ComfyUI, DiffSynth, diffusers."""
_FLAT = re.compile(r"lora_(unet|transformer)__?")
"""The same of kohya's and CogVideoX-Fun's, which write the name with underscores for dots."""
_MATRIX = re.compile(r"(.+)\.lora_(A|B|down|up)(?:\.[^.]+)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")

_OTHERS = (
    (r"\.dora_scale|lora_magnitude_vector", "is a DoRA, which also scales columns"),
    (r"\.hada_", "is a LoHa, with Hadamard products"),
    (r"\.lokr_", "is a LoKr, with Kronecker products"),
    (r"^lora_te|^text_encoder", "also changes the text encoder"),
)
"""Names of tensors, and what a file with them is."""

_RANK_OF_SCRIPTS, _ALPHA_OF_SCRIPTS = 128, 64
"""Least rank and alpha of CogVideo's own training scripts, which write neither: `finetune/schemas`;
its SAT scripts have rank 128 or 256 and alpha 1 (`tools/load_cogvideox_lora.py`)."""

_NUMBERS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I32", "I64"}  # alpha may be whole

_REPEATED_GROUP, _REPETITION = re.compile(r"\)[*+{]"), re.compile(r"[*+{]")
"""In a pattern of module names, one of the former or many of the latter may take for ever."""

_MERGE = "merge it with the program that it is for, and give the transformer as --transformer FILE"


class _Config(msgspec.Struct):
    """What PEFT says of an adapter beside its matrices, as far as it changes the sum."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False

    def alpha_of(self, module: str) -> float | None:
        """Return the alpha of a module: the first pattern's that its name ends with."""
        for pattern, alpha in self.alpha_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return alpha
        return self.lora_alpha


@dataclass(frozen=True)
class _Update:
    """The change of one matrix: names in the file, and sizes."""

    down: str
    up: str
    alpha: str | None
    rank: int
    shape: tuple[int, int]  # of B A, convolution kernels flattened


@dataclass(frozen=True)
class Lora:
    """A LoRA in a file.

    Attributes:
        path: The file.
        digest: sha256 over its names and shapes, a sample of its matrices, and what is said of
            alpha beside it, in hex.
        updates: The changes, by the name of the module as the file has it.
        config: What PEFT says of it.
    """

    path: Path
    digest: str
    updates: Mapping[str, _Update]
    config: _Config

    @property
    def ranks(self) -> tuple[int, int]:
        """Its least and its largest rank."""
        ranks = [update.rank for update in self.updates.values()]
        return min(ranks), max(ranks)

    def fit(self, checkpoint: Checkpoint) -> dict[str, _Update]:
        """Find the weight of each change, by its name in the transformer.

        Raises:
            ModelError: The transformer has no such matrix, or one of another shape.
        """
        key = self.digest, checkpoint.digest
        if key in _fitting:
            return _fitting[key]
        weights = {
            name.removesuffix(".weight"): stored.shape
            for name, stored in checkpoint.transformer_tensors.items()
            if name.endswith(".weight") and len(stored.shape) > 1
        }
        flat = {name.replace(".", "_"): name for name in weights}
        found: dict[str, _Update] = {}
        for module, update in self.updates.items():
            name = flat.get(module, module)
            name = name if name in weights else name_in_diffusers(name)
            if name not in weights:
                raise _misfit(
                    self.path,
                    f"changes {module} {list(update.shape)}, which {checkpoint.id} does not have",
                )
            out, *into = weights[name]
            if update.shape != (out, math.prod(into)):
                raise _misfit(
                    self.path,
                    f"changes {name} by a matrix {list(update.shape)}; that of {checkpoint.id} is "
                    f"{[out, math.prod(into)]}",
                )
            if f"{name}.weight" in found:
                raise _refused(self.path, f"changes {name} twice")
            found[f"{name}.weight"] = update
        _fitting[key] = found
        return found


_fitting: dict[tuple[str, str], dict[str, _Update]] = {}
"""Changes by weight, of the LoRAs and transformers that this process has found to fit."""

_known: dict[tuple[FolderState, Path], Lora] = {}
"""LoRAs that this process has read, by the state of their files."""


def find_lora(path: Path) -> Lora:
    """Read what a LoRA changes; its matrices stay on disk.

    Raises:
        ModelError: It is no LoRA of a CogVideoX transformer in safetensors; says what it is.
        StorageError: It cannot be read.
    """
    beside = path.parent / "adapter_config.json"
    key = (state_of_file(path), state_of_file(beside)), path
    if key not in _known:
        _known[key] = _read(path, beside)
    return _known[key]


def _read(path: Path, beside: Path) -> Lora:
    weights = read_weights(path, partial(_refused, path), hint=_named_in(path))
    names = [*weights.shapes]
    for pattern, kind in _OTHERS:
        other = next((name for name in names if re.search(pattern, name)), None)
        if other is not None:
            raise _refused(path, f"{kind} ({other})", hint=_MERGE)
    if not any(_MATRIX.fullmatch(name) for name in names):
        part = next(iter(kinds_in(without_prefix(names))), None)
        found = "holds another model, or none" if part is None else f"holds {part} weights"
        hint = (
            f"give it as --{part} {shlex.quote(str(path))}"
            if part in ("transformer", "vae")
            else None
        )
        raise _refused(path, found, hint=hint)
    if others := sorted(set(weights.dtypes) - _NUMBERS):
        raise _refused(path, f"holds numbers in {others[0]}, which are not read")
    config = _config_of(path, weights, beside)
    if config.use_dora:
        raise _refused(path, "is a DoRA, which also scales columns", hint=_MERGE)
    digest = hashlib.sha256()
    for sample in weights.sample():
        digest.update(sample)
    digest.update(msgspec.json.encode(config))
    return Lora(path, digest.hexdigest(), _updates(path, weights.shapes), config)


def _updates(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Update]:
    """Pair the matrices of a file by module."""
    parts: dict[str, dict[str, str]] = {}
    for name in shapes:
        matrix, alpha = _MATRIX.fullmatch(name), _ALPHA.fullmatch(name)
        found = matrix or alpha
        if found is None:
            raise _refused(path, f"changes more than matrices ({name})", hint=_MERGE)
        part = "alpha" if matrix is None else {"A": "down", "B": "up"}.get(matrix[2], matrix[2])
        if parts.setdefault(_bare(found[1]), {}).setdefault(part, name) != name:
            raise _refused(path, f"holds several adapters ({name} is of the second)")
    updates: dict[str, _Update] = {}
    for module, named in parts.items():
        if not {"down", "up"} <= named.keys():
            raise _refused(path, f"is incomplete: {module} has one matrix of two")
        down, up = shapes[named["down"]], shapes[named["up"]]
        if len(down) < 2 or len(up) < 2 or down[0] != up[1] or math.prod(up[2:]) != 1:
            raise _refused(path, f"has matrices {list(up)} and {list(down)} for {module}")
        if "alpha" in named and math.prod(shapes[named["alpha"]]) != 1:
            raise _refused(path, f"has an alpha {list(shapes[named['alpha']])} for {module}")
        shape = up[0], math.prod(down[1:])
        updates[module] = _Update(named["down"], named["up"], named.get("alpha"), down[0], shape)
    return updates


def _bare(module: str) -> str:
    """Return a module's name without what programs put before it."""
    flat = _FLAT.match(module)
    if flat is not None:
        return module[flat.end() :]
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return module


def _config_of(path: Path, weights: WeightFile, beside: Path) -> _Config:
    """Read alpha from the file's metadata or, for PEFT's own files, from the file beside it."""
    said = weights.metadata
    found: dict[str, Any] = {}
    try:
        if "lora_adapter_metadata" in said:
            found = json.loads(said["lora_adapter_metadata"])
        elif "lora_alpha" in said:
            found = {"lora_alpha": said["lora_alpha"]}
        elif beside.is_file() and any(name.startswith(_PREFIXES[0]) for name in weights.shapes):
            found = json.loads(beside.read_bytes())
        found = {key.removeprefix("transformer."): value for key, value in found.items()}
        config = msgspec.convert(found, _Config, strict=False)
        for pattern in config.alpha_pattern:
            re.compile(pattern)
            if _REPEATED_GROUP.search(pattern) or len(_REPETITION.findall(pattern)) > 3:
                raise ValueError(f"the pattern {pattern} repeats too much")
        if not all(map(math.isfinite, (*config.alpha_pattern.values(), config.lora_alpha or 0.0))):
            raise ValueError("alpha is not finite")
        return config
    except (ValueError, AttributeError, OSError, RecursionError, re.error) as error:
        raise _refused(path, f"says of itself what cannot be read: {error}") from error


def _named_in(path: Path) -> str:
    """Return what mends the name of a file that is not there, or of a folder."""
    name, colon, scale = str(path).rpartition(":")
    if colon and Path(name).is_file():
        return f"a scale is a decimal number, as in --lora {shlex.quote(name)}:0.5; found {scale}"
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    file = shlex.quote(str(files[0])) if files else "FILE.safetensors"
    return f"name the file: --lora {file}"


def _refused(path: Path, found: str, *, hint: str | None = None) -> ModelError:
    return ModelError(
        f"{path} {found}; expected a LoRA of a CogVideoX transformer in one safetensors file",
        hint=hint or "leave it out, or name another file",
    )


def _misfit(path: Path, found: str) -> ModelError:
    hint = "name the model that it was trained on with --model, or leave it out"
    return ModelError(f"{path} is a LoRA of another model: it {found}", hint=hint)


def fuse_loras(
    transformer: CogVideoXTransformer3DModel, checkpoint: Checkpoint, loras: Sequence[LoraFile]
) -> list[str]:
    """Add LoRAs to the weights of a transformer that was just loaded, in the order given.

    Each sum starts from the weight as its file has it and is taken in float32, then rounded once to
    the transformer's dtype.

    Returns:
        A sentence for each LoRA, without full stop: how much of it is added; none for one that has
        no alpha and a scale of its own.

    Raises:
        ModelError: One of them is for another model.
    """
    import torch

    changes: dict[str, list[tuple[Lora, _Update, float]]] = {}
    notes: list[str] = []
    with _reading() as read, torch.no_grad():
        for file in loras:
            lora = find_lora(file.path)
            updates = lora.fit(checkpoint)
            given = {name: _strength(lora, name, update, read) for name, update in updates.items()}
            for name, update in updates.items():
                strength = given[name]
                scale = file.scale * (1.0 if strength is None else strength)
                changes.setdefault(name, []).append((lora, update, scale))
            notes += _note(file, lora, [one for one in given.values() if one is not None])
        for name, some in changes.items():
            stored = checkpoint.transformer_tensors[name]
            weight = read(stored.file, stored.name).float()
            for lora, update, scale in some:
                up, down = (
                    read(lora.path, part).float().flatten(1) for part in (update.up, update.down)
                )
                weight += (up @ down * scale).reshape(weight.shape)
            transformer.get_parameter(name).copy_(weight)
    return notes


def _strength(lora: Lora, name: str, update: _Update, read: _Read) -> float | None:
    """Return alpha / rank of a change, or None where no alpha is given."""
    if update.alpha is not None:
        alpha: float | None = float(read(lora.path, update.alpha))
    else:
        alpha = lora.config.alpha_of(name.removesuffix(".weight"))
    if alpha is None:
        return None
    if not math.isfinite(alpha):
        raise _refused(lora.path, f"has alpha {alpha:g} for {name}")
    return alpha / (math.sqrt(update.rank) if lora.config.use_rslora else update.rank)


def _note(file: LoraFile, lora: Lora, strengths: Sequence[float]) -> list[str]:
    """Say how much of a LoRA is added, where that is more than what the user said."""
    if not strengths:
        return [] if file.scale != 1 else [_unscaled(file.path.name, max(lora.ranks))]
    least, most = min(strengths), max(strengths)
    own, all_of_it = (
        f"{low:g}" if low == high else f"{low:g} to {high:g}"
        for low, high in ((least, most), (file.scale * least, file.scale * most))
    )
    return [f"{file.path.name} is added {all_of_it} times: {file.scale:g} x alpha / rank, {own}"]


def _unscaled(name: str, rank: int) -> str:
    """Say that a LoRA without alpha is added whole; those of CogVideo's scripts need less."""
    text = f"{name} has no alpha and is added whole, as with an alpha of its rank, {rank}"
    if rank < _RANK_OF_SCRIPTS:
        return text
    return (
        f"{text}; one that CogVideo's scripts made needs {name}:{_ALPHA_OF_SCRIPTS / rank:.2g}, or "
        f":{1 / rank:.2g} from SAT"
    )


@contextmanager
def _reading() -> Iterator[_Read]:
    """Read tensors by file and name; each file is opened once."""
    from safetensors import safe_open

    opened: dict[Path, Any] = {}
    with ExitStack() as stack:

        def read(file: Path, name: str) -> Tensor:
            if file not in opened:
                opened[file] = stack.enter_context(safe_open(file, framework="pt"))
            tensor: Tensor = opened[file].get_tensor(name)
            return tensor

        yield read
