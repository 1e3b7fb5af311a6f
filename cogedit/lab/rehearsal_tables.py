"""Tables of a rehearsal: what each command took, what had to be equal, and what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from cogedit.artifacts import read_artifact
from cogedit.lab.observed import Observed
from cogedit.lab.published import Published
from cogedit.lab.rehearsal_stages import PROMPT, Stage
from cogedit.lab.tables import make_table
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    Work,
    activation_bytes,
    edit_steps,
    inversion_work,
)
from cogedit.models.vae_cost import Direction, VAESizes, VAEWay, vae_bytes
from cogedit.types import InvertSettings, ReconstructSettings


@dataclass(frozen=True)
class Row:
    """A command that ran.

    Attributes:
        name: Its stage.
        seen: What was seen of it.
        estimate: Bytes of the device that it was to take at most; None if nobody said.
        step_seconds: A step after the first, on average.
        share: Speed of these steps relative to that of a bare matrix product.
    """

    name: str
    seen: Observed
    estimate: int | None
    step_seconds: float | None
    share: float | None


class Meter:
    """Sets what was seen of a command beside what was counted.

    Args:
        dry: What `edit --dry-run --json` printed; empty if it failed.
        model: The checkpoint.
        vae_parameters: Numbers in its VAE.
        num_steps: Of the inversion.
        product: Operations per second of a bare matrix product.
    """

    def __init__(
        self,
        dry: Mapping[str, Any],
        model: Published,
        *,
        vae_parameters: int,
        num_steps: int,
        product: float,
    ) -> None:
        self._product = product
        self._flops: dict[str, list[float]] = {}
        self._bytes: dict[str, int] = {}
        if not dry:
            return
        sizes = TransformerSizes.of(model.transformer)
        shape: LatentShape = tuple(dry["latent_shape"])
        inversion = InvertSettings(num_inference_steps=num_steps)
        work = inversion_work(inversion, sizes, shape)
        step = work.flops.total / work.calls * (inversion.inversion_iterations or 1)
        edit = ReconstructSettings(prompt=PROMPT)
        self._flops = {
            "inverting": [step] * num_steps,
            "editing": [one.flops.total for one in edit_steps([edit], inversion, sizes, shape)],
        }
        item_size = ITEM_SIZE[dry["dtype"]]
        for stage in dry["stages"]:
            work = Work(max_rows=stage["work"]["max_rows"], injected=stage["work"]["injected"])
            self._bytes[stage["name"]] = int(dry["transformer_bytes"]) + activation_bytes(
                sizes, shape, work, item_size=item_size, device=dry["device"]
            )
        weights, vae = vae_parameters * item_size, VAESizes.of(model.vae)
        for direction in get_args(Direction):
            working = vae_bytes(
                vae, shape, direction, VAEWay(), item_size=item_size, device=dry["device"]
            )
            self._bytes[direction] = weights + working

    def row(self, stage: Stage, seen: Observed) -> Row:
        """Return the row of a command."""
        step_seconds = share = None
        steps = seen.steps(stage.loop) if stage.loop in self._flops else []
        if len(steps) > 1:
            # Of the first step nobody knows when it began.
            seconds = steps[-1].second - steps[0].second
            flops = sum(self._flops[stage.loop][step.number - 1] for step in steps[1:])
            step_seconds = seconds / (len(steps) - 1)
            share = flops / seconds / self._product
        return Row(stage.name, seen, self._bytes.get(stage.estimate), step_seconds, share)


@dataclass(frozen=True)
class Difference:
    """Two artifacts that were made in different ways.

    Attributes:
        ways: What differed.
        distance: Norm of their difference, relative to the first one's; 0 is equal bits.
        is_equal: Whether every bit is equal.
    """

    ways: str
    distance: float
    is_equal: bool


def compare(ways: str, first: Path, second: Path) -> Difference:
    """Compare the samples of two trajectories, or the latents of two edits."""
    a, b = (read_artifact(path).tensors for path in (first, second))
    name = "trajectory" if "trajectory" in a else "latents"
    x, y = a[name].double(), b[name].double()
    return Difference(ways, float((x - y).norm() / x.norm()), is_equal=bool((x == y).all()))


def stage_table(rows: Sequence[Row], skipped: Mapping[str, str], *, title: str) -> Table:
    """Return the table of the commands; those that were skipped have a reason instead."""
    cells: list[tuple[str, ...]] = [
        (
            row.name,
            "killed" if row.seen.exit_code < 0 else str(row.seen.exit_code),
            f"{row.seen.seconds:.1f}",
            f"{row.seen.silence:.1f}",
            gigabytes(row.seen.device_bytes),
            gigabytes(row.estimate),
            gigabytes(row.seen.host_bytes)
            + (f" + {gigabytes(row.seen.pinned_bytes)}" if row.seen.pinned_bytes else ""),
            "-" if row.step_seconds is None else f"{row.step_seconds:.3g}",
            "-" if row.share is None else f"{100 * row.share:.0f} %",
        )
        for row in rows
    ]
    cells += [(name, "skipped", *["-"] * 7) for name in skipped]
    heads = ("command", "exit", "seconds", "silence", "device GB", "estimate", "host GB")
    return make_table(title, (*heads, "s / step", "of the product"), cells)


def difference_table(differences: Sequence[Difference]) -> Table:
    """Return the table of what was made twice."""
    cells = [
        (one.ways, "equal bits" if one.is_equal else f"{one.distance:.1e} apart")
        for one in differences
    ]
    return make_table("Made twice", ("ways", "results"), cells)


def remark_table(rows: Sequence[Row], skipped: Mapping[str, str]) -> Table:
    """Return the table of what libraries said, of errors, and of what was skipped."""
    cells = [(row.name, remark) for row in rows for remark in row.seen.remarks]
    cells += [(name, f"skipped: {why}") for name, why in skipped.items()]
    return make_table("Said beside notes and steps", ("command", "words"), cells)


def gigabytes(num_bytes: int | None) -> str:
    """Write bytes in GB without the unit."""
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.2f}"
