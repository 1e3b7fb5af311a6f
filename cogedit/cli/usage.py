"""Errors of the command line's parser, in our own words and safe to show."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cogedit.cli.screen import Screen, printable
from cogedit.errors import shown

if TYPE_CHECKING:
    from typer._click.core import Context, Parameter

CallbackT = TypeVar("CallbackT", bound=Callable[..., Any])

# The parser's errors share this base, which typer does not name.
_ParserError: type[Exception] = typer.BadParameter.__bases__[0]


class Command(TyperCommand):
    """A command that makes its options when they are first read, flags without a type.

    A list of the commands needs no options, and typer would make 500 of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._with_signature = getattr(self.callback, "with_signature", None)
        if self._with_signature is not None:
            del self.params, self.callback

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Make the options and the callback that reads them; called while they are missing."""
        if name not in ("params", "callback") or self._with_signature is None:
            raise AttributeError(name)
        app = typer.Typer(add_completion=False)
        app.command()(self._with_signature())
        made = get_command(app)
        self.params, self.callback = made.params, made.callback
        return getattr(self, name)

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the arguments and options."""
        return _without_flag_types(super().get_params(ctx))


class Commands(TyperGroup):
    """A group of commands that shows flags without a type, and errors in our own words."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the options of the group itself."""
        return _without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse what comes before the command."""
        with _errors_made_safe(args):
            for arg in args:
                _check_argument(arg)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> object:
        """Parse the rest and run the command."""
        with _errors_made_safe(ctx.args):
            return super().invoke(ctx)


class App(typer.Typer):
    """An app of such commands and groups; a command of another class would have no options."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(cls=Commands, no_args_is_help=True, **settings)

    def command(
        self,
        name: str | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Callable[[CallbackT], CallbackT]:
        """Return the decorator that adds a command."""
        return super().command(name, cls=Command, **settings)


def _check_argument(arg: str) -> None:
    """Refuse what no shell can pass: a NUL, or text that cannot be written in bytes."""
    try:
        is_text = b"\0" not in os.fsencode(arg)
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise typer.BadParameter(f"{shown(arg)} is no text that a file or a prompt can have")


def _without_flag_types(params: list[Parameter]) -> list[Parameter]:
    """Remove the type beside flags: "<bool>" would ask for a value that they do not take."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


@contextmanager
def _errors_made_safe(args: Collection[str]) -> Iterator[None]:
    """Show the parser's errors without control characters, or as events under --jsonl."""
    try:
        yield
    except _ParserError as error:
        if isinstance(error, typer.BadParameter):
            error.message = _wrong_type(error)
        if hasattr(error, "option_name"):  # it names one that there is not
            error.message += _taken_for_option(args)  # type: ignore[attr-defined]
        if "--jsonl" in args:  # nothing is parsed yet that could be asked
            raise typer.Exit(_emit(error)) from error
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.message = printable(message)  # type: ignore[attr-defined]
        raise


def _wrong_type(error: typer.BadParameter) -> str:
    """Say what was found and what was expected, where a value has the wrong type.

    The parser shows what its validator says: "Input should be a valid integer".
    """
    problems = getattr(error.__cause__, "errors", None)
    kind = getattr(error.param, "type_descriptor", None)
    if problems is None or kind is None:
        return error.message
    expected = "one of " + ", ".join(map(str, kind.choices)) if kind.choices else "another type"
    return f"found '{problems()[0]['input']}', expected {expected}"


def _taken_for_option(args: Collection[str]) -> str:
    """Say how to write the name of a file that begins as an option does."""
    for arg in args:
        with suppress(OSError):  # a name that is too long
            if arg.startswith("-") and Path(arg).exists():
                return f". The file {arg} is written ./{arg}"
    return ""


def _emit(error: Exception) -> int:
    """Emit an error of the parser as an event; return the exit code."""
    context = getattr(error, "ctx", None)
    hint = None if context is None else f"`{context.command_path} --help` lists its options"
    exit_code: int = error.exit_code  # type: ignore[attr-defined]
    message: str = error.format_message()  # type: ignore[attr-defined]
    Screen(jsonl=True).error(message, exit_code, hint=hint)
    return exit_code
