"""What calls of the Python API begin with: paths, and settings."""

from __future__ import annotations

import os
from pathlib import Path

from cogedit.config import ResolvedSettings, Settings
from cogedit.errors import UsageError


def source_of(source: str | Path, settings: Settings) -> Path:
    """Return what a call starts from as a path.

    Raises:
        UsageError: It is no path, or the settings are none.
    """
    path = path_given("the source", source)
    if isinstance(settings, Settings):
        return path
    hint = "cogedit.settings_for(source, flags).settings"
    if isinstance(settings, ResolvedSettings):
        hint = "pass its `.settings` on"
    raise UsageError(
        f"settings is a {type(settings).__name__}, expected cogedit.Settings", hint=hint
    )


def path_given(name: str, value: str | Path) -> Path:
    """Return a path that a caller may write as text; UsageError for arrays and the like."""
    if isinstance(value, str | os.PathLike):
        return Path(value)
    hint = None
    if hasattr(value, "path"):  # what a call returned
        hint = "pass its `.path` on"
    elif hasattr(value, "shape"):
        hint = "save it first: cogedit.write_clip(frames, path, fps=8), or of one picture "
        hint += "PIL.Image.fromarray(picture).save(path)"
    raise UsageError(
        f"{name} is a {type(value).__name__}, expected the path of a file or folder", hint=hint
    )


def as_path(value: str | Path | None, name: str = "the output") -> Path | None:
    """Return a path that a caller may also leave out; UsageError as `path_given`."""
    return None if value is None else path_given(name, value)
