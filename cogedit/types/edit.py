"""Settings of the stage reconstruct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from cogedit.schema import (
    Count,
    Guidance,
    Layers,
    NumSteps,
    Radius,
    Seed,
    Share,
    Strength,
    setting,
)
from cogedit.types.words import InjectionMode, InjectionTokens, Method, Solver, Window


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
        5.0, "Edit", "How strongly guidance pulls the edit towards the prompt; 1 turns it off."
    )
    guidance_steps: Window = setting(
        (0.1, 0.8), "Edit", "Part of the steps with guidance, such as 0.0:0.8."
    )
    guidance_reuse: Share = setting(
        0.05,
        "Edit",
        "Guidance strengthens the difference between two predictions, with the prompt and without. "
        "After 30 % of the steps it changes little, so it is computed once and used for this part "
        "of the steps more: 0.05 of 24 steps is one step. 0 computes it in every guided step.",
        is_later=True,
        earlier=0.0,
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
        default_text="that of --start-from",
    )
    start_step: Count = setting(
        0, "Attention to the source", "Number of the noisiest steps to skip.", unit="steps"
    )
    injection_strength: Strength = setting(
        (2.5, 0.0),
        "Attention to the source",
        "Weight of the source's tokens in attention relative to the edit's own: 0 is off, 1 is "
        "equal, 2 is double, which keeps outlines and needs more guidance. 2:0 falls from 2 to 0 "
        "over --injection-steps, and ends below 0.05.",
        metavar="X|FIRST:LAST",
    )
    injection_mode: InjectionMode = setting(
        "concatenate",
        "Attention to the source",
        "concatenate attends to the source's tokens beside the edit's own; queries-keys replays "
        "the source's attention maps over the edit's values; image-queries-keys replays only what "
        "image tokens attend to among themselves, so that the prompt's words stay the edit's. With "
        "the latter two the strength is the source's share, 1 where none is given.",
    )
    injection_tokens: InjectionTokens = setting(
        "own-text",
        "Attention to the source",
        "Tokens to attend to beside the edit's own: the source's image (image), its image and "
        "text (all), or its image and the edit's own text a second time (own-text).",
    )
    injection_recentering: Share = setting(
        0.5,
        "Attention to the source",
        "How far the light and the colour of the whole follow the prompt: 0 keeps the source's, 1 "
        "takes the prompt's. What is where comes from the source in any case. It moves the mean of "
        "the source's values in attention to that of the edit's.",
        is_later=True,
        earlier=0.0,
    )
    injection_steps: Window = setting(
        (0.0, 0.95),
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
        "How far what may change is grown while the edit is made.",
        unit="latents",
        default_text="1 for a given mask, 0 for an automatic one",
    )
    mask_keep: bool = setting(
        False,
        "Mask",
        "The given mask shows what to keep: the edit may change the source where it is black.",
        is_later=True,
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

    def num_steps(self, num_levels: int) -> int:
        """How many steps the edit of an inversion of so many timesteps has."""
        return (self.num_inference_steps or num_levels) - self.first_step

    @property
    def dilation(self) -> int:
        """By how many latents the mask is grown, also where nobody said."""
        by_default = 0 if self.auto_mask else 1
        return by_default if self.mask_dilation is None else self.mask_dilation
