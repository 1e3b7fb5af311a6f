"""`python -m cogedit.lab.speed`: what N edits of one clip cost, against the upstream script.

One process, one model, the same latents, noise and embeddings for every row. Rows:

- `upstream`: the CogVideo repository's script as written (`cogedit.ddim_inversion`, whose numbers
  are upstream's), once per prompt,
- `exact`: the same edits, with equal rows run once and one inversion for all prompts,
- `shared`: one reference row for all prompts and both sides of guidance,
- `shared-half`: with injection in the first half of the steps,
- `shared-half-guided`: with guidance there alone, too,
- `default`: what cogedit does unasked,
- `fast`: the preset.

`--size cpu` runs whole jobs on a small model of 5B's proportions, counts their operations and times
them in turns. `--size 5b` runs some steps of each kind on CogVideoX-5B with random weights, on a
CUDA device, and adds them up. Both count the jobs at the full size of 5B, which takes no device.
Tables go to stdout; `--output` gets `speed-SIZE.json` and `speed-SIZE.png`.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cogedit.errors import UsageError
from cogedit.lab.command import Say, make_folder, run_command
from cogedit.lab.speed_report import (
    LEGEND,
    FullSizeFigures,
    JobFigures,
    ModelFigures,
    SpeedFacts,
    draw_plot,
    full_size_table,
    job_table,
    read_quality,
    step_table,
    write_speed_json,
)
from cogedit.lab.tables import print_report
from cogedit.types import AttentionBackend, TransformerSettings
from cogedit.version import __version__

if TYPE_CHECKING:
    import torch

    from cogedit.lab.jobs import Inputs, Job

_PROMPTS = (1, 4, 8)


def measure_jobs(
    jobs: Sequence[Job], inputs: Inputs, *, prompts: Sequence[int], repeats: int, say: Say
) -> list[JobFigures]:
    """Run whole jobs: once to count and to warm up, then in turns to time them.

    Args:
        jobs: The rows; the first is what the others are compared with.
        inputs: Model and clip.
        prompts: Numbers N of edits.
        repeats: Turns.
        say: Told after every number of edits.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    from cogedit.lab.jobs import run_job
    from cogedit.lab.measure import count_flops, peak_bytes, time_interleaved

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
        timed = time_interleaved(calls, repeats=repeats, device=device)
        figures += [
            JobFigures(name, count, *counted[name], seconds=timed[name].seconds) for name in calls
        ]
        say(f"N = {count}: {len(calls)} rows, {repeats} times")
    return figures


