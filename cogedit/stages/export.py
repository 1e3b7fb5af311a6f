"""export: any artifact -> a video file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    Record,
    frames_record,
    num_pad_frames,
    read_artifact,
    read_record,
    record_text,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactError, ArtifactMismatch, UsageError, VideoError
from cogedit.media.probe import read_comment
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.checkpoints import check_same_model, checkpoint_for, dtype_for
from cogedit.stages.run import Exported, Run, check_writable, workspace_for
from cogedit.types import Composite

if TYPE_CHECKING:
    import numpy as np
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
        feather: Width of the passage in pixels.
    """

    record: Record
    fps: Fraction
    crf: int
    composite: Composite
    feather: int

    def comment(self) -> str:
        """Return the recipe as JSON, to be kept in the video's metadata."""
        options: dict[str, object] = {"crf": self.crf, "fps": str(self.fps)}
        if self.composite != "none":
            options |= {"composite": self.composite, "feather": self.feather}
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
    of a trajectory its noise end is decoded, the upstream script's inversion video. Of an edit with
    a mask, what lies outside is taken from the source, as `export.composite` says.

    Args:
        source: The artifact.
        settings: `export`; `model`, `dtype` and `device` where something is decoded.
        output: The video; None is the artifact's name with .mp4, beside it.
        run: How to run; None is silent.

    Raises:
        ArtifactError: The source is no artifact, of another model, or damaged.
        UsageError: `output` exists and is not this run's, its suffix is unknown, or a composite is
            asked for where there is no mask.
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
    composite = composite_for(record, settings)
    recipe = _Recipe(record, fps, settings.export.crf, composite, settings.export.feather)
    if not run.force and _is_there(path, recipe):
        run.say(f"reused {path} (--force makes it anew)")
        return Exported(path, reused=True)
    check_writable(path)
    frames = render_frames(source, settings)
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


def render_frames(source: str | Path, settings: Settings) -> NDArray[np.uint8]:
    """Return the frames that `export` writes, before the codec touches them.

    Args:
        source: The artifact.
        settings: As for `export`.

    Returns:
        uint8 RGB, [F, H, W, 3]. With a composite every pixel outside the mask is the source's own.

    Raises:
        ArtifactError: As `export`; also where the source's frames are wanted and are gone.
        UsageError: A composite is asked for, and the artifact has no mask.
        ModelError: The model is missing or incomplete.
    """
    source = Path(source)
    record = read_record(source)
    wanted = composite_for(record, settings)
    array: NDArray[np.uint8]
    if isinstance(record, FramesRecord):
        array = read_artifact(source, "frames").tensors["frames"].numpy()
        return array
    checkpoint = checkpoint_for(settings)
    check_same_model(str(source), record.model, checkpoint)
    # Looked for before anything is decoded.
    own = _source_frames(source, record, settings) if wanted == "source" else None
    artifact = read_artifact(source)
    shown = artifact.tensors["latents"]
    if artifact.record.kind == "trajectory":
        shown = artifact.tensors["trajectory"][-1]
    clips = [shown, artifact.tensors["source_latents"]] if wanted == "decode" else [shown]
    decoded = _decode([clip[:, num_pad_frames(record) :] for clip in clips], checkpoint, settings)
    if wanted == "none":
        array = decoded[0].numpy()
        return array
    from cogedit.diffusion.mask import composite

    below = decoded[1] if own is None else own
    mask, feather = artifact.tensors["mask"], settings.export.feather
    array = composite(decoded[0], below, mask, feather=feather).numpy()
    return array


def composite_for(record: Record, settings: Settings) -> Composite:
    """Choose what is shown outside the mask of an artifact.

    Unasked it is the source after the VAE's round trip: the pixels on both sides of the edge have
    then gone through the same codec, so that no seam shows, and the artifact alone suffices.

    Raises:
        UsageError: A composite is asked for, and the artifact has no mask.
    """
    has_mask = isinstance(record, EditRecord) and record.has_mask
    wanted = settings.export.composite
    if wanted is None:
        return "decode" if has_mask else "none"
    if wanted != "none" and not has_mask:
        raise UsageError(
            f"--composite {wanted} needs an edit with a mask; this artifact has none",
            hint="make one with `cogedit reconstruct --mask` or `--auto-mask`",
        )
    return wanted


def _source_frames(edit: Path, record: Record, settings: Settings) -> Tensor:
    """Read the clip that an edit was made of, uint8 [F, H, W, 3], from the edit's workspace.

    Raises:
        ArtifactError: It is not there, or not the same.
    """
    wanted = frames_record(record)
    workspace = workspace_for(edit, settings)
    hint = f"make it with `{_load_command(wanted, workspace.root)}`, or use --composite decode"
    path = workspace.find(wanted)
    if path is None:
        raise ArtifactError(
            f"the source's frames, {workspace.path_for(wanted).name}, are not in {workspace.root}",
            hint=hint,
        )
    frames = read_artifact(path, "frames")
    if frames.record.tensors != wanted.tensors:
        raise ArtifactMismatch(f"{path} holds other pixels than {edit} was made of", hint=hint)
    return frames.tensors["frames"]


def _load_command(frames: FramesRecord, workspace: Path) -> str:
    """Write the command that makes a frames artifact again."""
    asked = frames.settings
    words = ["cogedit", "load", frames.source.name, "--workspace", str(workspace)]
    for field in fields(asked):
        value: object = getattr(asked, field.name)
        if value is not None:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _decode(
    clips: Sequence[Tensor], checkpoint: Checkpoint, settings: Settings
) -> Sequence[Tensor]:
    """Decode latents [1, F', C', H', W'] of some clips to uint8 frames [F, H, W, C] on the CPU."""
    from cogedit.models.device import DTYPES, memory_guard, resolve_device
    from cogedit.models.loading import load_vae
    from cogedit.models.vae import decode_latents, to_pixels

    device, dtype = resolve_device(settings.device), DTYPES[dtype_for(settings)]
    with memory_guard("decoding"):
        vae = load_vae(checkpoint, device=device, dtype=dtype)
        if settings.encode.vae_tiling:
            vae.enable_tiling()
        return [to_pixels(decode_latents(vae, clip)).cpu() for clip in clips]
