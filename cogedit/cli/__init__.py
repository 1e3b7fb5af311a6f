"""The command line: parse, call one stage, print. No mathematics, and no torch at import time.

`main` alone comes with the package, so that it can listen for Ctrl-C before the rest is imported.
"""

from cogedit.cli.start import main

TYPE_CHECKING = False  # that of `typing`, without its import
if TYPE_CHECKING:
    from cogedit.cli.commands import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> object:
    """Bring the app when it is named (PEP 562)."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cogedit.cli.commands import app

    return app
