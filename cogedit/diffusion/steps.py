"""Which of an inversion's levels an edit visits, by their numbers; needs no torch."""

from __future__ import annotations

from cogedit.errors import UsageError


def visited(total: int, num_inference_steps: int | None, *, start_step: int = 0) -> tuple[int, ...]:
    """Return which of the levels 0 to total - 1, from the noisiest down, an edit visits.

    Args:
        total: How many levels the inversion visited.
        num_inference_steps: How many of them to keep, evenly spaced from the noisiest; None keeps
            all.
        start_step: How many of the noisiest of these to leave out.

    Raises:
        UsageError: More levels than there are, or none is left.
    """
    kept = total if num_inference_steps is None else num_inference_steps
    if not 1 <= kept <= total:
        raise UsageError(
            f"the edit asks for {kept} steps; the inversion visits {total}",
            hint=f"choose at most {total}, or invert with more --num-inference-steps",
        )
    if not 0 <= start_step < kept:
        raise UsageError(f"start_step is {start_step}; the edit has {kept} steps, 0 to {kept - 1}")
    return tuple(i * total // kept for i in range(start_step, kept))
