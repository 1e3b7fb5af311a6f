"""Plans: which frames of a video make the clip, and how a frame is resized. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from cogedit.errors import UsageError, VideoError
from cogedit.sources import ResizeBox, SourceVideo
from cogedit.types import LoadSettings

# A frame of 30000x1 pixels, cropped to a clip's shape, would be scaled to gigabytes first.
_MAX_SCALED_PIXELS = 8192 * 8192


@dataclass(frozen=True)
class ClipPlan:
    """The frames of a video that make a clip."""

    indices: tuple[int, ...]  # frames of the source, evenly spaced, 8n + 1 of them
    fps: Fraction  # the source's over the step, so that the clip plays at real speed
    notes: tuple[str, ...]  # what was left out and why, one phrase each


@dataclass(frozen=True)
class ResizePlan:
    """How a frame [source_height, source_width] becomes a frame [height, width] of the clip.

    Sizes are in pixels; `box` is exact enough for the step to be undone.
    """

    source_width: int
    source_height: int
    box: ResizeBox
    width: int
    height: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the new size, one phrase each."""
        notes = []
        box = self.box
        lost = 1 - self.width * self.height / (box.scaled_width * box.scaled_height)
        if box.mode == "crop" and lost > 0.1:
            notes.append(
                f"cropping removes {lost:.0%} of the image: --resize-mode pad keeps it, as does a "
                "--width and --height of its own aspect ratio"
            )
        scale = box.scaled_width / self.source_width
        if scale > 1.05:
            notes.append(f"the image is enlarged {scale:.1f} times")
        return tuple(notes)


def plan_clip(source: SourceVideo, settings: LoadSettings) -> ClipPlan:
    """Choose the frames of a clip.

    The skipped ends are removed first. The rest is taken whole if it fits into `max_num_frames`
    and no step is given; otherwise every step-th frame is, up to `max_num_frames`, where the step
    is `frame_sample_step` or the largest that still yields that many. The count is then rounded
    down to 8n + 1: the VAE packs 4 frames into a latent and returns another count for an even
    number of latents. Raises `VideoError` where the skipped ends leave nothing.
    """
    start = min(settings.skip_frames_start, source.num_frames)
    end = max(0, source.num_frames - settings.skip_frames_end)
    available = end - start
    if available <= 0:
        raise VideoError(
            f"no frame is left of {source.name}: it has {source.num_frames}, skipping "
            f"{settings.skip_frames_start} at the start and {settings.skip_frames_end} at the end",
            hint="skip fewer frames",
        )
    step = settings.frame_sample_step
    if step is None:
        step = max(1, available // settings.max_num_frames)
    sampled = range(start, end, step)
    chosen = sampled[: settings.max_num_frames]
    kept = chosen[: 8 * ((len(chosen) - 1) // 8) + 1]
    return ClipPlan(
        indices=tuple(kept),
        fps=source.fps / step,
        notes=_clip_notes(step, num_sampled=len(sampled), num_chosen=len(chosen), kept=len(kept)),
    )


def plan_resize(source_width: int, source_height: int, *, settings: LoadSettings) -> ResizePlan:
    """Plan how frames of the source's displayed size become frames of the clip's size.

    Raises `UsageError` where cropping would scale a long thin frame to gigabytes first.
    """
    width, height = settings.width, settings.height
    scaled_width, scaled_height = width, height
    # Wider than the clip, compared without a division: a/b > c/d as a*d > c*b.
    is_wider = source_width * height > width * source_height
    if settings.resize_mode != "stretch":
        if is_wider == (settings.resize_mode == "crop"):
            scaled_width = max(1, _round_ratio(source_width * height, source_height))
        else:
            scaled_height = max(1, _round_ratio(source_height * width, source_width))
    if scaled_width * scaled_height > _MAX_SCALED_PIXELS:
        raise UsageError(
            f"cropping frames of {source_width}x{source_height} to {width}x{height} would scale "
            f"them to {scaled_width}x{scaled_height}",
            hint="use --resize-mode pad or stretch",
        )
    box = ResizeBox(
        scaled_width=scaled_width,
        scaled_height=scaled_height,
        left=abs(scaled_width - width) // 2,
        top=abs(scaled_height - height) // 2,
        mode=settings.resize_mode,
    )
    return ResizePlan(source_width, source_height, box, width, height)


def check_size(width: int, height: int, *, multiple: int) -> None:
    """Raise `UsageError`, with the nearest sizes, unless both are multiples of `multiple`."""
    for name, value in (("width", width), ("height", height)):
        if value > 0 and value % multiple == 0:
            continue
        below = max(multiple, value // multiple * multiple)
        above = max(multiple, -(-value // multiple) * multiple)
        nearest = " or ".join(str(size) for size in sorted({below, above}))
        raise UsageError(
            f"{name} {value} does not suit this model: it must be a multiple of {multiple}; "
            f"nearest: {nearest}"
        )


def _round_ratio(numerator: int, denominator: int) -> int:
    # round() of a float goes to even at a half; this goes up, always.
    return (2 * numerator + denominator) // (2 * denominator)


def _clip_notes(step: int, *, num_sampled: int, num_chosen: int, kept: int) -> tuple[str, ...]:
    notes = []
    if step > 1:
        notes.append(f"took every {_ordinal(step)} frame")
    if num_sampled > num_chosen:
        frames = _count(num_sampled - num_chosen)
        notes.append(f"left out {frames} at the end beyond the {num_chosen} that fit")
    if num_chosen > kept:
        frames = _count(num_chosen - kept)
        notes.append(f"dropped {frames} to reach {kept} = 8*{(kept - 1) // 8}+1")
    return tuple(notes)


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
