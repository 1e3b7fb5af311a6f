"""sweep: one trajectory, a grid of settings, one contact sheet: which parameters?"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import EditRecord, atomic_write, content_key
from cogedit.config import Settings, resolve_settings
from cogedit.errors import UsageError
from cogedit.stages.decode import Decoder
from cogedit.stages.reconstruct import make_edits, trajectory_for
from cogedit.stages.run import Run, Written, check_output, workspace_for
from cogedit.types import ReconstructSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CELLS = 200
"""More cells than this are a mistake in the grid: an edit takes minutes on a large model."""

_PICTURE_WIDTH = 192
"""Pictures on the sheet are at least this wide, in pixels: the settings are written over them."""


@dataclass(frozen=True)
class Swept:
    """A sweep on disk.

    Attributes:
        sheet: The contact sheet, a PNG with the settings over each picture.
        figures: Settings and figures of every cell, as JSON.
        edits: The edits, in the order of the cells.
    """

    sheet: Path
    figures: Path
    edits: tuple[Written[EditRecord], ...]


def parse_grid(vary: Sequence[str]) -> tuple[dict[str, object], ...]:
    """Turn "strength=0.25,1" and "start-step=0,10" into the cells of their grid.

    Args:
        vary: NAME=VALUE,VALUE,... where NAME is an option of `reconstruct` without its dashes, or
            the end of one that no other option shares.

    Returns:
        One mapping of fields of `ReconstructSettings` to values per cell, the last name fastest.

    Raises:
        UsageError: An unknown or ambiguous name, one that is named twice, or a value out of range.
    """
    axes: dict[str, list[object]] = {}
    for text in vary:
        name, equals, values = text.partition("=")
        key = _field(name.strip())
        if not equals or not values.strip(","):
            raise UsageError(f"--vary {text} has no values", hint=f"--vary {name}=VALUE,VALUE")
        if key in axes:
            raise UsageError(f"--vary names {key} twice")
        axes[key] = [_value(key, value.strip()) for value in values.split(",")]
    cells = [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
    if len(cells) > MAX_CELLS:
        raise UsageError(f"the grid has {len(cells)} cells; at most {MAX_CELLS} are edited")
    return tuple(cells)


def sweep(
    source: str | Path,
    prompts: str | Sequence[str],
    settings: Settings,
    *,
    vary: Sequence[str],
    mask: str | Path | None = None,
    output: Path | None = None,
    run: Run | None = None,
) -> Swept:
    """Edit a clip under every combination of some settings.

    The inversion is shared, the model is loaded once, and cells that are there are reused.

    Args:
        source: A trajectory, or anything before it.
        prompts: The grid is run under each of them.
        settings: What is not varied.
        vary: The grid, as in `parse_grid`.
        mask: As for `reconstruct`.
        output: The contact sheet, ending in .png; the figures go beside it as .json. None is a
            place in the workspace.
        run: How to run; None is silent.

    Raises:
        CogeditError: As `reconstruct` and `export`.
    """
    source, run = Path(source), run or Run()
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if output is not None and output.suffix.lower() != ".png":
        raise UsageError(f"a contact sheet is a PNG; found -o {output}", hint="end it in .png")
    check_output(output, source=source)
    if output is not None and output.exists() and not run.force:
        raise UsageError(f"{output} exists", hint="choose another -o, or replace it with --force")
    cells = parse_grid(vary)
    asked = [
        replace(settings.reconstruct_with(prompt), **cell)  # type: ignore[arg-type]
        for prompt in prompts
        for cell in cells
    ]
    edits = make_edits(
        source, asked, settings, mask=mask, output=None, save_trajectory=False, run=run
    )
    source = trajectory_for(source, settings, mask=None, run=replace(run, notify=run.detail))
    key = "-".join(content_key(edit.record)[:6] for edit in (edits[0], edits[-1]))
    folder = workspace_for(source, settings).root
    sheet = output or folder / f"sweep-{len(edits)}-{key}.png"
    # Compared is what the model made of the clip, not what the source's own pixels mend of that.
    decoder = Decoder(replace(settings, export=replace(settings.export, align_edges=0)))
    if settings.export.align_edges:
        run.notify("a sweep shows edits as the model made them, without --align-edges")
    clips = []
    with run.counting("decoding", len(edits)) as done:
        for edit in edits:
            clips.append(decoder.decode(edit.path))
            done()
    _draw(sheet, clips, prompts=prompts, cells=cells)
    figures = sheet.with_suffix(".json")
    _write_figures(figures, edits, clips, source=decoder.decode_source(source))
    run.notify(f"wrote {sheet} and {figures.name} ({len(edits)} edits)")
    return Swept(sheet, figures, tuple(edits))


def _field(name: str) -> str:
    """Return the field of `ReconstructSettings` that a name means."""
    known = [item.name for item in fields(ReconstructSettings) if item.name != "prompt"]
    wanted = name.removeprefix("--").replace("-", "_")
    if wanted in known:
        return wanted
    ends = [key for key in known if key.endswith(f"_{wanted}")]
    if len(ends) == 1:
        return ends[0]
    # A name may be given by its end, so that is what a misspelled one may be near to as well.
    parts = {key[start:]: key for key in known for start in _word_starts(key)}
    parts |= {key: key for key in known}  # a whole name before another one's end
    near = [] if ends else difflib.get_close_matches(wanted, parts, n=1)
    options = ", ".join(key.replace("_", "-") for key in ends or known)
    hint = f"did you mean {parts[near[0]].replace('_', '-')}?" if near else f"one of {options}"
    problem = "is ambiguous" if ends else "is no option of reconstruct"
    raise UsageError(f"--vary {name} {problem}", hint=hint)


def _word_starts(key: str) -> list[int]:
    """Return where the words of a key begin."""
    return [0, *(index + 1 for index, char in enumerate(key) if char == "_")]


def _value(key: str, text: str) -> object:
    """Convert and check a value as the option's own flag would."""
    flags = {f"reconstruct.{key}": text}
    resolved = resolve_settings(flags, environ={}, cwd=Path(__file__).parent)
    value: object = getattr(resolved.settings.reconstruct, key)
    return value


