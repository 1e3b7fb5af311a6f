"""Which layers hold an edit to its source: each leaves the reference out in turn.

An edit is made in a few steps. At some of them the model is asked again for its estimate of the
clean clip, x0^, with the reference left out in one layer and kept in all others:

    change of a layer = |x0^ without it - x0^| / |x0^ without a reference - x0^|

so that 1 is what the whole injection does at that step. Changes of layers do not add up to it: what
one layer does not bring in, a later one may.

The rows of a call share their reference. A row that leaves it out in layer k is like the others
until there, so it runs from k on (`plan_probe`). Of a clip in windows the first one is probed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cogedit.diffusion.schedule import Schedule
from cogedit.models.cost import (
    LatentShape,
    TransformerSizes,
    Work,
    call_work,
    edit_work,
    window_shape,
)
from cogedit.models.rows import (
    EditPrompts,
    edit_prompts,
    injection_strengths,
    plan_probe,
    plan_rows,
    prompt_bank,
)
from cogedit.types import InvertSettings, ReconstructSettings, WindowPlan

if TYPE_CHECKING:
    from torch import Tensor

    from cogedit.models.predictor import InvertedClips, Predictor
    from cogedit.progress import OnStep

NUM_STEPS = 10
"""Steps of the edit where the settings leave them open: enough to differ from the source."""

NUM_LEVELS = 3
"""Noise levels to probe at, evenly spaced over the steps with injection."""


@dataclass(frozen=True)
class ProbedLevel:
    """What leaving a reference out changes at one noise level.

    Attributes:
        step: Number of the edit's step, from 0.
        timestep: Its noise level.
        strength: Of the injection there.
        whole: Change of x0^ where the reference is left out in all layers, as a share of the root
            mean square of x0^.
        changes: For each layer of the window, what leaving it out there changes, as a share of the
            former.
    """

    step: int
    timestep: int
    strength: float
    whole: float
    changes: tuple[float, ...]


def short_edit(settings: ReconstructSettings, num_levels: int) -> ReconstructSettings:
    """Return the edit to probe in, of an inversion of so many timesteps."""
    num_steps = settings.num_inference_steps or min(NUM_STEPS, num_levels)
    return replace(settings, num_inference_steps=num_steps, auto_mask=False)


def probed_steps(settings: ReconstructSettings, schedule: Schedule) -> tuple[int, ...]:
    """Choose the steps to probe at, by number; none of the first, where edit and source are equal.

    An edit without two steps with injection has none.
    """
    attending = injection_strengths(settings, schedule)
    steps = [i for i, t in enumerate(schedule.timesteps) if i > 0 and t in attending]
    last = NUM_LEVELS - 1
    chosen = (steps[round(k * (len(steps) - 1) / last)] for k in range(NUM_LEVELS) if steps)
    return tuple(dict.fromkeys(chosen))


def probe_levels(
    predictor: Predictor,
    inverted: InvertedClips,
    settings: ReconstructSettings,
    *,
    samples: Tensor,
    num_together: int,
    on_step: OnStep | None = None,
) -> list[ProbedLevel]:
    """Probe the layers of an edit's window of injection, at the levels of `probed_steps`.

    Args:
        predictor: The model, with embeddings of the edit's prompts and of the inversion's.
        inverted: The one clip.
        settings: The edit's, as `short_edit` returns them.
        samples: The edit's own, after each of its steps, [S, 1, F, C, H, W].
        num_together: How many samples may be denoised together.
        on_step: Called after each level.

    Raises:
        NumericalError: NaN or Inf appeared.
    """
    from cogedit.models.attention import Injection
    from cogedit.models.denoiser import Denoiser
    from cogedit.models.forward import run_rows
    from cogedit.models.sampling import edit_schedule
    from cogedit.progress import StepInfo

    reference, transformer = inverted.trajectory, predictor.transformer
    schedule = edit_schedule(settings, reference, predictor.alphas_cumprod)
    strengths = injection_strengths(settings, schedule)
    bank, (own,) = prompt_bank([settings], inverted.prompts), inverted.prompts
    prompts = replace(edit_prompts(settings, own, bank, source=0), unconditional=None)
    denoiser = Denoiser(
        transformer,
        embeds=predictor.embeds_of(bank),
        prompts=[prompts],
        condition=inverted.condition,
        reference_condition=inverted.condition,
        injection={t: Injection.of(settings, w) for t, w in strengths.items()},
    )
    groups = _groups(settings, len(transformer.transformer_blocks), num_together)
    steps, found = probed_steps(settings, schedule), []
    seen = slice(None if reference.windows is None else reference.windows.length)
    with run_rows(transformer, predictor.options):
        for number, step in enumerate(steps):
            t = schedule.timesteps[step]
            x, source = samples[step - 1][:, seen].to(transformer.device), reference.at(t)[:, seen]
            estimates = [denoiser.velocity(x, t)]
            for group in groups:
                rows = denoiser.rows(plan_probe(prompts, group), x, t, source)
                estimates.append(rows[: 1 + len(group)])
            whole, changes = _changes(estimates, x, schedule=schedule, timestep=t)
            found.append(ProbedLevel(step, t, strengths[t], whole, changes))
            if on_step is not None:
                on_step(StepInfo(number, len(steps), t))
    return found


def _changes(
    velocities: Sequence[Tensor], sample: Tensor, *, schedule: Schedule, timestep: int
) -> tuple[float, tuple[float, ...]]:
    """Return `whole` and `changes` of a level.

    The velocities are that of the edit without a reference and, for each group of layers, those
    of the edit and of its rows that leave the reference out, [rows, F, C, H, W].
    """
    from cogedit.diffusion.ddim import pred_original_sample, require_finite

    for v in velocities:
        require_finite(v, name="a velocity", step=1, timestep=timestep)
    (without,), *groups = (
        pred_original_sample(v, sample, schedule=schedule, timestep=timestep) for v in velocities
    )
    whole = _norm(without - groups[0][0])
    changes = [_share(_norm(one - group[0]), whole) for group in groups for one in group[1:]]
    return _share(whole, _norm(groups[0][0])), tuple(changes)


def probe_work(
    settings: ReconstructSettings,
    inversion: InvertSettings,
    sizes: TransformerSizes,
    shape: LatentShape,
    windows: WindowPlan | None = None,
    *,
    num_together: int,
) -> Work:
    """Count a probe with its edit, whose settings are those of `short_edit`."""
    schedule = Schedule.of_steps(settings.num_steps(inversion.num_levels))
    strengths = injection_strengths(settings, schedule)
    work = edit_work([settings], inversion, sizes, shape, windows)
    seen = window_shape(shape, windows)
    prompts = EditPrompts(0, None, 0, 0)
    alone = call_work(plan_rows([prompts], guided=False, referenced=False), sizes, seen)
    for step in probed_steps(settings, schedule):
        work += alone
        for group in _groups(settings, sizes.num_layers, num_together):
            plan = plan_probe(prompts, group)
            work += call_work(plan, sizes, seen, injection=settings, strength=strengths[step])
    return work


def narrowest_window(changes: Sequence[float], share: float) -> tuple[int, int]:
    """Return the first and the end of the fewest neighbours that hold a share of a sum."""
    wanted, count = share * sum(changes), len(changes)
    windows = [
        (end - first, first, end)
        for first in range(count)
        for end in range(first + 1, count + 1)
        if sum(changes[first:end]) >= wanted * (1 - 1e-9)
    ]
    _, first, end = min(windows)
    return first, end


def probed_layers(settings: ReconstructSettings, num_layers: int) -> range:
    """Return the layers to probe: those of the edit's window of injection."""
    first, end = settings.injection_layers
    return range(first, num_layers if end is None else end)


def _groups(settings: ReconstructSettings, num_layers: int, num_together: int) -> list[range]:
    """Return the layers of each call, beside whose rows that of the whole edit runs."""
    layers, size = probed_layers(settings, num_layers), max(1, num_together - 1)
    return [layers[first : first + size] for first in range(0, len(layers), size)]


def _norm(x: Tensor) -> float:
    return float(x.float().norm())


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
