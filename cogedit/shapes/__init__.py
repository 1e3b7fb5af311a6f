"""The embedded demo model: a small CogVideoX trained on a synthetic world.

`model_dir()` is the folder of the pipeline that ships with the package. The modules beside it are
imported separately, so that the folder can be found without loading torch or diffusers.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_dir"]


def model_dir() -> Path:
    """Return the folder of the embedded pipeline, for `CogVideoXPipeline.from_pretrained`."""
    return Path(__file__).parent / "weights"
