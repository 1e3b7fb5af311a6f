"""invert: latents -> trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    Pieces,
    TrajectoryRecord,
    Unfinished,
    Workspace,
    content_key,
    keep_in_use,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings, check_settings
from cogedit.diffusion.schedule import check_low_levels
from cogedit.diffusion.windows import window_starts
from cogedit.errors import UsageError
from cogedit.media.metrics import psnr
from cogedit.models.checkpoint import Checkpoint
from cogedit.models.cost import TransformerSizes, edit_work, inversion_work, latent_shape
from cogedit.progress import StepInfo, WindowProgress
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.artifact_output import check_artifact
from cogedit.stages.claim import claim
from cogedit.stages.edit_notes import inversion_notes
from cogedit.stages.encode import check_span, encode
from cogedit.stages.existing import follow
from cogedit.stages.first_frame import condition_of
from cogedit.stages.inversion_record import trajectory_record
from cogedit.stages.model import (
    check_same_loras,
    check_same_model,
    check_transformer,
    checkpoint_for,
    latent_shape_of,
)
from cogedit.stages.prompts import check_text
from cogedit.stages.run import (
    Run,
    Written,
    find_or_make,
    place_of,
    workspace_for,
)
from cogedit.stages.session import Session, use_session
from cogedit.types import InverseStep, InvertSettings
from cogedit.wording import count_of

if TYPE_CHECKING:
    from torch import Tensor


# What an inversion goes on from.
_STATES: dict[InverseStep, tuple[str, ...]] = {
    "consistent": ("sample", "velocity"),
    "midpoint": ("sample", "velocity", "edge"),
    "upstream": ("sample",),
}


@dataclass(frozen=True)
class InversionCheck:
    """The quality of an inversion.

    Attributes:
        psnr: The resampled clip against the VAE's round trip of the source, in dB.
        std: Standard deviation of the noise; 1 is right.
    """

    psnr: float
    std: float


def invert(
    source: str | Path,
    settings: Settings,
    *,
    output: str | Path | None = None,
    run: Run | None = None,
    session: Session | None = None,
) -> Written[TrajectoryRecord]:
    """Invert a clip into noise and keep the sample of every timestep.

    Args:
        source: A latents or frames artifact, or a video; what is missing is run first.
        settings: `invert` and `model`; the tables of the earlier stages where they are run.
        output: The artifact; None is its place in the workspace.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        ArtifactError: The source is of a later kind, of another model, or damaged.
        UsageError: A setting is out of range.
    """
    source, output, run = source_of(source, settings), as_path(output), run or Run()
    check_artifact(output, inputs=[source, *settings.read_files], run=run)
    checkpoint = checkpoint_for(settings)
    check_inversion_settings(settings, checkpoint)
    check_settings(settings.transformer)
    workspace = workspace_for(source, settings)
    if not _exists(source, checkpoint, settings, workspace=workspace, output=output, run=run):
        check_transformer(settings)
    with claim(output, run) as run, use_session(session) as owner:
        keep_in_use(source.parent)
        if sniff_kind(source) in (None, "frames"):
            source = encode(source, settings, run=run.earlier, session=owner).path
        latents = read_record(source, "latents")
        check_same_model(str(source), latents, checkpoint)
        record = trajectory_record(latents, checkpoint, settings=settings)
        record = workspace.as_kept(record, output=output)
        for note in inversion_notes(settings.invert):
            owner.notify_once(note, run)
        _notify_of_windows(record, checkpoint, settings, run)

        def make() -> Mapping[str, Tensor | Pieces]:
            place = place_of(record, output=output, workspace=workspace)
            return _invert(
                read_artifact(source, "latents").tensors,
                record,
                Unfinished.of(place.parent, record.kind, [content_key(record)]),
                notes=workspace.root if output is None else None,
                settings=settings,
                run=run,
                session=owner,
            )

        return find_or_make(
            record, make, output=output, workspace=workspace, run=run, device=settings.device
        )


def _exists(
    source: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    workspace: Workspace,
    output: Path | None,
    run: Run,
) -> bool:
    """Whether the trajectory is there, so that no device, kernel or package is asked for."""
    is_any = any(workspace.root.glob("trajectory-*")) if output is None else output.exists()
    if run.force or not is_any or sniff_kind(source) not in (None, "frames", "latents"):
        return False
    if sniff_kind(source) == "latents":  # where nothing can have been removed before it
        return is_inverted(source, settings, output=output)
    found = follow(
        source,
        settings,
        checkpoint,
        wanted=lambda trajectory: [trajectory],
        workspace=workspace,
        run=replace(run, notify=run.detail),  # the stages say it
        output=output,
    )
    return found.is_complete


def is_inverted(latents: Path, settings: Settings, *, output: Path | None = None) -> bool:
    """Return whether the inversion of a latents artifact exists, without a look into it."""
    record, workspace = read_record(latents, "latents"), workspace_for(latents, settings)
    inversion = trajectory_record(record, checkpoint_for(settings), settings=settings)
    return workspace.holds(workspace.as_kept(inversion, output=output), output=output)


def check_inversion_settings(settings: Settings, checkpoint: Checkpoint) -> None:
    """Refuse what cannot work before any stage runs."""
    check_settings(settings.invert)
    check_text(settings.invert.prompt)
    if settings.invert.num_inference_steps < 2 and settings.invert.inverse == "consistent":
        raise UsageError("the inversion needs at least 2 inference steps; found 1")
    check_low_levels(settings.invert.num_low_levels, settings.invert.num_inference_steps)
    check_span(settings.encode)
    checkpoint.geometry.window_plan(0, settings.invert.window_overlap)


def check_levels(settings: InvertSettings, checkpoint: Checkpoint) -> None:
    """Refuse levels that the model's noise table does not have; imports torch."""
    from cogedit.models.loading import alphas_cumprod
    from cogedit.models.sampling import inversion_schedule

    inversion_schedule(settings, alphas_cumprod(checkpoint))


