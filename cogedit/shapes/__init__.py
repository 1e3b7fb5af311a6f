"""The embedded demo model: a small CogVideoX trained on a synthetic world.

`model_dir()` is the folder of the pipeline that ships with the package. Its world, its training and
its demo are in `cogedit.lab`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_dir"]


def model_dir() -> Path:
    """Return the folder of the embedded pipeline, for `CogVideoXPipeline.from_pretrained`."""
    return Path(__file__).parent / "weights"
