"""The options page of the guide, written from the descriptions of the settings.

`python -m cogedit.cli.options_page` writes it; a test compares the committed page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from cogedit.cli.flags import BESIDE_AN_EDIT, flag_for
from cogedit.config.settings import all_settings
from cogedit.schema import Group, Setting, show_value

PAGE = Path(__file__).parents[1] / "guide" / "options.md"

_INTRODUCTION = """\
# Options

Every setting: its flag, its key, its default and what it does.

Each has one name. `reconstruct.guidance_scale` is the flag `--guidance-scale`, the key
`guidance_scale` of the table `[reconstruct]` in `cogedit.toml`, and the environment variable
`COGEDIT_RECONSTRUCT_GUIDANCE_SCALE`. `cogedit COMMAND --help` lists the flags that a command is
for; the five stages take all of this page. What is no setting, such as an edit's `--prompt`,
`--mask` and `--preview`, belongs to its own commands.

[Where settings come from](edits.md#where-settings-come-from) has their order. `cogedit config show`
prints all settings, and `--origin` adds where each value comes from.

A window of steps such as `0.1:0.9` is a pair of fractions of the edit's own steps: step i of N is
in it if 0.1 <= i / N < 0.9. `auto` leaves a value to cogedit. `~` at the beginning of a path is the
home folder, in files and variables too.

This page is made from the descriptions of the settings in the code.
"""

_HEADER = """\
| flag | key | value | default | effect |
|---|---|---|---|---|
"""


def options_page() -> str:
    """Return the page as Markdown: a table for each group."""
    settings = all_settings().values()
    sections = [_INTRODUCTION]
    for group in get_args(Group):
        rows = "".join(_row(setting) for setting in settings if setting.group == group)
        sections.append(f"## {group}\n\n{_HEADER}{rows}")
    return "\n".join(sections)


def _row(setting: Setting) -> str:
    flag = f"`{flag_for(setting.key)}`"
    if setting.type is bool:
        flag += f", `--no-{flag[3:]}"
    if setting.key in BESIDE_AN_EDIT:
        flag += f"; beside an edit `{BESIDE_AN_EDIT[setting.key]}`"
    is_value = setting.default_text == show_value(setting.default)
    default = f"`{setting.default_text}`" if is_value else _with_code(setting.default_text)
    value = setting.expected.removeprefix("one of ").removeprefix("a ")
    cells = (flag, f"`{setting.key}`", value, default, _with_code(setting.text))
    return "| " + " | ".join(cells) + " |\n"


def _with_code(text: str) -> str:
    return re.sub(r"--[a-z-]+", r"`\g<0>`", text)


if __name__ == "__main__":
    PAGE.write_text(options_page(), encoding="utf-8")