def _notify_of_windows(
    record: TrajectoryRecord, checkpoint: Checkpoint, settings: Settings, run: Run
) -> None:
    """Say how a clip that is longer than the model's own is inverted."""
    windows = record.windows
    if windows is not None:
        num_latent_frames, *_ = latent_shape_of(record.latents.frames, checkpoint.geometry)
        count = num_latent_frames + record.num_pad_frames
        run.notify(
            f"the clip has {count} latent frames, and a clip of this model has {windows.length}: "
            f"it is inverted and edited in {len(window_starts(windows, count, moved=False))} "
            f"windows that overlap by {windows.overlap}"
        )
    elif settings.invert.window_overlap is not None:
        run.notify("--window-overlap changes nothing: one window holds the clip")


def _invert(
    tensors: Mapping[str, Tensor],
    record: TrajectoryRecord,
    unfinished: Unfinished,
    *,
    notes: Path | None,
    settings: Settings,
    run: Run,
    session: Session,
) -> Mapping[str, Tensor | Pieces]:
    """Invert latents as the record says; an interrupted inversion resumes.

    The tensors are those of a latents artifact.
    """
    import torch

    from cogedit.models.device import memory_guard, resolve_device
    from cogedit.models.loading import alphas_cumprod
    from cogedit.models.predictor import Predictor
    from cogedit.models.sampling import invert_latents
    from cogedit.stages.pass_times import Stopwatch
    from cogedit.stages.resume import ResumableLoop

    inversion, checkpoint = record.settings, checkpoint_for(settings)
    check_levels(inversion, checkpoint)
    device = resolve_device(settings.device)
    # CogVideoX 1.5 packs two latent frames into a token. As in its image-to-video training, an odd
    # clip is completed by its first latent frame, which stands for a single video frame.
    latents, first = tensors["latents"], tensors.get("first_frame")
    pad = latents[:, :1].expand(-1, record.num_pad_frames, -1, -1, -1)
    z0 = torch.cat([pad, latents], dim=1).to(device)
    shape = latent_shape(z0)
    names = _STATES[inversion.inverse]
    loop = ResumableLoop(unfinished, names=names, shape=tuple(z0.shape), keep_all=True, run=run)
    steps = list(loop.infos)
    sizes, windows = TransformerSizes.of(checkpoint.transformer_config), record.windows
    work = inversion_work(inversion, sizes, shape, windows)
    with memory_guard("inverting"):
        embeds = session.embed(["", inversion.prompt], settings, run=run)
        with (
            session.transformer(
                work, shape, settings, windows=windows, loras=settings.inversion_lora, run=run
            ) as transformer,
            Stopwatch(device) as stopwatch,
            run.progress("inverting", inversion.num_levels) as on_step,
            loop,
        ):
            shown = WindowProgress(on_step, total=inversion.num_levels, num_done=len(steps))

            def report(info: StepInfo) -> None:
                steps.append(info)
                shown.step(info)

            table, ranks = alphas_cumprod(checkpoint), session.ranks
            inverted = invert_latents(
                Predictor(transformer, table, embeds, settings.transformer, ranks),
                z0,
                [inversion],
                condition=None if first is None else condition_of(first, record),
                windows=windows,
                done=loop.done,
                on_state=loop.save,
                read_back=loop.read_back,
                on_step=report,
                on_window=shown.window,
            )
    stopwatch.note(notes, [content_key(record)], steps=steps, is_whole=not loop.infos)
    run.notify(_quality(float(inverted.noise.std()), steps))
    for step in steps:
        if step.residual is not None:
            run.detail(
                f"timestep {step.timestep}: residual {step.residual:.1e}, "
                f"{count_of(step.num_calls, 'call')}"
            )
    made: dict[str, Tensor | Pieces] = {
        "trajectory": loop.read_back().pieces(z0.shape),
        "latents": inverted.latents,
        "timesteps": torch.tensor(inverted.timesteps),
    }
    if first is not None:
        made["first_frame"] = first
    return made


