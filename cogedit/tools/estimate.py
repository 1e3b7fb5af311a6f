"""What a run would take: rows, operations, time, memory and disk, with nothing written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cogedit.artifacts import (
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    Workspace,
    chain_of,
    frames_record,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.models.checkpoint import Checkpoint, find_checkpoint
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    Work,
    activation_bytes,
    edit_work,
    inversion_work,
    trajectory_bytes,
)
from cogedit.stages.editor import edits_together
from cogedit.stages.encode import latents_record
from cogedit.stages.invert import check_inversion_settings, trajectory_record
from cogedit.stages.load import choose_clip
from cogedit.stages.mask import check_fits, take_mask
from cogedit.stages.model import (
    check_same_model,
    dtype_for,
    transformer_record,
    weights_for,
)
from cogedit.stages.reconstruct import check_edits, edit_record, levels_of
from cogedit.stages.run import Run, workspace_for
from cogedit.stages.session import Parts
from cogedit.types import InvertSettings, ReconstructSettings


@dataclass(frozen=True)
class StageEstimate:
    """What one stage would take.

    Attributes:
        name: "invert" or "reconstruct".
        reused: How many of its artifacts are there already.
        artifacts: How many it would make.
        work: Calls, rows and operations of the transformer.
        seconds: Of the transformer, by the probe.
        disk_bytes: What its artifacts take, without their headers.
    """

    name: str
    reused: int
    artifacts: int
    work: Work
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        model: Its id.
        device: Kind of device.
        dtype: What the model computes in.
        num_frames: Frames of the clip.
        width: Width of the clip in pixels.
        height: Height of the clip in pixels.
        latent_shape: Latent frames, height and width, pad frames included.
        num_tokens: Text and image tokens of a row.
        stages: What is still to be done, in order; with what is there already.
        text_encoder_bytes: Weights of T5, which is freed before the transformer comes.
        transformer_bytes: Weights of the transformer.
        memory_bytes: Of the transformer, all of it on the device, with its activations.
        earlier_bytes: Frames and latents that are still to be written.
    """

    model: str
    device: str
    dtype: str
    num_frames: int
    width: int
    height: int
    latent_shape: LatentShape
    num_tokens: int
    stages: tuple[StageEstimate, ...]
    text_encoder_bytes: int
    transformer_bytes: int
    memory_bytes: int
    earlier_bytes: int

    @property
    def seconds(self) -> float:
        """Time of the transformer in all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        """What would be written, without headers and videos."""
        return self.earlier_bytes + sum(stage.disk_bytes for stage in self.stages)


@dataclass(frozen=True)
class _Plan:
    """A stage before its time is known."""

    name: str
    reused: int
    artifacts: int
    work: Work
    disk_bytes: int


def estimate(
    source: str | Path,
    settings: Settings,
    *,
    prompts: Sequence[str] | None = None,
    save_trajectory: bool = False,
    mask: str | Path | None = None,
    run: Run | None = None,
) -> Estimate:
    """Estimate what an inversion, or edits with all that comes before them, would take.

    Nothing is written and nothing is downloaded. The time comes from a matrix product and an
    attention at the model's width, measured here in about a second; that of loading, of T5 and of
    the VAE is left out.

    Args:
        source: What the run would start from.
        settings: As for the run.
        prompts: One edit for each; None is the inversion alone.
        save_trajectory: Keep every step of the edits.
        mask: As for `reconstruct`.
        run: With `force`, what the run would make anew counts as missing.

    Raises:
        CogeditError: As the run, where that can be known beforehand.
    """
    source, run = Path(source), run or Run()
    checkpoint = find_checkpoint(settings.model, settings.revision, download=False)
    # The same prompt twice is one edit.
    asked = [settings.reconstruct_with(prompt) for prompt in dict.fromkeys(prompts or ())]
    if prompts is None:
        check_inversion_settings(settings)
    else:
        check_edits(asked, checkpoint, num_levels=levels_of(source, settings))
    given = take_mask(mask, settings)
    workspace = workspace_for(source, settings)
    known = follow(source, settings, checkpoint, workspace=workspace, run=run)
    frames = frames_record(known[0])
    if given is not None:
        check_fits(given, frames)
    found = known[-1] if isinstance(known[-1], TrajectoryRecord) else None
    if found is not None and run.force and prompts is None:
        found = None
    shape = _latent_shape(frames, checkpoint)
    plans = [_plan_inversion(settings.invert, found, checkpoint, shape)]
    if prompts is not None:
        missing = asked
        if found is not None and not run.force:
            model = transformer_record(checkpoint, settings)
            describe = partial(
                edit_record, trajectory=found, model=model, has_trajectory=save_trajectory
            )
            missing = [one for one in asked if not workspace.find(describe(one, mask=given))]
        inversion = settings.invert if found is None else found.settings
        work = _edits_work(missing, inversion, checkpoint, shape)
        size = _edit_bytes(
            frames,
            trajectory_bytes(0, shape, channels=_sizes(checkpoint).in_channels),
            num_levels=_num_levels(asked[0], inversion) if save_trajectory else 0,
            has_mask=given is not None or asked[0].auto_mask,
        )
        reused = len(asked) - len(missing)
        plans.append(_Plan("reconstruct", reused, len(asked), work, size * len(missing)))
    return _timed(plans, known, checkpoint=checkpoint, shape=shape, settings=settings)


def _sizes(checkpoint: Checkpoint) -> TransformerSizes:
    return TransformerSizes.of(checkpoint.transformer_config)


def _plan_inversion(
    asked: InvertSettings,
    found: TrajectoryRecord | None,
    checkpoint: Checkpoint,
    shape: LatentShape,
) -> _Plan:
    if found is not None:
        return _Plan("invert", 1, 1, Work(), 0)
    sizes = _sizes(checkpoint)
    size = trajectory_bytes(asked.num_inference_steps, shape, channels=sizes.in_channels)
    return _Plan("invert", 0, 1, inversion_work(asked, sizes, shape), size)


def _edits_work(
    missing: Sequence[ReconstructSettings],
    inversion: InvertSettings,
    checkpoint: Checkpoint,
    shape: LatentShape,
) -> Work:
    """Count the edits that are still to be made, as many at a time as the run would take."""
    sizes, work = _sizes(checkpoint), Work()
    together = edits_together(math.prod(shape) * sizes.in_channels)
    for first in range(0, len(missing), together):
        work += edit_work(
            missing[first : first + together],
            inversion,
            sizes,
            shape,
        )
    return work


def _edit_bytes(frames: FramesRecord, latents: int, *, num_levels: int, has_mask: bool) -> int:
    """Size of the artifact of one edit without its header.

    Args:
        frames: The clip.
        latents: Size of its latents.
        num_levels: Steps of the edit that are kept beside its result.
        has_mask: Whether it holds its mask, a byte for each pixel, and the source's latents.
    """
    size = latents * (1 + num_levels)
    if has_mask:
        pixels = frames.settings.width * frames.settings.height * len(frames.frame_indices)
        size += latents + pixels
    return size


def _timed(
    plans: Sequence[_Plan],
    known: Sequence[Record],
    *,
    checkpoint: Checkpoint,
    shape: LatentShape,
    settings: Settings,
) -> Estimate:
    """Measure the device, if there is anything to do, and add up."""
    parts = Parts(checkpoint, settings, run=Run())
    sizes = _sizes(checkpoint)
    total = sum((plan.work for plan in plans), Work())
    num_tokens, item_size = sizes.num_tokens(shape), ITEM_SIZE[dtype_for(settings)]
    speed = None
    if total.calls:
        from cogedit.models.device import memory_guard
        from cogedit.models.memory_probe import measure_speed

        with memory_guard("measuring its speed"):
            speed = measure_speed(
                sizes, num_tokens=num_tokens, device=parts.device, dtype=parts.dtype
            )
    per_weight = ITEM_SIZE[weights_for(settings) or dtype_for(settings)]
    weights = checkpoint.num_parameters["transformer"] * per_weight
    text_encoder = checkpoint.num_parameters["text_encoder"] * item_size
    activations = activation_bytes(
        sizes,
        shape,
        rows=total.max_rows,
        max_rows=settings.transformer.max_rows,
        item_size=item_size,
        device=parts.device.type,
    )
    clip = frames_record(known[0])
    frames, (width, height) = len(clip.frame_indices), (clip.settings.width, clip.settings.height)
    earlier = 0 if clip.tensors else 3 * frames * height * width
    if len(known) < 2:
        earlier += trajectory_bytes(0, shape, channels=sizes.in_channels)
    return Estimate(
        model=checkpoint.id,
        device=parts.device.type,
        dtype=dtype_for(settings),
        num_frames=frames,
        width=width,
        height=height,
        latent_shape=shape,
        num_tokens=num_tokens,
        stages=tuple(
            StageEstimate(
                name=plan.name,
                reused=plan.reused,
                artifacts=plan.artifacts,
                work=plan.work,
                seconds=0.0 if speed is None else speed.seconds(plan.work.flops),
                disk_bytes=plan.disk_bytes,
            )
            for plan in plans
        ),
        text_encoder_bytes=text_encoder,
        transformer_bytes=weights,
        memory_bytes=weights + activations if total.calls else 0,
        earlier_bytes=earlier,
    )


def follow(
    source: Path, settings: Settings, checkpoint: Checkpoint, *, workspace: Workspace, run: Run
) -> list[Record]:
    """Return the records from the clip on, as far as the artifacts of the run exist.

    The first is the clip's even where it is not there yet; it then has no tensors.

    Raises:
        CogeditError: As `load`, or an artifact is damaged.
    """
    if sniff_kind(source) is None:
        clip, _ = choose_clip(source, settings, run=run)
        chain: list[Record] = [_found(clip, workspace) or clip]
    else:
        chain = [*chain_of(read_record(source, ("frames", "latents", "trajectory")))]
    last = chain[-1]
    if isinstance(last, LatentsRecord | TrajectoryRecord):
        check_same_model(str(source), last, checkpoint)
    if isinstance(last, FramesRecord) and last.tensors:
        found = _found(latents_record(last, checkpoint, settings=settings), workspace)
        chain += [found] if found is not None else []
    last = chain[-1]
    if isinstance(last, LatentsRecord):
        found = _found(trajectory_record(last, checkpoint, settings=settings), workspace)
        chain += [found] if found is not None else []
    return chain


def _found(record: Record, workspace: Workspace) -> Record | None:
    path = workspace.find(record)
    return None if path is None else read_record(path)


def _latent_shape(frames: FramesRecord, checkpoint: Checkpoint) -> LatentShape:
    geometry = checkpoint.geometry
    count = geometry.num_latent_frames(len(frames.frame_indices))
    size = frames.settings
    return (
        count + geometry.num_pad_frames(count),
        size.height // geometry.spatial_compression,
        size.width // geometry.spatial_compression,
    )


def _num_levels(asked: ReconstructSettings, inversion: InvertSettings) -> int:
    return (asked.num_inference_steps or inversion.num_inference_steps) - asked.start_step
