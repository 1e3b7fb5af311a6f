"""`python -m cogedit.lab.train vae|coarse|transformer|all|first-frame|export`: train the models.

`coarse` is a transformer of large patches. It has a quarter of the tokens and learns colours,
places and motions in a fraction of the time; the transformer that ships starts from its blocks.
`first-frame` trains the shipped transformer, or that of `--start-from`, which may take one already,
on as one that also takes the first frame of the clip; the other parts stay as they are.

Every run can be stopped and started again: it continues from the checkpoint in its folder. `export`
writes the pipeline folder from the last checkpoint, also during a run.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cogedit.lab.training import TrainingSchedule
from cogedit.models.quiet import quiet_imports
from cogedit.shapes import model_dir

with quiet_imports():
    from cogedit.lab.components import COARSE_PATCH_SIZE, export_pipeline, export_transformer
    from cogedit.lab.evaluate import measure
    from cogedit.lab.train_transformer import (
        TransformerTraining,
        load_checkpoint,
        train_transformer,
        untrained_pipeline,
    )
    from cogedit.lab.train_vae import VaeTraining, train_vae

# How `all --minutes` divides the time; the rest goes into loading and measurements.
_SHARES = {"vae": 0.25, "latents": 0.1, "coarse": 0.15, "transformer": 0.4}
# Weights that were trained before need no coarse model.
_SHARES_ON = {"vae": 0.22, "latents": 0.08, "transformer": 0.6}
TIMED_EVAL_CLIPS = {"vae": 16, "transformer": 128}
"""Clips of a measurement where the time is fixed: it must not take much of it."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=("vae", "coarse", "transformer", "all", "first-frame", "export"))
    add(
        "--out",
        type=Path,
        default=Path("shapes-run"),
        help="folder of checkpoints, histories and the result (default shapes-run)",
    )
    add(
        "--start-from",
        type=Path,
        default=None,
        help="pipeline folder whose weights are trained on, without the coarse model",
    )
    add("--vae-steps", type=int, default=VaeTraining().schedule.steps)
    add("--coarse-steps", type=int, default=4500)
    add(
        "--learning-rate",
        type=float,
        default=TransformerTraining().schedule.lr,
        help="of the transformer; weights that were trained before need less (default %(default)g)",
    )
    add(
        "--decay-fraction",
        type=float,
        default=TransformerTraining().schedule.decay_fraction,
        help="share of the transformer's run in which the rate falls to 0 (default %(default)g)",
    )
    add("--vae-batch-size", type=int, default=VaeTraining.batch_size)
    add("--steps", type=int, default=TransformerTraining().schedule.steps)
    add(
        "--minutes",
        type=float,
        default=None,
        help="train for this time, all parts together, instead of for numbers of steps",
    )
    add(
        "--eval-every", type=int, default=TrainingSchedule.eval_every, help="steps; and checkpoints"
    )
    add("--batch-size", type=int, default=TransformerTraining.batch_size)
    add("--num-clips", type=int, default=TransformerTraining.num_clips)
    add(
        "--timestep-shift",
        type=float,
        default=TransformerTraining.timestep_shift,
        help="above 1 trains more on high noise levels, which decide colours and places; below 1 "
        "more on low ones, which draw outlines (default %(default)g)",
    )
    add(
        "--keep-text-encoder",
        action="store_true",
        help="train the transformer alone, so that what shares the text encoder fits it still",
    )
    add("--seed", type=int, default=0)
    add(
        "--oracle-clips",
        type=int,
        default=64,
        help="held-out captions that the result is sampled from and judged by (default 64)",
    )
    add("--threads", type=int, default=None, help="CPU threads (default: torch's own)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the folder `pipeline` in the run's. Returns 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.keep_text_encoder and options.start_from is None:
        parser.error("--keep-text-encoder needs --start-from, whose text encoder is kept")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    out: Path = options.out
    vae_folder, coarse, given = out / "vae", out / "coarse", options.start_from
    encoded = out / "latents.pt"

    timed = options.minutes is not None

    def minutes(part: str) -> float | None:
        shares = _SHARES if options.start_from is None else _SHARES_ON
        share = shares[part] if options.part == "all" else 1.0
        return share * options.minutes if timed else None

    if options.part in ("vae", "all"):
        vae = VaeTraining(
            seed=options.seed,
            batch_size=options.vae_batch_size,
            num_clips=options.num_clips,
            eval_clips=TIMED_EVAL_CLIPS["vae"] if timed else VaeTraining.eval_clips,
        )
        schedule = replace(vae.schedule, steps=options.vae_steps, minutes=minutes("vae"))
        vae = replace(vae, schedule=schedule)
        if given is not None:
            vae = replace(vae, crop_fraction=0.0, codec_fraction=0.0)
        source = None if given is None else given / "vae"
        train_vae(vae, out, start_from=source, device=options.device)
    settings = TransformerTraining(
        schedule=TrainingSchedule(
            options.steps,
            minutes=minutes("transformer"),
            lr=options.learning_rate,
            decay_fraction=options.decay_fraction,
            eval_every=options.eval_every,
        ),
        batch_size=options.batch_size,
        num_clips=options.num_clips,
        timestep_shift=options.timestep_shift,
        keeps_text_encoder=options.keep_text_encoder,
        seed=options.seed,
        eval_clips=TIMED_EVAL_CLIPS["transformer"] if timed else TransformerTraining.eval_clips,
    )
    if options.part == "coarse" or (options.part == "all" and given is None):
        # Its learning rate need not fall: another run continues from it.
        schedule = TrainingSchedule(
            options.coarse_steps, minutes=minutes("coarse"), decay_fraction=0.0
        )
        train_transformer(
            replace(
                settings,
                schedule=schedule,
                batch_size=2 * options.batch_size,
                patch_size=COARSE_PATCH_SIZE,
            ),
            vae_folder,
            out=coarse,
            encoded=encoded,
            device=options.device,
            encode_minutes=minutes("latents"),
        )
    if options.part in ("transformer", "all"):
        start_from = given or coarse / "transformer.pt"
        pipeline = train_transformer(
            settings,
            vae_folder,
            out=out,
            encoded=encoded,
            start_from=start_from if start_from.exists() else None,
            device=options.device,
            encode_minutes=minutes("latents"),
        )
        export_pipeline(pipeline, out / "pipeline")
    if options.part == "first-frame":
        source = given or model_dir()
        pipeline = train_transformer(
            replace(settings, takes_first_frame=True, keeps_text_encoder=True),
            source / "vae",
            out=out,
            encoded=encoded,
            start_from=source,
            device=options.device,
            encode_minutes=None,
        )
        export_transformer(pipeline, out / "first_frame")
    if options.part == "export":
        pipeline = untrained_pipeline(settings, vae_folder)
        load_checkpoint(pipeline, out / "transformer.pt")
        export_pipeline(pipeline, out / "pipeline")
    if options.part in ("transformer", "all", "export"):
        figures = measure(out / "pipeline", num_clips=options.oracle_clips, device=options.device)
        logging.info("%s", figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
