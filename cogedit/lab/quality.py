"""`python -m cogedit.lab.quality`: how good are edits? Measured against right answers.

Clips of the shapes world that the model was never trained on are inverted and edited under the
caption of a clip that can be rendered: the right answer. Every run has these rows:

- the right answer through the VAE (no edit by this model can be better),
- the source unedited, through the VAE (what an editor that does nothing gets),
- `upstream`: the CogVideo repository's script,
- `default`: cogedit's defaults,

and one more for each `--configuration`. A model that takes a first frame (`--model shapes-i2v`) is
given the right answer's and no prompt. In place of the last two it has

- that frame, repeated,
- `first-frame`: the preset of such models,
- the default edit by `shapes`, which is asked by text.

Tables go to stdout; the folder `--output` gets `quality.json` and, per kind of edit, a contact
sheet of the first clips.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cogedit.errors import UsageError
from cogedit.lab.cases import EDIT_KINDS, FRAME_KINDS, TEXT_KINDS, EditKind
from cogedit.lab.configurations import (
    ALWAYS,
    ALWAYS_WITH_FRAME,
    BUILT_IN,
    choose_configurations,
    find_configuration,
)
from cogedit.lab.quality_tables import LEGEND, quality_record, quality_tables
from cogedit.lab.report import make_folder, notify, run_command, write_json
from cogedit.lab.tables import print_report
from cogedit.media.contact_sheet import draw_sheet
from cogedit.media.png import save_png
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.device import DTYPES, resolve_device
from cogedit.models.quiet import quiet_imports
from cogedit.version import __version__

with quiet_imports():
    from cogedit.lab.batch_pipeline import BatchPipeline
    from cogedit.lab.evaluation import Evaluation, names_of

BY_TEXT = "shapes, asked by text"
"""The row beside edits of a first frame: the same clips by the model of text."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(parser, num_clips=64)
    add = parser.add_argument
    add(
        "--kind",
        choices=EDIT_KINDS,
        nargs="+",
        help=f"default: {', '.join(TEXT_KINDS)}; of a first frame {', '.join(FRAME_KINDS)}",
    )
    add(
        "--configuration",
        action="append",
        default=[],
        metavar="NAME",
        help=f"another row: one of {', '.join(n for n in BUILT_IN if n not in ALWAYS)}, a preset "
        "or a TOML file; with @caption appended, clips are inverted under their captions, with "
        "@mask, each edit gets its exact mask, with @prompt, one of a first frame has its prompt, "
        "too; =KIND,KIND at the end is for these kinds alone; may be repeated",
    )
    add("--pictures", type=int, default=8, help="clips on the contact sheets (default 8, 0: none)")
    return parser


def add_run_options(parser: argparse.ArgumentParser, *, num_clips: int) -> None:
    """Add what every benchmark of edits asks for: which clips, which model, where."""
    add, default = parser.add_argument, f"(default {num_clips})"
    add("--clips", type=int, default=num_clips, help=f"held-out clips per kind of edit {default}")
    add("--seed-offset", type=int, default=0, help="first held-out clip; fresh seeds are higher")
    add("--steps", type=int, default=50, help="inference steps in place of 50 (default 50)")
    add("--output", type=Path, default=Path("bench"), help="folder (default bench)")
    add("--model", default="shapes", help="shapes (default), shapes-i2v or a pipeline folder")
    add("--batch-size", type=int, default=16, help="clips in the model at once (default 16)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="default fp32")


def start_run(options: argparse.Namespace) -> tuple[BatchPipeline, dict[str, object]]:
    """Check the options of `add_run_options`; return the model, and the run's facts for JSON.

    Raises:
        CogeditError: A number is out of range, or the model is not there or does not fit.
    """
    if options.clips < 1 or options.batch_size < 1 or options.seed_offset < 0:
        raise UsageError("--clips and --batch-size must be at least 1, --seed-offset at least 0")
    checkpoint = find_checkpoint(options.model)
    make_folder(options.output)
    device = resolve_device(options.device)
    facts: dict[str, object] = {
        "cogedit_version": __version__,
        "model": checkpoint.id,
        "model_digest": checkpoint.digest,
        "device": device.type,
        "dtype": options.dtype,
        "num_inference_steps": options.steps,
        "first_seed": options.seed_offset,
    }
    return BatchPipeline(checkpoint, device=device, dtype=DTYPES[options.dtype]), facts


def seed_batches(options: argparse.Namespace) -> Iterator[range]:
    """Return the seeds of a run, batch by batch; say what each took."""
    for first in range(0, options.clips, options.batch_size):
        started = time.monotonic()
        done = min(first + options.batch_size, options.clips)
        yield range(options.seed_offset + first, options.seed_offset + done)
        notify(f"{done} of {options.clips} clips done, {time.monotonic() - started:.0f} s")


def evaluate(options: argparse.Namespace) -> None:
    """Run the benchmark as the command line says: tables to stdout, files to the folder.

    Raises:
        CogeditError: As the stages.
    """
    takes_frame = find_checkpoint(options.model).takes_first_frame
    configurations = choose_configurations(
        options.configuration,
        num_inference_steps=options.steps,
        always=ALWAYS_WITH_FRAME if takes_frame else ALWAYS,
    )
    pipeline, facts = start_run(options)
    kinds = tuple(dict.fromkeys(options.kind or (FRAME_KINDS if takes_frame else TEXT_KINDS)))
    evaluation = Evaluation(
        pipeline,
        configurations,
        kinds=kinds,
        num_images=options.pictures,
        shows_last=takes_frame,
    )
    edits, by_text = evaluation.edits, None
    if takes_frame:
        by_text = _by_text(pipeline, options, kinds)
        edits = {kind: edits[kind] | by_text.edits[kind] for kind in kinds}
    paths = [options.output / "quality.json"]
    for seeds in seed_batches(options):
        evaluation.run_batch(seeds)
        if by_text is not None:
            by_text.run_batch(seeds)
        # After each batch: an interrupted run keeps what it has measured.
        record = quality_record(edits, evaluation.inversions, configurations)
        num_clips = seeds.stop - options.seed_offset
        write_json(paths[0], {"run": facts | {"num_clips": num_clips}} | record)
    for kind, rows in evaluation.images.items():
        if rows:
            names = names_of(configurations, kind)
            if by_text is not None:
                names.append(BY_TEXT)
                rows = [
                    replace(row, pictures=(*row.pictures, *text.pictures[2:]))
                    for row, text in zip(rows, by_text.images[kind], strict=True)
                ]
            paths.append(options.output / f"quality-{kind}.png")
            save_png(draw_sheet(["source", "right answer", *names], rows, zoom=4), paths[-1])
    tables = quality_tables(edits, evaluation.inversions, configurations)
    print_report(tables, legend=LEGEND, paths=paths)


def _by_text(
    pipeline: BatchPipeline, options: argparse.Namespace, kinds: Sequence[EditKind]
) -> Evaluation:
    """The same clips edited by text, by the embedded model and the defaults."""
    text = BatchPipeline(find_checkpoint("shapes"), device=pipeline.device, dtype=pipeline.dtype)
    default = replace(find_configuration("default").with_steps(options.steps), name=BY_TEXT)
    return Evaluation(text, [default], kinds=kinds, num_images=options.pictures, shows_last=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(evaluate, _parser().parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
