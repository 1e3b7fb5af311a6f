"""doctor: what this machine has, and what an edit on it lacks."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast, get_args

from cogedit.artifacts import DeviceType, show_size
from cogedit.config import Settings, preset_for_model
from cogedit.disk import nearest_folder
from cogedit.errors import (
    CogeditError,
    ConfigError,
    DeviceMemoryError,
    ModelError,
    StorageError,
    UsageError,
    first_line,
)
from cogedit.media.ffmpeg import examine_ffmpeg
from cogedit.media.probe import decord_version
from cogedit.models.checkpoint import EMBEDDED, find_checkpoint
from cogedit.models.hardware import unused_gpus
from cogedit.models.hub import hub_cache
from cogedit.models.lora import find_lora
from cogedit.models.quiet import quiet_imports
from cogedit.models.single_file import Files
from cogedit.models.vae_cost import ON_CUDA, Direction
from cogedit.stages.model import suitable_dtype
from cogedit.stages.settings import known_models, model_of_machine
from cogedit.tools.memory_table import PresetMemory, memory_of_presets
from cogedit.types import DType, LoraFile
from cogedit.wording import LESS_CLIP

LIBRARIES = {
    "torch": "torch",
    "numpy": "numpy",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface-hub",
    "PIL": "pillow",
}
"""Libraries that every edit needs: import name and package. Others import torch: it comes first."""

MIN_FREE_BYTES = 1_000_000_000
"""Less free disk than this is a problem: the artifacts of one edit take up to half of it."""

_WEIGHTED = {
    "cpu": "torch's kernel for CPUs",
    "cudnn": "torch chooses the kernel; cuDNN's for an injection strength other than 1",
    "flash": "torch chooses the kernel; FlashAttention's for an injection strength other than 1",
    "efficient": "torch chooses the kernel; the memory-efficient one for an injection strength "
    "other than 1",
    "by hand": "cogedit's own in float32, some queries at a time: torch's holds all logits at once",
}
"""What attends on a device, by the kernel that gives it log-sum-exps (`native_lse`)."""

_LAZY_CLASSES = {"diffusers": "CogVideoXTransformer3DModel", "transformers": "T5EncoderModel"}
"""These libraries load only when a class is requested, and then need torch."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked, such as "torch".
        found: What was found, for people.
        problem: What keeps an edit from running; None if nothing does.
        hint: The command that mends the problem, or fetches what is missing.
        exit_code: The code that an edit would end with; 0 without a problem.
    """

    name: str
    found: str
    problem: str | None = None
    hint: str | None = None
    exit_code: int = 0

    @classmethod
    def of_error(cls, name: str, found: str, error: CogeditError) -> Finding:
        """Describe a problem by the error that an edit would end with."""
        return cls(name, found, error.message, error.hint, error.exit_code)


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks.

    Attributes:
        model: The model that the edit would use.
        findings: About the machine and that model, in the order in which an edit needs them.
        models: About the other known models, which this edit does not need.
        presets: Which presets fit into the memory of the device.
    """

    model: str
    findings: tuple[Finding, ...]
    models: tuple[Finding, ...]
    presets: tuple[Finding, ...] = ()

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What keeps an edit from running."""
        return tuple(finding for finding in self.findings if finding.problem is not None)

    @property
    def exit_code(self) -> int:
        """The code that the edit would end with: that of the first problem, or 0."""
        return next((finding.exit_code for finding in self.problems), 0)


@dataclass(frozen=True)
class Device:
    """A device that torch can compute on ("cuda:0", "mps", "cpu"), its hardware and memory."""

    name: str
    label: str
    total_bytes: int
    free_bytes: int


def diagnose(settings: Settings) -> Diagnosis:
    """Check everything that an edit with these settings needs, without running one.

    Nothing is downloaded, and problems are returned, not raised.

    Args:
        settings: `model`, `revision`, `device` and `workspace`.
    """
    model = model_of_machine() if settings.model == "auto" else settings.model
    libraries = check_libraries()
    broken = {finding.name for finding in libraries if finding.problem is not None}
    devices = [] if "torch" in broken else list(torch_devices())
    decord = decord_version()
    findings = [
        Finding("python", f"{platform.python_version()}, {platform.platform(terse=True)}"),
        *libraries,
        *check_devices(devices, settings.device),
        check_ffmpeg(),
        Finding("decord", decord or "not installed: ffmpeg reads every video, some more slowly"),
        check_disk(settings.workspace or Path()),
    ]
    device = device_for(devices, settings.device)
    if device is not None:
        findings += describe_computing(device.name, _dtype_of(settings, model, device, broken))
    presets = () if device is None else tuple(fit(need, device) for need in memory_of_presets())
    if broken & {"numpy", "huggingface_hub"}:  # models cannot be looked for without these
        return Diagnosis(model, tuple(findings), (), presets)
    cache = hub_cache()
    free = shutil.disk_usage(nearest_folder(cache)).free
    findings.append(Finding("cache", f"{show_size(free)} free in {cache}"))
    findings.append(check_model(model, settings.revision, settings.files))
    findings += [check_lora(file, model, settings) for file in settings.loras]
    others = tuple(check_model(name, None) for name in known_models() if name != model)
    own_preset = f"preset {preset_for_model(model)}"
    findings += [replace(preset, name="memory") for preset in presets if preset.name == own_preset]
    return Diagnosis(model, tuple(findings), others, presets)


def _dtype_of(settings: Settings, model: str, device: Device, broken: AbstractSet[str]) -> DType:
    """Return the number format of the edit; of a model that is not here that of CogVideoX-5B."""
    kind = cast("DeviceType", device.name.partition(":")[0])
    if settings.dtype is not None:
        return settings.dtype
    with contextlib.suppress(ModelError, StorageError):
        if not broken & {"numpy", "huggingface_hub"}:
            found = find_checkpoint(model, settings.revision, files=settings.files, download=False)
            return suitable_dtype(found, kind)
    return "fp32" if kind == "cpu" else "bf16"


def check_libraries() -> list[Finding]:
    """Import every library. A broken one raises anything, and may print to stdout."""
    with contextlib.redirect_stdout(sys.stderr), quiet_imports():
        first, *others = LIBRARIES
        torch = _library(first)
        works = torch.problem is None
        return [torch, *(_library(n, imports=works or n not in _LAZY_CLASSES) for n in others)]


def _library(name: str, *, imports: bool = True) -> Finding:
    package = LIBRARIES[name]
    try:
        installed, fix = version(package), f"pip install --force-reinstall {package}"
    except PackageNotFoundError:
        installed, fix = "not installed", f"pip install {package}"
    try:
        if imports or installed == "not installed":
            module = importlib.import_module(name)
            getattr(module, _LAZY_CLASSES.get(name, "__name__"))
    except Exception as error:  # noqa: BLE001 - a broken library raises anything
        problem = f"{name} cannot be imported: {type(error).__name__}: {first_line(error)}"
        return Finding.of_error(name, installed, ConfigError(problem, hint=fix))
    return Finding(name, installed)


def torch_devices() -> Iterator[Device]:
    """Yield the devices in the order in which `--device auto` takes them, the CPU last."""
    import psutil
    import torch

    from cogedit.models.placement import free_memory

    for index in range(torch.cuda.device_count()):
        label, free, total = torch.cuda.get_device_name(index), 0, 0
        try:
            free, total = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # another process has it to itself, or its driver is broken
            label += f" ({first_line(error)})"
        yield Device(f"cuda:{index}", label, total, free)
    total, free = int(psutil.virtual_memory().total), free_memory(torch.device("cpu"))
    if torch.backends.mps.is_available():
        yield Device("mps", platform.processor() or "Apple", total, free)
    threads = torch.get_num_threads()
    yield Device("cpu", f"{threads} thread{'' if threads == 1 else 's'}", total, free)


def check_devices(devices: Sequence[Device], wanted: str) -> Iterator[Finding]:
    """List the devices, and check that the requested one is among them."""
    for device in devices:
        free = f"{show_size(device.free_bytes)} of {show_size(device.total_bytes)} free"
        yield Finding(device.name, f"{device.label}, {free}")
    unused = unused_gpus() if wanted.partition(":")[0] in ("auto", "cuda") else None
    if unused is not None:
        yield Finding.of_error("GPU", "not used", unused)
    elif devices and device_for(devices, wanted) is None:
        names = ", ".join(device.name for device in devices)
        error = UsageError(
            f"device {wanted} not found; torch ({version('torch')}) finds {names}",
            hint="choose another --device, or --device auto",
        )
        yield Finding.of_error("device", wanted, error)


def describe_computing(device: str, dtype: DType) -> Iterator[Finding]:
    """Say which number format and attention an edit has on a device, and what is not there."""
    import torch

    from cogedit.models.device import DTYPES
    from cogedit.models.kernels import native_lse

    yield Finding("dtype", dtype if dtype != "fp32" else "fp32; --dtype bf16 takes half the memory")
    with contextlib.suppress(RuntimeError):  # a GPU that `torch_devices` could not ask either
        kernel = native_lse(torch.device(device), DTYPES[dtype])
        yield Finding("attention", _WEIGHTED[kernel])
    if device.startswith("cuda"):
        yield Finding("VAE memory", ON_CUDA)
    if device == "mps":
        yield Finding(
            "not on mps",
            "--weights fp8, --offload and --attention-backend; --compile is as early as torch's "
            "compiler for Metal",
        )


def device_for(devices: Sequence[Device], wanted: str) -> Device | None:
    """Return the device that `--device` means; None if it does not exist."""
    if wanted == "auto":
        return next(iter(devices), None)
    name = "cuda:0" if wanted == "cuda" else wanted
    return next((device for device in devices if device.name == name), None)


def fit(need: PresetMemory, device: Device) -> Finding:
    """Check that a device has the memory for an edit under a preset."""
    load, name = need.settings.load, f"preset {need.preset}"
    clip = f"{load.max_num_frames} frames of {load.width}x{load.height}"
    least, how, even = need.resident_bytes, "fits", ""
    if least > device.free_bytes and device.name.startswith("cuda"):
        least, how = need.offloaded_bytes, "fits block by block (--offload group)"
        even = " even block by block"
    if least > device.free_bytes:
        error = DeviceMemoryError(
            f"{device.name} has {show_size(device.free_bytes)} free; an edit with "
            f"{need.settings.model} takes about {show_size(least)}{even}",
            hint=f"use --weights int8, {LESS_CLIP}",
        )
        found = f"does not fit: about {show_size(need.resident_bytes)} for {clip}"
        return Finding.of_error(name, found, error)
    try:
        vae = describe_vae(need, device)
    except DeviceMemoryError as too_much:
        return Finding.of_error(name, f"does not fit as it is: the VAE, for {clip}", too_much)
    return Finding(name, f"{how}: about {show_size(least)} for {clip}; VAE: {vae}")


def describe_vae(need: PresetMemory, device: Device) -> str:
    """Say how the VAE of a preset runs on a device; DeviceMemoryError if it does not fit."""
    from cogedit.models.placement import RESERVE

    usable = int(device.free_bytes * (1 - RESERVE))
    kind = device.name.partition(":")[0]
    plans = {how: need.plan_vae(how, usable, kind) for how in get_args(Direction)}
    return ", ".join(
        f"{how} {plan.way} ({show_size(plan.num_bytes)})" for how, plan in plans.items()
    )


def check_ffmpeg() -> Finding:
    """Check that ffmpeg runs and writes H.264."""
    try:
        return Finding("ffmpeg", examine_ffmpeg())
    except ConfigError as error:
        return Finding.of_error("ffmpeg", "not usable", error)


def check_disk(workspace: Path) -> Finding:
    """Check that artifacts can be written to a workspace."""
    folder = nearest_folder(workspace)
    free = shutil.disk_usage(folder).free
    found = f"{show_size(free)} free in {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding.of_error("disk", found, StorageError(f"no permission to write in {folder}"))
    if free < MIN_FREE_BYTES:
        error = StorageError(
            f"{folder} has {show_size(free)} free, expected {show_size(MIN_FREE_BYTES)} or more",
            hint="make room, or choose another --workspace",
        )
        return Finding.of_error("disk", found, error)
    return Finding("disk", found)


def check_model(model: str, revision: str | None, files: Files = ()) -> Finding:
    """Check that the files of a model are complete; the hint of a missing one fetches it."""
    name = " with ".join([f"model {model}", *(path.name for _, path in files)])
    try:
        checkpoint = find_checkpoint(model, revision, files=files, download=False)
    except (ModelError, StorageError) as error:
        return Finding.of_error(name, "missing or incomplete", error)
    if model in EMBEDDED and not files:
        return Finding(name, "built in, complete")
    at = "" if checkpoint.revision is None else f" at {checkpoint.revision[:12]}"
    return Finding(name, f"complete{at}")


def check_lora(file: LoraFile, model: str, settings: Settings) -> Finding:
    """Check that a LoRA can be read and fits the model."""
    name = f"LoRA {file.path.name}"
    try:
        lora = find_lora(file.path)
        found = find_checkpoint(model, settings.revision, files=settings.files, download=False)
        lora.fit(found)
    except (ModelError, StorageError) as error:
        return Finding.of_error(name, "not usable", error)
    ranks = " to ".join(map(str, dict.fromkeys(lora.ranks)))
    num_matrices = len(lora.updates)
    return Finding(name, f"fits, rank {ranks} in {num_matrices} matrices, scale {file.scale:g}")
