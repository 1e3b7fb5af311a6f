"""What is said of edits before they are made: settings without effect, and a missing prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cogedit.stages.given import Given
from cogedit.types import InvertSettings, ReconstructSettings


def no_effect_notes(options: Sequence[ReconstructSettings], given: Given) -> Iterator[str]:
    """Say which settings have no effect: the edit is not what it may seem to be."""
    fixed = [edit for edit in options if not edit.draws_noise]
    if {edit.seed for edit in fixed} - {ReconstructSettings.seed}:
        remedy = "--start-from random" if fixed[0].method == "flow" else "--start-noise 0.3"
        yield (
            "the seed has no effect: the edit starts from the source's own noise "
            f"({remedy} adds noise that depends on the seed)"
        )
    for flag, why in _idle_in_all(options, has_mask=given.mask is not None):
        yield f"{flag} changes nothing {why}"
    if given.first_frame is not None:
        return
    if any(not edit.prompt.strip() for edit in options):
        yield "the prompt is empty: the edit shows what the model makes of the source alone"
    elif all(edit.guidance_scale == 1 for edit in options):
        yield (
            "guidance is off (scale 1), which follows a prompt weakly; --guidance-scale 5 turns "
            "it on"
        )


def _idle_in_all(
    options: Sequence[ReconstructSettings], *, has_mask: bool
) -> list[tuple[str, str]]:
    """Return the flags that change none of some edits, and why."""
    first, *others = [[*_idle(edit, has_mask=has_mask)] for edit in options] or [[]]
    return [flag for flag in first if all(flag in idle for idle in others)]


def _idle(edit: ReconstructSettings, *, has_mask: bool) -> Iterator[tuple[str, str]]:
    """Yield the flags that change nothing in an edit, and why; a preset may have given them."""
    default = ReconstructSettings(prompt="")
    is_flow = edit.method == "flow"
    replays = edit.injection_mode != "concatenate"
    if replays and edit.injection_tokens != default.injection_tokens:
        yield "--injection-tokens", "without --injection-mode concatenate"
    # 0 is what the presets say that have no use for it.
    if replays and edit.injection_recentering not in (0, default.injection_recentering):
        yield "--injection-recentering", "without --injection-mode concatenate"
    if edit.source_guidance_scale != default.source_guidance_scale and not is_flow:
        yield "--source-guidance-scale", "without --method flow"
    if edit.start_noise is not None and is_flow:
        yield "--start-noise", "with --method flow, where --start-from random adds noise"
    is_guided = edit.guidance_scale != 1 or (is_flow and edit.source_guidance_scale != 1)
    if edit.negative_prompt and not is_guided:
        yield "--negative-prompt", "without guidance (--guidance-scale 1)"
    elif edit.negative_prompt and edit.unconditional == "source":
        yield "--negative-prompt", "with --unconditional source"
    # 0 is what the presets say that predict both sides in every step.
    if edit.guidance_reuse not in (0, default.guidance_reuse) and (is_flow or not is_guided):
        why = "with --method flow" if is_flow else "without guidance (--guidance-scale 1)"
        yield "--guidance-reuse", why
    if edit.auto_mask_threshold != default.auto_mask_threshold and not edit.auto_mask:
        yield "--auto-mask-threshold", "without --auto-mask"
    if edit.mask_dilation is not None and not (edit.auto_mask or has_mask):
        yield "--mask-dilation", "without --mask or --auto-mask"


def inversion_notes(inversion: InvertSettings) -> Iterator[str]:
    """Say which settings of an inversion have no effect."""
    default = InvertSettings().inversion_iterations
    if inversion.inverse != "consistent" and inversion.inversion_iterations != default:
        yield f"--inversion-iterations changes nothing with --inverse {inversion.inverse}"


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
