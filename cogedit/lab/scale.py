"""`python -m cogedit.lab.scale`: what the driver of a batch costs, and what a long list takes.

The driver hands groups that do nothing to real worker processes, through leases and
`results.jsonl` as in every batch: seconds for each group, its memory, the lines that were written.

The plan counts CogVideoX-5B (49 frames of 480x720, the default settings): operations by
the formulas of the estimate, over the speed that a GPU sustains; the weights that every GPU reads;
what goes to and from the disk that all share; and which of GPUs, disk and driver is the first that
the others wait for. The speeds of GPU and disk are options; that of hashing is measured here.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from cogedit.config import Settings
from cogedit.diffusion.schedule import Schedule
from cogedit.lab.report import run_command
from cogedit.lab.tables import make_table, print_report
from cogedit.models.cost import trajectory_bytes
from cogedit.stages.run import Exported, Run
from cogedit.stages.session import Session
from cogedit.tools.batch import RESULTS, batch
from cogedit.tools.batch_driver import Job, Workers
from cogedit.tools.batch_group import BatchResult, Group, result_of
from cogedit.tools.batch_local import start_local
from cogedit.tools.batch_plan import BatchEdit

UPSTREAM_STEPS = 50
"""Of the CogVideo script, beside which the default settings take as many as they say."""

GB = 10**9

LEGEND = (
    "hours: of the transformer, VAE and T5 by their operations, with the first load of the weights "
    "by every GPU; disk: gigabytes a second that all GPUs together write and read, and their share "
    "of what the disk makes; hashing: a CPU's share of the time of its GPU; driver: its share of "
    "the time between two groups. A share over 100 % is what the GPUs wait for."
)


@dataclass(frozen=True)
class Overhead:
    """What the driver cost.

    Attributes:
        seconds: For each group.
        start_bytes: Memory of the driver at the first outcome.
        end_bytes: At the last.
        num_lines: Of `results.jsonl`.
    """

    seconds: float
    start_bytes: int
    end_bytes: int
    num_lines: int


@dataclass(frozen=True)
class Clip:
    """What one clip with all its edits takes, counted.

    Attributes:
        flops: Operations.
        written: Bytes to the disk: each step of the inversion and of the edits as it is done, and
            frames, latents, trajectory and edits as they are whole.
        read: Bytes from the disk: of every artifact by the stage behind it.
    """

    flops: float
    written: int
    read: int

    @classmethod
    def of(cls, num_prompts: int) -> Clip:
        """Count a clip and its edits, under the default settings."""
        from cogedit.lab.jobs import job_flops, make_jobs  # bring torch, which no worker needs
        from cogedit.lab.random_model import SIZES
        from cogedit.models.rows import guidance_reused

        size = SIZES["5b"]
        [job] = [job for job in make_jobs(UPSTREAM_STEPS) if job.name == "default"]
        levels = job.invert.num_levels
        frames, height, width = size.latent_shape
        pixels = 3 * (4 * (frames - 1) + 1) * 8 * height * 8 * width
        sample = trajectory_bytes(0, size.latent_shape, channels=16)
        trajectory = trajectory_bytes(levels, size.latent_shape, channels=16)
        kept = pixels + sample + trajectory + num_prompts * sample
        # What a step uses of guidance again lies beside the sample of the step before it.
        reused = len(guidance_reused(job.reconstruct, Schedule.of_steps(levels)))
        steps = (levels + num_prompts * (levels + reused)) * sample
        # Of the steps of the inversion, which become the trajectory, all are read again.
        read = pixels + sample + levels * sample + trajectory + num_prompts * sample
        return cls(job_flops(job, num_prompts), kept + steps, read)


def make_nothing(group: Group, *, run: Run, session: Session) -> Iterator[BatchResult]:
    """Say that each edit of a group exists."""
    for edit in group.edits:
        yield result_of(edit, Exported(edit.video, reused=True))


def measure_driver(num_groups: int, num_workers: int) -> Overhead:
    """Drive groups that do nothing, from the first outcome to the last."""
    # Under `python -m` the function here belongs to __main__, which no worker can import.
    from cogedit.lab.scale import make_nothing

    edits = [
        BatchEdit(f"row {row}", Path(f"{row}.mp4"), "a prompt", None, None, Settings(device="cpu"))
        for row in range(1, num_groups + 1)
    ]
    process, seen = psutil.Process(), list[tuple[float, int]]()

    def notify(text: str) -> None:
        seen.append((time.perf_counter(), process.memory_info().rss))

    def start(job: Job, edits: Sequence[BatchEdit]) -> Workers:
        return start_local(replace(job, make=make_nothing), edits, number=num_workers)

    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, RESULTS)
        batch(edits, results=results, start=start, run=Run(notify=notify))
        num_lines = len(results.read_text(encoding="utf-8").splitlines())
    (first, before), (last, after) = seen[0], seen[-1]
    return Overhead((last - first) / max(1, len(seen) - 1), before, after, num_lines)


def measure_hashing(num_bytes: int = 2**26) -> float:
    """Return how many bytes a second a CPU hashes."""
    data, start = bytes(num_bytes), time.perf_counter()
    hashlib.sha256(data).digest()
    return num_bytes / (time.perf_counter() - start)


def plan_row(options: Namespace, clip: Clip, num_gpus: int, *, driver: float) -> list[str]:
    """Return a row of the plan: what all clips take on so many GPUs."""
    from cogedit.lab.random_model import count_weights

    seconds = clip.flops / (options.tflops * 10**12)
    load = 2 * count_weights() * num_gpus / (options.disk * GB)  # bf16, all GPUs at once
    traffic = (clip.written + clip.read) / seconds * num_gpus
    hashing = (clip.written + clip.read) / options.hashing / seconds
    return [
        f"{num_gpus}",
        f"{(options.clips / num_gpus * seconds + load) / 3600:.1f}",
        f"{load / 60:.1f} min",
        f"{clip.written / seconds * num_gpus / GB:.3f} GB/s",
        f"{clip.read / seconds * num_gpus / GB:.3f} GB/s",
        f"{traffic / (options.disk * GB):.1%}",
        f"{hashing:.1%}",
        f"{driver * num_gpus / seconds:.2%}",
    ]


def run_scale(options: Namespace) -> None:
    """Measure the driver, plan the clips, and print both."""
    overhead = measure_driver(options.groups, options.workers)
    clip = Clip.of(options.prompts)
    seconds = clip.flops / (options.tflops * 10**12)
    rows = [plan_row(options, clip, number, driver=overhead.seconds) for number in options.gpus]
    tables = [
        make_table(
            f"The driver, {options.groups} groups that do nothing, {options.workers} workers",
            ("", "measured"),
            [
                ("for each group", f"{overhead.seconds * 1000:.2f} ms"),
                ("memory at the first outcome", f"{overhead.start_bytes / 10**6:.0f} MB"),
                ("memory at the last", f"{overhead.end_bytes / 10**6:.0f} MB"),
                ("lines of results.jsonl", f"{overhead.num_lines}"),
            ],
        ),
        make_table(
            f"A clip with {options.prompts} edits at {options.tflops:g} TFLOP/s",
            ("", "counted"),
            [
                ("operations", f"{clip.flops / 10**15:.0f} PFLOP"),
                ("time of a GPU", f"{seconds:.0f} s"),
                ("written", f"{clip.written / GB:.2f} GB"),
                ("read", f"{clip.read / GB:.2f} GB"),
                ("hashed here at", f"{options.hashing / GB:.2f} GB/s"),
                ("GPUs that the disk feeds", f"{_feeds(options, clip, seconds):.0f}"),
                ("GPUs that a driver feeds", f"{seconds / overhead.seconds:.0f}"),
            ],
        ),
        make_table(
            f"{options.clips} clips, a shared disk of {options.disk:g} GB/s",
            ("GPUs", "hours", "load", "written", "read", "disk", "hashing", "driver"),
            rows,
        ),
    ]
    print_report(tables, legend=LEGEND, paths=[])


def _feeds(options: Namespace, clip: Clip, seconds: float) -> float:
    return float(options.disk * GB * seconds / (clip.written + clip.read))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="cogedit.lab.scale", description=__doc__)
    parser.add_argument("--groups", type=int, default=10_000, help="groups that do nothing")
    parser.add_argument("--workers", type=int, default=2, help="worker processes that take them")
    parser.add_argument("--clips", type=int, default=1000, help="clips of the plan")
    parser.add_argument("--prompts", type=int, default=4, help="edits of each clip")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="rows of the plan")
    parser.add_argument("--tflops", type=float, default=380, help="of a GPU; 380 of an H200")
    parser.add_argument("--disk", type=float, default=2, help="GB/s of the shared disk")
    options = parser.parse_args(arguments)
    options.hashing = measure_hashing()
    return run_command(run_scale, options)


if __name__ == "__main__":
    raise SystemExit(main())
