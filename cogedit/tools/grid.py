"""A grid of settings: --vary NAME=VALUE,VALUE, read and checked, and the edits that it means."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from cogedit.config import Settings, resolve_settings
from cogedit.errors import UsageError
from cogedit.stages.given import options_for
from cogedit.stages.mask import check_given_mask
from cogedit.stages.settings import strength_of_mode
from cogedit.tools.captions import setting_name
from cogedit.types import ReconstructSettings

MAX_CELLS = 200
"""More cells than this are a mistake in the grid: an edit takes minutes on a large model."""

Cell = Mapping[str, object]
"""Fields of `ReconstructSettings` and their values."""


def parse_grid(vary: str | Sequence[str]) -> tuple[Cell, ...]:
    """Turn "strength=0.25,1" and "start-step=0,10" into the cells of their grid.

    Args:
        vary: NAME=VALUE,VALUE,... where NAME is an option of `reconstruct` without its dashes, or
            the end of one that no other option shares, or its key, "reconstruct.start_step".

    Returns:
        One mapping per cell, the last name fastest; without names, one that is empty.

    Raises:
        UsageError: An unknown or ambiguous name, one that is named twice, or a value out of range.
    """
    texts: dict[str, str] = {}
    for text in [vary] if isinstance(vary, str) else vary:
        name, equals, values = text.partition("=")
        key = _field(name.strip())
        if not equals or not values.strip(","):
            raise UsageError(f"--vary {text} has no values", hint=f"--vary {name}=VALUE,VALUE")
        if key in texts:
            raise UsageError(f"--vary names {key} twice")
        texts[key] = values
    count = math.prod(values.count(",") + 1 for values in texts.values())
    if count > MAX_CELLS:  # before any is made: there may be millions
        raise UsageError(f"the grid has {count} cells; expected at most {MAX_CELLS}")
    axes = {
        key: [_value(key, value.strip()) for value in values.split(",")]
        for key, values in texts.items()
    }
    return tuple(dict(zip(axes, cell, strict=True)) for cell in itertools.product(*axes.values()))


def edits_of(
    prompts: str | Sequence[str],
    settings: Settings,
    cells: Sequence[Cell],
    *,
    mask: str | Path | None,
    first_frame: str | Path | None,
) -> list[ReconstructSettings]:
    """Return the settings of every edit: all cells of the first prompt, then of the next.

    Raises:
        UsageError: There is neither a prompt nor a first frame, or a cell has an automatic mask
            beside the one that is given, or is to change what is outside of none.
    """
    options = options_for(prompts, settings, first_frame=first_frame)
    edits = [_edit_of(edit, cell) for edit in options for cell in cells]
    check_given_mask(mask, edits)
    return edits


def _edit_of(options: ReconstructSettings, cell: Cell) -> ReconstructSettings:
    """Return the edit of a cell; a mode brings its strength with it where none was chosen."""
    edit = replace(options, **cell)  # type: ignore[arg-type]
    strength = strength_of_mode(edit)
    if strength is None or edit.injection_strength != _DEFAULT.injection_strength:
        return edit
    return edit if "injection_strength" in cell else replace(edit, injection_strength=strength)


_DEFAULT = ReconstructSettings(prompt="")


def _field(name: str) -> str:
    """Return the field of `ReconstructSettings` that a name means."""
    known = [field.name for field in fields(ReconstructSettings) if field.name != "prompt"]
    wanted = name.removeprefix("--").removeprefix("reconstruct.").replace("-", "_")
    for key in known:
        if wanted in (key, setting_name(key).replace("-", "_")):
            return key
    ends = [key for key in known if key.endswith(f"_{wanted}")]
    if len(ends) == 1:
        return ends[0]
    # A misspelled name may be near the end of a field, too; whole names come first.
    words = {key: key.split("_") for key in known}
    tails = {"_".join(words[key][n:]): key for key in known for n in range(len(words[key]))}
    tails |= {key: key for key in known}
    near = [] if ends else difflib.get_close_matches(wanted, tails, n=1)
    options = ", ".join(map(setting_name, ends or known))
    hint = f"did you mean {setting_name(tails[near[0]])}?" if near else f"one of {options}"
    problem = "is ambiguous" if ends else "is not an option of reconstruct"
    raise UsageError(f"--vary {name} {problem}", hint=hint)


def _value(key: str, text: str) -> object:
    """Convert and check a value as the option's own flag would."""
    flags = {f"reconstruct.{key}": text}
    resolved = resolve_settings(flags, environ={}, cwd=Path(__file__).parent, flag_names={})
    value: object = getattr(resolved.settings.reconstruct, key)
    return value
