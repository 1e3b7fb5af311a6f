"""The first frame of a run with an image-to-video model: taken from the user, and encoded."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL.ImageColor import getrgb

from cogedit.artifacts import (
    LatentsRecord,
    TrajectoryRecord,
    frames_record,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings, check_settings, plain_value
from cogedit.errors import UsageError, VideoError
from cogedit.media.animation import is_animation
from cogedit.media.files import check_file
from cogedit.media.images import is_transparent, open_image, read_image
from cogedit.models.checkpoint import EMBEDDED, Checkpoint
from cogedit.models.mistaken import published_like
from cogedit.sources import PictureSource
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.types import LoadSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class GivenFirstFrame:
    """A picture that the model is shown in place of the source's first frame."""

    source: PictureSource  # what is recorded of it
    pixels: NDArray[np.uint8]  # RGB, [H, W, 3], of the clip's size
    background: str | None  # what its transparent parts show; None where it has none


def take_first_frame(
    given: str | Path | None, video: Path, settings: Settings, checkpoint: Checkpoint
) -> GivenFirstFrame | None:
    """Read the first frame of a run, if one was given, of a video or an artifact of it.

    Raises:
        UsageError: The model takes none, or it has another size than the clip.
        VideoError: It is no picture that can be read.
        StorageError: It may not be read.
    """
    if given is None:
        return None
    if not checkpoint.takes_first_frame:
        raise UsageError(
            f"{checkpoint.id} takes no first frame: it edits by the prompt alone",
            hint=f"name a model that does, such as --model {_model_like(checkpoint)}",
        )
    path, clip = Path(given), check_settings(settings.load)
    if sniff_kind(video) is not None:
        clip = frames_record(read_record(video)).settings
    hint = f"make one with `{_frame_command(video, clip)}`"
    check_file(path, "picture", hint=hint)
    try:
        if is_animation(path):
            raise VideoError(f"{path} is an animation, expected one picture")
        pixels = read_image(path, getrgb(clip.background)[:3])
        with open_image(path) as image:
            background = clip.background if is_transparent(image) else None
    except VideoError as error:
        raise VideoError(error.message, hint=hint) from error
    height, width, _ = pixels.shape
    if (width, height) != (clip.width, clip.height):
        raise UsageError(
            f"the first frame {path} is {width}x{height}, expected {clip.width}x{clip.height}, "
            "the size of the clip",
            hint=hint,
        )
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return GivenFirstFrame(PictureSource(path.name, digest), pixels, background)


def _model_like(checkpoint: Checkpoint) -> str:
    """A model that takes a first frame, of the kind of one that does not."""
    if f"{checkpoint.id}-i2v" in EMBEDDED:
        return f"{checkpoint.id}-i2v (for shapes) or zai-org/CogVideoX-5b-I2V (for real videos)"
    return published_like(checkpoint.geometry.patch_size_t, first_frame=True)


def _frame_command(video: Path, clip: LoadSettings) -> str:
    """Write the command that makes the first frame of a clip."""
    words = ["cogedit", "frame", str(video)]
    beyond = ("max_num_frames", "end", "duration", "skip_frames_end")  # the first frame
    for field in fields(LoadSettings) if sniff_kind(video) is None else ():
        value: object = getattr(clip, field.name)
        if field.name in ("width", "height") or value != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            if field.name not in beyond:
                words += [flag] if value is True else [flag, str(plain_value(value))]
    return shlex.join([*words, "-o", "first.png"])


def encode_first_frame(
    pixels: Tensor, latents: LatentsRecord, settings: Settings, *, run: Run, session: Session
) -> Tensor:
    """Encode a first frame of a clip, uint8 [1, H, W, 3], as its latents were: [1, 1, C, H', W'].

    What a model takes is another latent frame than the clip's first one, since it is encoded alone.
    """
    from cogedit.models import first_frame
    from cogedit.models.device import memory_guard
    from cogedit.stages.model import checkpoint_for

    spatial = checkpoint_for(settings).geometry.spatial_compression
    shape = (1, pixels.shape[1] // spatial, pixels.shape[2] // spatial)
    vae, _ = session.vae(shape, replace(settings, encode=latents.settings), "encode", run=run)
    with memory_guard("encoding the first frame"):
        return first_frame.encode_first_frame(vae, pixels).cpu()


def condition_of(first: Tensor, record: TrajectoryRecord) -> Tensor:
    """The condition of an inversion, or of an edit of it, from the latents of its first frame."""
    from cogedit.models.first_frame import make_condition

    [latents] = [tensor for tensor in record.latents.tensors if tensor.name == "latents"]
    return make_condition(
        first, num_latent_frames=latents.shape[1], num_pad_frames=record.num_pad_frames
    )
