"""`cogedit cache`: list what the workspaces hold, check it, and remove some of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogedit.cli.arguments import argument, option
from cogedit.cli.screen import Screen, handle_errors, printable
from cogedit.cli.usage import App
from cogedit.errors import ArtifactDamaged, StorageError, UsageError
from cogedit.wording import count_of

if TYPE_CHECKING:
    from cogedit.artifacts.listing import Entry, Pruned, State

cache_app = App(
    name="cache",
    help="List, check and remove what is in the workspaces.",
)


Kind = StrEnum("Kind", ["FRAMES", "LATENTS", "TRAJECTORY", "EDIT"])
"""`cogedit.types.ArtifactKind`: typer takes lists of an enum's values only."""

Folders = Annotated[
    list[Path] | None,
    argument("WORKSPACE", "Default: every *.cogedit folder here."),
]
Json = Annotated[bool, option("--json", text="Print one JSON object.")]


_UNCHECKED: dict[State, str] = {
    "newer": "not checked, made by a newer cogedit",
    "foreign": "not checked, of another program",
}


@cache_app.command("ls")
def list_entries(folders: Folders = None, json_output: Json = False) -> None:
    """List artifacts, unfinished runs and leftovers.

    Example: cogedit cache ls bear.cogedit
    """
    with handle_errors(Screen()):
        from cogedit.artifacts.listing import survey

        entries = [entry for folder in _workspaces(folders) for entry in survey(folder)]
        _show("cache ls", entries, json_output=json_output)


@cache_app.command()
def verify(folders: Folders = None, json_output: Json = False) -> None:
    """Check every byte of every artifact; exit with 4 if one is damaged, 7 if one is unreadable.

    Example: cogedit cache verify
    """
    with handle_errors(Screen()):
        from cogedit.artifacts.listing import survey

        entries = [e for folder in _workspaces(folders) for e in survey(folder, verify=True)]
        files = [entry for entry in entries if entry.state not in ("unfinished", "leftover")]
        _show("cache verify", files, json_output=json_output)
        count = Counter(entry.state for entry in files)
        for state, meaning in _UNCHECKED.items():
            if count[state]:
                Screen().say(f"{meaning}: {count[state]} of {count_of(len(files), 'file')}")
        if count["damaged"]:
            raise ArtifactDamaged(
                f"damaged: {count['damaged']} of {count_of(len(files), 'artifact')}",
                hint="remove them with `cogedit cache prune --damaged`",
            )
        if count["unreadable"]:
            raise StorageError(
                f"cannot be read: {count['unreadable']} of {count_of(len(files), 'file')}"
            )


@cache_app.command("prune")
def prune_entries(
    folders: Folders = None,
    kind: Annotated[
        list[Kind] | None,
        option("--kind", text="Also remove artifacts of this kind; repeat it for more."),
    ] = None,
    damaged: Annotated[bool, option("--damaged", text="Also remove damaged artifacts.")] = False,
    unfinished: Annotated[
        bool,
        option("--unfinished", text="Also remove the steps of unfinished runs."),
    ] = False,
    dry_run: Annotated[
        bool, option("--dry-run", text="List what would be removed; remove nothing.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Remove leftovers of killed runs, and what the options name.

    A workspace that a running process uses is left alone, and so is everything that cogedit did
    not write.

    Example: cogedit cache prune --damaged --unfinished --dry-run
    """

    def wanted(entry: Entry) -> bool:
        if entry.state == "leftover":
            return True
        if entry.state == "unfinished":
            return unfinished
        return damaged if entry.state == "damaged" else entry.kind in (kind or ())

    with handle_errors(Screen()):
        from cogedit.artifacts.listing import prune

        chosen = _workspaces(folders)
        if not folders:
            # What a link leads to may be anything; named, it is meant.
            for link in filter(Path.is_symlink, chosen):
                Screen().say(f"{link} is a link and is left alone; name it to prune it")
            chosen = [folder for folder in chosen if not folder.is_symlink()]
        pruned = prune(chosen, wanted=wanted, verify=damaged, dry_run=dry_run)
        if json_output:
            content = {
                "command": "cache prune",
                "removed": [_row(entry) for entry in pruned.removed],
                "in_use": [str(folder) for folder in pruned.in_use],
                "recent": [_row(entry) for entry in pruned.recent],
                "dry_run": dry_run,
            }
            typer.echo(json.dumps(content))
        else:
            _show_pruned(pruned, dry_run=dry_run)


def _workspaces(given: Sequence[Path] | None) -> list[Path]:
    """Return the folders that were named, or else every workspace here."""
    from cogedit.artifacts.listing import workspaces_in

    for folder in given or ():
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is not a folder", hint="name a workspace, such as bear.cogedit"
            )
    return list(given) if given else workspaces_in(Path())


def _show(command: str, entries: Sequence[Entry], *, json_output: bool) -> None:
    if json_output:
        content = {"command": command, "entries": [_row(entry) for entry in entries]}
        typer.echo(json.dumps(content))
        return
    from cogedit.cli.tables import show_entries

    if entries:
        show_entries(entries)
    Screen().say(_total(entries))


def _show_pruned(pruned: Pruned, *, dry_run: bool) -> None:
    screen = Screen()
    for entry in pruned.removed:
        typer.echo(printable(str(entry.path)))
    for folder in pruned.in_use:
        screen.say(f"{folder} is in use by a running process; nothing was removed there")
    for entry in pruned.recent:
        screen.say(
            f"kept {entry.path}: it changed within the last hour, and this file system has no "
            "locks that would tell whether it is in use"
        )
    if pruned.removed:
        screen.say(f"{'would remove' if dry_run else 'removed'} {_total(pruned.removed)}")
    else:
        screen.say("nothing to remove")


def _total(entries: Sequence[Entry]) -> str:
    from cogedit.artifacts.atomic import show_size

    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun}, {show_size(sum(entry.size for entry in entries))}"


def _row(entry: Entry) -> dict[str, object]:
    return asdict(entry) | {"path": str(entry.path)}
