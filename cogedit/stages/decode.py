"""decode: the latents of an artifact -> the frames that it shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import (
    Artifact,
    EditRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    content_key,
    frames_record,
    num_pad_frames,
    read_artifact,
)
from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.media.edges import FitShare, Moments, measure_moments
from cogedit.media.restore import image_window
from cogedit.media.stream import Frame, FrameFile, FrameStream
from cogedit.models.cost import latent_shape
from cogedit.stages.again import export_again
from cogedit.stages.model import check_same_model, checkpoint_for, dtype_for
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.stages.source import (
    FramesOnDisk,
    otherwise_use,
    resize_plan,
    source_frames,
    source_latents,
)
from cogedit.types import Composite, ExportSettings

if TYPE_CHECKING:
    from torch import Tensor

Clip = Sequence[Frame]
"""Frames, uint8 RGB [H, W, 3] each, that can be read more than once."""

_FRAMES_JUDGED = 8
_MOSTLY = 0.5
"""Of a new colour the fits show far more, of a new shape far less: see the tests of edges."""

Mask = NDArray[np.uint8]
"""[H, W], not 0 where the edit is shown."""


def decode(source: Path, settings: Settings, *, session: Session, run: Run) -> FrameStream:
    """Decode latents, a trajectory (its noise) or an edit, frame by frame.

    `export` says what an edit shows outside its mask, and whether its edges are aligned to the
    source's; for both, the source is found in the workspace. Under a composite, every pixel outside
    the mask is the source's.

    The frames are computed as they are taken; the session decodes one stream at a time.

    Raises:
        ArtifactError: The artifact is of another model, or damaged, or the source's frames or
            latents are gone.
        UsageError: A composite of an artifact without a mask.
        DeviceMemoryError: The model finds no room; while frames are taken, too.
    """
    artifact = _read(source, settings)
    record, export = artifact.record, settings.export
    composite = composite_for(record, export)
    if not isinstance(record, EditRecord):
        if isinstance(record, LatentsRecord):
            latents = artifact.tensors["latents"]
        else:
            latents = artifact.tensors.slices("trajectory")[-1]  # the clean: `decode_source`
        latents = latents[:, num_pad_frames(record) :]
        return _stream(source, record, latents, settings, session=session, run=run)
    edit = Artifact(record, artifact.tensors)
    own: Clip = []
    if export.align_edges or composite == "source":
        own = source_frames(source, record, settings, otherwise=otherwise_use(export))
    if composite == "decode":
        own = _round_trip(source, edit, settings, session=session, run=run)
    if export.align_edges:
        moments = _moments(source, edit, own, settings, session=session, run=run)
        aligned = (one.fit().on(frame) for one, frame in zip(moments, own, strict=True))
        size = frames_record(record).settings
        shown = FrameStream(aligned, len(own), size.height, size.width)
    else:
        shown = _edit_stream(source, edit, settings, session=session, run=run)
    if composite == "none":
        return shown
    mask = FramesOnDisk(edit.tensors.slices("mask"), shown.num_frames)
    return replace(shown, frames=lay_over(shown.frames, own, mask, feather=export.feather))


def decode_moments(
    source: Path, settings: Settings, *, session: Session, run: Run
) -> tuple[Clip, Iterator[Moments]]:
    """Decode what an edit changed, frame by frame, as fits need it; with the source's own frames.

    Errors are those of `decode`, before the first frame.
    """
    artifact = _read(source, settings)
    edit = Artifact(cast(EditRecord, artifact.record), artifact.tensors)
    otherwise = otherwise_use(settings.export)
    own = source_frames(source, edit.record, settings, otherwise=otherwise)
    return own, _moments(source, edit, own, settings, session=session, run=run)


def decode_source(
    trajectory: Path, settings: Settings, *, session: Session, run: Run
) -> FrameStream:
    """Decode the clean latents of a trajectory: its source after the VAE's round trip."""
    artifact = read_artifact(trajectory, "trajectory")
    check_same_model(str(trajectory), artifact.record, checkpoint_for(settings))
    latents = artifact.tensors["latents"][:, artifact.record.num_pad_frames :]
    record = artifact.record
    return _stream(trajectory, record, latents, settings, session=session, run=run)


def composite_for(record: Record, export: ExportSettings) -> Composite:
    """Choose what is shown outside the mask of an artifact.

    By default it is the source after the VAE's round trip: the pixels on both sides of the edge
    have then gone through the same codec, so that no seam shows, and the artifact alone suffices.
    An edit whose edges are aligned has the grain of the source's own frames, and goes with them.
    """
    check_composite(export)
    has_mask = isinstance(record, EditRecord) and record.has_mask
    if export.composite is None:
        default: Composite = "source" if export.align_edges else "decode"
        return default if has_mask else "none"
    if export.composite != "none" and not has_mask:
        raise UsageError(
            f"--composite {export.composite} needs an edit with a mask; this artifact has none",
            hint="make one with `cogedit reconstruct --mask` or `--auto-mask`",
        )
    return export.composite


def check_composite(export: ExportSettings) -> None:
    """Raise `UsageError` for the VAE's version of the source around an edit with its own grain."""
    if export.align_edges and export.composite == "decode":
        raise UsageError(
            "--align-edges shows the grain of the source's own frames, and --composite decode "
            "what the VAE leaves of it",
            hint=f"--composite source goes with it, or {' '.join(_unaligned(export))}",
        )


