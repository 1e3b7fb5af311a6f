"""`python -m cogedit.lab.train vae|coarse|transformer|all`: train the embedded model.

`coarse` is a transformer of large patches. It has a quarter of the tokens and learns colours,
places and motions in a fraction of the time; the transformer that ships starts from its blocks.

Every run can be stopped and started again: it goes on from the checkpoint in its folder. `export`
writes the pipeline folder from the last checkpoint, also while a run goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cogedit.lab.components import COARSE_PATCH_SIZE, export_pipeline
from cogedit.lab.train_transformer import TransformerTraining, load_trained, train_transformer
from cogedit.lab.train_vae import VaeTraining, train_vae


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cogedit.lab.train", description=__doc__)
    parser.add_argument("part", choices=("vae", "coarse", "transformer", "all", "export"))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("shapes-run"),
        help="folder of checkpoints, curves and the result (default: shapes-run)",
    )
    parser.add_argument("--vae-steps", type=int, default=VaeTraining.steps)
    parser.add_argument("--coarse-steps", type=int, default=4500)
    parser.add_argument("--steps", type=int, default=TransformerTraining.steps)
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help="train the transformer for this time instead of a number of steps",
    )
    parser.add_argument("--batch-size", type=int, default=TransformerTraining.batch_size)
    parser.add_argument("--num-clips", type=int, default=TransformerTraining.num_clips)
    parser.add_argument(
        "--timestep-shift",
        type=float,
        default=TransformerTraining.timestep_shift,
        help="above 1 the transformer sees more of the high noise levels, which decide colours and "
        "places; below 1 more of the low ones, which draw outlines (default: %(default)g)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--replicas",
        type=int,
        default=1,
        help="processes of one thread each that train together, for a CPU (default: 1, with all "
        "threads); every replica takes whole batches of its own",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        Exit code 0. The result of `transformer` and `all` is the pipeline folder `pipeline` in
        the run's folder.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.replicas > 1:
        torch.set_num_threads(1)
    out: Path = options.out
    if options.part in ("vae", "all"):
        vae_settings = replace(VaeTraining(), steps=options.vae_steps, seed=options.seed)
        train_vae(vae_settings, out, device=options.device, replicas=options.replicas)
    settings = replace(
        TransformerTraining(),
        steps=options.steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        num_clips=options.num_clips,
        timestep_shift=options.timestep_shift,
        seed=options.seed,
    )
    coarse = out / "coarse"
    if options.part in ("coarse", "all"):
        # Its learning rate need not fall: another run goes on from it.
        train_transformer(
            replace(
                settings,
                steps=options.coarse_steps,
                minutes=None,
                batch_size=2 * options.batch_size,
                decay_fraction=0.0,
                patch_size=COARSE_PATCH_SIZE,
            ),
            out / "vae",
            out=coarse,
            device=options.device,
            replicas=options.replicas,
        )
    if options.part in ("transformer", "all"):
        start_from = coarse / "transformer.pt"
        pipeline = train_transformer(
            settings,
            out / "vae",
            out=out,
            start_from=start_from if start_from.exists() else None,
            device=options.device,
            replicas=options.replicas,
        )
        export_pipeline(pipeline, out / "pipeline")
    if options.part == "export":
        pipeline = load_trained(settings, out / "vae", out / "transformer.pt")
        export_pipeline(pipeline, out / "pipeline")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
