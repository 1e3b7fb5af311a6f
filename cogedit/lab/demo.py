"""`python -m cogedit.lab.demo`: edit a clip of the shapes world and show the result.

The clip is rendered, written as a video, and edited from that video under three prompts (another
colour, shape and background) by the stages that the commands run, with the default settings and
the clip's caption as `--source-prompt`. The right answer of each edit can be rendered too, so every
edit comes with figures.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from cogedit.artifacts import Workspace, read_artifact
from cogedit.config import Settings
from cogedit.errors import CogeditError, ModelError
from cogedit.lab import world
from cogedit.lab.cases import EditCase, EditKind
from cogedit.lab.edit_metrics import Answer, EditFigures, Levels, measure, to_frames
from cogedit.lab.tables import make_table, print_report
from cogedit.media.contact_sheet import (
    Picture,
    SheetRow,
    draw_sheet,
    lay_out,
    pad_to_even,
)
from cogedit.media.encoding import Encoding
from cogedit.media.png import save_png
from cogedit.media.writer import write_video
from cogedit.models.quiet import quiet_imports
from cogedit.shapes import model_dir
from cogedit.stages import Run, edit, reconstruct, settings_for
from cogedit.stages.model import checkpoint_for, dtype_for

SEED = 1
"""Number of the bundled clip among the held-out ones, which no training has seen."""

EDITS: tuple[tuple[EditKind, world.Edit], ...] = (
    ("color", world.Edit(color="orange")),
    ("shape", world.Edit(shape="circle")),
    ("background", world.Edit(background="white")),
)
_FPS = Fraction(world.FPS)
# The source goes through H.264 like any user's clip, but at a quality that leaves it as it is.
_SOURCE = Encoding(crf=4)
_ZOOM = 4
_REPEATS = 4
_SHEET_FRAMES = (0, 2, 4, 6, 8)
_FIGURES = (
    "edit seen",
    "others kept",
    "right answer dB",
    "floor .. ceiling",
    "background dB",
    "motion px",
)
_LEGEND = (
    "edit seen: the attribute that the prompt changes, in the edit's pixels. others kept: all "
    "other attributes that captions name. right answer: PSNR against the rendered right answer; "
    "floor: what the unedited source gets, ceiling: what the right answer itself gets after the "
    "VAE. background: PSNR outside the object, against the source (where the background was "
    "edited, against the right answer), and what the right answer gets after the VAE. motion: "
    "distance of the object from the source's track."
)


@dataclass(frozen=True)
class Edited:
    """One edit of the demo.

    Attributes:
        case: The edit, and its right answer.
        video: The edited video.
        clip: What the VAE decoded, [F, H, W, 3] levels of 0..255.
        figures: How good it is.
        ceiling: The same figures of the right answer after the VAE's round trip.
        floor: The same figures of the unedited source after the VAE's round trip.
    """

    case: EditCase
    video: Path
    clip: Levels
    figures: EditFigures
    ceiling: EditFigures
    floor: EditFigures


def run_demo(folder: Path, *, model: str = "shapes") -> list[Path]:
    """Make the clip, edit it, and print figures and paths to stdout.

    Args:
        folder: Output folder, created if missing. Artifacts go into `folder/artifacts`, where the
            next run finds them.
        model: A pipeline made for clips of the world's size.

    Returns:
        The files that were made.

    Raises:
        ModelError: The model is missing.
        CogeditError: As the stages.
    """
    Workspace(folder).create()
    spec = world.sample_spec(SEED, "held_out")
    source = folder / "source.mp4"
    write_video(world.render(spec), source, fps=_FPS, encoding=_SOURCE)
    # Defaults only: no environment variable and no cogedit.toml.
    flags = {
        "model": model,
        "workspace": folder / "artifacts",
        "invert.prompt": world.caption(spec),
    }
    settings = settings_for(source, flags, environ={}, cwd=folder).settings
    cases = [
        EditCase(SEED, kind, spec, world.counterfactual(spec, change)) for kind, change in EDITS
    ]
    edited = _edit(source, cases, settings)
    side_by_side, sheet = folder / "side-by-side.mp4", folder / "contact-sheet.png"
    write_video(_side_by_side(edited), side_by_side, fps=_FPS)
    save_png(_sheet(edited), sheet)
    paths = [source, *(result.video for result in edited), side_by_side, sheet]
    title = f"edits of: {edited[0].case.source_prompt}"
    # Prompts are long and figures short: one column for each prompt fits into 80.
    heads = ("", *(result.case.prompt for result in edited))
    rows = list(zip(_FIGURES, *map(_cells, edited), strict=True))
    print_report([make_table(title, heads, rows)], legend=_LEGEND, paths=paths)
    return paths


def next_command(source: Path) -> str:
    """Return a shell command that makes another edit of the clip."""
    spec = world.sample_spec(SEED, "held_out")
    recolored = world.caption(replace(spec, color="green"))
    words = ["cogedit", "edit", str(source), "--model", "shapes", "--config", "recolor"]
    words += ["--prompt", recolored, "--source-prompt", world.caption(spec)]
    return shlex.join(words)


def _edit(source: Path, cases: Sequence[EditCase], settings: Settings) -> list[Edited]:
    """Run the stages and measure the edits."""
    # Not at the top: torch takes seconds to load, and missing weights are reported without it.
    with quiet_imports():
        from cogedit.lab.codec import decode_clip, round_trip
    from cogedit.models.device import DTYPES, resolve_device
    from cogedit.models.loading import load_vae

    prompts = [case.prompt for case in cases]
    videos = edit(source, prompts, settings, output=source.parent, run=Run(notify=_notify))
    # This finds the artifacts of these edits, which no video encoder has touched.
    artifacts = reconstruct(source, prompts, settings)
    device, dtype = resolve_device(settings.device), DTYPES[dtype_for(settings)]
    vae = load_vae(checkpoint_for(settings), device=device, dtype=dtype)
    source_round_trip = round_trip(vae, world.render(cases[0].source))
    edited = []
    for case, video, artifact in zip(cases, videos, artifacts, strict=True):
        clip = decode_clip(vae, read_artifact(artifact.path, "edit").tensors["latents"])
        right = round_trip(vae, world.render(case.right))
        answer = Answer(case, source_round_trip, right)
        figures, ceiling = measure(clip, answer), measure(right, answer)
        floor = measure(source_round_trip, answer)
        edited.append(Edited(case, video.path, clip, figures, ceiling, floor))
    return edited


def _side_by_side(edited: Sequence[Edited]) -> world.Frames:
    """Lay the source and its edits beside each other, enlarged, a few times over."""
    clips = [world.render(edited[0].case.source), *(to_frames(result.clip) for result in edited)]
    labels = [edited[0].case.source_prompt, *(result.case.prompt for result in edited)]
    sheet = lay_out(labels, [""], size=(world.WIDTH, world.HEIGHT), zoom=_ZOOM)
    frames = [sheet.fill([[clip[index] for clip in clips]]) for index in range(world.NUM_FRAMES)]
    return np.tile(pad_to_even(np.stack(frames)), (_REPEATS, 1, 1, 1))


def _sheet(edited: Sequence[Edited]) -> Picture:
    """Lay out frames from top to bottom: the source, then the right answer and the edit of each."""
    columns = [f"source: {edited[0].case.source_prompt}"]
    clips = [world.render(edited[0].case.source)]
    for result in edited:
        columns += [f"right answer: {result.case.prompt}", "edit"]
        clips += [world.render(result.case.right), to_frames(result.clip)]
    rows = [
        SheetRow(f"frame {index}", tuple(clip[index] for clip in clips)) for index in _SHEET_FRAMES
    ]
    return draw_sheet(columns, rows, zoom=_ZOOM - 1)


def _cells(result: Edited) -> tuple[str, ...]:
    """Return the cells of an edit in the table: see `_FIGURES`."""
    figures, floor, ceiling = result.figures, result.floor, result.ceiling
    lost = math.isnan(figures.motion_distance)
    return (
        "yes" if figures.target_seen else "no",
        "yes" if figures.others_kept else "no",
        f"{figures.counterfactual_psnr:.1f}",
        f"{floor.counterfactual_psnr:.1f} .. {ceiling.counterfactual_psnr:.1f}",
        f"{figures.background_psnr:.1f} of {ceiling.background_psnr:.1f}",
        "lost" if lost else f"{figures.motion_distance:.2f}",
    )


def _notify(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: figures and paths go to stdout, errors to stderr with their code."""
    parser = argparse.ArgumentParser(prog="python -m cogedit.lab.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder (default demo)")
    options = parser.parse_args(arguments)
    if not (model_dir() / "model_index.json").is_file():
        _notify("error: this checkout has no trained weights of the shapes model (cogedit/shapes).")
        return ModelError.exit_code
    started = time.monotonic()
    try:
        source, *_ = run_demo(options.output)
    except CogeditError as error:
        _notify(f"error: {error}")
        return error.exit_code
    _notify(f"done in {time.monotonic() - started:.0f} s")
    _notify(f"next, try: {next_command(source)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
