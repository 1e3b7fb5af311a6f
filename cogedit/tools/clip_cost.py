"""What a clip costs under a model and settings: rows, operations, time, memory and disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from cogedit.artifacts import FramesRecord, TrajectoryRecord
from cogedit.config import Settings
from cogedit.errors import DeviceMemoryError
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    Work,
    activation_bytes,
    edit_work,
    host_bytes,
    inversion_work,
    num_windows,
    part_bytes,
    trajectory_bytes,
    window_shape,
)
from cogedit.models.split import Division
from cogedit.models.vae_cost import ON_CUDA, WAYS, Direction, VAESizes, vae_bytes
from cogedit.stages.existing import Link
from cogedit.stages.invert import check_levels
from cogedit.stages.model import device_type, dtype_for, latent_shape_of, weights_for
from cogedit.stages.reconstruct import as_in_one_pass, edits_together
from cogedit.stages.session import Session
from cogedit.types import InvertSettings, ReconstructSettings, WindowPlan


@dataclass(frozen=True)
class StageEstimate:
    """What one stage ("invert", "check" or "reconstruct") would take.

    Attributes:
        reused: How many of its artifacts exist, or are equal to one that it would make.
        artifacts: How many it would return.
        work: Calls, rows and operations of the transformer.
        disk_bytes: Size of the artifacts that it would write, without their headers.
        seconds: Time of the transformer, on the busiest device, by a measurement of one.
        is_least: Whether it may take more calls, by what the clip is.
    """

    name: str
    reused: int
    artifacts: int
    work: Work
    disk_bytes: int
    seconds: float = 0.0
    is_least: bool = False


@dataclass(frozen=True)
class VAEEstimate:
    """What encoding or decoding would take.

    Attributes:
        way: How the VAE would run, such as "at once" or "frame by frame".
        num_bytes: Its memory on the device, its weights among it.
        problem: Why it cannot run, with what helps; None where it can.
    """

    way: str
    num_bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        num_gpus: How many compute together; memory is that of each.
        num_frames, width, height: Of the clip.
        start_seconds, end_seconds: When it begins and ends in its source.
        latent_shape: Latent frames, height and width, padding included.
        windows: Over the latent frames; None is one pass over them all.
        num_windows: Least number of windows of a model call.
        num_tokens: Text and image tokens of a row: of one window.
        stages: In order, those that would do nothing included.
        text_encoder_bytes: Weights of T5, which is freed before the transformer is loaded.
        transformer_bytes: Weights of the transformer.
        memory_bytes: The transformer, all of it on the device, with its activations.
        host_bytes: Host memory that it needs at least, beside Python's; on the CPU, all of it.
        encode, decode: How the VAE would encode the clip, where it has to, and decode an edit.
        earlier_bytes: Frames and latents that are still to be written.
        lora, inversion_lora: Files that are added to the transformer, and their scales.
    """

    model: str
    device: str
    num_gpus: int
    dtype: str
    num_frames: int
    width: int
    height: int
    start_seconds: float
    end_seconds: float
    latent_shape: LatentShape
    windows: WindowPlan | None
    num_windows: int
    num_tokens: int
    stages: tuple[StageEstimate, ...]
    text_encoder_bytes: int
    transformer_bytes: int
    memory_bytes: int
    host_bytes: int
    encode: VAEEstimate
    decode: VAEEstimate
    earlier_bytes: int
    lora: tuple[str, ...]
    inversion_lora: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time of the transformer in all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        """What would be written, without headers and videos."""
        return self.earlier_bytes + sum(stage.disk_bytes for stage in self.stages)

    @property
    def notes_on_vae(self) -> tuple[str, ...]:
        """What there is to know about the figures of the VAE on such a device."""
        return (ON_CUDA,) if self.device == "cuda" else ()


