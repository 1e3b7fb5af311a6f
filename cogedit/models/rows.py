"""Batch rows of one transformer call, and the reference row that each of them attends to.

An edit row is a sample under a prompt; a reference row is the source's sample at the same timestep,
under a prompt. Rows that would be equal are run once: the unconditional reference row that all
edits share, or the single row that is left where both sides of guidance are under one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogedit.diffusion.schedule import Schedule
from cogedit.types import ReconstructSettings

MIN_STRENGTH = 0.05
"""A strength that changes over the steps is off below this: it would not be worth its rows.

The reference's share of the attention is then less than a twentieth of the row's own.
"""

_SETTLED = 0.3
"""Share of an edit's steps after which the difference between the sides of guidance hardly turns.

In 24 steps of the embedded model, before it that of a step has a cosine of 0.1 to 0.9 with that of
the step before, after it one of 0.93 to 0.99, at nearly the same length.
"""

_ROUNDING = 1e-9
"""0.1 of 30 steps are 3, whatever a float makes of it."""

_CHUNK_TOKENS = 2**15
"""Tokens of a chunk of rows where `max_rows` leaves it open: one row of 49 frames at 720x480.

That many keep every kernel of a large device busy; a small model takes all its rows at once.
"""
_CHUNK_TOKENS_CPU = 2**11
"""The same on a CPU, where a chunk that the caches hold is faster than a larger one."""


def rows_at_a_time(max_rows: int | None, *, num_tokens: int, device: str) -> int:
    """Return how many rows of so many tokens run at a time in a layer, on this type of device."""
    chunk = _CHUNK_TOKENS_CPU if device == "cpu" else _CHUNK_TOKENS
    return max_rows or max(1, chunk // num_tokens)


@dataclass(frozen=True)
class EditPrompts:
    """The prompts of one edit, as indices into the embeddings of a run.

    Attributes:
        conditional: What the edit shows.
        unconditional: The other side of guidance; None means no guidance.
        reference_conditional: Prompt of the reference row that the conditional row attends to.
        reference_unconditional: Prompt of the one that the unconditional row attends to.
        source: Index of the source clip.
    """

    conditional: int
    unconditional: int | None
    reference_conditional: int
    reference_unconditional: int
    source: int = 0

    @property
    def indices(self) -> tuple[int | None, ...]:
        """Every prompt that it may need."""
        references = self.reference_conditional, self.reference_unconditional
        return self.conditional, self.unconditional, *references


def prompt_bank(
    settings: Sequence[ReconstructSettings], inversion_prompts: Iterable[str]
) -> list[str]:
    """Return the prompts that some edits and their sources need, each once."""
    of_edits = (prompt for edit in settings for prompt in (edit.negative_prompt, edit.prompt))
    return list(dict.fromkeys((*of_edits, *inversion_prompts)))


def edit_prompts(
    settings: ReconstructSettings, inversion_prompt: str, bank: Sequence[str], *, source: int
) -> EditPrompts:
    """Choose the prompts of an edit's rows, as indices into the prompts of the run (`bank`)."""
    follows_edit = settings.reference_prompt == "edit"
    negative = settings.unconditional == "negative"
    unconditional = settings.negative_prompt if negative else inversion_prompt
    reference = settings.prompt if follows_edit else inversion_prompt
    shared = settings.reference_rows == "one"
    return EditPrompts(
        conditional=bank.index(settings.prompt),
        unconditional=bank.index(unconditional),
        reference_conditional=bank.index(reference),
        reference_unconditional=bank.index(reference if shared else unconditional),
        source=source,
    )


def needs_reference_velocity(settings: ReconstructSettings) -> bool:
    """Whether the reference rows run to the last layer, for the velocity that they predict.

    A flow takes the source's velocity from them where they are under the prompt and the guidance of
    its source side.
    """
    return (
        settings.method == "flow"
        and settings.reference_prompt == "inversion"
        and settings.source_guidance_scale == 1
    )


def injection_strengths(settings: ReconstructSettings, schedule: Schedule) -> dict[int, float]:
    """Return the strength of the injection at the timesteps that have one, noisiest first.

    A strength FIRST:LAST goes in a straight line from the beginning to the end of the window of
    steps. With i of N steps done, it is

        FIRST + (LAST - FIRST) (i / N - begin) / (end - begin)

    so it depends on how far the edit is, and not on how many steps it takes.
    """
    strength, (begin, end) = settings.injection_strength, settings.injection_steps
    window, total = schedule.window(begin, end), len(schedule.timesteps)
    if not isinstance(strength, tuple):
        return {t: strength for t in schedule.timesteps if t in window and strength > 0}
    first, last = strength
    found = {
        t: first + (last - first) * (i / total - begin) / (end - begin)
        for i, t in enumerate(schedule.timesteps)
        if t in window
    }
    return {t: w for t, w in found.items() if w >= MIN_STRENGTH}


def injection_jumps(settings: ReconstructSettings, schedule: Schedule) -> frozenset[int]:
    """Return the timesteps of a window at whose edges the injection sets in or ends at once.

    Where it falls to nothing or grows from nothing, the model changes no more from one step to the
    next than it does between the others, so the window has no edge there.
    """
    strength, (begin, end) = settings.injection_strength, settings.injection_steps
    attending = injection_strengths(settings, schedule)
    if not isinstance(strength, tuple) or not attending:
        return frozenset(attending)
    first, last = strength
    return schedule.window(
        begin if first >= MIN_STRENGTH else 0.0, end if last >= MIN_STRENGTH else 1.0
    )


