"""The settings of the stages, as frozen records.

A settings record holds what changes the results of its stage and nothing else. The configuration
produces it, the stage consumes it and the artifact's record keeps it. Each setting is described
where it is declared (`cogedit.schema`), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from cogedit.schema import (
    Color,
    Count,
    FrameRate,
    Guidance,
    Layers,
    NumSteps,
    Positive,
    Radius,
    Seed,
    Share,
    setting,
)

ResizeMode = Literal["crop", "pad", "stretch"]
InverseStep = Literal["consistent", "midpoint", "upstream"]
DType = Literal["bf16", "fp16", "fp32"]
Weights = Literal["bf16", "fp8", "int8"]
Offload = Literal["auto", "none", "model", "group"]
Method = Literal["injection", "flow"]
InjectionMode = Literal["concatenate", "queries-keys"]
InjectionTokens = Literal["all", "image", "own-text"]
Solver = Literal["ddim", "dpm++2m", "midpoint"]
AttentionBackend = Literal["native", "cudnn", "flash", "flash3", "sage"]
Window = Annotated[tuple[Share, Share], Meta(description="FIRST:LAST with 0 <= FIRST <= LAST <= 1")]
Composite = Literal["none", "decode", "source"]
Codec = Literal["h264", "h265", "av1", "prores", "ffv1", "png", "gif"]
VideoSize = Literal["clip", "source"]
ComparisonLayout = Literal["row", "column", "wipe", "sheet"]
ArtifactKind = Literal["frames", "latents", "trajectory", "edit"]


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


@dataclass(frozen=True)
class InvertSettings:
    """How clean latents are inverted into noise."""

    prompt: str = setting("", "Inversion", "What the source video shows.", default_text="empty")
    guidance_scale: Guidance = setting(
        1.0, "Inversion", "Guidance of the inversion; 1 turns it off."
    )
    num_inference_steps: NumSteps = setting(
        50, "Inversion", "Number of timesteps from the clean latents to noise.", unit="steps"
    )
    inverse: InverseStep = setting(
        "consistent",
        "Inversion",
        "Step of the inversion: consistent solves the equation of the sampling step, midpoint is "
        "of second order and goes with --solver midpoint, upstream is DDIMInverseScheduler, as in "
        "the upstream script.",
    )
    inversion_iterations: Annotated[int, Meta(ge=1, le=100)] | None = setting(
        1,
        "Inversion",
        "Corrections of each consistent step, one model call each; auto repeats them until the "
        "residual falls below 1e-3.",
        metavar="K|auto",
    )
    low_levels: Annotated[int, Meta(ge=0, le=10)] = setting(
        0,
        "Inversion",
        "Timesteps below the first, one model call each. The first step turns the sample farthest: "
        "two more carry most of its error away.",
        unit="levels",
        is_later=True,
    )

    @property
    def num_levels(self) -> int:
        """Number of timesteps that the inversion visits, and the edits of its trajectory."""
        # Of a midpoint inversion, the noise is one more, at which the model is not asked.
        return self.num_inference_steps + self.low_levels + (self.inverse == "midpoint")

    @property
    def resampling(self) -> ReconstructSettings:
        """The edit that gives the clip back: the inversion's way down, with nothing added."""
        return ReconstructSettings(
            prompt=self.prompt,
            guidance_scale=1.0,
            start="inverted",
            solver="midpoint" if self.inverse == "midpoint" else "ddim",
            injection_strength=0.0,
        )


