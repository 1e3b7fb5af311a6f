"""`cogedit config`: which settings a run would have, and where each came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogedit.cli.arguments import argument, option
from cogedit.cli.options import Call, with_options
from cogedit.cli.usage import App

config_app = App(
    name="config",
    help="Show the settings that a run would have.",
)


@config_app.command()
@with_options("load", "encode", "invert", "reconstruct", "export")
def show(
    call: Call,
    source: Annotated[
        Path | None, argument("VIDEO|ARTIFACT", "What the run would start from.")
    ] = None,
    origin: Annotated[bool, option("--origin", text="Say where each value came from.")] = False,
) -> None:
    """Show every setting of `cogedit edit` with these options here, as TOML."""
    from cogedit.config import plain_value, setting_values, settings_toml

    resolved = call.resolve(source)
    if not call.screen.json_output:
        typer.echo(settings_toml(resolved, origins=origin), nl=False)
        return
    values = setting_values(resolved)
    found = {
        "command": "config show",
        "preset": resolved.preset,
        "settings": {
            key: {"value": plain_value(value), "origin": resolved.origins[key]}
            for key, value in values.items()
        },
    }
    typer.echo(json.dumps(found))
