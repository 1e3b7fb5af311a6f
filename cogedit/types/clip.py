"""Settings of the stages load and encode."""

from __future__ import annotations

from dataclasses import dataclass

from cogedit.schema import ClipRate, Color, Count, FrameRate, Positive, Time, setting
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
    max_num_frames: Positive | None = setting(
        49,
        "Clip",
        "Maximum length of the clip; all takes every frame of the chosen seconds.",
        unit="frames",
        metavar="N|all",
        default_text="the model's own",
        none_text="all",
    )
    start: Time | None = setting(
        None,
        "Clip",
        "Where the clip begins: a time such as 12.5 or 1:02.5, or a frame such as 300f.",
        metavar="TIME",
        default_text="the beginning of the video",
        is_later=True,
    )
    end: Time | None = setting(
        None,
        "Clip",
        "Where the clip ends; the frame that begins then is the first after it.",
        metavar="TIME",
        default_text="where it has --max-num-frames, or the video ends",
        is_later=True,
    )
    duration: Time | None = setting(
        None,
        "Clip",
        "How long the clip is, in place of --end.",
        metavar="TIME",
        default_text="as --end",
        is_later=True,
    )
    skip_frames_start: Count = setting(
        0, "Clip", "Frames to skip at the start of the video, in place of --start.", unit="frames"
    )
    skip_frames_end: Count = setting(
        0, "Clip", "Frames to skip at the end of the video, in place of --end.", unit="frames"
    )
    frame_sample_step: Positive | None = setting(
        None,
        "Clip",
        "Take every n-th frame.",
        default_text="the one that comes nearest to the model's rate, otherwise 1",
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
    frame_rate: ClipRate = setting(
        "model",
        "Clip",
        "Rate at which frames are taken: every n-th, so that it comes nearest to the rate that the "
        "model was trained at (model), every frame (source), as many as the clip holds, spread "
        "evenly over the video (spread), these at most half a second apart (sparse, for "
        "--every-frame), or at N per second those that a player shows then.",
        metavar="RATE",
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
    vae_span: Positive | None = setting(
        None,
        "Clip",
        "Frames that the VAE encodes as a clip of their own, each from the last frame of the one "
        "before: for a VAE that knows short clips only.",
        unit="frames",
        default_text="all; 9 for the embedded model",
        none_text="all",
        is_later=True,
    )
