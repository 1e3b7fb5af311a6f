"""Mistakes on the command line, which the parser itself reports, made safe to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from cogedit.cli.screen import printable

if TYPE_CHECKING:
    from typer._click.core import Context

# The parser's errors share this base, which typer does not name.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """A group of commands whose usage errors show control characters by their code."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse what comes before the command."""
        with _shown_by_code():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> object:
        """Parse the rest and run the command."""
        with _shown_by_code():
            return super().invoke(ctx)


@contextmanager
def _shown_by_code() -> Iterator[None]:
    try:
        yield
    except _ParserError as error:
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise
