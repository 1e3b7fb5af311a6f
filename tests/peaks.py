"""The peak of host memory over all stages and the report, for clips of given lengths.

Run by hand: `python tests/peaks.py 9 481 --size 720x480` prints a line of JSON for each length, in
its order. The first, short one loads the libraries and the model.
"""

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipelines import make_pipeline
from videos import make_video

import cogedit
from cogedit.tools import report


def peak() -> float:
    """The most memory that this process has taken, in MB; of its children none counts."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def run_all(
    folder: Path, num_frames: int, width: int, height: int, *, measure: Callable[[], float] = peak
) -> dict[str, float]:
    """Run everything on a clip; what is measured after each stage."""
    # Few tokens: what attention takes is not what is measured.
    patch = 10 if min(width, height) % 80 == 0 else 2
    model = folder / f"model-{patch}"
    if not model.exists():
        make_pipeline(model, use_rotary_positional_embeddings=True, patch_size=patch)
    video = make_video(
        folder / f"{num_frames}.mp4", width=width, height=height, num_frames=num_frames
    )
    given = {
        "model": str(model),
        "dtype": "fp32",
        "device": "cpu",
        "workspace": folder / f"{num_frames}.cogedit",
        "load.width": width,
        "load.height": height,
        "load.max_num_frames": num_frames,
        "invert.num_inference_steps": 2,
        "reconstruct.guidance_scale": 1.0,
        "export.composite": "source",
    }
    settings = cogedit.settings_for(video, given, environ={}, cwd=folder).settings
    peaks = {"before": measure()}
    frames = cogedit.load(video, settings).path
    peaks["load"] = measure()
    latents = cogedit.encode(frames, settings).path
    peaks["encode"] = measure()
    trajectory = cogedit.invert(latents, settings).path
    peaks["invert"] = measure()
    mask = f"0,0,{width // 2},{height // 2}"
    [edit] = cogedit.reconstruct(trajectory, "a cat", settings, mask=mask)
    peaks["reconstruct"] = measure()
    cogedit.export(edit.path, settings, output=folder / f"{num_frames}-edit.mp4")
    peaks["export"] = measure()
    page = folder / f"{num_frames}.html"
    report(folder / f"{num_frames}.cogedit", settings, output=page, beside=True)
    peaks["report"] = measure()
    return peaks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("num_frames", nargs="+", type=int)
    parser.add_argument("--size", default="320x240")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for count in options.num_frames:
            size = map(int, options.size.split("x"))
            print(json.dumps(run_all(Path(home), count, *size)), flush=True)
