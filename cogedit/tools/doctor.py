"""doctor: can this machine run an edit, and if not, what is missing?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.artifacts import show_size
from cogedit.config import Settings, preset_for_model
from cogedit.errors import (
    CogeditError,
    ConfigError,
    DeviceMemoryError,
    ModelError,
    StorageError,
    UsageError,
)
from cogedit.media.tools import decord_version, examine_ffmpeg
from cogedit.models.checkpoint import EMBEDDED, find_checkpoint, hub_cache
from cogedit.stages.settings import known_models, model_of_machine
from cogedit.tools.hardware import Device, Library, Machine, examine_machine
from cogedit.tools.memory_table import Need, needs_of_presets

MIN_FREE_BYTES = 1_000_000_000
"""Less room than this is a problem: the artifacts of one edit take up to half of it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is, such as "torch".
        found: What was found, for people.
        problem: What keeps an edit from running; None if nothing does.
        hint: What mends the problem, or brings what is missing.
        exit_code: The code of the problem; 0 where there is none.
    """

    name: str
    found: str
    problem: str | None = None
    hint: str | None = None
    exit_code: int = 0

    @classmethod
    def of(cls, name: str, found: str, error: CogeditError) -> Finding:
        """Describe what is in the way of an edit by the error that the edit would end with."""
        return cls(name, found, error.message, error.hint, error.exit_code)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        model: The model of the edit that was asked about.
        findings: About the machine and that model, in order of what is needed first.
        models: About the models that are known: problems in here are none of the edit's.
        presets: Which presets the device has the memory for, likewise.
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


def diagnose(settings: Settings) -> Diagnosis:
    """Look at everything that an edit with these settings needs, without making one.

    Nothing is downloaded, and nothing of what is wrong is raised.

    Args:
        settings: `model`, `revision`, `device` and `workspace`.
    """
    model = model_of_machine() if settings.model == "auto" else settings.model
    machine = examine_machine()
    findings = [
        Finding("python", f"{platform.python_version()}, {platform.platform(terse=True)}"),
        *(_library(library) for library in machine.libraries),
        *_devices(machine, settings.device),
        _ffmpeg(),
        Finding("decoder", _decoder()),
        _disk(settings.workspace or Path()),
    ]
    device = device_for(machine, settings.device)
    presets = () if device is None else tuple(_fits(need, device) for need in needs_of_presets())
    hub_works = all(one.problem is None for one in machine.libraries if one.name in _HUB)
    if not hub_works:
        return Diagnosis(model, tuple(findings), (), presets)
    findings += [_cache(), _model(model, settings.revision)]
    others = [_model(name, None) for name in known_models() if name != model]
    name = preset_for_model(model)
    findings += [replace(one, name="memory") for one in presets if one.name == f"preset {name}"]
    return Diagnosis(model, tuple(findings), tuple(others), presets)


_HUB = ("numpy", "huggingface_hub")
"""What it takes to look for a model."""


def _library(library: Library) -> Finding:
    name = library.name
    if library.problem is None:
        return Finding(name, library.version or "of unknown version")
    package = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}.get(name, name)
    error = ConfigError(
        f"{name} cannot be imported: {library.problem}",
        hint=f"pip install --force-reinstall {package}"
        if library.version
        else f"pip install {package}",
    )
    return Finding.of(name, library.version or "not installed", error)


def _devices(machine: Machine, wanted: str) -> Iterator[Finding]:
    """Say which devices there are, and whether the one that was asked for is among them."""
    if not machine.devices:
        return
    for device in machine.devices:
        free = f"{show_size(device.free_bytes)} of {show_size(device.total_bytes)} free"
        yield Finding(device.name, f"{device.label}, {free}")
    if device_for(machine, wanted) is None:
        names = ", ".join(device.name for device in machine.devices)
        build = "" if machine.cuda_build is not None else "; this torch was built without CUDA"
        error = UsageError(
            f"the device {wanted} is not there: torch sees {names}{build}",
            hint="choose another --device, or --device auto",
        )
        yield Finding.of("device", wanted, error)
    yield Finding("attention", ", ".join(machine.attention))


def device_for(machine: Machine, wanted: str) -> Device | None:
    """Return the device that `--device` means; None if it is not there."""
    if wanted == "auto":
        return next(iter(machine.devices), None)
    name = "cuda:0" if wanted == "cuda" else wanted
    return next((device for device in machine.devices if device.name == name), None)


def _fits(need: Need, device: Device) -> Finding:
    """Say whether a device has the memory for an edit under a preset."""
    load, name = need.settings.load, f"preset {need.preset}"
    clip = f"{load.max_num_frames} frames of {load.width}x{load.height}"
    takes = f"about {show_size(need.memory_bytes)} for {clip}"
    if need.memory_bytes <= device.free_bytes:
        return Finding(name, f"fits: {takes}")
    by_blocks = device.name.startswith("cuda")
    if by_blocks and need.offloaded_bytes <= device.free_bytes:
        offloaded = show_size(need.offloaded_bytes)
        return Finding(name, f"fits block by block (--offload group): about {offloaded} for {clip}")
    least = f"{show_size(need.offloaded_bytes)} even block by block"
    full = DeviceMemoryError(
        f"{device.name} has {show_size(device.free_bytes)} free, and an edit with "
        f"{need.settings.model} takes about "
        f"{least if by_blocks else show_size(need.memory_bytes)}",
        hint="fewer frames (--max-num-frames) or a smaller --width and --height",
    )
    return Finding.of(name, f"does not fit: {takes}", full)


def _ffmpeg() -> Finding:
    try:
        found = examine_ffmpeg()
    except ConfigError as error:
        return Finding.of("ffmpeg", "not usable", error)
    return Finding("ffmpeg", f"{found.version}, {found.path}")


def _decoder() -> str:
    decord = decord_version()
    if decord is None:
        return "ffmpeg (decord is not installed; it would be faster on ordinary files)"
    return f"decord {decord}, and ffmpeg where decord is not exact"


def _disk(workspace: Path) -> Finding:
    """Look at the place where artifacts go."""
    folder = _nearest_folder(workspace)
    free = shutil.disk_usage(folder).free
    found = f"{show_size(free)} free in {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding.of("disk", found, StorageError(f"nothing can be written in {folder}"))
    if free < MIN_FREE_BYTES:
        few = StorageError(
            f"{folder} has {show_size(free)} free, expected {show_size(MIN_FREE_BYTES)} or more",
            hint="make room, or choose another --workspace",
        )
        return Finding.of("disk", found, few)
    return Finding("disk", found)


def _cache() -> Finding:
    cache = hub_cache()
    free = shutil.disk_usage(_nearest_folder(cache)).free
    return Finding("cache", f"{show_size(free)} free in {cache}")


def _nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _model(model: str, revision: str | None) -> Finding:
    """Look for the files of a model; the hint of a missing one is the command that brings it."""
    name = f"model {model}"
    try:
        checkpoint = find_checkpoint(model, revision, download=False)
    except (ModelError, StorageError) as error:
        return Finding.of(name, "missing or incomplete", error)
    if model in EMBEDDED:
        return Finding(name, "embedded, all files there")
    at = "" if checkpoint.revision is None else f" at {checkpoint.revision[:12]}"
    return Finding(name, f"all files there{at}")
