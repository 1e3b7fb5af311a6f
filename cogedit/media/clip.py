"""Plans: which frames of a video make the clip, and how a frame is resized. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cogedit.clip_times import ClipTime, parse_time, show_time
from cogedit.errors import UsageError, VideoError
from cogedit.media.timing import TIME_TOLERANCE, Timing, even_timing
from cogedit.sources import ResizeBox, SourceVideo
from cogedit.types import LoadSettings
from cogedit.wording import count_of, show_rate

# A frame of 30000x1 pixels, cropped to a clip's shape, would be scaled to gigabytes first.
_MAX_SCALED_PIXELS = 8192 * 8192

SPARSE_SECONDS = Fraction(1, 2)
"""How far apart frames may be for what lies between them to be told from them, as a rule."""

ANY_SIZE = "a --width and --height of its own aspect ratio"
"""What crops less, for a model of which nothing else is known."""

_TIMES = ("start", "end", "duration")
_SKIPS = ("skip_frames_start", "skip_frames_end")


@dataclass(frozen=True)
class ClipPlan:
    """The frames of a video that make a clip."""

    indices: tuple[int, ...]  # frames of the source, evenly spaced, 8n + 1 of them
    fps: Fraction  # the source's over the step, so that the clip plays at real speed
    num_extra: int  # of the last of them, how many were only added to reach 8n + 1
    end: int | None  # the first frame after its time, where that is cut off by --end or --duration
    notes: tuple[str, ...]  # which seconds were taken and how to take others, one phrase each


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

    def notes(self, *, other_size: str | None = ANY_SIZE) -> tuple[str, ...]:
        """Notes for the user about the new size, one phrase each.

        `other_size` names one that the model takes and that crops less; None is none.
        """
        notes = []
        box = self.box
        lost = 1 - self.width * self.height / (box.scaled_width * box.scaled_height)
        if box.mode == "crop" and lost > 0.1:
            also = "" if other_size is None else f", and {other_size} crops less"
            notes.append(
                f"cropping removes {lost:.0%} of the image: --resize-mode pad keeps it{also}"
            )
        scale = box.scaled_width / self.source_width
        if scale > 1.05:
            notes.append(f"the image is enlarged {scale:.1f} times")
        return tuple(notes)


def plan_clip(
    source: SourceVideo,
    settings: LoadSettings,
    *,
    timing: Timing | None = None,
    model_rate: Fraction | None = None,
    takes_longer: bool = True,
    shows_all: bool = False,
) -> ClipPlan:
    """Choose the frames of a clip.

    From where it begins, every step-th frame is taken, until it has `max_num_frames` or ends. The
    step is `frame_sample_step`, or with `frame_rate` "model" the one that comes nearest to the rate
    that the model was trained at, otherwise 1. With "sparse" it is the smallest that reaches the
    end, at most `SPARSE_SECONDS`.

    The VAE packs 4 frames into a latent and takes 8n + 1 of them: those that are missing are the
    next ones of the source, and where it has none the last one again. With "spread" the step is the
    largest that still yields `max_num_frames`, and the count is rounded down to 8n + 1, as in the
    upstream script.

    Args:
        source: The video.
        settings: Which frames are wanted.
        timing: When its stored frames are shown; None is one after the other at its rate.
        model_rate: Frames per second that the model was trained at; None takes every frame.
        takes_longer: Whether the model takes clips of any length, in windows, for the notes.
        shows_all: Whether the video shows the frames between the clip's as well, likewise.

    Raises:
        UsageError: The seconds end before they begin, or are given in two ways.
        VideoError: The video has no frame there.
    """
    timing = timing or even_timing(source.num_frames, source.fps)
    span = find_span(source, settings, timing=timing)
    step = settings.frame_sample_step or 1
    if settings.frame_rate == "spread":
        step = settings.frame_sample_step or max(1, len(span) // (settings.max_num_frames or 1))
    elif settings.frame_rate == "sparse" and settings.frame_sample_step is None:
        most = max(1, math.floor(source.fps * SPARSE_SECONDS))
        step = most
        if settings.max_num_frames is not None:
            step = min(most, -(-len(span) // settings.max_num_frames))
    elif settings.frame_rate == "model" and settings.frame_sample_step is None and model_rate:
        step = nearest_step(source.fps, model_rate)
    chosen = span[::step][: settings.max_num_frames]
    num_extra = -(len(chosen) - 1) % 8
    if settings.frame_rate == "spread":
        chosen, num_extra = chosen[: 8 * ((len(chosen) - 1) // 8) + 1], 0
    beyond = range(chosen[-1] + step, source.num_frames, step)[:num_extra]
    taken = (*chosen, *beyond)
    whole = min(chosen[-1] + step, source.num_frames)  # if its last frame is shown a whole step
    is_cut = (settings.end or settings.duration) is not None and span.stop < whole
    return ClipPlan(
        indices=(*taken, *taken[-1:] * (num_extra - len(beyond))),
        fps=source.fps / step,
        num_extra=num_extra,
        end=span.stop if is_cut else None,
        notes=(
            _seconds_note(
                source,
                settings,
                span,
                chosen,
                whole=whole,
                takes_longer=takes_longer,
                shows_all=shows_all,
            ),
            *_extra_notes(num_extra, num_beyond=len(beyond), num_chosen=len(chosen)),
        ),
    )


def find_span(source: SourceVideo, settings: LoadSettings, *, timing: Timing) -> range:
    """The frames among which a clip's are chosen: those of the seconds that were asked for.

    A clip begins with the frame that is on the screen then, and the frame that appears at its end
    is the first after it. Arguments and errors are those of `plan_clip`.
    """
    check_times(settings)
    total, lasts = source.num_frames, show_time(source.num_frames / source.fps)
    if (settings.start, settings.end, settings.duration) == (None, None, None):
        first = settings.skip_frames_start
        end = total - settings.skip_frames_end
        if first >= end:
            raise VideoError(
                f"no frame is left of {source.name}: it has {total}, skipping "
                f"{settings.skip_frames_start} at the start and {settings.skip_frames_end} at the "
                "end",
                hint="skip fewer frames",
            )
        return range(first, end)
    grid = source.fps if source.is_resampled else None
    start = parse_time(settings.start or 0)
    first = _on_screen(start, timing, grid)
    if first >= total or start.at(timing.rate) >= total / source.fps:
        raise VideoError(
            f"{source.name} has no frame at {start.shown}: it lasts {lasts} "
            f"({count_of(total, 'frame')} at {show_rate(source.fps)})",
            hint="name an earlier time",
        )
    end = total
    if settings.duration is not None:
        length = parse_time(settings.duration)
        if length.frame is not None:
            end = first + _first_from(length, timing, grid)
        else:
            at = ClipTime(seconds=start.at(timing.rate) + length.at(timing.rate))
            end = _first_from(at, timing, grid)
    elif settings.end is not None:
        stop = parse_time(settings.end)
        if stop.at(timing.rate) <= start.at(timing.rate):
            raise UsageError(
                f"--end {stop.shown} is not after --start {start.shown}",
                hint="end later, or say how long with --duration",
            )
        end = _first_from(stop, timing, grid)
    return range(first, min(max(first + 1, end), total))


def check_times(settings: LoadSettings) -> None:
    """Raise `UsageError` where the seconds of a clip are given in two ways, or are none."""
    skips = [f"--{name.replace('_', '-')}" for name in _SKIPS if getattr(settings, name)]
    times = [f"--{name}" for name in _TIMES if getattr(settings, name) is not None]
    if skips and times:
        raise UsageError(
            f"{times[0]} and {skips[0]} both say which part of the video is taken",
            hint=f"give {times[0]} in frames, such as {times[0]} 300f, and leave {skips[0]} out",
        )
    if settings.end is not None and settings.duration is not None:
        raise UsageError("--end and --duration both say where the clip ends", hint="give one")
    if settings.duration is not None and parse_time(settings.duration).at(Fraction(1)) == 0:
        raise UsageError(f"--duration is {settings.duration}, expected more than 0")


def nearest_step(fps: Fraction, rate: Fraction) -> int:
    """The step at which a video of `fps` comes nearest to a rate, in frames per second."""
    below = max(1, fps // rate)
    return min(below, below + 1, key=lambda step: abs(fps / step - rate))


def _on_screen(time: ClipTime, timing: Timing, grid: Fraction | None) -> int:
    """The number of the frame that is shown at a time; frames of it are those of the video."""
    if grid is not None:
        return math.floor((time.at(timing.rate) + TIME_TOLERANCE) * grid)
    return timing.on_screen(time.at(timing.rate)) if time.frame is None else time.frame


def _first_from(time: ClipTime, timing: Timing, grid: Fraction | None) -> int:
    """The number of the first frame that appears at a time or later."""
    if grid is not None:
        return math.ceil((time.at(timing.rate) - TIME_TOLERANCE) * grid)
    return timing.first_from(time.at(timing.rate)) if time.frame is None else time.frame


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


def _round_ratio(numerator: int, denominator: int) -> int:
    # round() of a float goes to even at a half; this goes up, always.
    return (2 * numerator + denominator) // (2 * denominator)


def _seconds_note(
    source: SourceVideo,
    settings: LoadSettings,
    span: range,
    chosen: Sequence[int],
    *,
    whole: int,
    takes_longer: bool,
    shows_all: bool,
) -> str:
    """Say which seconds were taken at which rate, and how to take others."""
    step = chosen.step if isinstance(chosen, range) else 1
    fps = source.fps
    times = [show_time(place / fps) for place in (chosen[0], whole, source.num_frames)]
    rate = f"every {_ordinal(step)} frame, " if step > 1 else ""
    text = (
        f"{source.name}: {times[0]} to {times[1]} of {times[2]} at {show_rate(fps / step)} "
        f"({rate}{count_of(len(chosen), 'frame')}"
        f"{'; an export shows those between, too' if shows_all and step > 1 else ''})"
    )
    is_short = chosen[-1] + step < span.stop
    others = ["--max-num-frames all takes all"] if is_short and takes_longer else []
    if is_short and settings.end is None and settings.duration is None and settings.start is None:
        others.insert(0, "--start and --end choose others")
    if step > 1 and settings.frame_sample_step is None and not shows_all:
        others.append("--frame-rate source takes every frame")
    asked = settings.end or settings.duration
    if asked is not None and is_short:
        text += f", before {'--end' if settings.end else 'the end of --duration'} {asked}"
    elif asked is not None and span.stop == source.num_frames:
        text += ", where the video ends"
    return "; ".join([text, ", ".join(others)]) if others else text


def _extra_notes(num_extra: int, *, num_beyond: int, num_chosen: int) -> Iterator[str]:
    """Say which frames were added for the VAE."""
    if not num_extra:
        return
    what, again = count_of(num_extra, "frame"), num_extra - num_beyond
    if again:
        what += f" ({'' if again == num_extra else f'{again} of them '}the last one again)"
    yield f"added {what} at the end to reach {num_chosen + num_extra} = 8n + 1; no video shows them"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
