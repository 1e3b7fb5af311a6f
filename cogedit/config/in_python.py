"""What the options that errors name are called in Python, where there is no command line."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from cogedit.config.settings import all_settings
from cogedit.schema import flag_name

_OPTION = re.compile(r"(?<![\w/.-])(?:--[a-z][a-z0-9-]+|-o)(?![\w-])")

_ARGUMENTS = {
    "-o": "`output`",
    "--at": "`at`",
    "--config": "`config` of `settings_for`",
    "--first-frame": "`first_frame`",
    "--force": "`run=Run(force=True)`",
    "--label": "`labels`",
    "--layout": "`layout`",
    "--mask": "`mask`",
    "--prompt": "`prompts`",
    "--save-trajectory": "`save_trajectory`",
    "--shortest": "`shortest`",
    "--source": "`source_video`",
    "--vary": "`vary`",
    "--with-source": "`with_source`",
    # What other settings of a command leave these.
    "--inversion-guidance-scale": "the setting invert.guidance_scale",
    "--inversion-steps": "the setting invert.num_inference_steps",
    "--source-prompt": "the setting invert.prompt",
}
"""Options that are no settings, or whose name does not say which."""


def in_python(text: str) -> str | None:
    """Say what the options in a text are in Python; None where it names none."""
    names = _names()
    known = [option for option in dict.fromkeys(_OPTION.findall(text)) if option in names]
    if not known:
        return None
    return "In Python: " + ", ".join(f"{option} is {names[option]}" for option in known)


@functools.cache
def _names() -> Mapping[str, str]:
    keys: dict[str, list[str]] = {}
    for key in all_settings():
        keys.setdefault(flag_name(key), []).append(key)
    settings = {flag: f"the setting {' or '.join(found)}" for flag, found in keys.items()}
    return settings | _ARGUMENTS
