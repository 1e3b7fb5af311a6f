"""sweep: one trajectory, a grid of settings, one contact sheet: which parameters?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import EditRecord, atomic_write, content_key
from cogedit.config import Settings
from cogedit.disk import Over
from cogedit.errors import UsageError
from cogedit.media.contact_sheet import SheetRow, draw_sheet
from cogedit.media.metrics import flicker, mean_change, psnr
from cogedit.media.png import save_png
from cogedit.media.stream import FrameFile
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.claim import claim
from cogedit.stages.decode import decode, decode_source
from cogedit.stages.given import check_given, take_given
from cogedit.stages.inverted import levels_of, trajectory_for
from cogedit.stages.model import checkpoint_for
from cogedit.stages.reconstruct import check_edits, expect_prompts, make_edits
from cogedit.stages.run import Run, Written, check_absent, check_output
from cogedit.stages.session import Session, use_session
from cogedit.tools.captions import setting_name, setting_text
from cogedit.tools.grid import Cell, edits_of, parse_grid
from cogedit.wording import count_of

_LEGEND = {
    "psnr_to_source": "dB against the decode of the source's own latents",
    "mean_change": "mean absolute change of a pixel, in levels of 0..255",
    "flicker": "mean absolute change of that change from frame to frame, in levels",
}


@dataclass(frozen=True)
class Swept:
    """A sweep on disk.

    Attributes:
        sheet: The contact sheet, a PNG with the settings over each image.
        figures: Settings and figures of every cell, as JSON.
        edits: The edits, in the order of the cells.
    """

    sheet: Path
    figures: Path
    edits: tuple[Written[EditRecord], ...]


def sweep(
    source: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    vary: str | Sequence[str],
    mask: str | Path | None = None,
    first_frame: str | Path | None = None,
    output: str | Path | None = None,
    run: Run | None = None,
    session: Session | None = None,
) -> Swept:
    """Edit a clip under every combination of some settings.

    The inversion is shared, the model is loaded once, and cells that exist are reused.

    Args:
        source: A trajectory, or anything before it.
        prompts: The grid is run under each of them; with a first frame there need be none.
        settings: What is not varied.
        vary: The grid: settings of `reconstruct` with their values, each as in
            "injection_strength=0.25,1" or "start_step=0,10".
        mask: As for `reconstruct`.
        first_frame: Likewise.
        output: The contact sheet, ending in .png; the figures go beside it as .json. None is a
            place in the workspace.
        run: How to run; None is silent. Force replaces the two files; edits are reused.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        CogeditError: As `reconstruct` and `export`.
    """
    source, output, run = source_of(source, settings), as_path(output), run or Run()
    check_given(mask, first_frame)
    check_sheet(output, inputs=[source, mask, first_frame], run=run)
    cells = parse_grid(vary)
    grid = edits_of(prompts, settings, cells, mask=mask, first_frame=first_frame)
    checkpoint = checkpoint_for(settings)
    check_edits(grid, checkpoint, num_levels=levels_of(source, settings))
    given = take_given(source, settings, checkpoint, mask=mask, first_frame=first_frame)
    with claim(output, run) as run, use_session(session) as owner:
        check_sheet(output, inputs=(), run=run)  # again: it may have been waited for
        expect_prompts(grid, owner)
        owner.expect_decoding()
        # Force is for the two files: the edits are hours of work, and stay.
        making = replace(run, force=False)
        # The edits are compared with what the trajectory holds of their source.
        inverted = trajectory_for(
            source, grid, settings, given=given, needs_file=True, run=making, session=owner
        )
        edits = make_edits(inverted, grid, settings, given=given, run=making, session=owner)
        frames, figures = _decoded(edits, inverted.path, settings, session=owner, run=run)
        key = "-".join(content_key(edit.record)[:6] for edit in (edits[0], edits[-1]))
        folder = inverted.workspace.root
        sheet = output or folder / f"sweep-{len(edits)}-{key}.png"
        over: Over = "anything" if output is None or run.force else None
        titles = [edit.record.title for edit in edits[:: len(cells)]]
        save_png(_draw(frames, titles=titles, cells=cells), sheet, over=over)
        path = sheet.with_suffix(".json")
        text = json.dumps({"legend": _LEGEND, "edits": figures}, indent=1, ensure_ascii=False)
        with atomic_write(path, over=over) as file:
            file.write(text.encode())
    run.notify(f"wrote {sheet} and {path.name} ({count_of(len(edits), 'edit')})")
    return Swept(sheet, path, tuple(edits))


def check_sheet(sheet: Path | None, *, inputs: Sequence[Path | str | None], run: Run) -> None:
    """Refuse, before anything runs, to replace what a sweep may not: two files, one of them named.

    The other one, beside it, is replaced by force only if it holds the figures of a sweep.
    """
    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise UsageError(f"a contact sheet is a PNG; found -o {sheet}", hint="end it in .png")
    figures = sheet.with_suffix(".json")
    for path in (sheet, figures):
        check_output(path, inputs=inputs, run=run)
        check_absent(path, run)
    if figures.exists() and not _holds_figures(figures):
        raise UsageError(
            f"{figures} exists and holds no figures of a sweep, which would replace it",
            hint="choose another -o",
        )


def _holds_figures(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {*content} == {"legend", "edits"}


def _decoded(
    edits: Sequence[Written[EditRecord]],
    trajectory: Path,
    settings: Settings,
    *,
    session: Session,
    run: Run,
) -> tuple[list[NDArray[np.uint8]], list[dict[str, object]]]:
    """Return the middle frame and the figures of every edit; 200 clips would not fit into memory.

    Compared is what the model made, without what an export does to the edges.
    """
    if settings.export.align_edges:
        run.notify("a sweep shows edits as the model made them, without --align-edges")
    settings = replace(settings, export=replace(settings.export, align_edges=0, every_frame=False))
    frames, figures = [], []
    folder, silent = trajectory.parent, Run()
    decoded = decode_source(trajectory, settings, session=session, run=silent)
    source = FrameFile(decoded, folder)
    with run.counting("decoding", len(edits)) as done:
        for edit in edits:
            clip = FrameFile(decode(edit.path, settings, session=session, run=silent), folder)
            frames.append(clip[len(clip) // 2])
            figures.append(_figures(edit, clip, source))
            done()
    return frames, figures


def _draw(
    frames: Sequence[NDArray[np.uint8]], *, titles: Sequence[str], cells: Sequence[Cell]
) -> NDArray[np.uint8]:
    """Draw one frame of every cell, the last varied setting across."""
    labels = [[f"{setting_name(key)} {setting_text(cell[key])}" for key in cell] for cell in cells]
    across = len(dict.fromkeys(label[-1] for label in labels)) if labels[0] else 1
    rows = []
    for number, title in enumerate(titles):
        for first in range(0, len(cells), across):
            shared = ", ".join(labels[first][:-1])
            start = number * len(cells) + first
            row = tuple(frames[start : start + across])
            rows.append(SheetRow(f"{shared}: {title}" if shared else title, row))
    return draw_sheet([label[-1] if label else "" for label in labels[:across]], rows)


def _figures(edit: Written[EditRecord], clip: FrameFile, source: FrameFile) -> dict[str, object]:
    """Return the settings of a cell and how far it is from the source."""
    return {
        "path": edit.path.name,
        "settings": asdict(edit.record.settings),
        "psnr_to_source": round(psnr(clip, source), 3),
        "mean_change": round(mean_change(clip, source), 3),
        "flicker": round(flicker(clip, source), 3) if len(clip) > 1 else None,
    }
