"""Gives a command the options that it shares with others (`flags`), and its error handling."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from cogedit.cli.flags import (
    EDITING,
    RUNNING,
    flag_for,
    help_order,
    keys_of,
    setting_option,
)
from cogedit.cli.progress import Thumbnail
from cogedit.cli.screen import Screen, handle_errors
from cogedit.errors import UsageError
from cogedit.types import ArtifactKind

if TYPE_CHECKING:
    from cogedit.config import ResolvedSettings, Settings
    from cogedit.stages import Run
    from cogedit.stages.cancellation import Cancellation

_STAGES_BEHIND: Mapping[ArtifactKind, tuple[str, ...]] = {
    "frames": ("load",),
    "latents": ("load", "encode"),
    "trajectory": ("load", "encode", "invert"),
    "edit": ("load", "encode", "invert"),
}


def _new_stop() -> Cancellation:
    from cogedit.stages.cancellation import Cancellation

    return Cancellation()


@dataclass(frozen=True)
class Call:
    """The options of a command besides its own arguments."""

    flags: Mapping[str, object]  # settings by dotted key, those that were given
    tables: tuple[str, ...]  # settings tables of the command
    config: str | None  # preset or TOML file
    force: bool  # recompute the command's own output
    screen: Screen
    stop: Cancellation = field(default_factory=_new_stop)  # lets a signal stop a loop after a step

    @property
    def run(self) -> Run:
        """How the stages run under this command."""
        from cogedit.stages import Run

        return Run(
            force=self.force,
            notify=self.screen.say,
            detail=self.screen.detail,
            progress=self.screen.progress,
            preview=self.screen.preview,
            cancellation=self.stop,
        )

    @property
    def flags_of_all(self) -> Mapping[str, object]:
        """The flags for all stages: one number of steps for the inversion and for its edit."""
        steps = self.flags.get("reconstruct.num_inference_steps")
        return self.flags if steps is None else {"invert.num_inference_steps": steps, **self.flags}

    def settings(self, source: Path | None, *, decodes: bool = False) -> Settings:
        """Resolve the settings, and report the model where it was chosen automatically.

        Args:
            source: What the command starts from.
            decodes: Whether the command decodes, though it exports nothing.

        Raises:
            UsageError: A flag is out of range, or belongs to a stage that `source` is past.
        """
        from cogedit.stages.settings import chosen_model

        resolved = self.resolve(source, decodes=decodes)
        chosen = chosen_model(resolved)
        if chosen is not None:
            self.screen.say(chosen)
        for key, where in resolved.origins.items():
            if where != "default":
                self.screen.detail(f"{key}: from {where}")
        return resolved.settings

    def resolve(self, source: Path | None, *, decodes: bool = False) -> ResolvedSettings:
        """Resolve the settings as `settings` does, with the origin of each."""
        from cogedit.artifacts import sniff_kind
        from cogedit.stages import settings_for

        kind = None if source is None else sniff_kind(source)
        past = () if kind is None else _STAGES_BEHIND[kind]
        if decodes or "export" in self.tables:
            # How the VAE works in tiles also concerns the decoding that is still to come.
            past = tuple(stage for stage in past if stage != "encode")
        for key in self.flags:
            stage, flag = key.partition(".")[0], flag_for(key, self.tables)
            if source is not None and stage in past:
                raise UsageError(
                    f"{flag} has no effect: {source} is past `{stage}`, which was done with "
                    f"{_made_with(source, key)} (found {self.flags[key]})",
                    hint=f"leave {flag} out, or start from the video",
                )
        flags = self.flags if "invert" in past else self.flags_of_all
        return settings_for(source, flags, config=self.config)


def _made_with(source: Path, key: str) -> object:
    """The value of a setting by which an artifact was made."""
    from cogedit.artifacts import chain_of, read_record

    stage, _, name = key.partition(".")
    made = {"load": "frames", "encode": "latents", "invert": "trajectory"}[stage]
    link = next(link for link in chain_of(read_record(source)) if link.kind == made)
    value: object = getattr(link.settings, name)
    return value


def with_options(
    *tables: str, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some tables, those of every command, and its error handling.

    The command takes a `Call` as its first parameter and declares only its own arguments.

    Args:
        tables: Names of settings tables; the top-level settings are always there.
        without: Settings of these tables, and options of every command, that have no effect on
            this one.
    """
    names = {key: key.replace(".", "__") for key in keys_of(tables) if key not in without}
    editing = EDITING if {"reconstruct", "transformer"} <= {*tables} else {}
    shared = {name: item for name, item in {**RUNNING, **editing}.items() if name not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**values: Any) -> None:  # noqa: ANN401
            given = {key: values.pop(name) for key, name in names.items()}
            running = {name: values.pop(name) for name in shared}
            screen = Screen(
                json_output=running["json_output"],
                quiet=running["quiet"],
                verbose=running["verbose"],
                jsonl=running["jsonl"],
                thumbnail=Thumbnail() if running.get("preview") else None,
            )
            call = Call(
                flags={key: value for key, value in given.items() if value is not None},
                tables=tables,
                config=running.get("config"),
                force=running.get("force", False),
                screen=screen,
            )
            with handle_errors(screen, cancellation=call.stop, debug=running["debug"]):
                command(call, **values)

        _declare(
            called,
            command,
            {name: setting_option(key, flag_for(key, tables)) for key, name in names.items()},
            shared,
        )
        return called

    return decorate


def _declare(
    called: Callable[..., None],
    command: Callable[..., None],
    settings: Mapping[str, object],
    shared: Mapping[str, object],
) -> None:
    """Give `called` the signature that typer reads: the command's own parameters and the options.

    A command with every option written out would have 60 parameters, the same in ten commands.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(command, include_extras=True)
    own = [*inspect.signature(command).parameters.values()][1:]
    parameters = [one.replace(kind=keyword, annotation=hints[one.name]) for one in own]
    for name, annotation in {**settings, **shared}.items():
        default = False if get_args(annotation)[0] is bool else None
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    parameters.sort(key=help_order)
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    del called.__wrapped__  # type: ignore[attr-defined]
