"""Settled settings as TOML: what `cogedit.toml` would have to say to give the same run."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import get_args

from cogedit.config.resolve import ResolvedSettings
from cogedit.config.settings import setting_types

_COMMENT_COLUMN = 44


def setting_values(resolved: ResolvedSettings) -> dict[str, object]:
    """Every dotted key with its value, top level first, then table by table."""
    values: dict[str, object] = {}
    for key in setting_types():
        value: object = resolved.settings
        for name in key.split("."):
            value = getattr(value, name)
        values[key] = value
    return values


def settings_toml(resolved: ResolvedSettings, *, origins: bool = False) -> str:
    """Write settings so that `cogedit.toml` with this text gives them again.

    A setting that is not set and has no word for it (the revision, the workspace) is a comment.

    Args:
        resolved: The settings.
        origins: Say behind each value where it came from.
    """
    lines: list[str] = []
    table = ""
    for key, value in setting_values(resolved).items():
        first, _, rest = key.rpartition(".")
        if first != table:
            table = first
            lines += ["", f"[{table}]"]
        line = f"{rest} = {_value(value)}"
        if value is None and set(get_args(setting_types()[key])) & {str, Path}:
            line = f"# {rest} is not set"
        if origins:
            line = f"{line:<{_COMMENT_COLUMN}}  # {_one_line(resolved.origins[key])}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def plain_value(value: object) -> object:
    """A setting's value as JSON and TOML know it; None is for "auto" or "not set"."""
    if isinstance(value, tuple):
        return ":".join("END" if item is None else str(item) for item in value)
    if isinstance(value, Fraction | Path):
        return str(value)
    return value


def _value(value: object) -> str:
    plain = plain_value(value)
    if plain is None:
        return '"auto"'
    if isinstance(plain, str):
        # JSON's escapes are TOML's; U+007F alone is allowed as it is in JSON and not in TOML.
        return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(plain)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
