"""Settings of the stage export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from cogedit.schema import Count, FrameRate, Positive, Radius, setting
from cogedit.types.words import Codec, Composite, VideoSize


@dataclass(frozen=True)
class ExportSettings:
    """How a clip is written as a video file."""

    fps: FrameRate | None = setting(
        None,
        "Video",
        "Frame rate of the video; on the command line, of the source where that is pictures.",
        default_text="the clip's",
    )
    codec: Codec | None = setting(
        None,
        "Video",
        "Video codec: h264, h265, av1, prores, ffv1, gif, or png (a folder of images).",
        default_text="gif for a file that ends in .gif, otherwise h264",
    )
    crf: Annotated[int, Meta(ge=0, le=63)] | None = setting(
        None,
        "Video",
        "Quality, from 0 (best) to 51, for av1 to 63.",
        default_text="18, for h265 20; with --splice 15, for h265 17",
    )
    lossless: bool = setting(False, "Video", "Keep every pixel exactly (h264, h265, ffv1, png).")
    size: VideoSize = setting(
        "clip",
        "Video",
        "clip keeps the size of the clip; source scales back to the source's size and undoes the "
        "crop or the bars.",
    )
    sound: bool = setting(
        True, "Video", "Copy the source's audio, if the clip lasts as long as it did in the source."
    )
    audio_track: Positive | None = setting(
        None,
        "Video",
        "Audio track of the source to copy, counted from 1.",
        default_text="the default one, or the first that can be decoded",
        is_later=True,
    )
    composite: Composite | None = setting(
        None,
        "Mask",
        "What the video shows outside the mask: the source after the VAE (decode), the source's "
        "own frames (source), or the edit (none).",
        default_text="decode, with --align-edges source",
    )
    feather: Radius = setting(
        0, "Mask", "Width of the blend from the source to the edit, inside the mask.", unit="pixels"
    )
    align_edges: Radius = setting(
        0,
        "Video",
        "Fit the edit's changes of color and light to the edges of the source's own frames, in "
        "windows of this radius, and keep their grain and texture; 0 is off.",
        unit="pixels",
    )
    splice: bool = setting(
        False,
        "Video",
        "Write the whole source video with the clip in its place: every frame at its own time, at "
        "the source's size, with its audio and its color tags.",
        is_later=True,
    )
    crossfade: Count = setting(
        0,
        "Video",
        "Over how many frames of the clip --splice goes from the source to the edit, and back.",
        unit="frames",
        is_later=True,
    )
    every_frame: bool = setting(
        False,
        "Video",
        "Show every frame of the source, from the first of the clip to its last, and not those "
        "alone that were edited: for other colors and light, with --align-edges.",
        is_later=True,
    )
