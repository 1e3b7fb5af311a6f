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
Reader = Literal["decord", "ffmpeg", "ffmpeg-tonemap"]
DType = Literal["bf16", "fp16", "fp32"]
Weights = Literal["bf16", "fp8", "int8"]
Offload = Literal["auto", "none", "model", "group"]
InjectionMode = Literal["concatenate", "queries-keys"]
InjectionTokens = Literal["all", "image", "own-text"]
Solver = Literal["ddim", "dpm++2m"]
Window = tuple[float, float]
RowMode = Literal["upstream", "exact", "shared"]
AttentionBackend = Literal[
    "native", "math", "efficient", "cudnn", "flash", "flash3", "sage", "xformers"
]
MaskKind = Literal["box", "picture", "video"]
Composite = Literal["none", "decode", "source"]
Codec = Literal["h264", "h265", "av1", "prores", "ffv1", "png", "gif"]
VideoSize = Literal["clip", "source"]
ComparisonLayout = Literal["row", "column", "wipe", "sheet"]
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
        reader: Which decoder is right for this file; "ffmpeg-tonemap" maps HDR to BT.709.
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
class MaskSource:
    """Where a given mask comes from, without its place on a disk.

    Attributes:
        kind: A "box", or a file: one "picture" for all frames, or a "video" with one per frame.
        name: File name without its folder; of a box its text, "x0,y0,x1,y1@FIRST:LAST".
        sha256: Digest of the whole file, in hex; None for a box.
    """

    kind: MaskKind
    name: str
    sha256: str | None = None


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
            ("consistent" only); None spends them where the residual asks for more ("auto").
    """

    prompt: str = ""
    guidance_scale: float = 1.0
    num_inference_steps: int = 50
    inverse: InverseStep = "consistent"
    inversion_iterations: int | None = 1


@dataclass(frozen=True)
class ReconstructSettings:
    """How a trajectory is denoised under a new prompt.

    The defaults are those of the preset `balanced`; the preset `upstream` is the CogVideo
    repository's script. A window of steps is a pair of fractions of the edit's own steps, 0 to 1:
    step i of N is in it if first <= i / N < last.

    Attributes:
        prompt: What the edited video shows.
        method: "injection" samples beside the source's trajectory; "flow" carries an offset from
            the source (`cogedit.diffusion.flow_edit`).
        negative_prompt: Text of the unconditional side.
        unconditional: Which text the unconditional side is under: the negative prompt, or the
            inversion's own ("source"), so that guidance points from the source to the edit.
        guidance_scale: Classifier-free guidance; 1 means none.
        guidance_steps: Window of the steps with guidance.
        source_guidance_scale: Guidance of the source's side ("flow" only); 1 means none.
        num_inference_steps: Levels to visit, some of the inversion's; None visits them all.
        solver: "ddim" is of first order; "dpm++2m" is of second at the same calls, so that fewer
            steps do (`cogedit.diffusion.multistep`).
        seed: Seed of the start noise, as far as it is random (`draws_noise`).
        start: "random" noise, or the trajectory's own ("inverted").
        start_noise: Share of random noise in the variance of the start, between the two; None
            leaves it to `start`.
        start_step: How many of the noisiest steps to leave out.
        injection_strength: Weight w of the reference's keys and values; 1 is upstream, 0 is plain
            generation, and above 1 the edit looks at its source more than at itself.
        injection_mode: "concatenate" attends to both clips' keys and values; "queries-keys" attends
            where the reference does, to the edit's values.
        injection_tokens: Which tokens are seen beside the edit's own: all of the reference ("all"),
            its image, or its image and the edit's text once more ("own-text"), which keeps the
            balance of text and image.
        injection_steps: Window of the steps with injection.
        injection_layers: First layer with injection, and the layer after the last; None is the end.
        reference_prompt: Text of the reference: the edit's prompt, as upstream has it, or the one
            that it was inverted under.
        reference_rows: "two" gives each side of guidance a reference under its own text; "one"
            shares the conditional one.
        drift_correction: Share of the inversion's own error that is added back, at each step with
            injection (`injection_steps`, at any strength).
        mask_dilation: By how many latents the mask reaches further than its pixels. None is 1 for a
            mask that was given, whose edge is no latent's, and 0 for one that was found.
        auto_mask: Find the mask where the prompt and the inversion's own predict differently.
        auto_mask_threshold: How different, 0 to 1 of the strongest difference.
    """

    prompt: str
    method: Literal["injection", "flow"] = "injection"
    negative_prompt: str = ""
    unconditional: Literal["negative", "source"] = "negative"
    guidance_scale: float = 4.0
    guidance_steps: Window = (0.1, 0.9)
    source_guidance_scale: float = 1.0
    num_inference_steps: int | None = None
    solver: Solver = "ddim"
    seed: int = 42
    start: Literal["random", "inverted"] = "inverted"
    start_noise: float | None = None
    start_step: int = 0
    injection_strength: float = 1.0
    injection_mode: InjectionMode = "concatenate"
    injection_tokens: InjectionTokens = "own-text"
    injection_steps: Window = (0.0, 0.6)
    injection_layers: tuple[int, int | None] = (0, None)
    reference_prompt: Literal["edit", "inversion"] = "inversion"
    reference_rows: Literal["two", "one"] = "one"
    drift_correction: float = 0.0
    mask_dilation: int | None = None
    auto_mask: bool = False
    auto_mask_threshold: float = 0.35

    @property
    def noise_share(self) -> float:
        """Share of random noise in the variance of the start, 0 to 1 ("injection")."""
        if self.start_noise is None:
            return 1.0 if self.start == "random" else 0.0
        return self.start_noise

    @property
    def draws_noise(self) -> bool:
        """Whether the edit depends on the seed."""
        return self.start == "random" if self.method == "flow" else self.noise_share > 0

    @property
    def dilation(self) -> int:
        """By how many latents the mask reaches further, also where nobody said."""
        if self.mask_dilation is None:
            return 0 if self.auto_mask else 1
        return self.mask_dilation


@dataclass(frozen=True)
class ExportSettings:
    """How a clip is written as a video file.

    Attributes:
        fps: Frames per second, exact; None is the clip's own rate.
        codec: How the frames are coded; "png" is a folder of pictures. None is "gif" for a file of
            that suffix and "h264" otherwise.
        crf: Quality, 0 (best) to 51 ("h264", "h265") or 63 ("av1"); None is the codec's default.
        lossless: Keep every pixel exactly, as RGB.
        size: "clip" is the size that the model worked at; "source" scales back to the source's
            size, with the crop or the bars undone.
        sound: Carry the source's sound over, where the clip plays as long as it did in the source.
        composite: What the pixels outside an edit's mask are taken from: nothing ("none"), the
            source after the VAE's round trip ("decode"), or the source's own frames ("source").
            None is, where there is a mask, "source" if edges are aligned and "decode" otherwise.
        feather: Width in pixels of the passage from the source to the edit, inside the mask.
        align_edges: Fit what an edit changed to the edges of the source's own frames, in windows of
            this radius in pixels of the clip (`cogedit.media.edges`); 0 shows the edit as it is.
    """

    fps: Fraction | None = None
    codec: Codec | None = None
    crf: int | None = None
    lossless: bool = False
    size: VideoSize = "clip"
    sound: bool = True
    composite: Composite | None = None
    feather: int = 0
    align_edges: int = 0


INEXACT_BACKENDS: frozenset[AttentionBackend] = frozenset({"sage"})
"""Kernels that compute in fewer bits than the model; an artifact's record names them."""


