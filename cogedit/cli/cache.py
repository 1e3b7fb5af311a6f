"""`cogedit cache`: what lies in the workspaces, whether it is sound, and removing some of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogedit.cli.screen import Screen, handle_errors, printable
from cogedit.cli.usage import Commands
from cogedit.errors import ArtifactDamaged, UsageError

if TYPE_CHECKING:
    from cogedit.artifacts.listing import Entry, Pruned

cache_app = typer.Typer(
    name="cache",
    cls=Commands,
    help="Show, check and remove what lies in the workspaces.",
    no_args_is_help=True,
)


class Kind(StrEnum):
    """Kinds of artifacts that can be named on the command line."""

    FRAMES = "frames"
    LATENTS = "latents"
    TRAJECTORY = "trajectory"
    EDIT = "edit"


Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="WORKSPACE...", help="Default: every *.cogedit folder here.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@cache_app.command("ls")
def list_entries(folders: Folders = None, json_output: Json = False) -> None:
    """List artifacts, unfinished runs and leftovers."""
    from cogedit.artifacts.listing import survey
    from cogedit.stages.cancellation import Cancellation

    with handle_errors(Cancellation(), Screen(), debug=False):
        entries = [entry for folder in _folders(folders) for entry in survey(folder)]
        if json_output:
            _print_json("cache ls", entries=[_row(entry) for entry in entries])
            return
        _print_table(entries)


@cache_app.command()
def verify(folders: Folders = None, json_output: Json = False) -> None:
    """Check every byte of every artifact; exit with 4 if one is damaged."""
    from cogedit.artifacts.listing import survey
    from cogedit.stages.cancellation import Cancellation

    with handle_errors(Cancellation(), Screen(), debug=False):
        entries = [entry for folder in _folders(folders) for entry in survey(folder, verify=True)]
        artifacts = [entry for entry in entries if entry.state in ("whole", "damaged")]
        damaged = [entry for entry in artifacts if entry.state == "damaged"]
        if json_output:
            _print_json("cache verify", entries=[_row(entry) for entry in artifacts])
        else:
            _print_table(artifacts)
        if damaged:
            raise ArtifactDamaged(
                f"{len(damaged)} of {len(artifacts)} artifacts are damaged",
                hint="remove them with `cogedit cache prune --damaged`",
            )


@cache_app.command("prune")
def prune_entries(
    folders: Folders = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option("--kind", help="Remove artifacts of this kind too; again for more."),
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove damaged artifacts.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Remove the steps of runs that did not finish."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Remove leftovers of killed runs, and what the options name.

    A workspace that a running process works in is left alone.
    """
    from cogedit.artifacts.listing import prune
    from cogedit.stages.cancellation import Cancellation

    kinds = {str(one) for one in kind or ()}

    def wanted(entry: Entry) -> bool:
        if entry.state == "leftover":
            return True
        if entry.state == "unfinished":
            return unfinished
        return damaged if entry.state == "damaged" else entry.kind in kinds

    with handle_errors(Cancellation(), Screen(), debug=False):
        done = prune(_folders(folders), wanted=wanted, verify=damaged, dry_run=dry_run)
        if json_output:
            _print_json(
                "cache prune",
                removed=[_row(entry) for entry in done.removed],
                in_use=[str(folder) for folder in done.in_use],
                recent=[_row(entry) for entry in done.recent],
                dry_run=dry_run,
            )
        else:
            _tell_pruned(done, dry_run=dry_run)


def _tell_pruned(done: Pruned, *, dry_run: bool) -> None:
    from cogedit.artifacts.atomic import show_size

    screen = Screen()
    for entry in done.removed:
        typer.echo(_one_line(str(entry.path)))
    for folder in done.in_use:
        screen.say(f"{folder} is in use by a running process; nothing was removed there")
    for entry in done.recent:
        screen.say(
            f"left {entry.path}: it changed within the hour, and this file system has no locks"
        )
    if not done.removed:
        screen.say("nothing to remove")
        return
    size = show_size(sum(entry.size for entry in done.removed))
    screen.say(f"{'would remove' if dry_run else 'removed'} {len(done.removed)} ({size})")


def _folders(given: Sequence[Path] | None) -> list[Path]:
    """The workspaces that are meant.

    Raises:
        UsageError: One is no folder.
    """
    from cogedit.artifacts.listing import workspaces_in

    for folder in given or ():
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", hint="name a workspace, such as a *.cogedit")
    return list(given) if given else workspaces_in(Path())


def _print_table(entries: Sequence[Entry]) -> None:
    from cogedit.artifacts.atomic import show_size

    rows = [
        (
            _one_line(str(entry.path)),
            show_size(entry.size),
            f"{datetime.fromtimestamp(entry.modified):%Y-%m-%d %H:%M}",
            entry.state,
            _one_line(entry.about)[:100],
        )
        for entry in entries
    ]
    width = max((len(row[0]) for row in rows), default=0)
    for path, size, when, state, about in rows:
        typer.echo(f"{path:<{width}}  {size:>9}  {when}  {state:<10}  {about}")
    Screen().say(f"{len(entries)} entries, {show_size(sum(entry.size for entry in entries))}")


def _one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _print_json(command: str, **values: object) -> None:
    typer.echo(json.dumps({"command": command, **values}))


def _row(entry: Entry) -> dict[str, object]:
    return {
        "path": str(entry.path),
        "state": entry.state,
        "kind": entry.kind,
        "size": entry.size,
        "about": entry.about,
    }
