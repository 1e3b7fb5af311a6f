"""The commands of a rehearsal, and how they are run one after the other."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.lab.observed import Observed, observe
from cogedit.lab.report import notify

PROMPT = "a fox in the snow"
OTHER_PROMPT = "a painting of the sea"
WHOLE = "whole.cogedit"
"""Workspace of the edit that is made in one command."""


@dataclass(frozen=True)
class Stage:
    """A command of the rehearsal.

    Attributes:
        name: Its row.
        arguments: Of `cogedit`; what begins with @ is the file that the stage of that name made.
        loop: Of its steps, whose speed is measured: "inverting" or "editing".
        kill_after: The number of a step after which it is killed.
        device_limit: Bytes of the device that it has; 0 is all.
        like: Stages that together take about as long.
        estimate: What of the dry run it is: "encode", "decode", "invert" or "reconstruct"; empty
            where device or weights are others.
        may_fail: Whether an exit code above 0 is an answer and no failure.
    """

    name: str
    arguments: tuple[str, ...]
    loop: str = ""
    kill_after: int = 0
    device_limit: int = 0
    like: tuple[str, ...] = ()
    estimate: str = ""
    may_fail: bool = False


def plan_stages(options: argparse.Namespace, video: Path, *, on_cuda: bool) -> list[Stage]:
    """List the commands, the more important ones first."""
    width, height = map(str, options.size)
    clip = ("--width", width, "--height", height, "--max-num-frames", str(options.frames))
    num_steps = str(options.num_inference_steps)
    edit = ("reconstruct", "@invert, resumed", "-p", PROMPT)
    stages = [
        Stage("doctor", ("doctor",), may_fail=True),
        Stage(
            "dry run",
            ("edit", str(video), "-p", PROMPT, *clip, "--inversion-steps", num_steps, "--dry-run"),
        ),
        Stage("load", ("load", str(video), *clip)),
        Stage("encode", ("encode", "@load"), estimate="encode"),
    ]
    if options.vae_only:
        return [*stages, Stage("decode", ("export", "@encode"), estimate="decode")]
    invert = ("invert", "@encode", "--num-inference-steps", num_steps)
    stages += [
        Stage("invert, killed", invert, loop="inverting", kill_after=2, estimate="invert"),
        Stage(
            "invert, resumed", invert, loop="inverting", like=("invert, killed",), estimate="invert"
        ),
        Stage(
            "reconstruct", edit, loop="editing", like=("invert, resumed",), estimate="reconstruct"
        ),
        Stage("export", ("export", "@reconstruct"), like=("encode",), estimate="decode"),
    ]
    other = ("edit", "@invert, resumed", "-p", OTHER_PROMPT)
    for gigabytes in options.memory if on_cuda else ():
        name = f"edit in {gigabytes:g} GB"
        stages.append(
            Stage(
                name,
                (*other, "--workspace", f"{gigabytes:g}-GB.cogedit"),
                loop="editing",
                device_limit=round(gigabytes * 1e9),
                like=("reconstruct", "export"),
            )
        )
    for weights, offload in _variants(on_cuda=on_cuda):
        given = {"--weights": weights, "--offload": offload}
        flags = [part for flag, value in given.items() if value for part in (flag, value)]
        name = " ".join(filter(None, (weights, offload)))
        stages.append(
            Stage(
                f"reconstruct, {name}",
                (*edit, *flags, "-o", f"{name.replace(' ', '-')}.safetensors"),
                loop="editing",
                like=("reconstruct",),
                estimate="reconstruct" if name == "model" else "",
            )
        )
    apart = ("--workspace", WHOLE, "--cache", "whole-cache")
    whole = ("edit", str(video), "-p", PROMPT, *clip, "--inversion-steps", num_steps, *apart)
    parts = ("encode", "invert, killed", "reconstruct", "export")
    stages.append(Stage("edit", whole, loop="editing", like=parts))
    return stages


def _variants(*, on_cuda: bool) -> list[tuple[str, str]]:
    """Weights and placement of further edits: those that this machine has."""
    offloads = [("", "group"), ("", "model"), ("int8", "group")] if on_cuda else []
    return [("fp8", ""), ("int8", ""), *offloads]


class Rehearsal:
    """Runs stages in a folder and keeps what was seen of them."""

    def __init__(self, folder: Path, common: Sequence[str], *, on_cuda: bool, ends: float) -> None:
        self.folder = folder
        self.seen: dict[str, Observed] = {}
        self.skipped: dict[str, str] = {}
        self._common = common
        self._on_cuda = on_cuda
        self._ends = ends

    def run(self, stage: Stage) -> None:
        """Run a stage, unless what it needs is missing or its time is up."""
        why = self._reason_to_skip(stage)
        if why:
            self.skipped[stage.name] = why
            notify(f"{stage.name}: skipped, {why}")
            return
        own = [self._file_of(a[1:]) if a.startswith("@") else a for a in stage.arguments]
        given = [*self._common] if stage.name != "doctor" else self._common[:6]
        # What a stage sets itself is set once.
        names = {argument for argument in own if argument.startswith("--")}
        pairs = zip(given[::2], given[1::2], strict=True)
        common = [text for name, value in pairs if name not in names for text in (name, value)]
        notify(f"{stage.name}: cogedit {' '.join(own)}")
        seen = observe(
            [*own, *common, "--json", "--jsonl"],
            folder=self.folder,
            device_limit=stage.device_limit if self._on_cuda else None,
            kill_after=(stage.loop, stage.kill_after) if stage.kill_after else None,
        )
        self.seen[stage.name] = seen
        memory = f"{seen.host_bytes / 1e9:.2f} GB of the host"
        if seen.device_bytes is not None:
            memory += f", {seen.device_bytes / 1e9:.2f} GB of the device"
        notify(f"{stage.name}: exit code {seen.exit_code}, {seen.seconds:.1f} s, {memory}")
        for note in (*seen.notes, *seen.remarks):
            notify(f"  {note}")

    def failed(self, stage: Stage) -> bool:
        """Whether a stage ended as it should not have."""
        seen = self.seen.get(stage.name)
        if seen is None or stage.may_fail:
            return False
        return seen.exit_code >= 0 if stage.kill_after else seen.exit_code != 0

    def _file_of(self, name: str) -> str:
        return str(self.seen[name].paths[0])

    def _reason_to_skip(self, stage: Stage) -> str:
        for needed in (a[1:] for a in stage.arguments if a.startswith("@")):
            if needed not in self.seen or not self.seen[needed].paths:
                return f"{needed} made nothing"
        left = self._ends - time.monotonic()
        expected = sum(self.seen[name].seconds for name in stage.like if name in self.seen)
        if left < expected or left < 0:
            return f"{max(0.0, left):.0f} s are left of --minutes, it takes about {expected:.0f} s"
        return ""