@dataclass(frozen=True)
class TransformerSettings:
    """How the transformer runs its rows. Numbers stay the same to rounding, except where said.

    Attributes:
        rows: "upstream" runs each edit's four rows as the upstream script does; "exact" runs rows
            that are equal once, with the same numbers; "shared" has all rows look at one reference
            under the inversion's prompt, which makes another edit. `settings_for` writes which
            reference that is into `ReconstructSettings`; None leaves it as it is there, every row
            once.
        max_rows: At most this many rows at a time in a layer; None suits the size of the clip.
        attention_backend: Kernel of the attention; those in `INEXACT_BACKENDS` change numbers.
        compile: Compile the blocks.
    """

    rows: RowMode | None = None
    max_rows: int | None = None
    attention_backend: AttentionBackend = "native"
    compile: bool = False


@dataclass(frozen=True)
class Step:
    """One finished step of a loop that takes its time.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the loop.
    """

    index: int
    total: int


@dataclass(frozen=True)
class StepInfo(Step):
    """One finished step over the noise levels, as handed to `on_step`.

    Attributes:
        timestep: Noise level that the step arrived at; -1 is the clean sample.
        residual: Relative size of the last correction of an inverse step; None where there is none.
        num_calls: Model calls that the step took.
    """

    timestep: int
    residual: float | None = None
    num_calls: int = 1


OnStep = Callable[[StepInfo], None]
ShowStep = Callable[[Step], None]
"""Shows how far any loop is; it is an `OnStep`, too."""


@dataclass(frozen=True)
class RGBPicture:
    """A picture for those who know no arrays.

    Attributes:
        width: In pixels.
        height: In pixels.
        pixels: Red, green and blue of each, a byte each, row by row from the top.
    """

    width: int
    height: int
    pixels: bytes
