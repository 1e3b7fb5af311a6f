"""The version of cogedit, in a module so light that records can carry it."""

__version__ = "0.1.0"
