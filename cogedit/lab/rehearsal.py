"""`python -m cogedit.lab.rehearsal`: the whole command line on a checkpoint of full size.

Makes a checkpoint that is as published in all but its numbers, which are random, and runs on it, as
a user would and each in a process of its own: doctor, a dry run, the five commands with an
inversion that is killed half way and resumed, edits with other weights and placements, edits on a
device with less memory, and `edit` from the clip. What came out is noise; what it took is true.

The table has for each command its time, the most memory on the device and on the host beside the
estimate, and what a step made of the speed of a bare matrix product, measured in the same run.
Below it stand the edits that had to be equal, and what libraries said that cogedit did not.

Tables go to stdout, `rehearsal.json` with every word and figure to the folder `--output`, which
also keeps the checkpoint: 21 GB for 5B.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch

from cogedit.artifacts import newest_artifact
from cogedit.errors import CogeditError, StorageError, Terminated, UsageError
from cogedit.models.quiet import quiet_imports

with quiet_imports():
    from cogedit.lab.random_checkpoint import make_checkpoint

from cogedit.lab.product import measure_product
from cogedit.lab.published import MODELS, Published
from cogedit.lab.rehearsal_stages import WHOLE, Rehearsal, Stage, plan_stages
from cogedit.lab.rehearsal_tables import (
    Difference,
    Meter,
    compare,
    difference_table,
    remark_table,
    stage_table,
)
from cogedit.lab.report import make_folder, notify, run_command, write_json
from cogedit.lab.tables import print_report
from cogedit.media.ffmpeg import run_ffmpeg
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.cost import TransformerSizes
from cogedit.models.device import DTYPES, resolve_device
from cogedit.types import DType

LEGEND = (
    "device: the most that torch reserved; host: the most memory of the process itself, and "
    "page-locked with +; estimate: weights and activations, where they compute, without T5, which "
    "stays beside the transformer where both fit; of the product: "
    "operations of the steps after the first, counted, over their time and over the speed of a "
    "bare matrix product; silence: the longest time without a word, the start of Python included."
)


def make_clip(path: Path, options: argparse.Namespace) -> None:
    """Film a journey into the Mandelbrot set, with detail and motion, and a tone.

    It plays at the slowest of the models' rates: of a faster one, some frames would be left out.

    Raises:
        StorageError: ffmpeg could not write it.
    """
    width, height = options.size
    picture = f"mandelbrot=size={width}x{height}:rate=8"
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", "sine=frequency=440"]
    codecs = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "libopus", "-shortest"]
    made = run_ffmpeg(
        [*inputs, "-frames:v", str(options.frames), *codecs, "-y", str(path)], timeout=600
    )
    if made.returncode:
        raise StorageError(f"ffmpeg cannot write {path}: {made.stderr.strip()}")


def rehearse(options: argparse.Namespace) -> None:
    """Run the rehearsal as the command line says.

    Raises:
        CogeditError: The folder, the clip or a command; of the commands after all have run.
    """
    _check(options)
    started = time.monotonic()
    device = resolve_device(options.device).type
    model = MODELS[options.model]
    options.size = options.size or model.size[:2]
    options.frames = options.frames or model.size[2]
    model = model.with_layers(options.layers, options.text_layers)
    make_folder(options.output)
    checkpoint = make_checkpoint(model, options.output.resolve())
    made = time.monotonic() - started
    notify(f"{checkpoint}: {made:.1f} s")
    common = ["--model", str(checkpoint), "--device", device, "--cache", "cache"]
    common += ["--dtype", options.dtype, "--workspace", "clip.cogedit"]
    ends = started + 60 * options.minutes if options.minutes else math.inf
    with tempfile.TemporaryDirectory(dir=options.output, prefix="run-") as name:
        folder = Path(name).resolve()
        video = folder / "clip.mkv" if options.video is None else options.video.resolve()
        if options.video is None:
            make_clip(video, options)
        rehearsal = Rehearsal(folder, common, on_cuda=device == "cuda", ends=ends)
        stages = plan_stages(options, video, on_cuda=device == "cuda")
        try:
            for stage in stages:
                rehearsal.run(stage)
        finally:  # also of what ran before it was stopped
            report(rehearsal, stages, options, model, checkpoint, made=made)
    failed = [stage.name for stage in stages if rehearsal.failed(stage)]
    if failed:
        raise CogeditError(f"not as it should be: {', '.join(failed)}")


def report(
    rehearsal: Rehearsal,
    stages: Sequence[Stage],
    options: argparse.Namespace,
    model: Published,
    checkpoint: Path,
    *,
    made: float,
) -> None:
    """Print the tables and write the file of all figures."""
    dry = rehearsal.seen["dry run"].result if "dry run" in rehearsal.seen else {}
    product, device = math.nan, resolve_device(options.device).type
    if dry:
        sizes = TransformerSizes.of(model.transformer)
        # In a process of its own: this one leaves the device alone.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            probe = pool.submit(_product, sizes, int(str(dry["num_tokens"])), device, options.dtype)
            product = probe.result()
    meter = Meter(
        dry,
        model,
        vae_parameters=find_checkpoint(str(checkpoint)).num_parameters["vae"],
        num_steps=options.num_inference_steps,
        product=product,
    )
    rows = [
        meter.row(stage, seen)
        for stage in stages
        if (seen := rehearsal.seen.get(stage.name)) is not None
    ]
    differences = list(find_differences(rehearsal, stages))
    width, height = options.size
    title = (
        f"{model.name}, {options.frames} frames of {width}x{height}, {options.dtype} on {device}; "
        f"made in {made:.0f} s; a bare matrix product makes {product / 1e12:.3g} TFLOP/s"
    )
    path = options.output / "rehearsal.json"
    write_json(
        path,
        {
            "title": title,
            "options": {key: str(value) for key, value in vars(options).items()},
            "product": product,
            "dry_run": dict(dry),
            "stages": [asdict(row) for row in rows],
            "skipped": rehearsal.skipped,
            "made_twice": [asdict(one) for one in differences],
        },
    )
    tables = [
        stage_table(rows, rehearsal.skipped, title=title),
        difference_table(differences),
        remark_table(rows, rehearsal.skipped),
    ]
    print_report(tables, legend=LEGEND, paths=[path])


def find_differences(rehearsal: Rehearsal, stages: Sequence[Stage]) -> Iterator[Difference]:
    """Compare what was made twice."""
    made = {name: seen.paths[0] for name, seen in rehearsal.seen.items() if seen.paths}
    made = {name: rehearsal.folder / path for name, path in made.items()}
    edit = made.get("reconstruct")
    for stage in stages:
        if stage.name in made and stage.name.startswith("reconstruct, ") and edit is not None:
            yield compare(f"{stage.name}, and reconstruct", edit, made[stage.name])
    whole = [rehearsal.folder / WHOLE]
    trajectory, at_once = newest_artifact(whole, "trajectory"), newest_artifact(whole, "edit")
    resumed = made.get("invert, resumed")
    if trajectory is not None and resumed is not None:
        yield compare(
            "an inversion that was killed and resumed, and a whole one", trajectory, resumed
        )
    if at_once is not None and edit is not None:
        yield compare("the five commands, and edit", edit, at_once)


def _product(sizes: TransformerSizes, num_tokens: int, device: str, dtype: DType) -> float:
    """Measure a bare matrix product, in operations per second."""
    return measure_product(
        sizes, num_tokens=num_tokens, device=torch.device(device), dtype=DTYPES[dtype]
    )


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.rehearsal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=tuple(MODELS), default="5b", help="which (default 5b)")
    add("--layers", type=int, help="of its transformer (default: as published)")
    add("--text-layers", type=int, help="of its T5 (default: as published)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    add("--dtype", choices=get_args(DType), default="bf16", help="default bf16")
    add("--size", type=_parse_size, metavar="WxH", help="default: the model's")
    add("--frames", type=int, help="default: the model's")
    add("--video", type=Path, help="a clip (default: one is made)")
    add("--num-inference-steps", type=int, default=6, help="at least 3 (default 6)")
    add(
        "--memory",
        type=float,
        nargs="*",
        default=[16.0, 8.0],
        metavar="GB",
        help=("sizes of smaller CUDA devices to edit on (default 16 8)"),
    )
    add("--vae-only", action="store_true", help="stop after encoding, and decode the latents")
    add("--minutes", type=float, help="start nothing that does not fit into this time")
    add("--output", type=Path, default=Path("rehearsal"), help="folder (default rehearsal)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse options that cannot work, with a UsageError."""
    least = {"layers": 1, "text_layers": 1, "frames": 1, "num_inference_steps": 3}
    for name, value in least.items():
        if getattr(options, name) is not None and getattr(options, name) < value:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is {getattr(options, name)}; it must be at least {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(rehearse, _parser().parse_args(arguments))


if __name__ == "__main__":
    # A command that runs ends with the rehearsal that is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Terminated.exit_code))
    raise SystemExit(main())
