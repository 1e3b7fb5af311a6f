"""What a command uses where nothing was named: the newest artifact, settings without a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.errors import UsageError

if TYPE_CHECKING:
    from cogedit.cli.options import Call
    from cogedit.config import Settings
    from cogedit.types import ArtifactKind

_MADE_BY = {"trajectory": "cogedit invert VIDEO", "edit": "cogedit edit VIDEO --prompt TEXT"}


def settings_without_model(call: Call) -> Settings:
    """Resolve the settings of a command that needs no model: none is chosen or looked for."""
    from cogedit.config import resolve_settings

    resolved = resolve_settings(
        call.flags,
        config=call.config,
        environ=os.environ,
        cwd=Path.cwd(),
        flag_names=call.names,
    )
    return resolved.settings


def newest_artifact(call: Call, kind: ArtifactKind) -> Path:
    """Find the newest artifact of a kind, and say which it is.

    It is taken from the workspace of the settings, or else from every workspace in the current
    directory.

    Raises:
        UsageError: There is none.
    """
    from cogedit.artifacts import Workspace, newest_in_directory

    workspace = settings_without_model(call).workspace
    if workspace is None:
        where, newest = "*.cogedit", newest_in_directory(Path(), kind)
    else:
        where, newest = str(workspace), Workspace(workspace).newest(kind)
    if newest is None:
        raise UsageError(
            f"no {kind} found in {where}", hint=f"make one with `{_MADE_BY[kind]}`, or name it"
        )
    call.screen.say(f"using the newest {kind}, {newest}")
    return newest