def count_full_size(jobs: Sequence[Job], *, prompts: Sequence[int]) -> list[FullSizeFigures]:
    """Count the jobs at the full size of 5B, with VAE and T5."""
    from cogedit.lab.full_size import job_flops

    return [
        FullSizeFigures(job.name, count, job_flops(job, count)) for count in prompts for job in jobs
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=("cpu", "5b"), default="cpu", help="model and clip (default cpu)")
    add("--prompts", type=int, nargs="+", default=list(_PROMPTS), help="edits N (default 1 4 8)")
    add("--steps", type=int, default=10, help="cpu: inference steps in place of 50 (default 10)")
    add("--repeats", type=int, default=3, help="turns (default 3)")
    add("--warmup-steps", type=int, default=2, help="5b: steps before the clock (default 2)")
    add("--timed-steps", type=int, default=3, help="5b: steps per turn (default 3)")
    add("--threads", type=int, default=None, help="threads of the CPU (default: torch's own)")
    add("--compile", action="store_true", help="compile the blocks of all rows but upstream")
    add("--attention-backend", choices=get_args(AttentionBackend), default="native")
    add("--max-rows", type=int, default=None, help="rows in a layer at a time")
    add("--count-only", action="store_true", help="count at 5B's size; run nothing")
    add(
        "--quality",
        type=Path,
        nargs="+",
        help="quality.json, of one run or several: shows how good the edits of each row are",
    )
    add("--output", type=Path, default=Path("bench"), help="folder (default bench)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what makes no sense.

    Raises:
        UsageError: A number is too small, or there is no CUDA device for 5B.
    """
    import torch

    least = {"steps": 4, "repeats": 1, "warmup_steps": 1, "timed_steps": 1, "max_rows": 1}
    for name, value in least.items():
        if getattr(options, name) is not None and getattr(options, name) < value:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is {getattr(options, name)}; it must be at least {value}")
    if min(options.prompts) < 1:
        raise UsageError(f"--prompts has {min(options.prompts)}; it must be at least 1")
    if options.size == "5b" and not options.count_only and not torch.cuda.is_available():
        raise UsageError(
            "--size 5b needs a CUDA device; this machine shows none",
            hint="--size cpu times a small model, --size 5b --count-only counts operations",
        )


def run_benchmark(options: argparse.Namespace, *, say: Say) -> None:
    """Run the benchmark as the command line says: tables to stdout, files to the folder.

    Raises:
        CogeditError: An option, the folder, or the run.
    """
    import torch

    from cogedit.models.quiet import quiet_imports

    with quiet_imports():
        from cogedit.lab.jobs import APPROXIMATE, EXACT, UPSTREAM, make_jobs
        from cogedit.lab.models import SIZES

    _check(options)
    quality = None
    if options.quality is not None:
        same = {UPSTREAM: UPSTREAM, EXACT: UPSTREAM}
        quality = read_quality(options.quality, same | {name: name for name in APPROXIMATE})
    folder: Path = options.output
    make_folder(folder)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    prompts = tuple(dict.fromkeys(options.prompts))
    full_size = count_full_size(make_jobs(50), prompts=prompts)
    tables = [full_size_table(full_size, quality)]
    figures: list[JobFigures] = []
    model: ModelFigures | None = None
    steps = options.steps
    if not options.count_only and options.size == "cpu":
        inputs = _inputs(options, torch.device("cpu"), torch.float32)
        figures = measure_jobs(
            make_jobs(steps), inputs, prompts=prompts, repeats=options.repeats, say=say
        )
    elif not options.count_only:
        from cogedit.lab.steps import measure_model

        steps = 50
        inputs = _inputs(options, torch.device("cuda"), torch.bfloat16)
        model, figures = measure_model(
            make_jobs(steps),
            inputs,
            SIZES["5b"],
            prompts=prompts,
            repeats=options.repeats,
            num_warmup=options.warmup_steps,
            num_timed=options.timed_steps,
            say=say,
        )
        tables.append(step_table(model))
    if figures:
        tables.append(job_table(figures))
    facts = SpeedFacts(
        cogedit_version=__version__,
        torch_version=torch.__version__,
        size=options.size,
        device=_device_name(options.size),
        num_threads=torch.get_num_threads(),
        num_inference_steps=steps,
        repeats=options.repeats,
        how=_how(options),
    )
    path = folder / f"speed-{options.size}.json"
    write_speed_json(path, facts, full_size=full_size, jobs=figures, model=model, quality=quality)
    plot = draw_plot(path.with_suffix(".png"), full_size, figures, say=say)
    print_report(tables, legend=LEGEND, paths=[path, *([plot] if plot else [])])


def _inputs(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Inputs:
    from cogedit.lab.models import SIZES, random_inputs, random_transformer

    size = SIZES[options.size]
    transformer = random_transformer(size, device=device, dtype=dtype)
    inputs = random_inputs(transformer, size, num_prompts=max(options.prompts))
    return replace(inputs, how=_how(options))


def _how(options: argparse.Namespace) -> TransformerSettings:
    return TransformerSettings(
        max_rows=options.max_rows,
        attention_backend=options.attention_backend,
        compile=options.compile,
    )


def _device_name(size: str) -> str:
    import torch

    if size == "5b" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.machine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or the exit code of what went wrong, which is said on stderr.
    """
    return run_command(run_benchmark, _parser().parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
