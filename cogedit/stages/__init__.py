"""The stages as plain functions over artifacts: the Python API, and where the rooms meet.

Each stage takes an artifact or anything that comes before it, runs what is missing and returns what
it wrote. Importing this package loads no torch; calling a stage that computes does.
"""

from cogedit.stages.check import InversionCheck, check_inversion
from cogedit.stages.compare import compare
from cogedit.stages.edit import edit
from cogedit.stages.encode import encode
from cogedit.stages.estimate import Estimate, estimate
from cogedit.stages.export import export
from cogedit.stages.invert import invert
from cogedit.stages.load import load
from cogedit.stages.reconstruct import reconstruct
from cogedit.stages.report import report
from cogedit.stages.run import Exported, Run, Written
from cogedit.stages.settings import settings_for
from cogedit.stages.sweep import Swept, sweep

__all__ = [
    "Estimate",
    "Exported",
    "InversionCheck",
    "Run",
    "Swept",
    "Written",
    "check_inversion",
    "compare",
    "edit",
    "encode",
    "estimate",
    "export",
    "invert",
    "load",
    "reconstruct",
    "report",
    "settings_for",
    "sweep",
]
