"""Which model a run uses, how records describe it, and whether an artifact is of that model."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    JsonText,
    LatentsRecord,
    ModelRecord,
    Record,
    TrajectoryRecord,
    canonical_json,
    frames_record,
)
from cogedit.config import Settings, check_settings
from cogedit.errors import ArtifactMismatch
from cogedit.models.checkpoint import Checkpoint, cuda_present, find_checkpoint
from cogedit.models.cost import LatentShape
from cogedit.models.geometry import Geometry
from cogedit.types import INEXACT_BACKENDS, DType, Weights


def checkpoint_for(settings: Settings) -> Checkpoint:
    """Find the checkpoint that the settings name; a Hub model is downloaded if need be."""
    return find_checkpoint(settings.model, settings.revision)


def model_record(checkpoint: Checkpoint, settings: Settings) -> ModelRecord:
    """Describe the model of a run for an artifact."""
    return ModelRecord(
        id=checkpoint.id,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        dtype=dtype_for(settings),
        torch=version("torch"),
    )


def transformer_record(checkpoint: Checkpoint, settings: Settings) -> ModelRecord:
    """Describe the model of a run whose transformer computes something."""
    backend = settings.transformer.attention_backend
    inexact = backend if backend in INEXACT_BACKENDS else None
    return replace(
        model_record(checkpoint, settings),
        attention_backend=inexact,
        weights=weights_for(settings),
    )


def check_transformer(settings: Settings) -> None:
    """Refuse, before any stage runs, an attention kernel or weight format that is not available."""
    check_settings(settings.transformer)
    weights = weights_for(settings)
    if weights is not None:
        from cogedit.models.device import resolve_device
        from cogedit.models.placement import check_weights

        device = resolve_device(settings.device)
        check_weights(weights, device=device, compile=settings.transformer.compile)
    if settings.transformer.attention_backend == "native":
        return
    from cogedit.models.attention import Injection
    from cogedit.models.device import resolve_device
    from cogedit.models.kernels import check_backend

    check_backend(
        settings.transformer.attention_backend,
        device=resolve_device(settings.device),
        dtype=dtype_for(settings),
        with_lse=Injection.of(settings.reconstruct).needs_lse,
    )


def weights_for(settings: Settings) -> Weights | None:
    """Return the format that the transformer's weights are stored in; None is the run's dtype."""
    return None if settings.weights == dtype_for(settings) else settings.weights


def dtype_for(settings: Settings) -> DType:
    """Return the dtype of a run: the one that was set, else bf16 on CUDA and fp32 elsewhere.

    Never fp16 by itself: CogVideoX-5B and 1.5 overflow in it.
    """
    if settings.dtype is not None:
        return settings.dtype
    on_cuda = settings.device.startswith("cuda") or (settings.device == "auto" and cuda_present())
    return "bf16" if on_cuda else "fp32"


def check_same_model(
    name: str, record: LatentsRecord | TrajectoryRecord | EditRecord, checkpoint: Checkpoint
) -> None:
    """Raise `ArtifactMismatch` for an artifact of another model, or latents of another shape."""
    made_by = record.model
    if made_by.digest == checkpoint.digest:
        _check_latents(name, record, checkpoint.geometry)
        return
    found = _label(made_by.id, made_by.revision)
    expected = _label(checkpoint.id, checkpoint.revision)
    raise ArtifactMismatch(
        f"{name} was made with model {found} ({made_by.digest[:12]}); "
        f"this run uses {expected} ({checkpoint.digest[:12]})"
        f"{_scheduler_change(record, checkpoint)}",
        hint="name the same --model and --revision, or invert the video again with this one",
    )


def latent_shape_of(frames: FramesRecord, geometry: Geometry) -> LatentShape:
    """Return frames, height and width of the latents of a clip, without pad frames."""
    return (
        geometry.num_latent_frames(len(frames.frame_indices)),
        frames.settings.height // geometry.spatial_compression,
        frames.settings.width // geometry.spatial_compression,
    )


def _check_latents(
    name: str, record: LatentsRecord | TrajectoryRecord | EditRecord, geometry: Geometry
) -> None:
    """Refuse latents of another shape than the model makes of the record's clip."""
    num_frames, height, width = latent_shape_of(frames_record(record), geometry)
    num_pad = 0 if isinstance(record, LatentsRecord) else geometry.num_pad_frames(num_frames)
    expected = (1, num_frames + num_pad, geometry.latent_channels, height, width)
    for tensor in record.tensors:
        if tensor.name == "latents" and tensor.shape != expected:
            raise ArtifactMismatch(
                f"{name} holds latents {list(tensor.shape)}; this model makes {list(expected)} of "
                "its clip",
                hint="encode the video again",
            )


def scheduler_record(checkpoint: Checkpoint) -> JsonText:
    """Describe the scheduler of a run for an artifact."""
    config = checkpoint.scheduler_config.items()
    return canonical_json({key: value for key, value in config if not key.startswith("_")})


def _scheduler_change(record: Record, checkpoint: Checkpoint) -> str:
    """Name the first setting in which the schedulers differ; empty if none does."""
    if isinstance(record, EditRecord):
        record = record.trajectory
    if not isinstance(record, TrajectoryRecord):
        return ""
    found = json.loads(record.scheduler)
    expected = json.loads(scheduler_record(checkpoint))
    for key in sorted({*found, *expected}):
        theirs, ours = found.get(key), expected.get(key)
        if theirs != ours:
            return f", and its scheduler has {key} = {theirs} where this run has {ours}"
    return ""


def _label(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model}@{revision[:12]}"
