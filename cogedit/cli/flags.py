"""The options that commands share. Those of the settings are made from their descriptions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Flag:
    """A flag of a command for a setting."""

    key: str  # dotted, of the setting
    name: str  # of the flag
    parameter: str  # of the command
    is_hidden: bool = False  # taken, and not listed in the help


def flag_for(key: str, tables: Collection[str] = ()) -> str:
    """Return the flag of a dotted key on a command with these tables."""
    if key in BESIDE_AN_EDIT and not {"reconstruct", "export"}.isdisjoint(tables):
        return BESIDE_AN_EDIT[key]
    return flag_name(key)


def flags_of(tables: Collection[str], *, takes_all: bool = False) -> tuple[Flag, ...]:
    """Return the flags of a command with these tables.

    Args:
        tables: Names of the settings tables of the command.
        takes_all: Whether it also accepts the flags of the other stages, which its help does not
            list: a shell loop may then pass the same flags to every stage. Where two settings have
            one name, it is the earlier stage's. Of two flags for one setting, the later in the list
            counts.
    """
    flags = [
        Flag(key, flag_for(key, tables), key.replace(".", "__"))
        for key in all_settings()
        if key.partition(".")[0] in tables or "." not in key
        # One flag for both: `stages.settings.settle_rate` says whose rate it is.
        if key != "load.fps" or "export" not in tables
    ]
    if not takes_all:
        return tuple(flags)
    taken = {flag.name for flag in flags}
    for names in ({key: flag_for(key, tables) for key in all_settings()}, BESIDE_AN_EDIT):
        for key, name in names.items():
            if name not in taken:
                taken.add(name)
                parameter = f"{key.replace('.', '__')}__{name[2:].replace('-', '_')}"
                flags.append(Flag(key, name, parameter, is_hidden=True))
    return tuple(flags)


def signature_of(
    command: Callable[..., None],
    flags: Collection[Flag],
    *,
    edits: bool,
    without: Collection[str],
) -> inspect.Signature:
    """Return what typer reads: the command's own parameters and its options, as in the help.

    A command with every option written out would have 60 parameters, the same in ten commands.

    Args:
        command: The command.
        flags: Its flags for settings.
        edits: Whether it denoises edits.
        without: Options of every command that it does not have.
    """
    annotations = {
        flag.parameter: setting_option(flag.key, flag.name, is_hidden=flag.is_hidden)
        for flag in flags
    }
    shared = RUNNING | EDITING if edits else RUNNING
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
def setting_option(key: str, flag: str, *, is_hidden: bool = False) -> object:
    """Return the annotation of a setting's option; its value is None where it was not given.

    Numbers stay text here: the setting reads them, so that flags, files and variables are refused
    in the same words. Choices are a type of their own, which typer completes.
    """
    setting = all_settings()[key]
    value_type: Any = str
    words: Callable[[], Collection[str]] | None = None
    if setting.type is bool:
        value_type, flag = bool, f"{flag}/--no-{flag[2:]}"
    elif setting.is_list:
        value_type = list[str]
    elif get_origin(setting.type) is Literal:
        value_type = Literal[
            (setting.none_text, *setting.choices) if setting.has_auto else setting.choices
        ]
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
        hidden=is_hidden,
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
