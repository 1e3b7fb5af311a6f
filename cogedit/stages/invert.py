"""invert: latents -> trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    LatentsRecord,
    TrajectoryRecord,
    Unfinished,
    content_key,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings, check_settings
from cogedit.errors import UsageError
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import inversion_work, latent_shape
from cogedit.stages.encode import encode
from cogedit.stages.model import (
    check_same_model,
    check_transformer,
    checkpoint_for,
    scheduler_record,
    transformer_record,
)
from cogedit.stages.pass_times import Stopwatch
from cogedit.stages.resume import StepKeeper
from cogedit.stages.run import (
    Run,
    Written,
    check_output,
    check_text,
    find_or_make,
    place_of,
    workspace_for,
)
from cogedit.stages.session import Parts
from cogedit.types import StepInfo

if TYPE_CHECKING:
    from torch import Tensor


def invert(
    source: str | Path, settings: Settings, *, output: Path | None = None, run: Run | None = None
) -> Written[TrajectoryRecord]:
    """Invert a clip into noise and keep every level on disk.

    Args:
        source: A latents or frames artifact, or a video; what is missing is run first.
        settings: `invert` and `model`; the tables of the earlier stages where they are run.
        output: The artifact; None is its place in the workspace.
        run: How to run; None is silent.

    Raises:
        ArtifactError: The source is of a later kind, of another model, or damaged.
        UsageError: A setting is out of range.
        ModelError: The model is missing or incomplete.
        DeviceMemoryError: The device is full.
        NumericalError: NaN or Inf appeared.
        Interrupted: Somebody asked to stop.
    """
    source, run = Path(source), run or Run()
    check_output(output, source=source)
    check_inversion_settings(settings)
    check_transformer(settings)
    workspace = workspace_for(source, settings)
    checkpoint = checkpoint_for(settings)
    if sniff_kind(source) in (None, "frames"):
        source = encode(source, settings, run=run.earlier).path
    latents = read_record(source, "latents")
    check_same_model(str(source), latents, checkpoint)
    record = trajectory_record(latents, checkpoint, settings=settings)

    def make() -> Mapping[str, Tensor]:
        clean = read_artifact(source, "latents").tensors["latents"]
        place = place_of(record, output=output, workspace=workspace)
        unfinished = Unfinished.of(place.parent, record.kind, [content_key(record)])
        return _invert(
            clean,
            record,
            checkpoint=checkpoint,
            unfinished=unfinished,
            notes=workspace.root if output is None else None,
            settings=settings,
            run=run,
        )

    return find_or_make(record, make, output=output, workspace=workspace, run=run)


def check_inversion_settings(settings: Settings) -> None:
    """Refuse what cannot work before any stage runs.

    Raises:
        UsageError: A setting is out of range.
    """
    check_settings(settings.invert)
    check_text(settings.invert.prompt)
    if settings.invert.num_inference_steps < 2 and settings.invert.inverse == "consistent":
        raise UsageError("the inversion needs at least 2 inference steps; found 1")


def trajectory_record(
    latents: LatentsRecord, checkpoint: Checkpoint, *, settings: Settings
) -> TrajectoryRecord:
    """Describe the inversion of some latents."""
    num_latent_frames = latents.tensors[0].shape[1]
    return TrajectoryRecord(
        latents=latents,
        model=transformer_record(checkpoint, settings),
        settings=settings.invert,
        scheduler=scheduler_record(checkpoint),
        num_pad_frames=checkpoint.geometry.num_pad_frames(num_latent_frames),
    )


def _invert(
    latents: Tensor,
    record: TrajectoryRecord,
    *,
    checkpoint: Checkpoint,
    unfinished: Unfinished,
    notes: Path | None,
    settings: Settings,
    run: Run,
) -> Mapping[str, Tensor]:
    """Invert latents [B, F', C', H', W'] as the record says, every step kept until all are done."""
    import torch

    from cogedit.models.device import memory_guard
    from cogedit.models.loading import alphas_cumprod
    from cogedit.models.sampling import invert_latents

    asked = record.settings
    parts = Parts(checkpoint, settings, run=run)
    # CogVideoX 1.5 packs two latent frames into a token. As in its image-to-video training, an odd
    # clip is completed by its first latent frame, which stands for a single video frame.
    pad = latents[:, :1].expand(-1, record.num_pad_frames, -1, -1, -1)
    z0 = torch.cat([pad, latents], dim=1).to(parts.device)
    names = ("sample",) if asked.inverse == "upstream" else ("sample", "velocity")
    keeper = StepKeeper(unfinished, names=names, shape=tuple(z0.shape), keep_all=True, run=run)
    steps = [state.info for state in keeper.done]
    with memory_guard("inverting"):
        embeds = parts.embed(["", asked.prompt])
        shape = latent_shape(z0)
        transformer = parts.transformer(inversion_work(asked, parts.sizes, shape), shape)
        stopwatch = Stopwatch(parts.device)
        with (
            parts.running(transformer),
            run.progress("inverting", asked.num_inference_steps) as on_step,
            keeper,
        ):

            def tell(info: StepInfo) -> None:
                steps.append(info)
                on_step(info)

            inverted = invert_latents(
                transformer,
                z0,
                [asked],
                alphas_cumprod=alphas_cumprod(checkpoint),
                embeds=embeds,
                options=settings.transformer,
                done=keeper.done,
                on_state=keeper.keep,
                on_step=tell,
            )
    went_on = len(keeper.done) > 0
    stopwatch.note(notes, [content_key(record)], steps=steps, is_whole=not went_on)
    run.notify(_quality(float(inverted.noise.std()), steps))
    for step in steps:
        if step.residual is not None:
            run.detail(
                f"timestep {step.timestep}: residual {step.residual:.1e}, {step.num_calls} calls"
            )
    return {
        "trajectory": inverted.samples.cpu(),
        "latents": inverted.latents.cpu(),
        "timesteps": torch.tensor(inverted.timesteps),
    }


def _quality(std: float, steps: Sequence[StepInfo]) -> str:
    """One line on how good an inversion is."""
    text = f"standard deviation of the noise: {std:.3f} (fresh noise has 1)"
    residuals = [step.residual for step in steps if step.residual is not None]
    if not residuals:
        return text
    worst = max(range(len(residuals)), key=residuals.__getitem__)
    calls = sum(step.num_calls for step in steps)
    return (
        f"{text}; {calls} model calls; largest last correction {residuals[worst]:.1e}, "
        f"at step {worst + 1}"
    )
