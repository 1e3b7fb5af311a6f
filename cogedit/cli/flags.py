"""The options that commands share. Those of the settings are made from their descriptions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from cogedit.config.resolve import preset_names
from cogedit.config.settings import all_settings
from cogedit.schema import Group, Setting, flag_name

_GROUPS = (None, *get_args(Group))


def _complete(words: Callable[[], Collection[str]]) -> Callable[[str], list[str]]:
    """Complete what was typed so far to one of these words."""

    def complete(incomplete: str) -> list[str]:  # typer knows the parameter by this name
        return [word for word in words() if word.startswith(incomplete)]

    return complete


def _known_models() -> Collection[str]:
    from cogedit.stages.settings import known_models

    return known_models()


RUNNING: dict[str, object] = {
    "config": Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Preset, or a TOML file of settings.",
            show_default=False,
            autocompletion=_complete(preset_names),
        ),
    ],
    "force": Annotated[
        bool,
        typer.Option(
            "--force",
            help="Recompute this command's own output; earlier stages are still reused.",
        ),
    ],
    "json_output": Annotated[bool, typer.Option("--json", help="Print one JSON object.")],
    "jsonl": Annotated[
        bool,
        typer.Option(
            "--jsonl", help="Report steps, notes and errors as JSON, one line each, on stderr."
        ),
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print more.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
"""Options of every command that change no result."""

EDITING: dict[str, object] = {
    "preview": Annotated[
        bool,
        typer.Option("--preview", help="Show a small live image of the edit under the bar."),
    ],
}
"""The same for commands that denoise edits."""

BESIDE_AN_EDIT = {
    "invert.prompt": "--source-prompt",
    "invert.guidance_scale": "--inversion-guidance-scale",
    "invert.num_inference_steps": "--inversion-steps",
}
"""Flags of the inversion on commands that also edit, where the plain names are the edit's."""


def flag_for(key: str, tables: Collection[str] = ()) -> str:
    """Return the flag of a dotted key on a command with these tables."""
    if "reconstruct" in tables and key in BESIDE_AN_EDIT:
        return BESIDE_AN_EDIT[key]
    return flag_name(key)


def parameters_of(tables: Collection[str]) -> dict[str, str]:
    """Return the settings of a command with these tables: its parameters by dotted key."""
    return {
        key: key.replace(".", "__")
        for key in all_settings()
        if key.partition(".")[0] in tables or "." not in key
    }


def signature_of(
    command: Callable[..., None],
    tables: Collection[str],
    *,
    settings: bool,
    without: Collection[str],
) -> inspect.Signature:
    """Return what typer reads: the command's own parameters and its options, as in the help.

    A command with every option written out would have 60 parameters, the same in ten commands.
    The arguments are those of `with_options`.
    """
    annotations = {
        name: setting_option(key, flag_for(key, tables))
        for key, name in (parameters_of(tables) if settings else {}).items()
        if key not in without
    }
    shared = RUNNING | EDITING if {"reconstruct", "transformer"} <= {*tables} else RUNNING
    annotations |= {name: option for name, option in shared.items() if name not in without}
    keyword = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(command, include_extras=True)
    own = [*inspect.signature(command).parameters.values()][1:]
    parameters = [item.replace(kind=keyword, annotation=hints[item.name]) for item in own]
    for name, annotation in annotations.items():
        default = False if get_args(annotation)[0] is bool else None
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    return inspect.Signature(sorted(parameters, key=_help_order))


def _help_order(parameter: inspect.Parameter) -> int:
    """Return where the group of a command's parameter stands in its help text."""
    declared = parameter.annotation.__metadata__[0]
    return _GROUPS.index(declared.rich_help_panel)


@functools.cache
def setting_option(key: str, flag: str) -> object:
    """Return the annotation of a setting's option; its value is None where it was not given.

    Numbers stay text here: the setting reads them, so that flags, files and variables are refused
    in the same words. Choices are a type of their own, which typer completes.
    """
    setting = all_settings()[key]
    value_type: Any = str
    words: Callable[[], Collection[str]] | None = None
    if setting.type is bool:
        value_type, flag = bool, f"{flag}/--no-{flag[2:]}"
    elif get_origin(setting.type) is Literal:
        value_type = Literal[("auto", *setting.choices) if setting.has_auto else setting.choices]
    elif key == "model":
        words = _known_models
    elif setting.choices:
        words = functools.partial(getattr, setting, "choices")
    option = typer.Option(
        flag,
        help=help_text(setting),
        rich_help_panel=setting.group,
        metavar=metavar_of(setting),
        show_default=False,
        autocompletion=_complete(words) if words is not None else None,
    )
    return Annotated[value_type | None, option]


def help_text(setting: Setting) -> str:
    """Return what a setting does, and its default unless that is an option left out."""
    if setting.default is False:
        return setting.text
    return f"{setting.text} Default: {setting.default_text}."


def metavar_of(setting: Setting) -> str | None:
    """Return what stands for a setting's value in help texts; None where it takes none."""
    if setting.metavar or setting.type is bool:
        return setting.metavar or None
    if get_origin(setting.type) is tuple:
        return setting.expected.partition(" ")[0]  # FIRST:LAST
    if setting.type in (int, float):
        return setting.unit.upper() or ("N" if setting.type is int else "X")
    words: dict[object, str] = {str: "TEXT", Path: "DIR"}
    return words.get(setting.type, setting.key.rpartition(".")[2].rpartition("_")[2].upper())
