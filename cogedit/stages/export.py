"""export: any artifact -> a video file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    FramesRecord,
    Record,
    content_key,
    frames_record,
    num_pad_frames,
    read_artifact,
    read_record,
    record_text,
)
from cogedit.config import Settings
from cogedit.errors import UsageError, VideoError
from cogedit.media.ffmpeg import SUFFIXES
from cogedit.media.probe import read_comment
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.checkpoints import check_same_model, checkpoint_for, dtype_for
from cogedit.stages.composite import composite_for, source_frames
from cogedit.stages.run import Exported, Run, check_output, check_writable
from cogedit.types import Composite, DType

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKLCogVideoX
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class _Recipe:
    """What makes an exported video the one that was asked for.

    Attributes:
        record: The artifact.
        fps: Frames per second, exact.
        crf: Quality of x264.
        composite: What is shown outside the mask; "none" where there is none.
        feather: Width in pixels of the passage; 0 without a composite.
        dtype: What the VAE decodes in; None where nothing is decoded.
        vae_tiling: Whether it decodes in tiles; None where nothing is decoded.
    """

    record: Record
    fps: Fraction
    crf: int
    composite: Composite = "none"
    feather: int = 0
    dtype: DType | None = None
    vae_tiling: bool | None = None

    def comment(self) -> str:
        """Return the recipe as JSON, to be kept in the video's metadata."""
        options = {
            "composite": self.composite,
            "crf": self.crf,
            "dtype": self.dtype,
            "feather": self.feather,
            "fps": str(self.fps),
            "vae_tiling": self.vae_tiling,
        }
        record = json.loads(record_text(self.record), object_hook=_with_short_indices)
        key = content_key(self.record)
        return json.dumps(
            {"cogedit": record, "content_key": key, "export": options},
            sort_keys=True,
            separators=(",", ":"),
        )


class Decoder:
    """Decodes artifacts; loads the VAE when the first is asked for and keeps it.

    Args:
        settings: `model`, `device`, `dtype`, `encode.vae_tiling`, and of `export` what is shown
            outside a mask; `workspace` where that is the source's own frames.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def decode(self, source: Path) -> NDArray[np.uint8]:
        """Decode the latents of an artifact, of a trajectory its noise end.

        Returns:
            uint8 RGB, [F, H, W, C]. Under a composite every pixel outside the edit's mask is the
            source's own.

        Raises:
            ArtifactError: It is of another model, or damaged; or the source's frames are gone.
            UsageError: A composite is asked for, and the artifact has no mask.
            ModelError: The model is missing or incomplete.
            DeviceMemoryError: The device is full.
        """
        artifact = read_artifact(source, ("latents", "trajectory", "edit"))
        record = artifact.record
        if isinstance(record, FramesRecord):
            raise TypeError("frames are not decoded")
        check_same_model(str(source), record.model, self._checkpoint)
        if record.kind == "trajectory":
            latents = artifact.tensors["trajectory"][-1]
        else:
            latents = artifact.tensors["latents"]
        wanted = composite_for(record, self._settings)
        # Looked for before anything is decoded.
        own = source_frames(source, record, self._settings) if wanted == "source" else None
        pad = num_pad_frames(record)
        pixels = self._pixels(latents[:, pad:])
        if wanted != "none":
            from cogedit.diffusion.mask import composite

            if own is None:
                own = self._pixels(artifact.tensors["source_latents"][:, pad:])
            feather = self._settings.export.feather
            pixels = composite(pixels, own, artifact.tensors["mask"], feather=feather)
        array: NDArray[np.uint8] = pixels.numpy()
        return array

    def decode_source(self, trajectory: Path) -> NDArray[np.uint8]:
        """Decode the clean latents of a trajectory: its source, after the VAE's round trip.

        Returns:
            uint8 RGB, [F, H, W, C].

        Raises:
            ArtifactError: It is no trajectory, of another model, or damaged.
            ModelError: The model is missing or incomplete.
        """
        artifact = read_artifact(trajectory, "trajectory")
        check_same_model(str(trajectory), artifact.record.model, self._checkpoint)
        clean = artifact.tensors["latents"][:, num_pad_frames(artifact.record) :]
        array: NDArray[np.uint8] = self._pixels(clean).numpy()
        return array

    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode latents [1, F', C', H', W'] to uint8 [F, H, W, C] on the CPU."""
        from cogedit.models.device import memory_guard
        from cogedit.models.vae import decode_latents, to_pixels

        with memory_guard("decoding"):
            return to_pixels(decode_latents(self._vae, latents)).cpu()

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return checkpoint_for(self._settings)

    @cached_property
    def _vae(self) -> AutoencoderKLCogVideoX:
        from cogedit.models.device import DTYPES, resolve_device
        from cogedit.models.loading import load_vae

        device = resolve_device(self._settings.device)
        vae = load_vae(self._checkpoint, device=device, dtype=DTYPES[dtype_for(self._settings)])
        if self._settings.encode.vae_tiling:
            vae.enable_tiling()
        return vae


