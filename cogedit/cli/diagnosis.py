"""`cogedit doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cogedit.cli.options import Call, with_options
from cogedit.cli.screen import printable
from cogedit.version import __version__

if TYPE_CHECKING:
    from cogedit.tools.doctor import Diagnosis, Finding


@with_options(without=("force",))
def doctor(call: Call) -> None:
    """Look whether this machine can run an edit, and say what is missing."""
    from cogedit.config import resolve_settings
    from cogedit.tools.doctor import diagnose

    # Not `call.settings`: it asks for the files of the model, whose absence is a finding here.
    resolved = resolve_settings(call.flags, config=call.config, environ=os.environ, cwd=Path.cwd())
    found = diagnose(resolved.settings)
    if call.screen.json_output:
        typer.echo(json.dumps(_json(found)))
    else:
        _show(found)
    raise typer.Exit(found.exit_code)


def _json(found: Diagnosis) -> dict[str, object]:
    return {
        "command": "doctor",
        "cogedit": __version__,
        "model": found.model,
        "can_edit": found.exit_code == 0,
        "exit_code": found.exit_code,
        "findings": [asdict(finding) for finding in found.findings],
        "models": [asdict(finding) for finding in found.models],
        "presets": [asdict(finding) for finding in found.presets],
    }


def _show(found: Diagnosis) -> None:
    typer.echo(f"cogedit {__version__}")
    rows = [*found.findings, *found.models, *found.presets]
    width = max(len(row.name) for row in rows)
    _table(found.findings, width)
    for title, more in (("other models", found.models), ("memory", found.presets)):
        if more:
            typer.echo(f"\n{title}")
            _table(more, width)
    typer.echo()
    for finding in found.problems:
        typer.echo(f"problem: {printable(finding.problem or '')}")
        if finding.hint is not None:
            typer.echo(f"hint: {printable(finding.hint)}")
    if not found.problems:
        typer.echo(f"an edit with the model {printable(found.model)} can run here")


def _table(findings: Sequence[Finding], width: int) -> None:
    for finding in findings:
        mend = f": {finding.hint}" if finding.problem is not None and finding.hint else ""
        typer.echo(f"  {printable(finding.name):<{width}}  {printable(finding.found + mend)}")
