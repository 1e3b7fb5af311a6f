"""Sizes that a model imposes on a clip, read from its configuration files without torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from cogedit.errors import UsageError
from cogedit.models.configs import Config, TransformerConfig, VAEConfig, check_config
from cogedit.types import WindowPlan
from cogedit.wording import count_of

_POSITION_GRID_15 = (300, 300)
_TRAINED_15 = (96, 170)

_LONGEST_15 = {81: 161}
"""Frames of the longest clips that CogVideoX 1.5 was trained on, from text and from a first frame,
by those that its configuration states: 5 or 10 seconds, as published."""

TRAINED_FPS, TRAINED_FPS_15 = Fraction(8), Fraction(16)
"""Frames per second of the clips that CogVideoX 1.0 and 1.5 were trained on, as published."""


@dataclass(frozen=True)
class Geometry:
    """How pixels and frames become latents and tokens.

    Attributes:
        spatial_compression: Pixels per latent, along height and width.
        temporal_compression: Frames per latent frame, after the first.
        patch_size: Latents per token, along height and width.
        patch_size_t: Latent frames per token; None is 1 (CogVideoX 1.0).
        height: Pixels that the model was trained at; so is `width`.
        num_frames: Frames that the model was trained at.
        max_text_seq_length: Tokens of a prompt; shorter ones are padded to it.
        num_layers: Of the transformer.
        latent_channels: Channels of a clip's latents.
        takes_first_frame: Whether the transformer takes as many channels again, for a first frame.
        has_fixed_size: Whether its positions were learned, for clips of the size above alone.
    """

    spatial_compression: int
    temporal_compression: int
    patch_size: int
    patch_size_t: int | None
    height: int
    width: int
    num_frames: int
    max_text_seq_length: int
    num_layers: int
    latent_channels: int
    takes_first_frame: bool
    has_fixed_size: bool

    @classmethod
    def of(cls, vae_config: Config, transformer_config: Config) -> Geometry:
        """Read it from two configurations; ModelError names a field that is missing or wrong."""
        vae = check_config(VAEConfig, vae_config, "vae/config.json")
        transformer = check_config(TransformerConfig, transformer_config, "transformer/config.json")
        # AutoencoderKLCogVideoX halves the size after every block but the last.
        patch_size_t = transformer.get("patch_size_t")
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        size = transformer["sample_height"], transformer["sample_width"]
        if patch_size_t is not None and size == _POSITION_GRID_15:
            # Some copies of CogVideoX 1.5 state how far its positions reach in place of the size
            # that it was trained at; clips of 2400x2400 would be the default.
            size = _TRAINED_15
        return cls(
            spatial_compression=spatial,
            temporal_compression=vae["temporal_compression_ratio"],
            patch_size=transformer["patch_size"],
            patch_size_t=patch_size_t,
            height=size[0] * spatial,
            width=size[1] * spatial,
            num_frames=transformer["sample_frames"],
            max_text_seq_length=transformer["max_text_seq_length"],
            num_layers=transformer["num_layers"],
            latent_channels=vae["latent_channels"],
            takes_first_frame=transformer["in_channels"] == 2 * vae["latent_channels"],
            has_fixed_size=transformer.get("use_learned_positional_embeddings", False),
        )

    @property
    def fps(self) -> Fraction:
        """Frames per second of the clips that the model was trained on."""
        return TRAINED_FPS if self.patch_size_t is None else TRAINED_FPS_15

    @property
    def max_num_frames(self) -> int:
        """Frames of one pass at most: those that it was trained at, or twice as many seconds."""
        if self.patch_size_t is None:
            return self.num_frames
        return _LONGEST_15.get(self.num_frames, self.num_frames)

    @property
    def size_multiple(self) -> int:
        """Width and height of a clip must be multiples of this many pixels."""
        return self.spatial_compression * self.patch_size

    def check_clip(
        self, width: int, height: int, num_frames: int, *, longer: str | None = None
    ) -> None:
        """Refuse a clip, of so many frames and pixels, that the model cannot take.

        Args:
            width: Of the clip in pixels; so is `height`.
            height: See `width`.
            num_frames: Of the clip, 8n + 1.
            longer: What gives a clip of as many frames as the model wants, if that is known.

        Raises:
            UsageError: A side is no multiple of a token's; the model has learned positions for
                clips of another size; or it takes a first frame, and the clip needs a second
                window, which has none.
        """
        for name, value in (("width", width), ("height", height)):
            multiple = self.size_multiple
            if value > 0 and value % multiple == 0:
                continue
            below = max(multiple, value // multiple * multiple)
            above = max(multiple, -(-value // multiple) * multiple)
            nearest = " or ".join(str(size) for size in sorted({below, above}))
            raise UsageError(
                f"{name} {value} does not suit this model: it must be a multiple of {multiple}; "
                f"nearest: {nearest}"
            )
        own = self.width, self.height, self.num_frames
        if self.has_fixed_size and (width, height, num_frames) != own:
            raise UsageError(
                f"the clip has {count_of(num_frames, 'frame')} of {width}x{height}; this model "
                f"takes {count_of(self.num_frames, 'frame')} of {self.width}x{self.height} alone, "
                "for which it has learned positions",
                hint=longer
                if longer is not None and (width, height) == own[:2]
                else "leave --width, --height and --max-num-frames out; of a short video "
                "--frame-rate spread or source takes more frames",
            )
        if self.takes_first_frame and self.window_plan(self._padded(num_frames), None):
            most = self.max_num_frames
            raise UsageError(
                f"the clip has {count_of(num_frames, 'frame')}; this model takes {most} at most: "
                "it begins with the first frame of a clip, and a later window has none",
                hint=f"--max-num-frames {most}, or a text-to-video model",
            )

    def num_latent_frames(self, num_frames: int) -> int:
        """Return how many latent frames the causal VAE makes of `num_frames` = 8n + 1 frames."""
        return (num_frames - 1) // self.temporal_compression + 1

    def num_pad_frames(self, num_latent_frames: int) -> int:
        """Return how many latent frames must be added for the temporal patch to divide them."""
        return -num_latent_frames % (self.patch_size_t or 1)

    def window_plan(self, num_latent_frames: int, overlap: int | None) -> WindowPlan | None:
        """Choose the windows over a clip of so many latent frames, pad frames included.

        A window is as long as the clips that the model is made for, also where one pass may be
        longer. Windows begin at a multiple of `patch_size_t`, where a token does.

        Args:
            num_latent_frames: Of the clip.
            overlap: Latent frames that neighbours share; None is three tenths of a window.

        Returns:
            The plan; None where one window holds the clip.

        Raises:
            UsageError: Windows cannot overlap so far.
        """
        step = self.patch_size_t or 1
        most, length = self._padded(self.max_num_frames), self._padded(self.num_frames)
        if overlap is None:
            overlap = round(0.3 * length / step) * step
        if overlap >= length or overlap % step:
            even = "" if step == 1 else f", a multiple of {step}"
            raise UsageError(
                f"window_overlap is {overlap}, expected 0 to {length - step}{even}: a window of "
                f"this model has {length} latent frames"
            )
        if num_latent_frames <= most:
            return None
        return WindowPlan(length, overlap, (length - overlap) // 2 // step * step)

    def _padded(self, num_frames: int) -> int:
        """Latent frames of so many frames, with those that the temporal patch adds."""
        count = self.num_latent_frames(num_frames)
        return count + self.num_pad_frames(count)