def _draw(
    sheet: Path,
    clips: Sequence[NDArray[np.uint8]],
    *,
    prompts: Sequence[str],
    cells: Sequence[Mapping[str, object]],
) -> None:
    """Draw the middle frame of every cell, the last varied setting across."""
    from cogedit.media.contact_sheet import SheetRow, draw_sheet, save_png

    across = _width_of(cells)
    middle = [clip[len(clip) // 2] for clip in clips]
    zoom = max(1, -(-_PICTURE_WIDTH // middle[0].shape[1]))
    rows = []
    for number, prompt in enumerate(prompts):
        for first in range(0, len(cells), across):
            shared = ", ".join(_label(cells[first], skip_last=True))
            label = f"{shared}: {prompt}" if shared else prompt
            start = number * len(cells) + first
            rows.append(SheetRow(label, tuple(middle[start : start + across])))
    heads = [_label(cell)[-1] if cell else "" for cell in cells[:across]]  # the last, across
    save_png(draw_sheet(heads, rows, zoom=zoom), sheet)


def _width_of(cells: Sequence[Mapping[str, object]]) -> int:
    """Return how many values the last setting of the grid takes."""
    if not cells[0]:
        return 1
    last = list(cells[0])[-1]
    return len(dict.fromkeys(repr(cell[last]) for cell in cells))


def _label(cell: Mapping[str, object], *, skip_last: bool = False) -> list[str]:
    shown = list(cell.items())[: -1 if skip_last else None]
    return [f"{key.replace('_', '-')} {_text(value)}" for key, value in shown]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ":".join("END" if item is None else str(item) for item in value)
    return str(value)


def _write_figures(
    path: Path,
    edits: Sequence[Written[EditRecord]],
    clips: Sequence[NDArray[np.uint8]],
    *,
    source: NDArray[np.uint8],
) -> None:
    """Write what each cell is and how far it went from the source, as JSON."""
    from cogedit.media.metrics import psnr

    rows = []
    for edit, clip in zip(edits, clips, strict=True):
        settings = {
            item.name: getattr(edit.record.settings, item.name)
            for item in fields(ReconstructSettings)
        }
        change = clip.astype("float32") - source.astype("float32")
        rows.append(
            {
                "path": edit.path.name,
                "settings": settings,
                "psnr_to_source": round(psnr(clip, source), 3),
                "mean_change": round(float(abs(change).mean()), 3),
                "flicker": round(float(abs(change[1:] - change[:-1]).mean()), 3),
            }
        )
    legend = {
        "psnr_to_source": "dB against the decode of the source's own latents",
        "mean_change": "mean absolute change of a pixel, in levels of 0..255",
        "flicker": "mean absolute change of that change from frame to frame, in levels",
    }
    text = json.dumps({"legend": legend, "edits": rows}, indent=1, ensure_ascii=False)
    with atomic_write(path) as file:
        file.write(text.encode())
