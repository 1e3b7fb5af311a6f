"""Resolved settings as TOML: what `cogedit.toml` would have to say to give the same run."""

from __future__ import annotations

import json

from cogedit.config.resolve import ResolvedSettings
from cogedit.config.settings import all_settings
from cogedit.schema import plain_value

_COMMENT_COLUMN = 44


def setting_values(resolved: ResolvedSettings) -> dict[str, object]:
    """Every dotted key with its value, top level first, then table by table."""
    values: dict[str, object] = {}
    for key in all_settings():
        value: object = resolved.settings
        for name in key.split("."):
            value = getattr(value, name)
        values[key] = value
    return values


def settings_toml(resolved: ResolvedSettings, *, origins: bool = False) -> str:
    """Write settings so that `cogedit.toml` with this text gives them again.

    A setting that is not set and has no word for it (the revision, the workspace) is a comment.
    With `origins`, each value is followed by where it came from.
    """
    lines: list[str] = []
    table = ""
    for key, value in setting_values(resolved).items():
        first, _, name = key.rpartition(".")
        if first != table:
            table = first
            lines += ["", f"[{table}]"]
        described = all_settings()[key]
        line = f"{name} = {_toml(described.none_text if value is None else value)}"
        if value is None and not described.has_auto:
            line = f"# {name} is not set"
        if origins:
            line = f"{line:<{_COMMENT_COLUMN}}  # {_one_line(resolved.origins[key])}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's escapes are TOML's; U+007F alone is allowed as it is in JSON and not in TOML.
    return json.dumps(plain_value(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
