"""`cogedit report`: a page that compares the edits of a workspace with their source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cogedit.cli.options import Call, with_options
from cogedit.errors import UsageError


@with_options("encode")
def report(
    call: Call,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="WORKSPACE",
            help="The folder of the artifacts. Default: that of the newest edit here.",
            show_default=False,
        ),
    ] = None,
    beside: Annotated[
        bool,
        typer.Option("--beside", help="Keep the videos in a folder beside the page, not in it."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page. Default: report.html in the workspace.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare the edits of a workspace with their source on one page: WORKSPACE -> html."""
    from cogedit.artifacts import Workspace
    from cogedit.tools import report as report_stage

    root = folder or _newest_workspace(call)
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}", hint="name a workspace, *.cogedit")
    workspace = Workspace(root)
    # The model of what was made last: an edit of another one is listed with the reason.
    newest = workspace.newest("edit") or workspace.newest("trajectory")
    settings = call.settings(newest, decodes=True)
    written = report_stage(root, settings, output=output, beside=beside, run=call.run)
    call.screen.result("report", [{"path": str(written.path), "kind": "page", "reused": False}])


def _newest_workspace(call: Call) -> Path:
    """Find the workspace of the edit that was written last, and say which it is."""
    from cogedit.artifacts import newest_in_directory

    given = call.flags.get("workspace")
    if isinstance(given, Path):
        return given
    newest = newest_in_directory(Path(), "edit")
    if newest is None:
        raise UsageError(
            "there is no edit in *.cogedit",
            hint="make one with `cogedit edit VIDEO --prompt TEXT`, or name the workspace",
        )
    call.screen.say(f"taking the workspace of the newest edit, {newest.parent}")
    return newest.parent
