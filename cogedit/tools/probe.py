"""probe-layers: which layers hold an edit to its source, on one's own clip and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.artifacts import read_record, sniff_kind
from cogedit.config import Settings
from cogedit.diffusion.schedule import Schedule
from cogedit.errors import UsageError
from cogedit.models.cost import (
    ITEM_SIZE,
    LatentShape,
    TransformerSizes,
    activation_bytes,
    latent_shape,
    window_shape,
)
from cogedit.models.layer_probe import (
    ProbedLevel,
    narrowest_window,
    probe_levels,
    probe_work,
    probed_layers,
    probed_steps,
    short_edit,
)
from cogedit.progress import WindowProgress
from cogedit.stages.arguments import source_of
from cogedit.stages.given import Given
from cogedit.stages.inverted import levels_of, trajectory_for
from cogedit.stages.model import (
    check_same_model,
    check_transformer,
    checkpoint_for,
    dtype_for,
)
from cogedit.stages.reconstruct import check_edits, edits_together
from cogedit.stages.run import Run
from cogedit.stages.session import Session, use_session
from cogedit.tools.clip_cost import Estimate, StageEstimate
from cogedit.tools.estimate import estimate
from cogedit.types import ReconstructSettings, WindowPlan

MOST = 0.8
"""Share of all changes that the window of layers to try first holds."""


@dataclass(frozen=True)
class LayerProbe:
    """How much each layer holds an edit to its source.

    Attributes:
        model: Id of the model, or its folder.
        prompt: What the edit shows.
        num_steps: Of the edit that was probed.
        levels: The noise levels, noisiest first.
        layers: Numbers of the layers, in the order of each level's changes.
        means: For each layer, the mean of its changes over the levels.
        window: The narrowest window of layers with `MOST` of the sum of the means.
    """

    model: str
    prompt: str
    num_steps: int
    levels: tuple[ProbedLevel, ...]
    layers: tuple[int, ...]
    means: tuple[float, ...]
    window: tuple[int, int]


def probe_layers(
    source: str | Path,
    prompt: str,
    settings: Settings,
    *,
    run: Run | None = None,
    session: Session | None = None,
) -> LayerProbe:
    """Probe the layers of an edit of a clip; nothing but a missing inversion is written.

    Args:
        source: A trajectory, or anything before it; what is missing is run first.
        prompt: What the edit shows.
        settings: As for `reconstruct`; guided, masked and so on as the edit would be.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        UsageError: The edit does not attend to its source in a step to probe, or is a flow.
        CogeditError: As `reconstruct`.
    """
    from cogedit.models.device import memory_guard
    from cogedit.models.loading import alphas_cumprod
    from cogedit.models.predictor import Predictor
    from cogedit.models.sampling import edit_latents
    from cogedit.stages.trajectory import open_trajectory

    source, run = source_of(source, settings), run or Run()
    checkpoint = checkpoint_for(settings)
    edit = _checked_edit(source, prompt, settings)
    with use_session(session) as owner:
        owner.expect_prompts([edit.prompt, edit.negative_prompt])
        path = trajectory_for(
            source, [edit], settings, given=Given(), needs_file=True, run=run, session=owner
        ).path
        check_same_model(str(path), read_record(path, "trajectory"), checkpoint)
        record, inverted = open_trajectory(path, checkpoint)
        own, shape = record.settings.prompt, latent_shape(inverted.trajectory.latents)
        sizes = TransformerSizes.of(checkpoint.transformer_config)
        windows = record.windows
        together = _num_together(sizes, shape, windows)
        work = probe_work(edit, record.settings, sizes, shape, windows, num_together=together)
        table = alphas_cumprod(checkpoint)
        embeds = owner.embed([edit.prompt, edit.negative_prompt, own], settings, run=run)
        num_steps = edit.num_steps(record.settings.num_levels)
        with (
            memory_guard("probing the layers"),
            owner.transformer(
                work, shape, settings, windows=windows, loras=settings.lora, run=run
            ) as transformer,
        ):
            predictor = Predictor(transformer, table, embeds, settings.transformer, owner.ranks)
            with run.stoppable(f"editing: {prompt}", num_steps) as on_step:
                shown = WindowProgress(on_step, total=num_steps)
                samples = edit_latents(
                    predictor, inverted, [edit], on_step=shown.step, on_window=shown.window
                )
            schedule = Schedule.of_steps(num_steps)
            with run.stoppable("probing layers", len(probed_steps(edit, schedule))) as on_step:
                levels = probe_levels(
                    predictor,
                    inverted,
                    edit,
                    samples=samples,
                    num_together=together,
                    on_step=on_step,
                )
    return _summary(levels, edit, model=checkpoint.id, num_layers=sizes.num_layers)


def estimate_probe(
    source: str | Path,
    prompt: str,
    settings: Settings,
    *,
    download: bool = False,
    run: Run | None = None,
) -> Estimate:
    """Estimate what `probe_layers` would take, the inversion included; errors are its own, too."""
    from cogedit.models.device import DTYPES, memory_guard, resolve_device
    from cogedit.models.speed_probe import measure_speed

    source = source_of(source, settings)
    checkpoint = checkpoint_for(settings, download=download)
    edit = _checked_edit(source, prompt, settings)
    found = estimate(source, settings, run=run)
    sizes, shape = TransformerSizes.of(checkpoint.transformer_config), found.latent_shape
    inversion, windows = settings.invert, found.windows
    if sniff_kind(source) == "trajectory":
        inversion = read_record(source, "trajectory").settings
    together = _num_together(sizes, shape, windows)
    work = probe_work(edit, inversion, sizes, shape, windows, num_together=together)
    device, dtype = resolve_device(settings.device), dtype_for(settings)
    with memory_guard("measuring its speed"):
        speed = measure_speed(
            sizes, num_tokens=found.num_tokens, device=device, dtype=DTYPES[dtype]
        )
    activations = activation_bytes(
        sizes,
        window_shape(shape, windows),
        work,
        max_rows=settings.transformer.max_rows,
        item_size=ITEM_SIZE[dtype],
        device=device.type,
    )
    stage = StageEstimate("probe-layers", 0, 1, work, 0, seconds=speed.seconds(work.flops))
    memory = max(found.memory_bytes, found.transformer_bytes + activations)
    return replace(found, stages=(*found.stages, stage), memory_bytes=memory)


def _num_together(sizes: TransformerSizes, shape: LatentShape, windows: WindowPlan | None) -> int:
    return edits_together(math.prod(window_shape(shape, windows)) * sizes.out_channels)


def _checked_edit(source: Path, prompt: str, settings: Settings) -> ReconstructSettings:
    """Return the edit to probe in; UsageError where there is nothing to probe."""
    num_levels = levels_of(source, settings)
    edit = short_edit(settings.reconstruct_with(prompt), num_levels)
    check_edits([edit], checkpoint_for(settings), num_levels=num_levels)
    if edit.method == "flow":
        raise UsageError(
            "probe-layers probes an edit that denoises; found --method flow",
            hint="leave --method flow out: the layers that matter are the model's",
        )
    num_steps = edit.num_steps(num_levels)
    if not probed_steps(edit, Schedule.of_steps(num_steps)):
        raise UsageError(
            "the edit attends to its source in no step after the first, so no layer has an effect",
            hint="a higher --injection-strength, more --injection-steps or --num-inference-steps",
        )
    check_transformer(settings)  # it computes whatever exists
    return edit


def _summary(
    levels: Sequence[ProbedLevel], edit: ReconstructSettings, *, model: str, num_layers: int
) -> LayerProbe:
    layers = probed_layers(edit, num_layers)
    means = [
        sum(changes) / len(levels)
        for changes in zip(*(level.changes for level in levels), strict=True)
    ]
    first, end = narrowest_window(means, MOST)
    return LayerProbe(
        model=model,
        prompt=edit.prompt,
        num_steps=edit.num_inference_steps or 0,
        levels=tuple(levels),
        layers=tuple(layers),
        means=tuple(means),
        window=(layers.start + first, layers.start + end),
    )
