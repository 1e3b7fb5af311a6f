"""What is said of edits before they are made: settings without effect, and a missing prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cogedit.stages.given import Given
from cogedit.types import ReconstructSettings


def no_effect_notes(options: Sequence[ReconstructSettings], given: Given) -> Iterator[str]:
    """Say that a seed or a prompt has no effect: the edit is not what it may seem to be."""
    fixed = [edit for edit in options if not edit.draws_noise]
    if {edit.seed for edit in fixed} - {ReconstructSettings.seed}:
        remedy = "--start-from random" if fixed[0].method == "flow" else "--start-noise 0.3"
        yield (
            "the seed has no effect: the edit starts from the source's own noise "
            f"({remedy} adds noise that depends on the seed)"
        )
    tokens = ReconstructSettings.injection_tokens
    if any(e.injection_mode == "queries-keys" and e.injection_tokens != tokens for e in options):
        yield "--injection-tokens changes nothing with --injection-mode queries-keys"
    if given.first_frame is not None:
        return
    if any(not edit.prompt.strip() for edit in options):
        yield "the prompt is empty: the edit shows what the model makes of the source alone"
    elif all(edit.guidance_scale == 1 for edit in options):
        yield (
            "guidance is off (scale 1), which follows a prompt weakly; --guidance-scale 5 turns "
            "it on"
        )


def source_prompt_notes(options: Sequence[ReconstructSettings]) -> Iterator[str]:
    """Say, of edits of an inversion without a prompt, which settings would make use of one."""
    remedy = "--source-prompt says what the source shows"
    if any(edit.auto_mask for edit in options):
        yield (
            f"--auto-mask compares the prompt with an empty one; the mask is better where {remedy}"
        )
    if any(edit.unconditional == "source" and edit.prompt.strip() for edit in options):
        yield (
            "guidance points from the source's prompt, which is empty, to the edit's; the edit is "
            f"better where {remedy}"
        )
