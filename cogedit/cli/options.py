"""Gives a command the options that it shares with others (`flags`), and its error handling."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogedit.cancellation import Cancellation
from cogedit.cli.progress import Thumbnail
from cogedit.cli.screen import Screen, handle_errors
from cogedit.errors import UsageError

if TYPE_CHECKING:
    from cogedit.cli.flags import Flag
    from cogedit.config import ResolvedSettings, Settings
    from cogedit.stages import Run
    from cogedit.types import ArtifactKind

_MADE_BY = {"trajectory": "cogedit invert VIDEO", "edit": "cogedit edit VIDEO --prompt TEXT"}


@dataclass(frozen=True)
class Call:
    """The options of a command besides its own arguments."""

    flags: Mapping[str, object]  # settings by dotted key, those that were given
    names: Mapping[str, str]  # the flags by which they were given, likewise
    tables: tuple[str, ...]  # settings tables of the command
    config: str | None  # preset or TOML file
    force: bool  # recompute the command's own output
    screen: Screen
    stop: Cancellation = field(default_factory=Cancellation)  # a signal stops a loop after a step

    @property
    def run(self) -> Run:
        """How the stages run under this command."""
        from cogedit.stages import Run

        return Run(
            force=self.force,
            notify=self.screen.say,
            detail=self.screen.detail,
            progress=self.screen.progress,
            wait=self.screen.wait,
            preview=self.screen.preview,
            cancellation=self.stop,
            inputs=self._configuration,
        )

    @property
    def _configuration(self) -> tuple[Path, ...]:
        """The file that was named as the configuration."""
        from cogedit.config import CONFIG_VARIABLE, is_file_name

        named = self.config or os.environ.get(CONFIG_VARIABLE)
        return (Path(named),) if named and is_file_name(named) else ()

    @property
    def flags_of_all(self) -> Mapping[str, object]:
        """The flags for all stages: one number of steps for the inversion and for its edit."""
        steps = self.flags.get("reconstruct.num_inference_steps")
        return self.flags if steps is None else {"invert.num_inference_steps": steps, **self.flags}

    def settings(self, source: Path | None) -> Settings:
        """Resolve the settings, and report the model where it was chosen automatically.

        UsageError if a flag is out of range, or has another value than `source` was made with.
        """
        from cogedit.stages.settings import chosen_model, found_as

        with self.screen.wait("looking at the model's files"):
            resolved = self.resolve(source)
            notes = (chosen_model(resolved), found_as(resolved.settings))
        for note in notes:
            if note is not None:
                self.screen.say(note)
        for key, where in resolved.origins.items():
            if where != "default":
                self.screen.detail(f"{key}: from {where}")
        return resolved.settings

    def settings_without_model(self) -> Settings:
        """Resolve the settings of a command that needs no model: none is chosen or looked for."""
        from cogedit.config import resolve_settings

        return resolve_settings(
            self.flags,
            config=self.config,
            environ=os.environ,
            cwd=Path.cwd(),
            flag_names=self.names,
        ).settings

    def newest(self, kind: ArtifactKind) -> Path:
        """Find the newest artifact of a kind, and say which it is; UsageError if there is none.

        It is taken from the workspace of the settings, or else from every one here.
        """
        from cogedit.artifacts import newest_artifact
        from cogedit.artifacts.listing import workspaces_in

        workspace = self.settings_without_model().workspace
        newest = newest_artifact([workspace] if workspace else workspaces_in(Path()), kind)
        if newest is None:
            raise UsageError(
                f"no {kind} found in {workspace or '*.cogedit'}",
                hint=f"make one with `{_MADE_BY[kind]}`, or name it",
            )
        self.screen.say(f"using the newest {kind}, {newest}")
        return newest

    def resolve(self, source: Path | None) -> ResolvedSettings:
        """Resolve the settings as `settings` does, with the origin of each."""
        from cogedit.artifacts import MADE_BY, chain_of, read_record, sniff_kind
        from cogedit.cli.repeated import check_repeated, stage_of
        from cogedit.config import TABLES
        from cogedit.stages import settings_for
        from cogedit.stages.settings import settle_every_frame, settle_rate

        record = None
        if source is not None and sniff_kind(source) is not None:
            record = read_record(source)
        past = () if record is None else [MADE_BY[link.kind] for link in chain_of(record)]
        flags = self.flags if "invert" in past else self.flags_of_all
        if source is not None and "export" in self.tables:
            flags = settle_rate(source, flags)
            if "load" not in self.tables:
                flags = settle_every_frame(source, flags)
        resolved = settings_for(source, flags, config=self.config, flag_names=self.names)
        idle = []
        for key, name in self.names.items():
            if key not in flags:  # it was settled to mean another setting
                continue
            stage = stage_of(key)
            if source is not None and record is not None and stage in past:
                check_repeated(source, record, key, resolved.settings, flag=name)
            elif stage in TABLES and stage not in self.tables:
                idle.append(name)
        if idle:
            self.screen.say(f"no effect on this stage: {', '.join(idle)}")
        return resolved


def with_options(
    *tables: str,
    settings: bool = True,
    without: Collection[str] = (),
    takes_all: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some tables, those of every command, and its error handling.

    The command takes a `Call` as its first parameter and declares only its own arguments. Its
    options are made when the command is the one that is parsed (`cogedit.cli.usage.Command`).

    Args:
        tables: Names of settings tables.
        settings: Whether it has these and the top-level settings; otherwise it has none.
        without: Settings of these tables, and options of every command, that have no effect on
            this one.
        takes_all: As for `flags_of`; what such a flag means is for `Call.resolve` to say.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def flags() -> tuple[Flag, ...]:
            from cogedit.cli.flags import flags_of

            known = flags_of(tables, takes_all=takes_all) if settings else ()
            return tuple(flag for flag in known if flag.key not in without)

        def called(**values: Any) -> None:  # noqa: ANN401
            given = [(flag, values.pop(flag.parameter)) for flag in flags()]
            screen = Screen(
                json_output=values.pop("json_output"),
                quiet=values.pop("quiet"),
                verbose=values.pop("verbose"),
                jsonl=values.pop("jsonl"),
                thumbnail=Thumbnail() if values.pop("preview", False) else None,
            )
            given = [(flag, value) for flag, value in given if value not in (None, [])]
            said = {flag.key: value for flag, value in given}
            names = {flag.key: flag.name for flag, _ in given}
            if said.get("load.start") in ("random", "inverted"):  # until 0.1.0 it was the noise
                said["reconstruct.start"] = said.pop("load.start")
                names["reconstruct.start"] = names.pop("load.start")
            call = Call(
                flags=said,
                names=names,
                tables=tables,
                config=values.pop("config", None),
                force=values.pop("force", False),
                screen=screen,
            )
            with handle_errors(screen, cancellation=call.stop, debug=values.pop("debug")):
                command(call, **values)

        def with_signature() -> Callable[..., None]:
            from cogedit.cli.flags import signature_of

            edits = {"reconstruct", "transformer"} <= {*tables}
            signature = signature_of(command, flags(), edits=edits, without=without)
            hints = {name: item.annotation for name, item in signature.parameters.items()}
            called.__signature__ = signature  # type: ignore[attr-defined]
            called.__annotations__ = hints
            return called

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
        called.with_signature = with_signature  # type: ignore[attr-defined]
        return called

    return decorate
