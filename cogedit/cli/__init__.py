"""The command line: parse, call one stage, print. No mathematics, and no torch at import time."""

from cogedit.cli.commands import app, main

__all__ = ["app", "main"]
