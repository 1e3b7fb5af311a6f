"""Properties of pictures and of animated ones, described as the probe describes a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from cogedit.media.animation import find_animation
from cogedit.media.facts import VideoFacts
from cogedit.media.ffmpeg_output import ColourTags
from cogedit.media.images import are_images, find_images
from cogedit.media.picture_format import Pictures
from cogedit.media.timing import Timing, even_timing, find_timing

ASSUMED_RATE = Fraction(25)
"""Frames per second where nothing says how fast pictures play, as ffmpeg assumes too."""


def facts_of_images(path: Path) -> VideoFacts | None:
    """Describe a folder or a pattern of pictures, or an animated one; None for any other file.

    Raises what `find_images` and `find_animation` do.
    """
    if are_images(path):
        images = find_images(path)
        return _facts(
            images.files[0].suffix[1:].lower(),
            (images.width, images.height),
            images.has_alpha,
            timing=even_timing(len(images.files), images.fps or ASSUMED_RATE),
            is_untimed=True,
            is_assumed=images.fps is None,
            own_notes=images.notes,
        )
    animation = find_animation(path)
    if animation is None:
        return None
    timing = find_timing(
        animation.timestamps, animation.time_base, last_duration=animation.last_duration
    )
    return _facts(
        animation.codec,
        (animation.width, animation.height),
        animation.has_alpha,
        timing=timing,
    )


def _facts(
    codec: str,
    size: tuple[int, int],
    has_alpha: bool,
    *,
    timing: Timing,
    is_untimed: bool = False,
    is_assumed: bool = False,
    own_notes: tuple[str, ...] = (),
) -> VideoFacts:
    width, height = size
    return VideoFacts(
        codec=codec,
        pixel_format="rgb24",
        stream="",
        audio_tracks=(),
        width=width,
        height=height,
        sample_aspect_ratio=Fraction(1),
        rotation=0,
        timing=timing,
        num_lost=0,
        pictures=Pictures(
            width,
            height,
            "rgb24",
            tags=ColourTags(),
            filled_tags="",
            field_order="",
            has_flagged_fields=False,
            has_alpha=has_alpha,
            decoder="",
            size_changes=(),
        ),
        first_resized=None,
        is_damaged=False,
        reader="pillow",
        is_untimed=is_untimed,
        is_assumed=is_assumed,
        own_notes=own_notes,
    )