def export(
    source: str | Path,
    settings: Settings,
    *,
    output: Path | None = None,
    run: Run | None = None,
    decoder: Decoder | None = None,
) -> Exported:
    """Write an artifact as a video.

    An edit and latents are decoded; frames are written as they are, which gives the source clip;
    of a trajectory its noise end is decoded, the upstream script's inversion video. An export of
    the same artifact that is in the way is replaced; any other file only by force, and only where
    `output` names it. Of an edit with a mask, what lies outside is the source's.

    Args:
        source: The artifact.
        settings: `export`; `model`, `dtype`, `device` and `encode` where something is decoded.
        output: The video; None is the artifact's name with .mp4, beside it.
        run: How to run; None is silent.
        decoder: A decoder of these settings that is loaded already.

    Raises:
        ArtifactError: The source is no artifact, of another model, or damaged.
        UsageError: Another file is in the way, the suffix is unknown, or a composite is asked for
            where there is no mask.
        ModelError: The model is missing or incomplete.
        StorageError: The video cannot be written.
    """
    source, run = Path(source), run or Run()
    check_output(output, source=source)
    record = read_record(source)
    path = source.with_suffix(".mp4") if output is None else output
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"cannot write {path}: the suffix {path.suffix or '(none)'} is not one of "
            f"{', '.join(SUFFIXES)}"
        )
    fps = settings.export.fps or frames_record(record).fps
    recipe = _Recipe(record, fps, settings.export.crf, composite_for(record, settings))
    if recipe.composite != "none":
        recipe = replace(recipe, feather=settings.export.feather)
    if not isinstance(record, FramesRecord):
        tiling = settings.encode.vae_tiling
        recipe = replace(recipe, dtype=dtype_for(settings), vae_tiling=tiling)
    if _is_there(path, recipe, may_replace=run.force and output is not None) and not run.force:
        run.say(f"reused {path} (--force makes it anew)")
        return Exported(path, reused=True)
    check_writable(path)
    if isinstance(record, FramesRecord):
        frames = read_artifact(source, "frames").tensors["frames"].numpy()
    else:
        frames = (decoder or Decoder(settings)).decode(source)
    from cogedit.media.writer import write_video

    write_video(frames, path, fps=fps, crf=recipe.crf, comment=recipe.comment())
    run.say(f"wrote {path} ({len(frames)} frames at {float(fps):.6g} fps)")
    return Exported(path, reused=False)


def _is_there(path: Path, recipe: _Recipe, *, may_replace: bool) -> bool:
    """Tell whether the video is there with this recipe.

    Raises:
        UsageError: Something that is no export of the same artifact is there, and stays.
    """
    if not path.exists():
        return False
    try:
        found = read_comment(path) or ""
    except VideoError:
        found = ""
    if found == recipe.comment():
        return True
    if f'"content_key":"{content_key(recipe.record)}"' in found or may_replace:
        return False
    raise UsageError(
        f"{path} exists and is no export of this artifact",
        hint="name another file with -o, or the same one with -o and --force to replace it",
    )


def _with_short_indices(value: dict[str, object]) -> dict[str, object]:
    """Write evenly spaced frame indices as first:end:step; metadata has little room."""
    indices = value.get("frame_indices")
    if isinstance(indices, list) and len(indices) > 1:
        step = indices[1] - indices[0]
        if indices == list(range(indices[0], indices[-1] + 1, step)):
            return value | {"frame_indices": f"{indices[0]}:{indices[-1] + 1}:{step}"}
    return value
