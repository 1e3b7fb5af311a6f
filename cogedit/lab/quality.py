"""`python -m cogedit.lab.quality`: how good are edits? Measured against right answers.

Clips of the shapes world that the model was never trained on are inverted and edited under the
caption of a clip that can be rendered: the right answer. Every run has these rows:

- the right answer through the VAE (no edit by this model can be better),
- the source unedited, through the VAE (what an editor that does nothing gets),
- `upstream`: the CogVideo repository's script,
- `default`: what cogedit does unasked,

and one more for each `--configuration`. Tables go to stdout; `--output` gets `quality.json` and,
per kind of edit, a contact sheet of the first clips, and `frontier.png`: what each row's edits show
against what they keep (`cogedit.lab.frontier`, which also draws several runs together).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cogedit.errors import UsageError
from cogedit.lab.command import Say, make_folder, run_command
from cogedit.lab.configurations import (
    ALWAYS,
    BUILT_IN,
    Configuration,
    Inversion,
    choose_configurations,
)
from cogedit.lab.frontier import draw_frontier, read_points
from cogedit.lab.tables import (
    CEILING,
    FLOOR,
    LEGEND,
    Findings,
    RunFacts,
    edit_table,
    inversion_table,
    print_report,
    write_json,
)
from cogedit.media.contact_sheet import Picture, SheetRow, draw_sheet, save_png
from cogedit.media.edges import align_edges
from cogedit.media.metrics import psnr
from cogedit.models.checkpoint import find_checkpoint
from cogedit.shapes import world
from cogedit.shapes.cases import EDIT_KINDS, EditCase, EditKind, change_mask, make_case
from cogedit.shapes.edit_metrics import (
    Answer,
    EditFigures,
    InversionFigures,
    Levels,
    measure,
    to_frames,
)
from cogedit.types import DType
from cogedit.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from cogedit.diffusion.trajectory import Trajectory
    from cogedit.lab.row_batches import BatchPipeline

_MIDDLE = world.NUM_FRAMES // 2


@dataclass(frozen=True)
class _Sources:
    """Source clips of one batch.

    Attributes:
        seeds: Their numbers.
        captions: Their full captions.
        latents: [N, F', C, H', W'] float32.
        round_trips: The clips after encoding and decoding.
    """

    seeds: Sequence[int]
    captions: Sequence[str]
    latents: Tensor
    round_trips: Sequence[Levels]


@dataclass(frozen=True)
class Edited:
    """Edits of one batch.

    Attributes:
        clips: As the decoder gave them.
        masks: Of each edit, [N, F, H, W]; None without.
    """

    clips: Sequence[Levels]
    masks: Tensor | None


class Evaluation:
    """Runs configurations over held-out clips, batch by batch, and keeps the figures.

    Args:
        pipeline: The model.
        configurations: The rows.
        kinds: The kinds of edit.
        num_pictures: Of how many clips per kind the middle frames are kept for a contact sheet.
        say: Told what is being done, for people.
    """

    def __init__(
        self,
        pipeline: BatchPipeline,
        configurations: Sequence[Configuration],
        *,
        kinds: Sequence[EditKind],
        num_pictures: int = 0,
        say: Say = lambda text: None,
    ) -> None:
        self._pipeline = pipeline
        self._configurations = configurations
        self._num_pictures = num_pictures
        self._say = say
        names = [CEILING, FLOOR, *(one.name for one in configurations)]
        self._edits: dict[EditKind, dict[str, list[EditFigures]]] = {
            kind: {name: [] for name in names} for kind in kinds
        }
        inversions = dict.fromkeys(one.inversion for one in configurations)
        self._inversions: dict[Inversion, list[InversionFigures]] = {
            inversion: [] for inversion in inversions
        }
        self._pictures: dict[EditKind, list[SheetRow]] = {kind: [] for kind in kinds}

    @property
    def findings(self) -> Findings:
        """The figures so far."""
        return Findings(self._edits, self._inversions)

    def run(
        self,
        seeds: Sequence[int],
        *,
        batch_size: int,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Evaluate clips.

        Args:
            seeds: Their numbers among the held-out clips.
            batch_size: How many go through the model at once.
            on_batch: Called after each batch with the number of clips that are done.

        Raises:
            NumericalError: NaN or Inf appeared.
        """
        for first in range(0, len(seeds), batch_size):
            batch = seeds[first : first + batch_size]
            started = time.monotonic()
            self._run_batch(batch)
            done = first + len(batch)
            self._say(
                f"clips {batch[0]} to {batch[-1]}: {done} of {len(seeds)} done, "
                f"{time.monotonic() - started:.0f} s"
            )
            on_batch(done)

    def sheet(self, kind: EditKind, *, zoom: int = 4) -> Picture | None:
        """Draw the first clips of a kind; None if no pictures were kept."""
        rows = self._pictures[kind]
        if not rows:
            return None
        names = [one.name for one in self._configurations]
        return draw_sheet(["source", "right answer", *names], rows, zoom=zoom)

    def _run_batch(self, seeds: Sequence[int]) -> None:
        pipeline = self._pipeline
        specs = [world.sample_spec(seed, "held_out") for seed in seeds]
        latents = pipeline.encode([world.render(spec) for spec in specs])
        captions = [world.caption(spec) for spec in specs]
        sources = _Sources(seeds, captions, latents, pipeline.decode(latents))
        answers = {kind: self._answers(kind, sources) for kind in self._edits}
        shown: dict[EditKind, list[list[Levels]]] = {kind: [] for kind in self._edits}
        trajectories = {
            inversion: self._invert(inversion, sources) for inversion in self._inversions
        }
        made: dict[tuple[Configuration, EditKind], Edited] = {}
        for configuration in self._configurations:
            trajectory = trajectories[configuration.inversion]
            # Rows that differ in what an export makes of an edit share the edit.
            same_edit = replace(configuration, name="", align_edges=0)
            for kind in self._edits:
                if (same_edit, kind) not in made:
                    made[same_edit, kind] = self._edit(
                        configuration, trajectory, answers[kind], captions=sources.captions
                    )
                clips = as_shown(
                    made[same_edit, kind], answers[kind], align_edges=configuration.align_edges
                )
                self._add(kind, configuration.name, clips, answers[kind])
                shown[kind].append(clips)
            self._say(f"  {configuration.name}: {len(seeds)} clips, {len(self._edits)} kinds")
        for kind in self._edits:
            self._keep_pictures(kind, answers[kind], shown[kind])

    def _answers(self, kind: EditKind, sources: _Sources) -> list[Answer]:
        """Render and encode the right answers, and measure ceiling and floor."""
        cases = [make_case(seed, kind) for seed in sources.seeds]
        if kind == "same":
            right_round_trips = list(sources.round_trips)
        else:
            rendered = [world.render(case.right) for case in cases]
            right_round_trips = self._pipeline.decode(self._pipeline.encode(rendered))
        answers = [
            Answer(case, source, right)
            for case, source, right in zip(
                cases, sources.round_trips, right_round_trips, strict=True
            )
        ]
        self._add(kind, CEILING, right_round_trips, answers)
        self._add(kind, FLOOR, sources.round_trips, answers)
        return answers

    def _invert(self, inversion: Inversion, sources: _Sources) -> Trajectory:
        """Invert the source clips and measure how well they come back."""
        from cogedit.lab.row_batches import noise_std

        trajectory = self._pipeline.invert(sources.latents, inversion, sources.captions)
        resampled = self._pipeline.resample(trajectory, inversion, sources.captions)
        decoded = self._pipeline.decode(resampled)
        self._inversions[inversion] += [
            InversionFigures(psnr(clip, expected), std)
            for clip, expected, std in zip(
                decoded, sources.round_trips, noise_std(trajectory), strict=True
            )
        ]
        return trajectory

    def _edit(
        self,
        configuration: Configuration,
        trajectory: Trajectory,
        answers: Sequence[Answer],
        *,
        captions: Sequence[str],
    ) -> Edited:
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
        return Edited(self._pipeline.decode(latents), masks)

    def _add(
        self, kind: EditKind, name: str, clips: Sequence[Levels], answers: Sequence[Answer]
    ) -> None:
        self._edits[kind][name] += [
            measure(clip, answer) for clip, answer in zip(clips, answers, strict=True)
        ]

    def _keep_pictures(
        self, kind: EditKind, answers: Sequence[Answer], edits: Sequence[Sequence[Levels]]
    ) -> None:
        """Keep the middle frames of the first clips; `edits` has a list per configuration."""
        for index, answer in enumerate(answers):
            if len(self._pictures[kind]) >= self._num_pictures:
                return
            case = answer.case
            clips = [world.render(case.source), world.render(case.right)]
            clips += [to_frames(edited[index]) for edited in edits]
            row = SheetRow(_row_label(case), tuple(clip[_MIDDLE] for clip in clips))
            self._pictures[kind].append(row)


def exact_masks(answers: Sequence[Answer]) -> Tensor:
    """Render the exact mask of each edit, [N, F, H, W] uint8."""
    import torch

    return torch.stack([torch.from_numpy(change_mask(answer.case)) for answer in answers])


def as_shown(edited: Edited, answers: Sequence[Answer], *, align_edges: int) -> list[Levels]:
    """Make of edits what the export shows.

    Args:
        edited: The edits.
        answers: What they are measured against.
        align_edges: Radius within which edges are those of the source's own frames; 0 is off.
    """
    clips, own_frames = list(edited.clips), align_edges > 0
    if own_frames:
        clips = aligned(clips, answers, radius=align_edges)
    if edited.masks is None:
        return clips
    return put_back(clips, answers, edited.masks, own_frames=own_frames)


def aligned(clips: Sequence[Levels], answers: Sequence[Answer], *, radius: int) -> list[Levels]:
    """Fit the changes to the edges of the source's own frames, as the export does."""
    return [
        align_edges(
            to_frames(clip),
            to_frames(answer.source_round_trip),
            world.render(answer.case.source),
            radius=radius,
        ).astype("f4")
        for clip, answer in zip(clips, answers, strict=True)
    ]


def put_back(
    clips: Sequence[Levels], answers: Sequence[Answer], masks: Tensor, *, own_frames: bool = False
) -> list[Levels]:
    """Put the source's round trip, or its own frames, back outside the masks as the export does."""
    import torch

    from cogedit.diffusion.latent_mask import composite

    shown = []
    for clip, answer, mask in zip(clips, answers, masks, strict=True):
        below = answer.source_round_trip
        if own_frames:
            below = world.render(answer.case.source).astype("f4")
        shown.append(composite(torch.from_numpy(clip), torch.from_numpy(below), mask).numpy())
    return shown


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
    add = parser.add_argument
    add("--clips", type=int, default=64, help="held-out clips per kind of edit (default 64)")
    add("--seed-offset", type=int, default=0, help="first held-out clip; fresh seeds are higher")
    add("--kind", choices=EDIT_KINDS, nargs="+", default=list(EDIT_KINDS), help="default: all")
    add(
        "--configuration",
        action="append",
        default=[],
        metavar="NAME",
        help=f"another row: one of {', '.join(n for n in BUILT_IN if n not in ALWAYS)}, a preset "
        "or a TOML file; behind it @caption inverts under the source's caption and @mask gives "
        "each edit its exact mask; may be given again",
    )
    add("--steps", type=int, default=50, help="inference steps in place of 50 (default 50)")
    add("--output", type=Path, default=Path("bench"), help="folder (default bench)")
    add("--pictures", type=int, default=8, help="clips on the contact sheets (default 8, 0: none)")
    add("--model", default="shapes", help="shapes (default) or a pipeline folder")
    add("--batch-size", type=int, default=16, help="clips in the model at once (default 16)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="default fp32")
    return parser


def evaluate(options: argparse.Namespace, *, say: Say) -> None:
    """Run the benchmark as the command line says: tables to stdout, files to the folder.

    Raises:
        CogeditError: As the stages.
    """
    from cogedit.models.quiet import quiet_imports

    with quiet_imports():
        from cogedit.lab.row_batches import BatchPipeline
    from cogedit.models.device import DTYPES, resolve_device

    if options.clips < 1 or options.batch_size < 1 or options.seed_offset < 0:
        raise UsageError("--clips and --batch-size must be at least 1, --seed-offset at least 0")
    configurations = choose_configurations(options.configuration, num_inference_steps=options.steps)
    checkpoint = find_checkpoint(options.model)
    folder: Path = options.output
    make_folder(folder)
    dtype = cast(DType, options.dtype)
    device = resolve_device(options.device)
    pipeline = BatchPipeline(checkpoint, device=device, dtype=DTYPES[dtype])
    evaluation = Evaluation(
        pipeline,
        configurations,
        kinds=tuple(dict.fromkeys(options.kind)),
        num_pictures=options.pictures,
        say=say,
    )
    facts = RunFacts(
        cogedit_version=__version__,
        model=checkpoint.id,
        model_digest=checkpoint.digest,
        device=device.type,
        dtype=dtype,
        num_inference_steps=options.steps,
        first_seed=options.seed_offset,
        num_clips=options.clips,
    )

    def keep(done: int) -> None:
        # After each batch: hours of a run that is stopped are not lost.
        so_far = replace(facts, num_clips=done)
        write_json(folder / "quality.json", evaluation.findings, configurations, facts=so_far)

    seeds = range(options.seed_offset, options.seed_offset + options.clips)
    evaluation.run(seeds, batch_size=options.batch_size, on_batch=keep)
    written = [folder / "quality.json", *_save_sheets(evaluation, folder, options.kind)]
    plot = draw_frontier(folder / "frontier.png", read_points(written[:1]), say=say)
    written += [plot] if plot else []
    findings = evaluation.findings
    tables = [edit_table(kind, rows) for kind, rows in findings.edits.items()]
    tables.append(inversion_table(findings.inversions, configurations))
    print_report(tables, legend=LEGEND, paths=written)


def _save_sheets(evaluation: Evaluation, folder: Path, kinds: Sequence[EditKind]) -> list[Path]:
    paths = []
    for kind in dict.fromkeys(kinds):
        sheet = evaluation.sheet(kind)
        if sheet is not None:
            paths.append(folder / f"quality-{kind}.png")
            save_png(sheet, paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or the exit code of what went wrong, which is said on stderr.
    """
    return run_command(evaluate, _parser().parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
