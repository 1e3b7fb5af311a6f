"""`python -m cogedit.lab.speed`: what N edits of one clip cost, against the upstream script.

One process, one model, the same latents, noise and embeddings for every row. Rows:

- `upstream`: the CogVideo repository's script as written (`cogedit.ddim_inversion`, whose results
  are upstream's), once per prompt,
- `exact`: the same edits, with equal rows of the transformer run once and one inversion for all
  prompts,
- `shared`: one reference row for all prompts and both sides of guidance,
- `shared-half`: with injection in the first half of the steps,
- `shared-half-guided`: with guidance only in the first half, too,
- `default`: cogedit's defaults,
- `fast`: the preset.

`--size cpu` runs whole jobs on a small model of 5B's proportions, counts their operations and times
them in turns. `--size 5b` runs some steps of each kind on CogVideoX-5B with random weights, on a
CUDA device, and adds them up. Both count the jobs at the full size of 5B, which needs no device.
Tables go to stdout, `speed-SIZE.json` to the folder `--output`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from rich.table import Table

from cogedit.errors import UsageError
from cogedit.models.quiet import quiet_imports

with quiet_imports():
    from cogedit.lab.jobs import APPROXIMATE, EXACT, UPSTREAM, Job, job_flops, make_jobs, run_job
    from cogedit.lab.random_model import SIZES, Inputs, random_inputs, random_transformer
    from cogedit.lab.steps import measure_steps

from cogedit.lab.measure import Timing, count_flops, peak_bytes, time_in_turns
from cogedit.lab.product import measure_product
from cogedit.lab.report import (
    Quality,
    make_folder,
    notify,
    read_quality,
    run_command,
    write_json,
)
from cogedit.lab.tables import make_table, print_report
from cogedit.models.speed_probe import Speed, measure_speed
from cogedit.types import AttentionBackend, TransformerSettings
from cogedit.version import __version__

LEGEND = (
    "fewer: operations of upstream over those of the row, both for N prompts; faster: the same of "
    "the median seconds, with the shortest and the longest run; of its count: faster over fewer. "
    "5B: 49 frames at 480x720, 50 steps, frames to frames; the transformer by formula, VAE and T5 "
    "counted. peak: what torch had allocated on a CUDA device. distance: largest difference of the "
    "edits from upstream's, relative to the largest value; rows after `exact` make other edits. "
    "edits: the share in which the edit is seen, and PSNR against the right answer, of the quality "
    "benchmark."
)

Costs = Mapping[tuple[str, int], float]
"""Operations on CogVideoX-5B by row and number of edits."""


def measure_jobs(
    jobs: Sequence[Job], inputs: Inputs, *, prompts: Sequence[int], repeats: int
) -> list[Timing]:
    """Run whole jobs, of which the first is the base: to count and warm up, then in turns to time.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    device = inputs.latents.device
    figures = []
    for count in prompts:
        calls = {job.name: partial(run_job, job, inputs, count) for job in jobs}
        counted, first = {}, None
        for name, call in calls.items():
            (edits, flops), peak = peak_bytes(partial(count_flops, call), device)
            first = edits if first is None else first
            distance = float((edits - first).abs().max() / first.abs().max())
            counted[name] = flops, peak, distance
        for name, seconds in time_in_turns(calls, repeats=repeats, device=device).items():
            flops, peak, distance = counted[name]
            figures.append(Timing(name, count, flops, seconds, peak, distance))
        notify(f"N = {count}: {len(calls)} rows, {repeats} times")
    return figures


def full_size_table(costs: Costs, quality: Quality | None = None) -> Table:
    """Return the table of what the jobs cost on 5B, and how good their edits are."""
    names = list(dict.fromkeys(name for name, _ in costs))
    counts = list(dict.fromkeys(count for _, count in costs))
    rows = [
        (
            name,
            *(f"{costs[name, n] / 1e15:.1f}" for n in counts),
            *(f"{costs[names[0], n] / costs[name, n]:.2f}" for n in counts),
            *(_quality_cells(quality[name]) if quality and name in quality else ()),
        )
        for name in names
    ]
    heads = ["row", *(f"PFLOP, N = {n}" for n in counts), *(f"fewer, N = {n}" for n in counts)]
    if quality:
        heads += [*(f"{kind} edits" for kind in next(iter(quality.values()))), "all kinds"]
    return make_table("CogVideoX-5B, counted", heads, rows)


