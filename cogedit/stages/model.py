"""Which model a run uses, how records describe it, and whether an artifact is of that model."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import cast

from cogedit.artifacts import (
    DeviceType,
    EditRecord,
    FramesRecord,
    JsonText,
    LatentsRecord,
    LoraRecord,
    ModelRecord,
    Record,
    TrajectoryRecord,
    canonical_json,
    frames_record,
    has_first_frame,
)
from cogedit.config import Settings, check_settings
from cogedit.errors import ArtifactMismatch, ModelError, StorageError, UsageError
from cogedit.models.checkpoint import EMBEDDED, Checkpoint, find_checkpoint
from cogedit.models.cost import LatentShape
from cogedit.models.geometry import Geometry
from cogedit.models.hardware import (
    cpu_computes_bf16,
    cuda_present,
    num_cuda_devices,
    unused_gpus,
)
from cogedit.models.lora import find_lora
from cogedit.platforms import IS_WINDOWS
from cogedit.types import INEXACT_BACKENDS, DType, LoraFile, Weights
from cogedit.wording import count_of

_MANY_WEIGHTS = 2**28
"""Weights that take a gigabyte in fp32, which is not worth rounding for on a CPU."""


def checkpoint_for(settings: Settings, *, download: bool = True) -> Checkpoint:
    """Find the checkpoint that the settings name; errors are those of `find_checkpoint`."""
    if settings.model == "auto":
        raise ModelError(
            "model is 'auto', for which `cogedit.settings_for(source, flags)` chooses one",
            hint="take its `.settings`, or name a model",
        )
    return find_checkpoint(
        settings.model, settings.revision, files=settings.files, download=download
    )


def takes_first_frame(settings: Settings) -> bool:
    """Whether a run's model takes a first frame; of one that is not here yet, by its name."""
    try:
        return checkpoint_for(settings, download=False).takes_first_frame
    except (ModelError, StorageError):  # of another model, this shows when it is needed
        return "i2v" in settings.model.lower()


def model_record(checkpoint: Checkpoint, settings: Settings) -> ModelRecord:
    """Describe the model of a run for an artifact."""
    return ModelRecord(
        id=checkpoint.id,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        dtype=dtype_for(settings),
        torch=version("torch"),
        transformer=None if settings.transformer_file is None else settings.transformer_file.name,
        vae=None if settings.vae_file is None else settings.vae_file.name,
    )


def transformer_record(
    checkpoint: Checkpoint, settings: Settings, *, loras: Sequence[LoraFile]
) -> ModelRecord:
    """Describe the model of a run whose transformer computes something, with these LoRAs."""
    backend = settings.transformer.attention_backend
    inexact = backend if backend in INEXACT_BACKENDS else None
    return replace(
        model_record(checkpoint, settings),
        attention_backend=inexact,
        weights=weights_for(settings),
        lora=lora_records(checkpoint, loras),
    )


def lora_records(checkpoint: Checkpoint, loras: Sequence[LoraFile]) -> tuple[LoraRecord, ...]:
    """Describe LoRAs for an artifact; ModelError for what is none, or is for another model."""
    found = [(file, find_lora(file.path)) for file in loras]
    for _, lora in found:
        lora.fit(checkpoint)
    return tuple(LoraRecord(file.path.name, lora.digest, file.scale) for file, lora in found)


def check_transformer(settings: Settings, *, download: bool = True) -> None:
    """Refuse, before any stage runs, kernels and weights that are not there, LoRAs among them."""
    check_settings(settings.transformer)
    lora_records(checkpoint_for(settings, download=download), settings.loras)
    check_gpus(settings)
    weights = weights_for(settings)
    if weights is not None:
        from cogedit.models.device import resolve_device
        from cogedit.models.placement import check_weights

        device = resolve_device(settings.device)
        check_weights(weights, device=device, compile=settings.transformer.compile)
    if settings.transformer.attention_backend == "native":
        return
    from cogedit.models.attention import needs_lse
    from cogedit.models.device import resolve_device
    from cogedit.models.kernels import check_backend

    check_backend(
        settings.transformer.attention_backend,
        device=resolve_device(settings.device),
        dtype=dtype_for(settings),
        with_lse=needs_lse(settings.reconstruct),
    )


def check_gpus(settings: Settings) -> None:
    """Refuse more GPUs than there are; on a CPU, if it was named, they are processes."""
    count = settings.transformer.gpus
    if count > 1 and IS_WINDOWS:
        raise UsageError(
            f"--gpus is {count}, and torch has no NCCL for Windows, by which GPUs exchange data",
            hint="leave --gpus out, or run it under WSL",
        )
    if count == 1 or settings.device == "cpu":
        return
    if ":" in settings.device:
        raise UsageError(
            f"--device {settings.device} is one GPU, and --gpus is {count}",
            hint="leave --device out; CUDA_VISIBLE_DEVICES chooses among GPUs",
        )
    here = num_cuda_devices() if device_type(settings.device) == "cuda" else 0
    # torchrun starts processes on several machines, too, and says how many are on this one.
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if here < wanted:
        raise UsageError(
            f"--gpus is {count}, and this machine has {count_of(here, 'CUDA device')}",
            hint=f"--gpus {here}" if here > 1 else "leave --gpus out",
        )


