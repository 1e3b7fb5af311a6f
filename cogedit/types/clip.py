"""Settings of the stages load and encode."""

from __future__ import annotations

from dataclasses import dataclass

from cogedit.schema import Color, Count, FrameRate, Positive, setting
from cogedit.types.words import ResizeMode


@dataclass(frozen=True)
class LoadSettings:
    """Which frames of a video are taken, and at which size."""

    width: Positive = setting(
        720, "Clip", "Width of the clip.", unit="pixels", default_text="the model's own"
    )
    height: Positive = setting(
        480, "Clip", "Height of the clip.", unit="pixels", default_text="the model's own"
    )
    max_num_frames: Positive = setting(
        49,
        "Clip",
        "Maximum length of the clip; its number of frames is rounded down to 8n + 1.",
        unit="frames",
        default_text="the model's own",
    )
    skip_frames_start: Count = setting(
        0, "Clip", "Frames to skip at the start of the video.", unit="frames"
    )
    skip_frames_end: Count = setting(
        0, "Clip", "Frames to skip at the end of the video.", unit="frames"
    )
    frame_sample_step: Positive | None = setting(
        None, "Clip", "Take every n-th frame.", default_text="frames spread evenly over the video"
    )
    resize_mode: ResizeMode = setting(
        "crop",
        "Clip",
        "How to fit the video: crop and pad keep its aspect ratio, stretch does not.",
    )
    background: Color = setting(
        "black",
        "Clip",
        "Color under a transparent video: black, white, gray, red, green, blue or #rrggbb.",
        metavar="COLOR",
        is_later=True,
    )
    deinterlace: bool = setting(
        False, "Clip", "Make whole frames of an interlaced video's two fields.", is_later=True
    )
    frame_rate: FrameRate | None = setting(
        None,
        "Clip",
        "Rate at which frames of the video are taken: at each time the one that a player shows.",
        unit="frames per second",
        default_text="the video's own, or where it varies, the one that most frames follow",
        is_later=True,
    )
    fps: FrameRate | None = setting(
        None,
        "Clip",
        "Frame rate of a source that has no times: pictures, or a raw H.264 or H.265 stream.",
        default_text="the one that cogedit recorded in its own pictures, otherwise 25",
        is_later=True,
    )


@dataclass(frozen=True)
class EncodeSettings:
    """How the VAE encodes. Tiled encoding gives other results than untiled."""

    vae_tiling: bool = setting(
        False,
        "Speed and memory",
        "Encode in overlapping tiles: less memory, slightly different latents.",
    )