def _quality_cells(kinds: Mapping[str, tuple[float, float]]) -> list[str]:
    """Write how good the edits of each kind are, and their mean over the kinds."""
    means = tuple(map(statistics.fmean, zip(*kinds.values(), strict=True)))
    return [f"{100 * seen:.1f} %, {db:.1f} dB" for seen, db in (*kinds.values(), means)]


def job_table(figures: Sequence[Timing]) -> Table:
    """Return the table of the measured jobs; the first of every N is the base."""
    bases: dict[int, Timing] = {}
    rows = []
    for job in figures:
        base = bases.setdefault(job.num_prompts, job)
        fewer, faster = base.flops / job.flops, base.median / job.median
        rows.append(
            (
                f"N = {job.num_prompts}: {job.name}",
                f"{job.flops / 1e12:.3g}",
                f"{fewer:.2f}",
                f"{job.median:.2f} [{min(job.seconds):.2f} {max(job.seconds):.2f}]",
                f"{faster:.2f}",
                f"{100 * faster / fewer:.0f} %",
                "-" if job.peak is None else f"{job.peak / 1e9:.1f}",
                "-" if job.distance is None else f"{job.distance:.0e}",
            )
        )
    heads = ("row", "TFLOP", "fewer", "seconds", "faster", "of its count", "peak GB", "distance")
    return make_table("Measured jobs", heads, rows)