def weights_for(settings: Settings) -> Weights | None:
    """Return the format that the transformer's weights are stored in; None is the run's dtype.

    Those of a file in 8 bits stay as they are, where the device knows such numbers.
    """
    weights = settings.weights
    if weights is None and settings.transformer_file is not None:
        file = checkpoint_for(settings).files["transformer"]
        if file.is_fp8 and device_type(settings.device) != "mps":
            weights = "fp8"
    return None if weights == dtype_for(settings) else weights


def dtype_for(settings: Settings) -> DType:
    """Return the number format of a run: the one that was set, else what suits the weights."""
    if settings.dtype is not None:
        return settings.dtype
    return suitable_dtype(checkpoint_for(settings), device_type(settings.device))


def suitable_dtype(checkpoint: Checkpoint, device: DeviceType) -> DType:
    """Choose the number format for a model on a device.

    On a GPU as its weights are stored, where CUDA takes bf16 for fp32, and no device fp16 for a
    model with rotary positions: CogVideoX-5B and 1.5 overflow in it. On a CPU bf16 if that has
    instructions for it and the weights are many and stored in 16 bits, else fp32.
    """
    stored = checkpoint.stored_dtype
    if stored == "fp32":
        return "bf16" if device == "cuda" else "fp32"
    if device == "cpu":
        is_large = sum(checkpoint.num_parameters.values()) > _MANY_WEIGHTS
        return "bf16" if is_large and cpu_computes_bf16() else "fp32"
    overflows = checkpoint.transformer_config.get("use_rotary_positional_embeddings")
    return "bf16" if overflows else stored


def gpu_note(settings: Settings) -> str | None:
    """Say that this machine has a GPU that nobody can use, where nobody named another device."""
    unused = unused_gpus() if settings.device == "auto" else None
    return None if unused is None else f"{unused.message} ({unused.hint})"


def dtype_note(settings: Settings) -> str | None:
    """Say in which number format a run computes, where nobody chose it and the weights differ."""
    dtype, stored = dtype_for(settings), checkpoint_for(settings).stored_dtype
    if settings.dtype is not None or dtype == stored or settings.model in EMBEDDED:
        return None
    if stored == "fp32":
        why = "more than this GPU needs"
    elif device_type(settings.device) == "cpu":
        why = "slow on this CPU"
    else:
        why = "in which this model overflows"
    return f"the weights are {stored}, {why}: the model runs in {dtype} (--dtype chooses another)"


def device_type(device: str) -> DeviceType:
    """Return the type of a device without torch; "auto" as `resolve_device` would choose it."""
    if device != "auto":
        return cast("DeviceType", device.partition(":")[0])
    if cuda_present():
        return "cuda"
    return "mps" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"


def check_same_model(
    name: str, record: LatentsRecord | TrajectoryRecord | EditRecord, checkpoint: Checkpoint
) -> None:
    """Raise `ArtifactMismatch` for an artifact of another model, or latents of another shape."""
    made_by = record.model
    if made_by.digest == checkpoint.digest:
        _check_latents(name, record, checkpoint.geometry)
        if has_first_frame(record) != checkpoint.takes_first_frame:
            raise ArtifactMismatch(
                f"{name} does not hold what {checkpoint.id} takes of the clip's first frame",
                hint="encode the video again",
            )
        return
    found = _label(made_by.id, made_by.revision)
    expected = _label(checkpoint.id, checkpoint.revision)
    raise ArtifactMismatch(
        f"{name} was made with model {found} ({made_by.digest[:12]}); "
        f"this run uses {expected} ({checkpoint.digest[:12]})"
        f"{_scheduler_change(record, checkpoint)}",
        hint="name the same --model, --revision, --transformer and --vae, or invert the video "
        "again with this one",
    )


def check_same_loras(
    name: str, record: TrajectoryRecord, checkpoint: Checkpoint, settings: Settings
) -> None:
    """Raise `ArtifactMismatch` for a trajectory that was inverted with other LoRAs.

    Edits need not have the inversion's; what runs the inversion backwards does.
    """
    found = lora_records(checkpoint, settings.inversion_lora)
    if not are_same_loras(record.model.lora, found):
        made, given = (
            ", ".join(f"{lora.name} at {lora.scale:g}" for lora in loras) or "no LoRA"
            for loras in (record.model.lora, found)
        )
        raise ArtifactMismatch(
            f"{name} was inverted with {made}; this run has {given}",
            hint="name the same --inversion-lora FILE:SCALE",
        )


def are_same_loras(some: Sequence[LoraRecord], others: Sequence[LoraRecord]) -> bool:
    """Whether the same is added to the transformer, whatever the files are called."""
    one, other = ([(lora.digest, lora.scale) for lora in loras] for loras in (some, others))
    return one == other


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
