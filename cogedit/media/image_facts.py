"""Properties of pictures and of animated ones, described as the probe describes a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from cogedit.media.animation import find_animation
from cogedit.media.facts import VideoFacts
from cogedit.media.ffmpeg_output import ColourTags
from cogedit.media.images import are_images, find_images
from cogedit.media.picture_format import Pictures
from cogedit.media.timing import even_timing, find_timing

ASSUMED_RATE = Fraction(25)
"""Frames per second where nothing says how fast pictures play, as ffmpeg assumes too."""


def facts_of_images(path: Path) -> VideoFacts | None:
    """Describe a folder or a pattern of pictures, or an animated one; None for any other file.

    Raises what `find_images` and `find_animation` do.
    """
    images = find_images(path) if are_images(path) else None
    animation = find_animation(path) if images is None else None
    if images is not None:
        codec = images.files[0].suffix[1:].lower()
        timing = even_timing(len(images.files), images.fps or ASSUMED_RATE)
    elif animation is not None:
        codec = animation.codec
        timing = find_timing(
            animation.timestamps, animation.time_base, last_duration=animation.last_duration
        )
    shown = images or animation
    if shown is None:
        return None
    return VideoFacts(
        codec=codec,
        stream="",
        audio_tracks=(),
        width=shown.width,
        height=shown.height,
        sample_aspect_ratio=Fraction(1),
        rotation=0,
        timing=timing,
        num_lost=0,
        pictures=Pictures(
            shown.width,
            shown.height,
            "rgb24",
            tags=ColourTags(),
            filled_tags="",
            field_order="",
            has_flagged_fields=False,
            has_alpha=shown.has_alpha,
            decoder="",
            size_changes=(),
        ),
        first_resized=None,
        is_damaged=False,
        reader="pillow",
        is_untimed=images is not None,
        is_assumed=images is not None and images.fps is None,
        own_notes=() if images is None else images.notes,
    )
