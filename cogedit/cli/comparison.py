"""`cogedit compare`: clips beside each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from cogedit.cli.options import Call, with_options


@with_options("export", "encode", without=("export.size", "export.sound"))
def compare(
    call: Call,
    sources: Annotated[
        list[Path], typer.Argument(metavar="A B [C]...", help="Artifacts or videos.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A video, or a picture (.png).")],
    layout: Annotated[
        # `cogedit.types.ComparisonLayout`, which the help is too quick to wait for.
        Literal["row", "column", "wipe", "sheet"] | None,
        typer.Option(
            "--layout",
            help="row, column, wipe (of two), or sheet (several frames, a picture). Default: sheet "
            "for a picture, otherwise row.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="A caption, once for each. Default: prompts and file names.",
            show_default=False,
        ),
    ] = None,
    shortest: Annotated[
        bool, typer.Option("--shortest", help="End with the shortest, where lengths differ.")
    ] = False,
) -> None:
    """Show artifacts and videos beside each other: A B [C]... -> mp4 or png."""
    from cogedit import tools
    from cogedit.artifacts import sniff_kind
    from cogedit.config import resolve_settings

    kinds = {source: sniff_kind(source) for source in sources}
    artifact = next((one for one in sources if kinds[one] not in (None, "frames")), None)
    if artifact is None:
        # Frames and videos need no model: which one this machine would take is no matter.
        resolved = resolve_settings(
            call.flags, config=call.config, environ=os.environ, cwd=Path.cwd()
        )
        settings = resolved.settings
    else:
        settings = call.settings(artifact)
    done = tools.compare(
        sources,
        settings,
        output=output,
        layout=layout,
        labels=label or [],
        shortest=shortest,
        run=call.run,
    )
    kind = "picture" if output.suffix.lower() == ".png" else "video"
    row = {"path": str(done.path), "reused": done.reused, "kind": kind}
    call.screen.result("compare", [row])