def step_table(steps: Sequence[Timing], speed: Speed, product: float, num_layers: int) -> Table:
    """Return the table of the kinds of step, beside the speed of what they consist of."""
    rows = [
        (
            step.name,
            f"{step.median:.3f} [{min(step.seconds):.3f} {max(step.seconds):.3f}]",
            f"{step.flops / 1e12:.0f}",
            f"{step.flops / step.median / 1e12:.0f}",
            f"{100 * step.flops / step.median / product:.0f} %",
            "-" if step.peak is None else f"{step.peak / 1e9:.1f}",
        )
        for step in steps
    ]
    title = (
        f"Steps of {num_layers} layers; a bare matrix product makes {product / 1e12:.0f} TFLOP/s, "
        f"a bare attention {speed.attention / 1e12:.0f}, the rest of a block "
        f"{speed.linear / 1e12:.0f} where it is not compiled"
    )
    heads = ("kind of step", "seconds", "TFLOP", "TFLOP/s", "of the product", "peak GB")
    return make_table(title, heads, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="cpu", help="model and clip (default cpu)")
    add("--prompts", type=int, nargs="+", default=[1, 4, 8], help="edits N (default 1 4 8)")
    add("--layers", type=int, default=None, help="of the model (default: all of it)")
    add(
        "--jobs",
        nargs="+",
        choices=(EXACT, *APPROXIMATE),
        default=None,
        help="rows beside upstream (default: all)",
    )
    add("--steps", type=int, default=10, help="cpu: inference steps in place of 50 (default 10)")
    add("--repeats", type=int, default=3, help="turns (default 3)")
    add("--warmup-steps", type=int, default=2, help="5b: steps before the timed ones (default 2)")
    add("--timed-steps", type=int, default=3, help="5b: timed steps per turn (default 3)")
    add("--threads", type=int, default=None, help="CPU threads (default: torch's own)")
    add("--compile", action="store_true", help="compile the blocks of all rows but upstream")
    add("--attention-backend", choices=get_args(AttentionBackend), default="native")
    add("--max-rows", type=int, default=None, help="rows in a layer at a time")
    add("--count-only", action="store_true", help="count at 5B's size; run nothing")
    add("--quality", type=Path, help="quality.json: adds how good the edits of each row are")
    add("--output", type=Path, default=Path("bench"), help="folder (default bench)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse options that cannot work.

    Raises:
        UsageError: A number is too small, or there is no CUDA device for 5B.
    """
    least = {
        "steps": 4,
        "repeats": 1,
        "warmup_steps": 1,
        "timed_steps": 1,
        "max_rows": 1,
        "layers": 1,
    }
    for name, value in least.items():
        if getattr(options, name) is not None and getattr(options, name) < value:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is {getattr(options, name)}; it must be at least {value}")
    if min(options.prompts) < 1:
        raise UsageError(f"--prompts has {min(options.prompts)}; it must be at least 1")
    if options.size == "5b" and not options.count_only and not torch.cuda.is_available():
        raise UsageError(
            "--size 5b needs a CUDA device; this machine has none",
            hint="--size cpu times a small model, --size 5b --count-only counts operations",
        )


def chosen_jobs(num_steps: int, options: argparse.Namespace) -> list[Job]:
    """Return the rows that were asked for, the one that they are compared with first."""
    wanted = {UPSTREAM, *(options.jobs or (EXACT, *APPROXIMATE))}
    return [job for job in make_jobs(num_steps) if job.name in wanted]


def run_benchmark(options: argparse.Namespace) -> None:
    """Run the benchmark as the command line says: tables to stdout, JSON to the folder.

    Raises:
        CogeditError: An option, the folder, or the run.
    """
    _check(options)
    quality = None
    if options.quality is not None:
        rows = {UPSTREAM: UPSTREAM, EXACT: UPSTREAM} | {name: name for name in APPROXIMATE}
        quality = read_quality(options.quality, rows)
    make_folder(options.output)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    prompts = tuple(dict.fromkeys(options.prompts))
    costs = {(job.name, n): job_flops(job, n) for n in prompts for job in chosen_jobs(50, options)}
    tables = [full_size_table(costs, quality)]
    settings = TransformerSettings(
        max_rows=options.max_rows,
        attention_backend=options.attention_backend,
        compile=options.compile,
    )
    jobs: list[Timing] = []
    model = None
    if not options.count_only:
        size, large = SIZES[options.size], options.size == "5b"
        size = replace(size, num_layers=options.layers or size.num_layers)
        device = torch.device("cuda" if large else "cpu")
        dtype = torch.bfloat16 if large else torch.float32
        transformer = random_transformer(size, device=device, dtype=dtype)
        inputs = random_inputs(transformer, size, num_prompts=max(prompts), settings=settings)
        if large:
            steps, jobs = measure_steps(
                chosen_jobs(50, options),
                inputs,
                size,
                prompts=prompts,
                repeats=options.repeats,
                num_warmup=options.warmup_steps,
                num_timed=options.timed_steps,
            )
            num_tokens = size.sizes.num_tokens(size.latent_shape)
            speed = measure_speed(size.sizes, num_tokens=num_tokens, device=device, dtype=dtype)
            product = measure_product(size.sizes, num_tokens=num_tokens, device=device, dtype=dtype)
            tables.append(step_table(steps, speed, product, size.num_layers))
            model = asdict(speed) | {"product": product, "steps": [asdict(one) for one in steps]}
        else:
            repeats = options.repeats
            chosen = chosen_jobs(options.steps, options)
            jobs = measure_jobs(chosen, inputs, prompts=prompts, repeats=repeats)
        tables.append(job_table(jobs))
    path = options.output / f"speed-{options.size}.json"
    write_json(
        path,
        {
            "run": _run_facts(options, settings),
            "full_size": [
                {"name": name, "num_prompts": count, "flops": flops}
                for (name, count), flops in costs.items()
            ],
            "jobs": [asdict(job) for job in jobs],
            "model": model,
            "quality": quality,
        },
    )
    print_report(tables, legend=LEGEND, paths=[path])


def _run_facts(options: argparse.Namespace, settings: TransformerSettings) -> dict[str, object]:
    """Describe the run, so that it can be repeated."""
    on_gpu = options.size == "5b" and torch.cuda.is_available()
    return {
        "cogedit_version": __version__,
        "torch_version": torch.__version__,
        "size": options.size,
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "num_threads": torch.get_num_threads(),
        "num_layers": options.layers or SIZES[options.size].num_layers,
        "num_inference_steps": 50 if options.size == "5b" else options.steps,
        "repeats": options.repeats,
        "transformer": asdict(settings),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(run_benchmark, _parser().parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
