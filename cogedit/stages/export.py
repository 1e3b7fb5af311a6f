"""export: any artifact -> a video file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    FramesRecord,
    Record,
    frames_record,
    num_pad_frames,
    read_artifact,
    read_record,
    record_text,
)
from cogedit.config import Settings
from cogedit.errors import UsageError, VideoError
from cogedit.media.probe import read_comment
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.checkpoints import check_same_model, checkpoint_for, dtype_for
from cogedit.stages.run import Exported, Run, check_writable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Recipe:
    """What makes an exported video the one that was asked for.

    Attributes:
        record: The artifact.
        fps: Frames per second, exact.
        crf: Quality of x264.
    """

    record: Record
    fps: Fraction
    crf: int

    def comment(self) -> str:
        """Return the recipe as JSON, to be kept in the video's metadata."""
        options = {"crf": self.crf, "fps": str(self.fps)}
        return json.dumps(
            {"cogedit": json.loads(record_text(self.record)), "export": options},
            sort_keys=True,
            separators=(",", ":"),
        )


def export(
    source: str | Path, settings: Settings, *, output: Path | None = None, run: Run | None = None
) -> Exported:
    """Write an artifact as a video.

    An edit and latents are decoded; frames are written as they are, which gives the source clip;
    of a trajectory its noise end is decoded, the upstream script's inversion video.

    Args:
        source: The artifact.
        settings: `export`; `model`, `dtype` and `device` where something is decoded.
        output: The video; None is the artifact's name with .mp4, beside it.
        run: How to run; None is silent.

    Raises:
        ArtifactError: The source is no artifact, of another model, or damaged.
        UsageError: `output` exists and is not this run's, or its suffix is unknown.
        ModelError: The model is missing or incomplete.
        StorageError: The video cannot be written.
    """
    from cogedit.media.writer import SUFFIXES  # brings numpy, which --help does not need

    source, run = Path(source), run or Run()
    record = read_record(source)
    path = source.with_suffix(".mp4") if output is None else output
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"cannot write {path}: the suffix {path.suffix or '(none)'} is not one of "
            f"{', '.join(SUFFIXES)}"
        )
    fps = settings.export.fps or frames_record(record).fps
    recipe = _Recipe(record, fps, settings.export.crf)
    if not run.force and _is_there(path, recipe):
        run.say(f"reused {path} (--force makes it anew)")
        return Exported(path, reused=True)
    check_writable(path)
    if isinstance(record, FramesRecord):
        frames = read_artifact(source, "frames").tensors["frames"].numpy()
    else:
        checkpoint = checkpoint_for(settings)
        check_same_model(str(source), record.model, checkpoint)
        frames = _decode(source, checkpoint, settings)
    from cogedit.media.writer import write_video

    write_video(frames, path, fps=fps, crf=recipe.crf, comment=recipe.comment())
    run.say(f"wrote {path} ({len(frames)} frames at {float(fps):.6g} fps)")
    return Exported(path, reused=False)


def _is_there(path: Path, recipe: _Recipe) -> bool:
    """Tell whether the video is there with this recipe.

    Raises:
        UsageError: Something else is there.
    """
    if not path.exists():
        return False
    try:
        found = read_comment(path)
    except VideoError:
        found = None
    if found == recipe.comment():
        return True
    raise UsageError(
        f"{path} exists and was not made by this export",
        hint="choose another -o, or replace it with --force",
    )


def _decode(source: Path, checkpoint: Checkpoint, settings: Settings) -> NDArray[np.uint8]:
    """Decode the latents of an artifact to uint8 frames [F, H, W, C]."""
    from cogedit.models.device import DTYPES, memory_guard, resolve_device
    from cogedit.models.loading import load_vae
    from cogedit.models.vae import decode_latents, to_pixels

    artifact = read_artifact(source)
    if artifact.record.kind == "trajectory":
        latents = artifact.tensors["trajectory"][-1]
    else:
        latents = artifact.tensors["latents"]
    latents = latents[:, num_pad_frames(artifact.record) :]
    device, dtype = resolve_device(settings.device), DTYPES[dtype_for(settings)]
    with memory_guard("decoding"):
        vae = load_vae(checkpoint, device=device, dtype=dtype)
        if settings.encode.vae_tiling:
            vae.enable_tiling()
        pixels = to_pixels(decode_latents(vae, latents)).cpu()
    array: NDArray[np.uint8] = pixels.numpy()
    return array