@dataclass(frozen=True)
class ReconstructSettings:
    """How a trajectory is denoised under a new prompt.

    The defaults are those of the preset `balanced`; the preset `upstream` is the CogVideo
    repository's script. A window of steps is a pair of fractions of the edit's own steps, 0 to 1:
    step i of N is in it if first <= i / N < last.
    """

    # A setting of 0.1.0 that is no more: records keep its neutral value, and so their keys.
    json_constants: ClassVar[Mapping[str, object]] = {"drift_correction": 0.0}

    prompt: str  # what the edited video shows; it belongs to a command and is no setting
    method: Method = setting(
        "injection",
        "Edit",
        "injection denoises with attention to the source's trajectory; flow carries the "
        "difference of two predictions from the source to the edit (FlowEdit).",
    )
    negative_prompt: str = setting("", "Edit", "What the edit does not show.", default_text="empty")
    unconditional: Literal["negative", "source"] = setting(
        "negative",
        "Edit",
        "Prompt of the unconditional side of guidance: the negative prompt (negative), or the "
        "inversion's prompt (source), so that guidance points from the source to the edit.",
        metavar="PROMPT",
    )
    guidance_scale: Guidance = setting(
        4.0, "Edit", "How strongly guidance pulls the edit towards the prompt; 1 turns it off."
    )
    guidance_steps: Window = setting(
        (0.1, 0.9), "Edit", "Part of the steps with guidance, such as 0.0:0.8."
    )
    source_guidance_scale: Guidance = setting(
        1.0, "Edit", "Guidance of the source's prediction with --method flow; 1 turns it off."
    )
    num_inference_steps: NumSteps | None = setting(
        None,
        "Edit",
        "Number of steps of the edit; they visit some of the inversion's timesteps.",
        unit="steps",
        default_text="all of the inversion's",
    )
    solver: Solver = setting(
        "ddim",
        "Edit",
        "ddim is of first order; dpm++2m and midpoint are of second order at the same cost per "
        "step.",
    )
    seed: Seed = setting(42, "Edit", "Seed of the random noise in the start, if any.")
    start: Literal["random", "inverted"] = setting(
        "inverted",
        "Attention to the source",
        "Start from the source's noise (inverted) or from other noise (random).",
    )
    start_noise: Share | None = setting(
        None,
        "Attention to the source",
        "Share of random noise in the variance of the start: 0 is inverted, 1 is random.",
        default_text="that of --start",
    )
    start_step: Count = setting(
        0, "Attention to the source", "Number of the noisiest steps to skip.", unit="steps"
    )
    injection_strength: Annotated[float, Meta(ge=0, le=100)] = setting(
        1.0,
        "Attention to the source",
        "Weight of the source's tokens in attention relative to the edit's own: 0 is off, 1 is "
        "equal, 2 is double, which keeps outlines and needs more guidance.",
    )
    injection_mode: InjectionMode = setting(
        "concatenate",
        "Attention to the source",
        "concatenate attends to the source's tokens beside the edit's own; queries-keys replays "
        "the source's attention maps over the edit's values.",
    )
    injection_tokens: InjectionTokens = setting(
        "own-text",
        "Attention to the source",
        "Tokens to attend to beside the edit's own: the source's image (image), its image and "
        "text (all), or its image and the edit's own text a second time (own-text).",
    )
    injection_steps: Window = setting(
        (0.0, 0.6),
        "Attention to the source",
        "Part of the steps with attention to the source, such as 0.0:0.5.",
    )
    injection_layers: Layers = setting(
        (0, None),
        "Attention to the source",
        "Layers with attention to the source, such as 0:21 or 0:END.",
    )
    reference_prompt: Literal["edit", "inversion"] = setting(
        "inversion",
        "Attention to the source",
        "Prompt under which the source is denoised beside the edit: the edit's (edit), as in the "
        "upstream script, or the inversion's (inversion).",
        metavar="PROMPT",
    )
    reference_rows: Literal["two", "one"] = setting(
        "one",
        "Attention to the source",
        "Copies of the source that are denoised beside the edits: one for each side of guidance "
        "(two), or one that all edits share (one).",
    )
    mask_dilation: Radius | None = setting(
        None,
        "Mask",
        "How far the mask is grown while the edit is made.",
        unit="latents",
        default_text="1 for a given mask, 0 for an automatic one",
    )
    auto_mask: bool = setting(
        False, "Mask", "Find the mask: where the prompt and --source-prompt predict differently."
    )
    auto_mask_threshold: Share = setting(
        0.35,
        "Mask",
        "How different, as a share of the strongest difference; lower gives a larger mask.",
    )

    @property
    def noise_share(self) -> float:
        """Share of random noise in the variance of the start, 0 to 1 ("injection")."""
        by_default = 1.0 if self.start == "random" else 0.0
        return by_default if self.start_noise is None else self.start_noise

    @property
    def draws_noise(self) -> bool:
        """Whether the edit depends on the seed."""
        return self.start == "random" if self.method == "flow" else self.noise_share > 0

    @property
    def first_step(self) -> int:
        """How many of the noisiest timesteps the edit leaves out.

        "midpoint" leaves out that of the source's noise, where the model sees nothing of the clip.
        """
        starts_below = self.solver == "midpoint" and self.noise_share == 0
        return max(self.start_step, int(starts_below))

    @property
    def dilation(self) -> int:
        """By how many latents the mask is grown, also where nobody said."""
        by_default = 0 if self.auto_mask else 1
        return by_default if self.mask_dilation is None else self.mask_dilation


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
        default_text="18, for h265 20",
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


INEXACT_BACKENDS: frozenset[AttentionBackend] = frozenset({"sage"})
"""Kernels that compute in fewer bits than the model; an artifact's record names them."""


@dataclass(frozen=True)
class TransformerSettings:
    """How the transformer runs. Results stay the same to rounding, except where said."""

    max_rows: Positive | None = setting(
        None,
        "Speed and memory",
        "Rows of a batch to compute at a time in a layer; fewer need less memory.",
        unit="rows",
        default_text="chosen by the size of the clip",
    )
    attention_backend: AttentionBackend = setting(
        "native",
        "Speed and memory",
        "Attention kernel: native, cudnn, flash, flash3, or sage (8 bits, which changes results).",
    )
    compile: bool = setting(
        False,
        "Speed and memory",
        "Compile the transformer's blocks: a slow first step, then faster ones.",
    )
