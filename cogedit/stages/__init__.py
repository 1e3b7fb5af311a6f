"""The stages as plain functions over artifacts: the Python API, and where the rooms meet.

Each stage takes an artifact or anything that comes before it, runs what is missing and returns what
it wrote. Importing this package loads no torch; calling a stage that computes does. A stage that
runs the model also raises `ModelError` where it is missing or incomplete, `DeviceMemoryError`,
`NumericalError` at NaN or Inf, and `Interrupted` where a stop was requested.
"""

from cogedit.config import Settings
from cogedit.media.metrics import psnr, ssim
from cogedit.stages.arrays import read_clip, write_clip
from cogedit.stages.edit import edit
from cogedit.stages.encode import encode
from cogedit.stages.export import export
from cogedit.stages.frame import save_frame
from cogedit.stages.invert import InversionCheck, check_inversion, invert
from cogedit.stages.load import load
from cogedit.stages.reconstruct import reconstruct
from cogedit.stages.run import Exported, Run, Written
from cogedit.stages.session import Session
from cogedit.stages.settings import settings_for

__all__ = [
    "Exported",
    "InversionCheck",
    "Run",
    "Session",
    "Settings",
    "Written",
    "check_inversion",
    "edit",
    "encode",
    "export",
    "invert",
    "load",
    "psnr",
    "read_clip",
    "reconstruct",
    "save_frame",
    "settings_for",
    "ssim",
    "write_clip",
]
