"""encode: frames -> latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    FramesRecord,
    LatentsRecord,
    keep_in_use,
    keeping_in_use,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.artifact_output import check_artifact
from cogedit.stages.claim import claim
from cogedit.stages.first_frame import encode_first_frame
from cogedit.stages.load import load
from cogedit.stages.model import checkpoint_for, latent_shape_of, model_record
from cogedit.stages.run import Run, Written, find_or_make, workspace_for
from cogedit.stages.session import Session, use_session
from cogedit.types import EncodeSettings

if TYPE_CHECKING:
    from torch import Tensor


def encode(
    source: str | Path,
    settings: Settings,
    *,
    output: str | Path | None = None,
    run: Run | None = None,
    session: Session | None = None,
) -> Written[LatentsRecord]:
    """Encode a clip into the model's latent space.

    Args:
        source: A frames artifact, or a video, which is loaded first.
        settings: `encode` and `model`; `load` where the source is a video.
        output: The artifact; None is its place in the workspace.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        ArtifactError: The source is no frames artifact, or damaged.
        UsageError: Its size does not suit the model.
    """
    source, output, run = source_of(source, settings), as_path(output), run or Run()
    check_artifact(output, inputs=[source, *settings.read_files], run=run)
    check_span(settings.encode)
    workspace = workspace_for(source, settings)
    checkpoint = checkpoint_for(settings)
    with keeping_in_use(), claim(output, run) as claimed:
        if sniff_kind(source) is None:
            source = load(source, settings, run=run.earlier).path
        keep_in_use(source.parent)
        clip = read_record(source, "frames")
        record = latents_record(clip, checkpoint, settings=settings)
        record = workspace.as_kept(record, output=output)

        def make() -> Mapping[str, Tensor]:
            with claimed.wait("starting PyTorch"):  # with diffusers: seconds, the first time
                from cogedit.models.device import memory_guard
                from cogedit.models.vae import encode_pixels, num_encoder_calls

            pixels = read_artifact(source, "frames").tensors.slices("frames")
            shape = latent_shape_of(record.frames, checkpoint.geometry)
            with use_session(session) as owner:
                vae, way = owner.vae(shape, settings, "encode", run=claimed)
                num_frames, *size, channels = pixels.shape
                num_calls = num_encoder_calls(vae, (num_frames, channels, *size))
                with memory_guard("encoding"), claimed.counting("encoding", num_calls) as done:
                    latents = encode_pixels(
                        vae,
                        pixels,
                        span=record.settings.vae_span or 0,
                        by_frame=way.by_frame,
                        on_call=done,
                    )
                    made = {"latents": latents.cpu()}
                if record.has_first_frame:
                    made["first_frame"] = encode_first_frame(
                        pixels[0][None], record, settings, run=claimed, session=owner
                    )
                return made

        return find_or_make(
            record,
            make,
            output=output,
            workspace=workspace,
            run=claimed,
            device=settings.device,
        )


def latents_record(
    frames: FramesRecord, checkpoint: Checkpoint, *, settings: Settings
) -> LatentsRecord:
    """Describe the latents of a clip; UsageError if its size or span does not suit the model."""
    size = frames.settings
    checkpoint.geometry.check_clip(size.width, size.height, len(frames.frame_indices))
    return LatentsRecord(
        frames=frames,
        model=model_record(checkpoint, settings),
        settings=_encoding(len(frames.frame_indices), settings.encode),
        has_first_frame=checkpoint.takes_first_frame,
    )


def check_span(settings: EncodeSettings) -> None:
    """Refuse, before any stage runs, a span that no clip can have."""
    span = settings.vae_span
    # One frame is 8n + 1, too, and would begin each span where the one before began.
    if span is not None and (span % 8 != 1 or span == 1):
        raise UsageError(f"--vae-span is {span}, expected 8n + 1 frames such as 9, 17 or 49")


def _encoding(num_frames: int, settings: EncodeSettings) -> EncodeSettings:
    """The settings of a clip of so many frames; UsageError for a span that no clip can have."""
    check_span(settings)
    if num_frames <= (settings.vae_span or num_frames):
        return replace(settings, vae_span=None)
    return settings
