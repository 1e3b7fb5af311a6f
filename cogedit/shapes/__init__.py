"""The embedded demo model: a small CogVideoX trained on a synthetic world.

`model_dir()` is the folder of the pipeline that ships with the package. The modules beside it are
imported one by one, so that asking for the folder loads neither torch nor diffusers.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_dir"]


def model_dir() -> Path:
    """Return the folder of the embedded pipeline, for `CogVideoXPipeline.from_pretrained`."""
    return Path(__file__).parent / "weights"
