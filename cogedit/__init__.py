"""Edit real videos by text with CogVideoX: invert once, edit many times.

    import cogedit

    settings = cogedit.settings_for("clip.mp4", {"model": "shapes"}).settings
    inverted = cogedit.invert("clip.mp4", settings)
    edits = cogedit.reconstruct(inverted.path, ["a red square"], settings)
    cogedit.export(edits[0].path, settings)

Importing the package loads no torch; calling a stage that computes does. Every error raised on
purpose is a `CogeditError`; the tree is in `cogedit.errors`.
"""

from cogedit.errors import CogeditError
from cogedit.stages import (
    Exported,
    InversionCheck,
    Run,
    Swept,
    Written,
    check_inversion,
    edit,
    encode,
    export,
    invert,
    load,
    reconstruct,
    settings_for,
    sweep,
)
from cogedit.version import __version__

__all__ = [
    "CogeditError",
    "Exported",
    "InversionCheck",
    "Run",
    "Swept",
    "Written",
    "__version__",
    "check_inversion",
    "edit",
    "encode",
    "export",
    "invert",
    "load",
    "reconstruct",
    "settings_for",
    "sweep",
]