def guidance_reused(settings: ReconstructSettings, schedule: Schedule) -> frozenset[int]:
    """Return the guided timesteps at which the difference between the sides is used again.

    At the others both sides are predicted. `ReconstructSettings.guidance_reuse` says in how many
    steps one difference serves: by default in one more of 24, in two of 50, and in none of fewer
    than 20. Where the injection sets in or ends at once, both sides change and are predicted anew.
    Other models show the same convergence (arXiv 2312.12487, 2410.19355). A flow needs both sides
    throughout: under one prompt they are to cancel those of its source, and with other noise at
    each timestep their difference is another, too.
    """
    if settings.guidance_scale == 1 or settings.method == "flow":
        return frozenset()
    most = math.floor(settings.guidance_reuse * len(schedule.timesteps) + _ROUNDING)
    guided = schedule.window(*settings.guidance_steps)
    settled = schedule.window(_SETTLED, 1.0)
    jumps = schedule.changes(injection_jumps(settings, schedule))
    found, times = list[int](), most  # at first there is nothing to use again
    for t in schedule.timesteps:
        if t in guided:
            is_due = t not in settled or t in jumps or times == most
            found += [] if is_due else [t]
            times = 0 if is_due else times + 1
    return frozenset(found)


@dataclass(frozen=True)
class Row:
    """One row of a batch: a sample, of the edits or of the sources, under a prompt; by indices."""

    sample: int
    prompt: int


@dataclass(frozen=True)
class RowPlan:
    """The rows of one call, edits first.

    Attributes:
        reference_of: For each edit row, the row of the batch that it attends to; empty without
            references.
        conditional: For each edit, its conditional row.
        unconditional: For each edit, its unconditional row; the conditional one without guidance.
        reference: For each edit, the reference row of its conditional row; empty without.
        reference_velocity: Whether the reference rows run to the last layer, for the velocity that
            they predict; they stop after the last layer with injection otherwise.
        parts_in: For each edit row after the first, the layer in which it attends to itself alone,
            rising. Until then it is the first row, and does not run. Empty but for `plan_probe`.
    """

    edits: tuple[Row, ...]
    references: tuple[Row, ...]
    reference_of: tuple[int, ...]
    conditional: tuple[int, ...]
    unconditional: tuple[int, ...]
    reference: tuple[int, ...]
    reference_velocity: bool
    parts_in: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(self.edits) + len(self.references)

    @property
    def prompts(self) -> list[int]:
        """Index of the prompt of each row."""
        return [row.prompt for row in (*self.edits, *self.references)]

    def running(self, layer: int) -> range:
        """Edit rows that run in a layer, beside those that part in it."""
        return range(len(self.edits) - sum(part >= layer for part in self.parts_in))


def plan_rows(
    prompts: Sequence[EditPrompts],
    *,
    guided: bool,
    referenced: bool,
    reference_velocity: bool = False,
) -> RowPlan:
    """Lay out the rows of one call.

    With guidance and references, one edit under upstream's prompts gives upstream's four rows,
    [edit-uncond, edit-cond, ref-uncond, ref-cond]; N edits of one source give 3N + 1, or 2N + 1
    where all reference rows are under one prompt. The unconditional rows run if `guided`, the
    reference rows if `referenced`.
    """
    edits: dict[tuple[Row, int | None], int] = {}
    references: dict[Row, int] = {}

    def edit_row(edit: int, prompt: int, reference_prompt: int) -> int:
        target = None
        if referenced:
            reference = Row(prompts[edit].source, reference_prompt)
            target = references.setdefault(reference, len(references))
        return edits.setdefault((Row(edit, prompt), target), len(edits))

    conditional, unconditional = [], []
    for edit, own in enumerate(prompts):
        if guided and own.unconditional is not None:
            unconditional.append(edit_row(edit, own.unconditional, own.reference_unconditional))
        conditional.append(edit_row(edit, own.conditional, own.reference_conditional))
        if len(unconditional) < len(conditional):
            unconditional.append(conditional[-1])
    first = len(edits)
    reference_of = tuple(first + target for _, target in edits if target is not None)
    return RowPlan(
        edits=tuple(row for row, _ in edits),
        references=tuple(references),
        reference_of=reference_of,
        conditional=tuple(conditional),
        unconditional=tuple(unconditional),
        reference=tuple(reference_of[row] for row in conditional) if referenced else (),
        reference_velocity=referenced and reference_velocity,
    )


def plan_probe(prompts: EditPrompts, layers: Sequence[int]) -> RowPlan:
    """Lay out one edit, and the same once more for each of some layers, which it leaves out.

    The layers rise. All rows attend to one reference row, which needs to run once for all of them.
    """
    first = 1 + len(layers)
    return RowPlan(
        edits=(Row(0, prompts.conditional),) * first,
        references=(Row(prompts.source, prompts.reference_conditional),),
        reference_of=(first,) * first,
        conditional=(0,),
        unconditional=(0,),
        reference=(first,),
        reference_velocity=False,
        parts_in=tuple(layers),
    )