def _quality(std: float, steps: Sequence[StepInfo]) -> str:
    """Say in one line how good an inversion is."""
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


def check_inversion(
    trajectory: str | Path,
    settings: Settings,
    *,
    run: Run | None = None,
    session: Session | None = None,
) -> InversionCheck:
    """Sample from a trajectory's noise under its own prompt, without guidance, and compare.

    Costs as many model calls as the inversion has timesteps. ArtifactError if the artifact is no
    trajectory, of another model, or damaged.
    """
    from cogedit.models.device import memory_guard
    from cogedit.models.loading import alphas_cumprod
    from cogedit.models.predictor import Predictor
    from cogedit.models.sampling import edit_latents
    from cogedit.models.vae import decode_pieces, to_levels
    from cogedit.models.vae_tiles import TensorFile
    from cogedit.stages.trajectory import open_trajectory

    trajectory, run = source_of(trajectory, settings), run or Run()
    checkpoint = checkpoint_for(settings)
    inverted_with = read_record(trajectory, "trajectory")
    check_same_model(str(trajectory), inverted_with, checkpoint)
    check_same_loras(str(trajectory), inverted_with, checkpoint, settings)
    check_transformer(settings)
    record, inverted = open_trajectory(trajectory, checkpoint)
    prompt = record.settings.prompt
    plain = record.settings.resampling
    source = inverted.trajectory
    shape = latent_shape(source.latents)
    sizes, windows = TransformerSizes.of(checkpoint.transformer_config), record.windows
    work = edit_work([plain], record.settings, sizes, shape, windows)
    with use_session(session) as owner, memory_guard("checking the inversion"):
        owner.expect_decoding()
        embeds = owner.embed(["", prompt], settings, run=run)
        with (
            owner.transformer(
                work, shape, settings, windows=windows, loras=settings.inversion_lora, run=run
            ) as transformer,
            run.stoppable("resampling", len(source.timesteps)) as on_step,
        ):
            shown = WindowProgress(on_step, total=len(source.timesteps))
            table, ranks = alphas_cumprod(checkpoint), owner.ranks
            samples = edit_latents(
                Predictor(transformer, table, embeds, settings.transformer, ranks),
                inverted,
                [plain],
                keep_steps=False,
                on_step=shown.step,
                on_window=shown.window,
            )
        del transformer  # the VAE may need its memory
        vae, way = owner.vae(shape, settings, "decode", run=run)
        pad = record.num_pad_frames
        file, decoded = TensorFile(trajectory.parent), []
        with memory_guard("decoding", hint="use --decode-tiling"):
            for latents in (samples[-1], source.latents):
                pieces = decode_pieces(
                    vae, latents[:, pad:], by_frame=way.by_frame, folder=trajectory.parent
                )
                decoded.append([file.put(piece) for piece in pieces])
        similarity = psnr(
            *(
                (level.numpy() for piece in kept for level in to_levels(file.get(piece)))
                for kept in decoded
            )
        )
    return InversionCheck(similarity, float(source.noise.std()))