def lay_over(
    edited: Iterable[Frame], source: Iterable[Frame], mask: Iterable[Mask], *, feather: int = 0
) -> Iterator[Frame]:
    """Show an edit inside its mask, [H, W] of each frame, and the source outside of it."""
    import torch

    from cogedit.diffusion.latent_mask import composite

    for frames in zip(edited, source, mask, strict=True):
        laid = composite(*(torch.from_numpy(frame[None]) for frame in frames), feather=feather)
        yield laid[0].numpy()


def _read(
    source: Path, settings: Settings
) -> Artifact[LatentsRecord | TrajectoryRecord | EditRecord]:
    artifact = read_artifact(source, ("latents", "trajectory", "edit"))
    record = cast(LatentsRecord | TrajectoryRecord | EditRecord, artifact.record)
    check_same_model(str(source), record, checkpoint_for(settings))
    return Artifact(record, artifact.tensors)


def _moments(
    source: Path,
    edit: Artifact[EditRecord],
    own: Clip,
    settings: Settings,
    *,
    session: Session,
    run: Run,
) -> Iterator[Moments]:
    """Measure the changes of an edit; what can be missing is found before the first."""
    from cogedit.models.device import resolve_device

    round_trip = _round_trip(source, edit, settings, session=session, run=run)
    edited = _edit_stream(source, edit, settings, session=session, run=run)
    window = image_window(resize_plan(frames_record(edit.record)))
    measured_frame: list[Frame] = []

    def remembering(frame: Frame) -> Frame:
        measured_frame[:] = [frame]
        return frame

    measured = measure_moments(
        map(remembering, edited.frames),
        round_trip,
        own,
        radius=settings.export.align_edges,
        window=window,
        device=resolve_device(settings.device),
    )

    def watched() -> Iterator[Moments]:
        share, last = FitShare(window), edited.num_frames - 1
        step = -(-edited.num_frames // _FRAMES_JUDGED)
        for place, one in enumerate(measured):
            if place % step == 0:
                [frame] = measured_frame
                share.add(frame, round_trip[place], own[place], fitted=one)
            if place == last and share.share < _MOSTLY:
                run.notify(_when_blurred(share.share, source, settings))
            yield one

    return watched()


def _when_blurred(share: float, edit: Path, settings: Settings) -> str:
    """Say that the video does not show what the model made."""
    command = export_again(edit, settings, *_unaligned(settings.export))
    return (
        f"{edit.name}: {share:.0%} of what the edit changed is shown; --align-edges keeps the "
        "source's edges and texture, and blurs away new ones; "
        f"`{command}` shows it as the model made it"
    )


def _unaligned(export: ExportSettings) -> list[str]:
    """The flags that leave edges as they are."""
    every_frame = ["--no-every-frame"] if export.every_frame else []
    return ["--align-edges", "0", *every_frame]


def _round_trip(
    source: Path, edit: Artifact[EditRecord], settings: Settings, *, session: Session, run: Run
) -> Clip:
    """Decode the clean latents of the clip that an edit was made of, once for all its edits."""
    record = edit.record

    def decode_clean() -> FrameFile:
        if record.has_mask:
            clean = edit.tensors["source_latents"][:, num_pad_frames(record) :]
        else:
            clean = source_latents(source, record, settings)
        doing = "decoding the source"
        decoded = _stream(source, record, clean, settings, session=session, run=run, doing=doing)
        return FrameFile(decoded, source.parent)

    # A decoder of another dtype or with tiles gives other pixels.
    how = (dtype_for(settings), settings.device, settings.decode_tiling)
    return session.source_clip((content_key(record.trajectory), how), decode_clean)


def _edit_stream(
    source: Path, edit: Artifact[EditRecord], settings: Settings, *, session: Session, run: Run
) -> FrameStream:
    latents = edit.tensors["latents"][:, num_pad_frames(edit.record) :]
    return _stream(source, edit.record, latents, settings, session=session, run=run)


def _stream(
    source: Path,
    record: Record,
    latents: Tensor,
    settings: Settings,
    *,
    session: Session,
    run: Run,
    doing: str = "decoding",
) -> FrameStream:
    """Decode latents [1, F', C', H', W'] of an artifact to the frames that are shown of it.

    The VAE is loaded before the first.
    """
    with run.wait("starting PyTorch"):  # with diffusers: seconds, the first time
        from cogedit.models.device import memory_guard
        from cogedit.models.vae import decode_pixels, num_decoded_frames, num_decoder_calls

    vae, way = session.vae(latent_shape(latents), settings, "decode", run=run)
    hint = _when_out_of_memory(source, settings, is_tiled=way.in_tiles)
    num_calls = num_decoder_calls(vae, latents.shape)
    num_frames = num_decoded_frames(vae, latents.shape[1]) - frames_record(record).num_extra_frames

    def frames() -> Iterator[Frame]:
        left = num_frames
        with memory_guard("decoding", hint=hint), run.counting(doing, num_calls) as done:
            for piece in decode_pixels(
                vae, latents, by_frame=way.by_frame, on_call=done, folder=source.parent
            ):
                yield from piece.numpy()[:left]
                left = max(0, left - len(piece))

    scale = checkpoint_for(settings).geometry.spatial_compression
    height, width = (scale * side for side in latents.shape[-2:])
    return FrameStream(frames(), num_frames, height, width)


def _when_out_of_memory(source: Path, settings: Settings, *, is_tiled: bool) -> str:
    """Return the command that shows an artifact, which is on disk, with less memory."""
    flags = ["--device", "cpu"] if is_tiled else ["--decode-tiling"]
    if settings.device != "auto" and not is_tiled:
        flags += ["--device", settings.device]
    return f"{source} is kept: {export_again(source, settings, *flags)}"
