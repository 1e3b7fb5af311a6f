"""What this machine has: libraries, devices, memory, asked in a process of its own.

A broken torch raises what it likes, or takes the process down with it; so does a driver. This file
is therefore also a script: it imports the libraries one after the other and prints what it finds as
JSON lines, and `examine_machine` reads them up to where the script came. As a script it imports
nothing of this package.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict, cast

LIBRARIES = ("torch", "numpy", "diffusers", "transformers", "safetensors", "huggingface_hub", "PIL")
"""Libraries without which nothing is edited, by import name. torch comes first: others load it."""

_USED = {"diffusers": "CogVideoXTransformer3DModel", "transformers": "T5EncoderModel"}
"""A class of a library that imports its parts only when they are asked for."""

ATTENTION_PACKAGES = ("flash_attn", "flash_attn_interface", "sageattention", "xformers")
"""Packages with attention kernels beside torch's own."""

_TIMEOUT = 180.0
_MARK = '{"cogedit": '


@dataclass(frozen=True)
class Library:
    """A library as it was found.

    Attributes:
        name: Its import name.
        version: The version that is installed; None where there is none.
        problem: Why it cannot be imported; None where it can.
    """

    name: str
    version: str | None
    problem: str | None


@dataclass(frozen=True)
class Device:
    """A device that torch can compute on.

    Attributes:
        name: "cuda:0", "mps" or "cpu".
        label: What it is.
        total_bytes: Its memory.
        free_bytes: What of it is free now.
    """

    name: str
    label: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Attributes:
        libraries: Those of `LIBRARIES`, in that order.
        devices: In the order in which `--device auto` takes them, the CPU last; none where torch
            does not work.
        attention: Attention kernels that can be used.
        cuda_build: The CUDA version that torch was built for; None for a build without.
    """

    libraries: tuple[Library, ...]
    devices: tuple[Device, ...]
    attention: tuple[str, ...]
    cuda_build: str | None


class _Facts(TypedDict, total=False):
    """One line of the script's output: one of these."""

    library: dict[str, str | None]
    device: dict[str, str | int]
    attention: str
    cuda_build: str | None


def examine_machine() -> Machine:
    """Look at this machine. Takes as long as importing the libraries: seconds."""
    # -P: the folder of this file is no place to import from.
    command = [sys.executable, "-P", str(Path(__file__))]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=_TIMEOUT, stdin=subprocess.DEVNULL
        )
        output, ending = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"does not end within {_TIMEOUT:.0f} s"
    facts: list[_Facts] = []
    for text in output.decode(errors="replace").splitlines():
        if text.startswith(_MARK):  # a library may print, too
            facts.append(cast(_Facts, json.loads(text)["cogedit"]))
    found = {str(fact["library"]["name"]): fact["library"] for fact in facts if "library" in fact}
    libraries: list[Library] = []
    for name in LIBRARIES:
        if name in found:
            library = Library(name, found[name]["version"], found[name]["problem"])
        else:  # the script ended while it imported this one
            library = Library(name, _version(name), f"importing it {ending}")
            ending = "was not tried"
        libraries.append(library)
    builds = [fact["cuda_build"] for fact in facts if "cuda_build" in fact]
    return Machine(
        libraries=tuple(libraries),
        devices=tuple(
            Device(
                name=str(fact["device"]["name"]),
                label=str(fact["device"]["label"]),
                total_bytes=int(fact["device"]["total_bytes"]),
                free_bytes=int(fact["device"]["free_bytes"]),
            )
            for fact in facts
            if "device" in fact
        ),
        attention=tuple(fact["attention"] for fact in facts if "attention" in fact),
        cuda_build=builds[0] if builds else None,
    )


def _ending(code: int) -> str:
    """How the script ended, for a sentence about what it was doing."""
    if code < 0:
        return f"ends the process with {signal.Signals(-code).name}"
    return f"ends the process with exit code {code}"


def _version(name: str) -> str | None:
    package = {"huggingface_hub": "huggingface-hub", "PIL": "pillow"}.get(name, name)
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- the script -------------------------------------------------------------------------------


def _tell(facts: _Facts) -> None:
    sys.stdout.write(f"{_MARK}{json.dumps(facts)}}}\n")
    sys.stdout.flush()


def _main() -> None:
    """Import every library and tell what came of it, then what torch can compute on."""
    working = set()
    for name in LIBRARIES:
        library = Library(name, _version(name), None)
        if name in _USED and "torch" not in working and library.version is not None:
            _tell({"library": asdict(library)})  # without torch it could only fail as well
            continue
        try:
            module = importlib.import_module(name)
            if name in _USED:
                getattr(module, _USED[name])
            working.add(name)
        except Exception as error:  # noqa: BLE001 - a broken library raises anything
            first = (str(error).strip().splitlines() or [""])[0]
            problem = f"{type(error).__name__}: {first}"
            library = Library(name, library.version, problem)
        _tell({"library": asdict(library)})
    if "torch" in working:
        _tell_of_torch()


def _tell_of_torch() -> None:
    import torch

    _tell({"cuda_build": torch.version.cuda})
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        label = torch.cuda.get_device_name(index)
        _tell({"device": asdict(Device(f"cuda:{index}", label, total, free))})
    total, free = _host_memory()
    if torch.backends.mps.is_available():
        _tell({"device": asdict(Device("mps", platform.processor() or "Apple", total, free))})
    threads = torch.get_num_threads()
    label = f"{threads} thread{'' if threads == 1 else 's'}"
    _tell({"device": asdict(Device("cpu", label, total, free))})
    _tell({"attention": "torch"})
    if torch.cuda.is_available():
        for kernel in ("flash", "mem_efficient", "cudnn"):
            if getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")():
                _tell({"attention": f"torch {kernel.replace('_', '-')}"})
    for name in ATTENTION_PACKAGES:
        if importlib.util.find_spec(name) is not None:
            _tell({"attention": name})


def _host_memory() -> tuple[int, int]:
    """Memory of the machine, or of the container around this process: total and free, in bytes."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return total, free
    used -= int(stat.get("inactive_file", 0))  # the page cache goes when memory is asked for
    return min(total, limit), min(free, max(0, limit - used))


if __name__ == "__main__":
    _main()
