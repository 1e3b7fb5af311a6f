"""`python -m cogedit.lab.train vae|coarse|transformer|all|export`: train the embedded model.

`coarse` is a transformer of large patches. It has a quarter of the tokens and learns colours,
places and motions in a fraction of the time; the transformer that ships starts from its blocks.

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

from cogedit.lab.training import TrainingSchedule, load_average
from cogedit.models.quiet import quiet_imports

with quiet_imports():
    from cogedit.lab.components import COARSE_PATCH_SIZE, export_pipeline
    from cogedit.lab.train_transformer import (
        TextToVelocity,
        TransformerTraining,
        train_transformer,
        untrained_pipeline,
    )
    from cogedit.lab.train_vae import VaeTraining, train_vae

# How `all --minutes` divides the time; the rest goes into loading and measurements.
_SHARES = {"vae": 0.25, "latents": 0.1, "coarse": 0.15, "transformer": 0.4}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogedit.lab.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=("vae", "coarse", "transformer", "all", "export"))
    add(
        "--out",
        type=Path,
        default=Path("shapes-run"),
        help="folder of checkpoints, histories and the result (default shapes-run)",
    )
    add("--vae-steps", type=int, default=VaeTraining().schedule.steps)
    add("--coarse-steps", type=int, default=4500)
    add("--steps", type=int, default=TransformerTraining().schedule.steps)
    add(
        "--minutes",
        type=float,
        default=None,
        help="train for this time, all parts together, instead of for numbers of steps",
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
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=None, help="CPU threads (default: torch's own)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the folder `pipeline` in the run's. Returns 0."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    out: Path = options.out
    vae_folder, coarse = out / "vae", out / "coarse"

    # Where the time is fixed, measurements must not take much of it.
    timed = options.minutes is not None

    def minutes(part: str) -> float | None:
        share = _SHARES[part] if options.part == "all" else 1.0
        return share * options.minutes if timed else None

    if options.part in ("vae", "all"):
        vae = VaeTraining(seed=options.seed, eval_clips=16 if timed else VaeTraining.eval_clips)
        schedule = replace(vae.schedule, steps=options.vae_steps, minutes=minutes("vae"))
        train_vae(replace(vae, schedule=schedule), out, device=options.device)
    settings = TransformerTraining(
        schedule=TrainingSchedule(options.steps, minutes=minutes("transformer")),
        batch_size=options.batch_size,
        num_clips=options.num_clips,
        timestep_shift=options.timestep_shift,
        seed=options.seed,
        eval_clips=128 if timed else TransformerTraining.eval_clips,
    )
    if options.part in ("coarse", "all"):
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
            device=options.device,
            encode_minutes=minutes("latents"),
        )
    if options.part in ("transformer", "all"):
        start_from = coarse / "transformer.pt"
        pipeline = train_transformer(
            settings,
            vae_folder,
            out=out,
            start_from=start_from if start_from.exists() else None,
            device=options.device,
            encode_minutes=minutes("latents"),
        )
        export_pipeline(pipeline, out / "pipeline")
    if options.part == "export":
        pipeline = untrained_pipeline(settings, vae_folder)
        load_average(TextToVelocity(pipeline), out / "transformer.pt")
        export_pipeline(pipeline, out / "pipeline")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
