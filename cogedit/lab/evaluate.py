"""`python -m cogedit.lab.evaluate`: how good is the embedded model?

Measures the VAE's round trip and text-to-video generation from noise, both on held-out clips: the
captions are those of held-out specs, the judge is the oracle. What the oracle gets wrong counts
against the model; the row "rendered" and the row "VAE round trip" say how often that is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline

from cogedit.lab.train_vae import decode_latents, encode_frames, psnr, render_batch
from cogedit.shapes import model_dir, world
from cogedit.shapes.oracle import read_clip

SOLVERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
"""How clips are sampled: the scheduler of the pipeline folder, or the stochastic one that the model
card of CogVideoX-5B samples with."""


@dataclass(frozen=True)
class Accuracy:
    """Share of clips, 0..1, in which the oracle reads what the caption says.

    Attributes:
        name: Which clips.
        num_clips: How many.
        color: Colour of the object.
        background: Colour of the background.
        shape: Shape of the object, by its outline.
        overlap_shape: Shape of the object, by the overlap with templates of sharp corners.
        motion: Direction of the motion.
        all: All four at once.
        shape_iou: Mean overlap of the object with the best-fitting template.
    """

    name: str
    num_clips: int
    color: float
    background: float
    shape: float
    overlap_shape: float
    motion: float
    all: float
    shape_iou: float


def accuracy(name: str, clips: np.ndarray, specs: Sequence[world.ClipSpec]) -> Accuracy:
    """Let the oracle read clips [N, F, H, W, 3] uint8 and compare with their specs."""
    readings = [read_clip(clip) for clip in clips]
    hits = np.asarray(
        [
            (
                reading.color == spec.color,
                reading.background == spec.background,
                reading.shape == spec.shape,
                reading.motion == spec.motion,
            )
            for reading, spec in zip(readings, specs, strict=True)
        ]
    )
    color, background, shape, motion = (float(share) for share in hits.mean(axis=0))
    overlap = [r.overlap_shape == spec.shape for r, spec in zip(readings, specs, strict=True)]
    return Accuracy(
        name=name,
        num_clips=len(specs),
        color=color,
        background=background,
        shape=shape,
        overlap_shape=float(np.mean(overlap)),
        motion=motion,
        all=float(hits.all(axis=1).mean()),
        shape_iou=float(np.mean([reading.shape_iou for reading in readings])),
    )


def generate(
    pipeline: CogVideoXPipeline,
    prompts: Sequence[str],
    *,
    guidance_scale: float,
    num_inference_steps: int = 50,
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Generate one clip per prompt from noise, with the plain pipeline call.

    Args:
        pipeline: The model.
        prompts: The texts.
        guidance_scale: Classifier-free guidance; 1 means none.
        num_inference_steps: Steps of the pipeline's scheduler.
        seed: Of the start noise.
        batch_size: Clips at once.

    Returns:
        [N, F, H, W, 3] uint8.
    """
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        frames = pipeline(
            prompt=batch,
            negative_prompt=[""] * len(batch),
            height=world.HEIGHT,
            width=world.WIDTH,
            num_frames=world.NUM_FRAMES,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            max_sequence_length=pipeline.transformer.config.max_text_seq_length,
            generator=generator,
            output_type="np",
        ).frames
        clips.append(np.rint(frames * 255).astype(np.uint8))
    return np.concatenate(clips)


def contact_sheet(rows: Sequence[np.ndarray], *, frames: Sequence[int] = (0, 4, 8)) -> np.ndarray:
    """Lay clips out as a picture.

    Args:
        rows: One array [N, F, H, W, 3] uint8 per column of the picture, equal N.
        frames: Which frames of each clip are shown, side by side.

    Returns:
        [N x H, columns x frames x W, 3] uint8.
    """
    columns = [np.concatenate(list(clips[:, frame]), axis=0) for clips in rows for frame in frames]
    return np.concatenate(columns, axis=1)


_COLUMNS = ("color", "background", "shape", "overlap", "motion", "all")


def _row(result: Accuracy) -> str:
    shares = (
        *(result.color, result.background, result.shape, result.overlap_shape),
        *(result.motion, result.all),
    )
    figures = "".join(f"{100 * share:11.1f}" for share in shares)
    return f"{result.name:<22}{result.num_clips:>6}{figures}{result.shape_iou:>9.3f}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cogedit.lab.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_dir(), help="pipeline folder")
    parser.add_argument("--clips", type=int, default=208, help="number of held-out clips")
    parser.add_argument(
        "--guidance-scale", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0, 6.0]
    )
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument(
        "--solver", choices=SOLVERS, default="ddim", help="ddim (default) or dpm, which adds noise"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the start noise")
    parser.add_argument("--first", type=int, default=0, help="first held-out seed")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here, too")
    parser.add_argument("--picture", type=Path, default=None, help="write a contact sheet (PNG)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the table goes to stdout. Returns the exit code 0."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    pipeline = CogVideoXPipeline.from_pretrained(
        options.model, dtype=torch.float32, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SOLVERS[options.solver].from_config(pipeline.scheduler.config)
    seeds = range(options.first, options.first + options.clips)
    specs = [world.sample_spec(seed, "held_out") for seed in seeds]
    rendered = render_batch(seeds, "held_out")
    decoded = np.concatenate(
        [
            decode_latents(pipeline.vae, encode_frames(pipeline.vae, rendered[first : first + 16]))
            for first in range(0, len(rendered), 16)
        ]
    )
    values = psnr(decoded, rendered)
    write = sys.stdout.write
    write(f"VAE round trip: {values.mean():.2f} dB (mean), {values.min():.2f} dB (worst clip)\n\n")
    write(f"{'clips':<22}{'n':>6}")
    write("".join(f"{name:>11}" for name in _COLUMNS))
    write(f"{'IoU':>9}   (% right)\n")
    results = [accuracy("rendered", rendered, specs), accuracy("VAE round trip", decoded, specs)]
    for result in results:
        write(_row(result))
    columns = [rendered, decoded]
    for guidance_scale in options.guidance_scale:
        started = time.monotonic()
        clips = generate(
            pipeline,
            [world.caption(spec) for spec in specs],
            guidance_scale=guidance_scale,
            num_inference_steps=options.num_inference_steps,
            seed=options.seed,
        )
        results.append(accuracy(f"from noise, guidance {guidance_scale:g}", clips, specs))
        write(_row(results[-1]))
        sys.stdout.flush()
        sys.stderr.write(f"{time.monotonic() - started:.0f} s\n")
        columns.append(clips)
    if options.json is not None:
        record = {
            "vae_psnr": float(values.mean()),
            "vae_psnr_worst": float(values.min()),
            "num_inference_steps": options.num_inference_steps,
            "solver": options.solver,
            "seed": options.seed,
            "rows": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    if options.picture is not None:
        from PIL import Image

        Image.fromarray(contact_sheet([clips[:16] for clips in columns])).save(options.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