class ClipCost:
    """Counts what a clip costs under a model and settings."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        frames: FramesRecord,
        trajectory: TrajectoryRecord | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._frames = frames
        self._sizes = TransformerSizes.of(checkpoint.transformer_config)
        device = device_type(settings.device)
        self._division = Division(settings.transformer.gpus, settings.transformer.max_rows, device)
        geometry = checkpoint.geometry
        count, height, width = latent_shape_of(frames, geometry)
        self._num_latent_frames = count
        self._shape: LatentShape = (count + geometry.num_pad_frames(count), height, width)
        if trajectory is None:
            overlap = settings.invert.window_overlap
            self._windows = geometry.window_plan(self._shape[0], overlap)
        else:
            self._windows = trajectory.windows

    def _samples_bytes(self, count: int) -> int:
        """Size of `count` samples of the clip's latents in float32."""
        return trajectory_bytes(count - 1, self._shape, channels=self._sizes.out_channels)

    def _frames_bytes(self, count: int) -> int:
        """Size of so many latent frames in float32."""
        return self._samples_bytes(1) // self._shape[0] * count

    @property
    def _pixels(self) -> int:
        size = self._frames.settings
        return size.width * size.height * len(self._frames.frame_indices)

    def earlier_bytes(self, links: Sequence[Link]) -> int:
        """Size of the frames and latents that a run would write: the latents not before more."""
        frames = 3 * self._pixels if links[0].path is None else 0
        count = self._num_latent_frames + self._checkpoint.takes_first_frame
        return frames + (self._frames_bytes(count) if len(links) < 2 else 0)

    def inversion(self, settings: InvertSettings, *, reused: bool) -> StageEstimate:
        """Count an inversion; UsageError where it has more levels than the model."""
        if reused:
            return StageEstimate("invert", 1, 1, Work(), 0)
        check_levels(settings, self._checkpoint)
        work = inversion_work(settings, self._sizes, self._shape, self._windows, self._division)
        is_least = settings.inverse == "consistent" and settings.inversion_iterations is None
        size = self.trajectory_bytes(settings)
        return StageEstimate("invert", 0, 1, work, size, is_least=is_least)

    def check(self, inversion: InvertSettings) -> StageEstimate:
        """Count sampling an inversion back from its noise."""
        plain = [inversion.resampling]
        work = edit_work(plain, inversion, self._sizes, self._shape, self._windows, self._division)
        return StageEstimate("check", 0, 1, work, 0)

    def trajectory_bytes(self, settings: InvertSettings) -> int:
        """Size of the trajectory of an inversion, on disk and in memory."""
        first = self._frames_bytes(int(self._checkpoint.takes_first_frame))
        return self._samples_bytes(settings.num_levels + 1) + first

    def reconstruction(
        self,
        missing: Sequence[ReconstructSettings],
        inversion: InvertSettings,
        *,
        keeps_steps: bool,
        has_mask: bool,
    ) -> tuple[StageEstimate, int]:
        """Count edits, and the bytes of those that the run would denoise together."""
        alike: dict[ReconstructSettings, list[ReconstructSettings]] = {}
        for edit in missing:
            alike.setdefault(as_in_one_pass(edit), []).append(edit)
        together = edits_together(math.prod(self._shape) * self._sizes.out_channels)
        work, size, largest = Work(), 0, 0
        for edits in alike.values():
            each = self._edit_bytes(edits[0], inversion, keeps_steps=keeps_steps, has_mask=has_mask)
            size += each * len(edits)
            largest = max(largest, each * min(len(edits), together))
            for first in range(0, len(edits), together):
                work += edit_work(
                    edits[first : first + together],
                    inversion,
                    self._sizes,
                    self._shape,
                    self._windows,
                    self._division,
                )
        return StageEstimate("reconstruct", 0, len(missing), work, size), largest

    def _edit_bytes(
        self,
        edit: ReconstructSettings,
        inversion: InvertSettings,
        *,
        keeps_steps: bool,
        has_mask: bool,
    ) -> int:
        """Size of the artifact of one edit without its header."""
        num_steps = edit.num_steps(inversion.num_levels)
        size = self._samples_bytes(1 + num_steps if keeps_steps else 1)
        # With a mask it holds a byte for each pixel, and the source's latents.
        has_mask |= edit.auto_mask
        return size + (self._samples_bytes(1) + self._pixels if has_mask else 0)

    def _vae(self, direction: Direction, device: str) -> VAEEstimate:
        """Say how the VAE would run in the memory that is free now."""
        checkpoint, settings = self._checkpoint, self._settings
        shape = latent_shape_of(self._frames, checkpoint.geometry)
        try:
            plan = Session().plan_vae(shape, settings, direction)
        except DeviceMemoryError as error:
            dtype, sizes = dtype_for(settings), VAESizes.of(checkpoint.vae_config)
            least = part_bytes(checkpoint, "vae", dtype) + vae_bytes(
                sizes, shape, direction, WAYS[-1], item_size=ITEM_SIZE[dtype], device=device
            )
            return VAEEstimate("does not fit", least, str(error))
        return VAEEstimate(str(plan.way), plan.num_bytes)

    def total(
        self, stages: Sequence[StageEstimate], *, earlier_bytes: int, samples_bytes: int
    ) -> Estimate:
        """Measure the device, if there is anything to compute, and add up.

        `samples_bytes` are those of the latents that the run has in memory at once.
        """
        from cogedit.models.device import DTYPES, memory_guard, resolve_device
        from cogedit.models.speed_probe import measure_speed

        settings, sizes, shape = self._settings, self._sizes, self._shape
        seen = window_shape(shape, self._windows)
        device, dtype = resolve_device(settings.device), dtype_for(settings)
        total = sum((stage.work for stage in stages), Work())
        num_tokens = sizes.num_tokens(seen)
        if total.calls:
            with memory_guard("measuring its speed"):
                speed = measure_speed(
                    sizes, num_tokens=num_tokens, device=device, dtype=DTYPES[dtype]
                )
            stages = [replace(stage, seconds=speed.seconds(stage.work.busiest)) for stage in stages]
        parameters = self._checkpoint.num_parameters
        weights = parameters["transformer"] * ITEM_SIZE[weights_for(settings) or dtype]
        activations = activation_bytes(
            sizes,
            seen,
            total,
            max_rows=settings.transformer.max_rows,
            item_size=ITEM_SIZE[dtype],
            device=device.type,
        )
        encode, decode = (self._vae(direction, device.type) for direction in get_args(Direction))
        vae_activations = max(encode.num_bytes, decode.num_bytes)
        vae_activations -= part_bytes(self._checkpoint, "vae", dtype)
        return Estimate(
            model=self._checkpoint.id,
            device=device.type,
            num_gpus=settings.transformer.gpus,
            dtype=dtype,
            num_frames=len(self._frames.frame_indices),
            width=self._frames.settings.width,
            height=self._frames.settings.height,
            start_seconds=float(self._frames.span[0]),
            end_seconds=float(self._frames.span[1]),
            latent_shape=shape,
            windows=self._windows,
            num_windows=num_windows(shape, self._windows, 0),
            num_tokens=num_tokens,
            stages=tuple(stages),
            text_encoder_bytes=part_bytes(self._checkpoint, "text_encoder", dtype),
            transformer_bytes=weights,
            memory_bytes=weights + activations if total.calls else 0,
            host_bytes=host_bytes(
                self._checkpoint,
                dtype,
                samples=samples_bytes,
                pixels=3 * self._pixels,
                activations=activations if device.type == "cpu" else 0,
                vae_activations=vae_activations if device.type == "cpu" else 0,
            ),
            encode=encode,
            decode=decode,
            earlier_bytes=earlier_bytes,
            lora=tuple(map(str, settings.lora)),
            inversion_lora=tuple(map(str, settings.inversion_lora)),
        )
