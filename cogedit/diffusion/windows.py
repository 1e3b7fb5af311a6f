"""Clips longer than the model's own: one velocity, from overlapping windows of the latent frames.

    v(x, t) = sum_w m_w v_theta(x|w, t) / sum_w m_w

(MultiDiffusion, arXiv 2302.08113, over time.) The model sees every window as a clip of its own
length, with positions that begin anew. The weights m_w are 1 inside of a window and fall towards a
neighbour in a ramp over the frames that they share: 0.8, 0.6, 0.4, 0.2 for 4.

Which windows there are follows from the timestep alone, never from the direction, from a count of
steps or from the steps of this run. So v is one function of the sample and its noise level, and
whatever holds for a model holds for it: an inversion and the edits of its trajectory, which may
visit some of the timesteps only, meet the same windows at the same noise. No torch in here for the
places of windows: a dry run counts them without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from cogedit.types import WindowPlan

if TYPE_CHECKING:
    from torch import Tensor

Ask = Callable[[Iterable[tuple["Tensor", ...]]], Iterable[Sequence["Tensor"]]]
"""Answers windows in their order, of each the same frames of all samples: `partial(starmap, f)`."""

OnWindow = Callable[[int, int], None]
"""Called after each window of a model call with how many are done, and of how many."""


def moves_windows(timestep: int) -> bool:
    """Whether windows lie elsewhere at this timestep than at the clean sample's, against seams.

    It is so at about half of the timesteps of every schedule. A period of 74 / 5 timesteps, out of
    step with the distances that schedules have, was found by search: of 1000 timesteps, the levels
    of 50, 25 and 12 steps, with low levels or midpoints, and every second of them, change sides
    after 3 levels at the latest, those of 8 to 100 steps after 5.
    """
    return (5 * timestep + 34) % 74 >= 37


def window_starts(plan: WindowPlan, num_frames: int, *, moved: bool) -> tuple[int, ...]:
    """Return the first latent frame of each window, ascending, where they are moved or not.

    Neighbours share `plan.overlap` frames, and the first or the last two may share more: all lie
    inside of the clip, and cover it. A clip that one window holds is one window.
    """
    last, stride = max(0, num_frames - plan.length), plan.length - plan.overlap
    first = plan.shift - stride if moved and plan.shift else 0
    return tuple(dict.fromkeys(max(0, min(s, last)) for s in range(first, last + stride, stride)))


def window_weights(plan: WindowPlan, num_frames: int, starts: Sequence[int]) -> list[list[float]]:
    """Return m_w / sum_w m_w: for each window, a weight for each of its frames.

    A window falls off towards its neighbours only, and not at the ends of the clip.
    """
    length = min(plan.length, num_frames)
    raw: list[list[float]] = []
    for start in starts:
        rise = plan.overlap + 1 if start > starts[0] else 1
        fall = plan.overlap + 1 if start < starts[-1] else 1
        raw.append([min(1, (k + 1) / rise, (length - k) / fall) for k in range(length)])
    covering = list(zip(starts, raw, strict=True))
    sums = [
        sum(weights[k - start] for start, weights in covering if start <= k < start + length)
        for k in range(num_frames)
    ]
    return [
        [weight / sums[k] for k, weight in enumerate(weights, start)] for start, weights in covering
    ]


def over_windows(
    ask: Ask,
    *samples: Tensor,
    timestep: int,
    plan: WindowPlan | None,
    on_window: OnWindow | None = None,
) -> Sequence[Tensor]:
    """Ask a model about each window, one after the other, and join what it answers.

    So memory holds one window's activations. Without a plan, and where one window holds the clip,
    the model is asked once and its answer is returned as it is.

    Args:
        ask: Velocities, [B, F, C, H, W] each, of windows of the samples.
        samples: [B, F, C, H, W] each, with the same F.
        timestep: Which the samples are of.
        plan: The windows; None is one pass over the whole clip.
        on_window: Called after each window.

    Returns:
        As many velocities as the model gives, of all frames.
    """
    num_frames = samples[0].shape[1]
    if plan is None or num_frames <= plan.length:
        [answer] = ask([samples])
        return answer
    starts = window_starts(plan, num_frames, moved=moves_windows(timestep))
    answers = ask(
        tuple(sample[:, start : start + plan.length] for sample in samples) for start in starts
    )
    joined: list[Tensor] = []
    for number, (start, weights, parts) in enumerate(
        zip(starts, window_weights(plan, num_frames, starts), answers, strict=True), 1
    ):
        end = start + plan.length
        if not joined:
            joined = [v.new_zeros(v.shape[0], num_frames, *v.shape[2:]) for v in parts]
        share = parts[0].new_tensor(weights)[:, None, None, None]
        joined = [
            whole.slice_scatter(whole[:, start:end] + share * v, dim=1, start=start, end=end)
            for whole, v in zip(joined, parts, strict=True)
        ]
        if on_window is not None:
            on_window(number, len(starts))
    return joined
