"""The embedded demo models: small CogVideoX trained on a synthetic world.

`model_dir()` is the folder of the pipeline that ships with the package, which makes videos of text.
`first_frame_dir()` is that of a transformer that takes a first frame, too; VAE, T5, tokenizer and
scheduler are the pipeline's. Their world, their training and their demo are in `cogedit.lab`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["first_frame_dir", "model_dir"]


def model_dir() -> Path:
    """Return the folder of the embedded pipeline, for `CogVideoXPipeline.from_pretrained`."""
    return Path(__file__).parent / "weights"


def first_frame_dir() -> Path:
    """Return the folder of the transformer of `shapes-i2v`.

    `CogVideoXTransformer3DModel.from_pretrained` reads it, and
    `CogVideoXImageToVideoPipeline.from_pretrained(model_dir(), transformer=...)` takes it.
    """
    return Path(__file__).parent / "first_frame"
