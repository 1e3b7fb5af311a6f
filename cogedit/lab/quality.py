"""`python -m cogedit.lab.quality`: how good are edits? Measured against right answers.

Clips of the shapes world that the model was never trained on are inverted and edited under the
caption of a clip that can be rendered: the right answer. Every run has these rows:

- the right answer through the VAE (no edit by this model can be better),
- the source unedited, through the VAE (what an editor that does nothing gets),
- `upstream`: the CogVideo repository's script,
- `default`: cogedit's defaults,

and one more for each `--configuration`. Tables go to stdout; the folder `--output` gets
`quality.json` and, per kind of edit, a contact sheet of the first clips.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cogedit.diffusion.trajectory import Trajectory
from cogedit.diffusion.windows import window_starts
from cogedit.errors import UsageError
from cogedit.lab import world
from cogedit.lab.cases import EDIT_KINDS, EditCase, EditKind, change_mask, make_case
from cogedit.lab.configurations import (
    ALWAYS,
    BUILT_IN,
    Configuration,
    Inversion,
    choose_configurations,
)
from cogedit.lab.edit_metrics import (
    Answer,
    EditFigures,
    InversionFigures,
    Levels,
    measure,
    to_frames,
)
from cogedit.lab.quality_tables import CEILING, FLOOR, LEGEND, quality_record, quality_tables
from cogedit.lab.report import make_folder, notify, run_command, write_json
from cogedit.lab.tables import print_report
from cogedit.media.contact_sheet import SheetRow, draw_sheet
from cogedit.media.metrics import psnr
from cogedit.media.writer import save_png
from cogedit.models.checkpoint import find_checkpoint
from cogedit.models.device import DTYPES, resolve_device
from cogedit.models.quiet import quiet_imports
from cogedit.types import WindowPlan
from cogedit.version import __version__

with quiet_imports():
    from cogedit.lab.batch_pipeline import BatchPipeline, as_exported


class Evaluation:
    """Runs configurations over held-out clips, batch by batch, and collects the figures.

    Args:
        pipeline: The model.
        configurations: The rows.
        kinds: The kinds of edit.
        num_images: Of how many clips per kind the middle frames are kept for a contact sheet.
        draw: Draws the edit of a kind of the clip with a number, of one clip for every kind.

    Attributes:
        edits: Figures of the clips so far, by kind and row.
        inversions: Figures of the clips so far, by inversion.
        images: Rows of the contact sheet of each kind.
    """

    def __init__(
        self,
        pipeline: BatchPipeline,
        configurations: Sequence[Configuration],
        *,
        kinds: Sequence[EditKind],
        num_images: int = 0,
        draw: Callable[[int, EditKind], EditCase] = make_case,
    ) -> None:
        self._pipeline = pipeline
        self._draw = draw
        self._configurations = configurations
        self._num_images = num_images
        self.edits: dict[EditKind, dict[str, list[EditFigures]]] = {
            kind: {name: [] for name in (CEILING, FLOOR, *names_of(configurations, kind))}
            for kind in kinds
        }
        self.inversions: dict[Inversion, list[InversionFigures]] = {
            configuration.inversion: [] for configuration in configurations
        }
        self.images: dict[EditKind, list[SheetRow]] = {kind: [] for kind in kinds}

    def run_batch(self, seeds: Sequence[int]) -> None:
        """Evaluate some held-out clips, all in one batch.

        Raises:
            NumericalError: NaN or Inf appeared.
        """
        specs = [self._draw(seed, "same").source for seed in seeds]
        captions = [world.caption(spec) for spec in specs]
        latents = self._pipeline.encode([world.render(spec) for spec in specs])
        round_trips = self._pipeline.decode(latents)
        answers = {kind: self._answers(kind, seeds, round_trips) for kind in self.edits}
        trajectories = {
            inversion: self._invert(inversion, latents, captions, round_trips)
            for inversion in self.inversions
        }
        exported: dict[EditKind, list[list[Levels]]] = {kind: [] for kind in self.edits}
        cache: dict[tuple[Configuration, EditKind], tuple[list[Levels], Tensor | None]] = {}
        for configuration in self._configurations:
            # Rows that differ only in their export share the edit.
            edit = replace(configuration, name="", align_edges=0, kinds=EDIT_KINDS)
            for kind, right in answers.items():
                if kind not in configuration.kinds:
                    continue
                if (edit, kind) not in cache:
                    trajectory = trajectories[edit.inversion]
                    cache[edit, kind] = self._edit(edit, trajectory, right, captions)
                clips, masks = cache[edit, kind]
                radius = configuration.align_edges
                clips = as_exported(clips, right, masks=masks, align_edges=radius)
                borders = self._borders(edit.inversion, num_frames=len(right[0].source_round_trip))
                self._add(kind, configuration.name, clips, right, borders=borders)
                exported[kind].append(clips)
            notify(f"  {configuration.name}: {len(seeds)} clips")
        for kind, right in answers.items():
            self._keep_images(kind, right, exported[kind])

    def _answers(
        self, kind: EditKind, seeds: Sequence[int], round_trips: Sequence[Levels]
    ) -> list[Answer]:
        """Render and encode the right answers, and measure ceiling and floor."""
        cases = [self._draw(seed, kind) for seed in seeds]
        right = round_trips
        if kind != "same":
            rendered = [world.render(case.right) for case in cases]
            right = self._pipeline.decode(self._pipeline.encode(rendered))
        answers = [Answer(*facts) for facts in zip(cases, round_trips, right, strict=True)]
        self._add(kind, CEILING, right, answers)
        self._add(kind, FLOOR, round_trips, answers)
        return answers

    def _invert(
        self,
        inversion: Inversion,
        latents: Tensor,
        captions: Sequence[str],
        round_trips: Sequence[Levels],
    ) -> Trajectory:
        """Invert the source clips and measure how well they come back."""
        trajectory = self._pipeline.invert(latents, inversion, captions)
        resampled = self._pipeline.resample(trajectory, inversion, captions)
        decoded = self._pipeline.decode(resampled)
        self.inversions[inversion] += [
            InversionFigures(psnr(clip, expected), float(noise.std()))
            for clip, expected, noise in zip(decoded, round_trips, trajectory.noise, strict=True)
        ]
        return trajectory

    def _edit(
        self,
        configuration: Configuration,
        trajectory: Trajectory,
        answers: Sequence[Answer],
        captions: Sequence[str],
    ) -> tuple[list[Levels], Tensor | None]:
        """Return the edited clips, and their masks [N, F, H, W] if they have any."""
        settings = configuration.reconstruct
        prompts = [answer.case.prompt for answer in answers]
        inversion_prompts = configuration.inversion.prompts(captions)
        masks = None
        if settings.auto_mask:
            masks = self._pipeline.find_masks(
                trajectory, settings, prompts=prompts, inversion_prompts=inversion_prompts
            )
        elif configuration.exact_mask:
            masks = exact_masks(answers)
        latents = self._pipeline.edit(
            trajectory,
            settings,
            prompts=prompts,
            inversion_prompts=inversion_prompts,
            seeds=[settings.seed + answer.case.seed for answer in answers],
            masks=masks,
        )
        return self._pipeline.decode(latents), masks

    def _add(
        self,
        kind: EditKind,
        name: str,
        clips: Sequence[Levels],
        answers: Sequence[Answer],
        *,
        borders: Collection[int] = (),
    ) -> None:
        self.edits[kind][name] += [
            measure(clip, answer, borders=borders)
            for clip, answer in zip(clips, answers, strict=True)
        ]

    def _borders(self, inversion: Inversion, *, num_frames: int) -> Collection[int]:
        if inversion.windows is None:
            return ()
        temporal = self._pipeline.checkpoint.geometry.temporal_compression
        return window_borders(inversion.windows, num_frames, temporal=temporal)

    def _keep_images(
        self, kind: EditKind, answers: Sequence[Answer], edits: Sequence[Sequence[Levels]]
    ) -> None:
        """Keep the middle frames of the first clips; `edits` has a list per configuration."""
        missing = self._num_images - len(self.images[kind])
        for index, answer in enumerate(answers[: max(missing, 0)]):
            case = answer.case
            clips = [world.render(case.source), world.render(case.right)]
            clips += [to_frames(edited[index]) for edited in edits]
            row = SheetRow(_row_label(case), tuple(clip[len(clip) // 2] for clip in clips))
            self.images[kind].append(row)


def names_of(configurations: Sequence[Configuration], kind: EditKind) -> list[str]:
    """Return the rows that are run for a kind of edit."""
    return [one.name for one in configurations if kind in one.kinds]


def window_borders(plan: WindowPlan, num_frames: int, *, temporal: int) -> tuple[int, ...]:
    """Return the frames of a clip that lie in other windows than the frame before.

    The windows are those of the levels at which they are not moved, the last one among them.
    `temporal` is how many frames the VAE joins; the first frame stands alone.
    """
    latent = [-(-frame // temporal) for frame in range(num_frames)]
    starts = window_starts(plan, latent[-1] + 1, moved=False)
    inside = [[start <= place < start + plan.length for start in starts] for place in latent]
    return tuple(frame for frame in range(1, num_frames) if inside[frame] != inside[frame - 1])


def exact_masks(answers: Sequence[Answer]) -> Tensor:
    """Render the exact mask of each edit, [N, F, H, W] uint8."""
    return torch.stack([torch.from_numpy(change_mask(answer.case)) for answer in answers])


def _row_label(case: EditCase) -> str:
    if case.kind == "same":
        return f"{case.seed}: {case.prompt}"
    return f"{case.seed}: {case.source_prompt}  ->  {getattr(case.right, case.kind)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(parser, num_clips=64)
    add = parser.add_argument
    add("--kind", choices=EDIT_KINDS, nargs="+", default=list(EDIT_KINDS), help="default: all")
    add(
        "--configuration",
        action="append",
        default=[],
        metavar="NAME",
        help=f"another row: one of {', '.join(n for n in BUILT_IN if n not in ALWAYS)}, a preset "
        "or a TOML file; with @caption appended, clips are inverted under their captions, with "
        "@mask, each edit gets its exact mask; =KIND,KIND at the end is for these kinds alone; "
        "may be repeated",
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
    add("--model", default="shapes", help="shapes (default) or a pipeline folder")
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
    configurations = choose_configurations(options.configuration, num_inference_steps=options.steps)
    pipeline, facts = start_run(options)
    kinds = tuple(dict.fromkeys(options.kind))
    evaluation = Evaluation(pipeline, configurations, kinds=kinds, num_images=options.pictures)
    paths = [options.output / "quality.json"]
    for seeds in seed_batches(options):
        evaluation.run_batch(seeds)
        # After each batch: an interrupted run keeps what it has measured.
        record = quality_record(evaluation.edits, evaluation.inversions, configurations)
        num_clips = seeds.stop - options.seed_offset
        write_json(paths[0], {"run": facts | {"num_clips": num_clips}} | record)
    for kind, rows in evaluation.images.items():
        if rows:
            names = names_of(configurations, kind)
            paths.append(options.output / f"quality-{kind}.png")
            save_png(draw_sheet(["source", "right answer", *names], rows, zoom=4), paths[-1])
    tables = quality_tables(evaluation.edits, evaluation.inversions, configurations)
    print_report(tables, legend=LEGEND, paths=paths)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(evaluate, _parser().parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
