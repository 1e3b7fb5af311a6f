"""`python -m cogedit.lab.evaluate`: how good is the embedded model?

Measures the VAE's round trip and text-to-video generation from noise on held-out clips: the
captions are those of held-out specs, the judge is the oracle. Its mistakes count against the model;
the rows "rendered" and "VAE round trip" show how often they happen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cogedit.lab import world
from cogedit.lab.edit_metrics import to_frames
from cogedit.lab.oracle import read_clip
from cogedit.lab.report import notify, write_json
from cogedit.lab.tables import make_table, print_report
from cogedit.media.contact_sheet import SheetRow, draw_sheet
from cogedit.media.metrics import psnr
from cogedit.media.png import save_png
from cogedit.models.quiet import quiet_imports
from cogedit.shapes import model_dir

with quiet_imports():
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline

    from cogedit.lab.codec import round_trip

SOLVERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
"""How clips are sampled: the scheduler of the pipeline folder, or the stochastic one that the model
card of CogVideoX-5B samples with."""

_MIDDLE = world.NUM_FRAMES // 2


def accuracy(clips: Sequence[world.Frames], specs: Sequence[world.ClipSpec]) -> dict[str, float]:
    """Let the oracle read clips [F, H, W, 3] uint8 and compare with their specs.

    Returns:
        Share of clips, 0..1, whose `color`, `background`, `shape` (by its outline), `motion` or
        `all` four are right; of those whose `overlap_shape` is (by the overlap with templates of
        sharp corners), and the mean overlap `shape_iou` with the best of these.
    """
    readings = [read_clip(clip) for clip in clips]
    pairs = list(zip(readings, specs, strict=True))
    names = ("color", "background", "shape", "motion")
    hits = np.array([[getattr(r, name) == getattr(s, name) for name in names] for r, s in pairs])
    shares = dict(zip(names, map(float, hits.mean(axis=0)), strict=True))
    return shares | {
        "all": float(hits.all(axis=1).mean()),
        "overlap_shape": float(np.mean([r.overlap_shape == s.shape for r, s in pairs])),
        "shape_iou": float(np.mean([reading.shape_iou for reading in readings])),
    }


def generate(
    pipeline: CogVideoXPipeline,
    prompts: Sequence[str],
    *,
    guidance_scale: float,
    num_inference_steps: int = 50,
    seed: int = 0,
    batch_size: int = 32,
) -> list[world.Frames]:
    """Generate one clip [F, H, W, 3] uint8 per prompt from noise, with the plain pipeline call."""
    generator = torch.Generator().manual_seed(seed)
    clips: list[world.Frames] = []
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
        clips += list(np.rint(frames * 255).astype(np.uint8))
    return clips


def load(model: Path, *, solver: str = "ddim", device: str = "cpu") -> CogVideoXPipeline:
    """Load a pipeline folder in float32 with one of the `SOLVERS`."""
    pipeline = CogVideoXPipeline.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SOLVERS[solver].from_config(pipeline.scheduler.config)
    return pipeline.to(device)


def measure(model: Path, *, num_clips: int, device: str = "cpu") -> dict[str, float]:
    """Return the `accuracy` of clips from noise, 25 steps, guidance 6, under held-out captions."""
    specs = [world.sample_spec(seed, "held_out") for seed in range(num_clips)]
    captions = [world.caption(spec) for spec in specs]
    pipeline = load(model, device=device)
    return accuracy(generate(pipeline, captions, guidance_scale=6.0, num_inference_steps=25), specs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cogedit.lab.evaluate", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=model_dir(), help="pipeline folder")
    add("--clips", type=int, default=208, help="number of held-out clips")
    add("--guidance-scale", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0, 6.0])
    add("--num-inference-steps", type=int, default=50)
    add("--solver", choices=SOLVERS, default="ddim", help="ddim (default) or dpm, which adds noise")
    add("--seed", type=int, default=0, help="of the start noise")
    add("--first", type=int, default=0, help="first held-out seed")
    add("--device", default="cpu", help="torch device")
    add("--json", type=Path, default=None, help="write the figures to this file, too")
    add("--image", type=Path, default=None, help="write the first 64 clips as a contact sheet")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the table goes to stdout. Returns the exit code 0."""
    options = _parser().parse_args(arguments)
    pipeline = load(options.model, solver=options.solver, device=options.device)
    seeds = range(options.first, options.first + options.clips)
    specs = [world.sample_spec(seed, "held_out") for seed in seeds]
    captions = [world.caption(spec) for spec in specs]
    clips = {"rendered": [world.render(spec) for spec in specs]}
    decoded = [to_frames(round_trip(pipeline.vae, clip)) for clip in clips["rendered"]]
    values = [psnr(*pair) for pair in zip(decoded, clips["rendered"], strict=True)]
    clips["VAE round trip"] = decoded
    for guidance_scale in options.guidance_scale:
        started = time.monotonic()
        name = f"from noise, guidance {guidance_scale:g}"
        clips[name] = generate(
            pipeline,
            captions,
            guidance_scale=guidance_scale,
            num_inference_steps=options.num_inference_steps,
            seed=options.seed,
        )
        notify(f"{name}: {time.monotonic() - started:.0f} s")
    results = {name: accuracy(made, specs) for name, made in clips.items()}
    paths = []
    if options.json is not None:
        record = {
            "vae_psnr": float(np.mean(values)),
            "vae_psnr_worst": min(values),
            "num_inference_steps": options.num_inference_steps,
            "solver": options.solver,
            "seed": options.seed,
            "num_clips": len(specs),
            "rows": results,
        }
        write_json(options.json, record)
        paths.append(options.json)
    if options.image is not None:
        sheet = [
            SheetRow(caption, tuple(made[index][_MIDDLE] for made in clips.values()))
            for index, caption in enumerate(captions[:64])
        ]
        save_png(draw_sheet(list(clips), sheet, zoom=3), options.image)
        paths.append(options.image)
    columns = list(results["rendered"])
    rows = [
        (name, *(f"{100 * figures[column]:.1f}" for column in columns))
        for name, figures in results.items()
    ]
    title = f"% right of {len(specs)} held-out clips"
    table = make_table(title, ("clips", *columns), rows)
    legend = f"VAE round trip: {np.mean(values):.2f} dB (mean), {min(values):.2f} dB (worst clip)"
    print_report([table], legend=legend, paths=paths)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
