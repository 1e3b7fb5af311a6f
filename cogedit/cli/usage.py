"""Mistakes on the command line, which the parser itself reports, made safe to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from cogedit.cli.screen import printable

if TYPE_CHECKING:
    from typer._click.core import Command, Context, Parameter

# The parser's errors share this base, which typer does not name.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


_FIRST = ("edit", "doctor")


class Commands(TyperGroup):
    """A group of commands: most wanted first, flags without a type, errors safe to show."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of the commands, those that a newcomer needs first."""
        names = super().list_commands(ctx)
        first = [name for name in _FIRST if name in names]
        return [*first, *(name for name in names if name not in first)]

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the options of the group itself."""
        return _without_flag_types(super().get_params(ctx))

    def get_command(self, ctx: Context, name: str) -> Command | None:
        """Return a command."""
        command = super().get_command(ctx, name)
        if command is not None:
            _without_flag_types(command.get_params(ctx))
        return command

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse what comes before the command."""
        with _shown_by_code():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> object:
        """Parse the rest and run the command."""
        with _shown_by_code():
            return super().invoke(ctx)


def _without_flag_types(params: list[Parameter]) -> list[Parameter]:
    """Show no type beside flags: "<bool>" asks for a value that they do not take."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


@contextmanager
def _shown_by_code() -> Iterator[None]:
    try:
        yield
    except _ParserError as error:
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise
