"""Frozen records that more than one room shares: settings of the stages, facts about a video.

A settings record holds what changes the numbers of its stage and nothing else. The configuration
produces it, the stage consumes it and the artifact's record keeps it, so that what was asked for,
what was done and what is written down are one object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

ResizeMode = Literal["crop", "pad", "stretch"]
InverseStep = Literal["consistent", "upstream"]
Reader = Literal["decord", "ffmpeg"]
DType = Literal["bf16", "fp16", "fp32"]
ArtifactKind = Literal["frames", "latents", "trajectory", "edit"]


@dataclass(frozen=True)
class SourceVideo:
    """What is known about a video file. Sizes are as displayed, after rotation.

    Attributes:
        name: File name without its folder.
        sha256: Digest of the whole file, in hex.
        width: Displayed width in pixels.
        height: Displayed height in pixels.
        rotation: Rotation that the container asks for, clockwise in degrees: 0, 90, 180 or 270.
        fps: Frames per second, exact.
        num_frames: Number of frames that the reader delivers.
        reader: Which decoder is right for this file.
        has_audio: Whether the file has a sound stream.
    """

    name: str
    sha256: str
    width: int
    height: int
    rotation: int
    fps: Fraction
    num_frames: int
    reader: Reader
    has_audio: bool


@dataclass(frozen=True)
class LoadSettings:
    """Which frames of a video are taken, and at which size.

    Attributes:
        width: Width of the clip in pixels.
        height: Height of the clip in pixels.
        max_num_frames: At most this many frames; the count then snaps down to 8n + 1.
        skip_frames_start: Frames left out at the start of the video.
        skip_frames_end: Frames left out at the end of the video.
        frame_sample_step: Take every n-th frame; None spreads `max_num_frames` over the video, as
            the upstream script does.
        resize_mode: "crop" and "pad" keep the aspect, "stretch" does not.
    """

    width: int = 720
    height: int = 480
    max_num_frames: int = 49
    skip_frames_start: int = 0
    skip_frames_end: int = 0
    frame_sample_step: int | None = None
    resize_mode: ResizeMode = "crop"


@dataclass(frozen=True)
class ResizeBox:
    """How source pixels became clip pixels, so that an export can undo it.

    The source is scaled to `scaled_width` x `scaled_height` first. "crop" then keeps the clip-sized
    window whose upper left corner is at (left, top) of the scaled source; "pad" places the scaled
    source at (left, top) of the clip; "stretch" has left = top = 0.

    Attributes:
        scaled_width: Width of the scaled source in pixels.
        scaled_height: Height of the scaled source in pixels.
        left: Horizontal offset in pixels.
        top: Vertical offset in pixels.
        mode: Which of the three was done.
    """

    scaled_width: int
    scaled_height: int
    left: int
    top: int
    mode: ResizeMode


@dataclass(frozen=True)
class EncodeSettings:
    """How the VAE encodes. Tiled encoding gives other numbers than untiled.

    Attributes:
        vae_tiling: Encode in overlapping spatial tiles, for less memory.
    """

    vae_tiling: bool = False


@dataclass(frozen=True)
class InvertSettings:
    """How clean latents are inverted into noise.

    Attributes:
        prompt: Text the model sees during the inversion.
        guidance_scale: Classifier-free guidance; 1 means none, in one row.
        num_inference_steps: Number of noise levels, 1 to 1000.
        inverse: "consistent" solves the step's own equation, "upstream" is `DDIMInverseScheduler`.
        inversion_iterations: Model calls per step that correct the predicted velocity
            ("consistent" only).
    """

    prompt: str = ""
    guidance_scale: float = 1.0
    num_inference_steps: int = 50
    inverse: InverseStep = "consistent"
    inversion_iterations: int = 1


@dataclass(frozen=True)
class ReconstructSettings:
    """How a trajectory is denoised under a new prompt.

    Attributes:
        prompt: What the edited video shows.
        negative_prompt: Text of the unconditional side.
        guidance_scale: Classifier-free guidance; 1 means none.
        seed: Seed of the start noise.
        start: "random" noise, or the trajectory's own last entry ("inverted").
        injection_strength: Weight w in [0, 1] of the reference's keys and values; 1 is upstream,
            0 is plain generation.
        injection_steps: First and last fraction of the denoising steps with injection, 0 to 1.
        injection_layers: First layer with injection, and the layer after the last; None is the end.
    """

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 6.0
    seed: int = 42
    start: Literal["random", "inverted"] = "random"
    injection_strength: float = 1.0
    injection_steps: tuple[float, float] = (0.0, 1.0)
    injection_layers: tuple[int, int | None] = (0, None)


@dataclass(frozen=True)
class ExportSettings:
    """How a clip is written as a video file.

    Attributes:
        fps: Frames per second, exact; None is the clip's own rate.
        crf: Quality of the H.264 encoder, 0 (lossless) to 51 (worst).
    """

    fps: Fraction | None = None
    crf: int = 18


@dataclass(frozen=True)
class StepInfo:
    """One finished step of a loop, as handed to `on_step`.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the loop.
        timestep: Noise level that the step arrived at; -1 is the clean sample.
        residual: Relative size of the last correction of an inverse step; None where there is none.
    """

    index: int
    total: int
    timestep: int
    residual: float | None = None


OnStep = Callable[[StepInfo], None]
