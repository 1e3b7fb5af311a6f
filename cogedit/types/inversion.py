"""Settings of the stage invert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from cogedit.schema import Count, Guidance, NumSteps, Positive, setting
from cogedit.types.edit import ReconstructSettings
from cogedit.types.words import InverseStep


@dataclass(frozen=True)
class WindowPlan:
    """The windows over a clip that is longer than the model's own, all in latent frames.

    An inversion chooses it, its trajectory keeps it, and every edit of it uses the same.
    """

    length: Positive  # of a window
    overlap: Count  # that neighbours share at least, less than `length`
    shift: (
        Count  # by which the windows move at about every other timestep, less than their distance
    )


@dataclass(frozen=True)
class InvertSettings:
    """How clean latents are inverted into noise."""

    prompt: str = setting("", "Inversion", "What the source video shows.", default_text="empty")
    guidance_scale: Guidance = setting(
        1.0, "Inversion", "Guidance of the inversion; 1 turns it off."
    )
    num_inference_steps: NumSteps = setting(
        24, "Inversion", "Number of timesteps from the clean latents to noise.", unit="steps"
    )
    inverse: InverseStep = setting(
        "consistent",
        "Inversion",
        "Step of the inversion: consistent solves the equation of the sampling step, midpoint is "
        "of second order and goes with --solver midpoint, upstream is DDIMInverseScheduler, as in "
        "the upstream script.",
    )
    inversion_iterations: Annotated[int, Meta(ge=1, le=100)] | None = setting(
        None,
        "Inversion",
        "Corrections of each consistent step, one model call each; auto is one, and up to four "
        "more of a noisy sample while the model's answer is far from what was expected.",
        metavar="K|auto",
        default_text="auto",
    )
    low_levels: Annotated[int, Meta(ge=0, le=10)] | None = setting(
        None,
        "Inversion",
        "How many of the timesteps lie next to the clean clip, where a step turns the sample "
        "farthest: two carry most of its error away.",
        unit="steps",
        default_text="2 of 20 to 150 steps, 1 of 12 to 19, otherwise and for upstream none",
        is_later=True,
        earlier=0,
    )
    window_overlap: Count | None = setting(
        None,
        "Inversion",
        "Latent frames that neighbouring windows share, where a clip is longer than the model's "
        "own and is inverted and edited in windows of that length.",
        unit="latent frames",
        default_text="three tenths of a window: 4 of 13",
        is_later=True,
    )

    @property
    def num_levels(self) -> int:
        """Number of timesteps that the inversion visits, and the edits of its trajectory."""
        # Of a midpoint inversion, the noise is one more, at which the model is not asked.
        return self.num_inference_steps + (self.inverse == "midpoint")

    @property
    def num_low_levels(self) -> int:
        """How many of the timesteps lie below the even ones, also where nobody said."""
        if self.low_levels is not None:
            return self.low_levels
        # Of more, the lowest even one is next to the clean clip, and leaves no room below it.
        if self.inverse == "upstream" or self.num_inference_steps > 150:
            return 0
        return 2 if self.num_inference_steps >= 20 else int(self.num_inference_steps >= 12)

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
