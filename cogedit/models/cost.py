"""What a run costs before it runs: rows, floating-point operations, bytes. Arithmetic, no torch.

Counted is the transformer, which takes 99 % of a run. One multiplication with its addition are two
operations. Of a row with S tokens of width d in n layers:

    L = 24 n S d^2 + embedding and output      linear layers: q, k, v, out and the MLP of 4 d
    A = 4 n S^2 d                              attention: q k^T and its product with v

An edit row that attends to a reference row attends to twice the tokens. A reference row stops after
the last layer with injection, of which only its keys and values are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from cogedit.diffusion.schedule import Schedule
from cogedit.diffusion.windows import window_starts
from cogedit.models.configs import (
    Config,
    TextEncoderConfig,
    TransformerConfig,
    check_config,
)
from cogedit.models.rows import (
    EditPrompts,
    RowPlan,
    edit_prompts,
    guidance_reused,
    injection_strengths,
    needs_reference_velocity,
    plan_rows,
    prompt_bank,
    rows_at_a_time,
)
from cogedit.models.split import ALONE, Division
from cogedit.types import DType, InvertSettings, ReconstructSettings, Weights, WindowPlan

if TYPE_CHECKING:
    from torch import Tensor

    from cogedit.models.checkpoint import Checkpoint

ITEM_SIZE: Mapping[DType | Weights, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
"""Bytes of a number."""

LatentShape = tuple[int, int, int]
"""Latent frames, height and width of a clip, pad frames included."""


@dataclass(frozen=True)
class TransformerSizes:
    """The sizes that a transformer's cost follows from, by the names of its `config.json`."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    patch_size: int
    patch_size_t: int
    text_embed_dim: int
    time_embed_dim: int
    max_text_seq_length: int

    @classmethod
    def of(cls, config: Config) -> TransformerSizes:
        """Read them from a transformer's configuration; ModelError names a field that is wrong."""
        checked = check_config(TransformerConfig, config, "transformer/config.json")
        patch_size_t = checked.get("patch_size_t") or 1
        return msgspec.convert({**checked, "patch_size_t": patch_size_t}, cls)

    @property
    def width(self) -> int:
        """Width d of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def num_image_tokens(self, shape: LatentShape) -> int:
        """Image tokens of a clip."""
        frames, height, width = shape
        return (
            (frames // self.patch_size_t) * (height // self.patch_size) * (width // self.patch_size)
        )

    def num_tokens(self, shape: LatentShape) -> int:
        """Text and image tokens of a clip."""
        return self.max_text_seq_length + self.num_image_tokens(shape)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, apart by what bounds their speed."""

    linear: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> Flops:
        return Flops(times * self.linear, times * self.attention)


@dataclass(frozen=True)
class Work:
    """Calls of the transformer, their rows, those of the largest, and their operations.

    `injected` says whether rows of some call attend to reference rows, `by_others` how many of the
    operations other ranks do while the busiest is at work.
    """

    calls: int = 0
    rows: int = 0
    max_rows: int = 0
    injected: bool = False
    flops: Flops = Flops()
    by_others: Flops = Flops()

    @property
    def busiest(self) -> Flops:
        """Operations of the busiest rank, after which it is done."""
        return self.flops + self.by_others * -1

    def __add__(self, other: Work) -> Work:
        return Work(
            self.calls + other.calls,
            self.rows + other.rows,
            max(self.max_rows, other.max_rows),
            self.injected or other.injected,
            self.flops + other.flops,
            self.by_others + other.by_others,
        )

    def __mul__(self, times: int) -> Work:
        if times == 0:
            return Work()
        calls, rows, flops = times * self.calls, times * self.rows, self.flops * times
        return Work(calls, rows, self.max_rows, self.injected, flops, self.by_others * times)


def latent_shape(latents: Tensor) -> LatentShape:
    """Return the shape of latents [B, F, C, H, W] as costs take it."""
    _, frames, _, height, width = latents.shape
    return frames, height, width


def window_shape(shape: LatentShape, windows: WindowPlan | None) -> LatentShape:
    """Return what the transformer sees at a time of a clip of this shape."""
    frames, height, width = shape
    return (frames if windows is None else min(frames, windows.length), height, width)


def num_windows(shape: LatentShape, windows: WindowPlan | None, call: int) -> int:
    """Return how many windows a model call has, counted as if they moved at every other call."""
    return 1 if windows is None else len(window_starts(windows, shape[0], moved=bool(call % 2)))


def row_flops(sizes: TransformerSizes, shape: LatentShape) -> Flops:
    """Count one row that attends to itself: L and A."""
    tokens, image = sizes.num_tokens(shape), sizes.num_image_tokens(shape)
    d, text = sizes.width, sizes.max_text_seq_length
    patch = sizes.patch_size**2 * sizes.patch_size_t
    modulation = sizes.time_embed_dim * 2 * 6 * d * sizes.num_layers
    ends = image * patch * (sizes.in_channels + sizes.out_channels) * d
    ends += text * sizes.text_embed_dim * d
    return Flops(
        linear=2.0 * (12 * sizes.num_layers * tokens * d**2 + modulation + ends),
        attention=4.0 * sizes.num_layers * tokens**2 * d,
    )


def call_work(
    plan: RowPlan,
    sizes: TransformerSizes,
    shape: LatentShape,
    *,
    injection: ReconstructSettings | None = None,
    strength: float = 1.0,
) -> Work:
    """Count one call; `injection` says how its edit rows attend to reference rows, if to any.

    `strength` is the injection's in this step.
    """
    row, layers = row_flops(sizes, shape), sizes.num_layers
    # A row that parts from the first in some layer runs from there on.
    runs = len(plan.edits) - sum(plan.parts_in) / layers
    work = Work(1, plan.num_rows, plan.num_rows, flops=row * runs)
    if not plan.references or injection is None:
        return work
    first, end = injection.injection_layers
    end = layers if end is None else end
    if strength > 0:
        share = _injected_share(injection, sizes, shape, strength=strength)
        attending = (len(plan.edits) - len(plan.parts_in)) * (end - first)
        attending += sum(end - 1 - part for part in plan.parts_in)
        extra = row.attention / layers * share * attending
        work += Work(injected=True, flops=Flops(attention=extra))
    reference = row
    if not plan.reference_velocity:
        # Keys and values are 2 of the 12 d^2 of a layer.
        through = (end - 1) / layers
        reference = Flops(row.linear * (through + 2 / 12 / layers), row.attention * through)
    return work + Work(flops=reference * len(plan.references))


def _injected_share(
    injection: ReconstructSettings, sizes: TransformerSizes, shape: LatentShape, *, strength: float
) -> float:
    """Attention to a reference row, as a share of a row's attention to itself."""
    if injection.injection_mode != "concatenate" and strength == 1:
        return 0.0  # the edit's own map is replaced, and need not be made
    image = sizes.num_image_tokens(shape) / sizes.num_tokens(shape)
    if injection.injection_mode == "queries-keys":
        return 1.0
    if injection.injection_mode == "image-queries-keys" or injection.injection_tokens == "image":
        return image
    return 1.0


def inversion_work(
    settings: InvertSettings,
    sizes: TransformerSizes,
    shape: LatentShape,
    windows: WindowPlan | None = None,
    division: Division = ALONE,
) -> Work:
    """Count an inversion; with "auto" iterations, which follow from the residual, at least this."""
    prompts = EditPrompts(1 if settings.prompt else 0, 0, 0, 0)
    plan = plan_rows([prompts], guided=settings.guidance_scale != 1, referenced=False)
    calls = settings.num_levels
    if settings.inverse == "consistent":
        calls = calls * (settings.inversion_iterations or 1) + 1
    counts = [num_windows(shape, windows, call) for call in range(calls)]
    seen = window_shape(shape, windows)
    return division.of(plan, call_work(plan, sizes, seen), counts, sizes, seen)


def edit_steps(
    edits: Sequence[ReconstructSettings],
    inversion: InvertSettings,
    sizes: TransformerSizes,
    shape: LatentShape,
    windows: WindowPlan | None = None,
    division: Division = ALONE,
) -> Iterator[Work]:
    """Count each step of edits that are denoised together, which differ in prompt and seed."""
    settings = edits[0]
    bank = prompt_bank(edits, [inversion.prompt])
    prompts = [edit_prompts(edit, inversion.prompt, bank, source=0) for edit in edits]
    own = replace(prompts[0], conditional=bank.index(inversion.prompt))
    # A window is a share of the steps; where they lie does not matter here.
    schedule = Schedule.of_steps(settings.num_steps(inversion.num_levels))
    guidance_steps = schedule.window(*settings.guidance_steps)
    reused = guidance_reused(settings, schedule)
    guided = guidance_steps - reused if settings.guidance_scale != 1 else ()
    source_guided = guidance_steps if settings.source_guidance_scale != 1 else ()
    strengths = injection_strengths(settings, schedule)
    velocity = needs_reference_velocity(settings)
    seen = window_shape(shape, windows)
    for step in schedule.timesteps:
        plan = plan_rows(
            prompts,
            guided=step in guided,
            referenced=step in strengths,
            reference_velocity=velocity,
        )
        strength = strengths.get(step, 0.0)
        counts = [num_windows(shape, windows, step)]
        call = call_work(plan, sizes, seen, injection=settings, strength=strength)
        work = division.of(plan, call, counts, sizes, seen)
        if settings.method == "flow" and not plan.reference_velocity:
            source = plan_rows([own], guided=step in source_guided, referenced=False)
            call = call_work(source, sizes, seen)
            work += division.of(source, call, counts, sizes, seen)
        yield work


def edit_work(
    edits: Sequence[ReconstructSettings],
    inversion: InvertSettings,
    sizes: TransformerSizes,
    shape: LatentShape,
    windows: WindowPlan | None = None,
    division: Division = ALONE,
) -> Work:
    """Count the edits of one clip that are denoised together, and their automatic masks."""
    work = sum(edit_steps(edits, inversion, sizes, shape, windows, division), Work())
    if edits[0].auto_mask:
        from cogedit.models.auto_mask import mask_levels

        plain = plan_rows([EditPrompts(0, None, 0, 0)], guided=False, referenced=False)
        levels = len(mask_levels(range(inversion.num_levels)))
        counts = [num_windows(shape, windows, call) for call in range(levels)]
        seen = window_shape(shape, windows)
        call = call_work(plain, sizes, seen) * (2 * len(edits))
        work += division.of(plain, call, counts, sizes, seen)
    return work


def activation_bytes(
    sizes: TransformerSizes,
    shape: LatentShape,
    work: Work,
    *,
    max_rows: int | None = None,
    item_size: int,
    device: str,
) -> int:
    """Estimate what the largest call of the transformer needs beside its weights.

    The hidden states of all rows, and what a layer holds at once for the rows that run at a time,
    of a clip of this shape, or of one window (`window_shape`).
    On an H200, torch held at most 18 tensors of [rows, S, d] beside them in bf16, 26 where rows
    attend to references, for CogVideoX-5B (1 to 13 rows) and 1.5 (1 and 2 rows) alike: the rotary
    embedding computes in float32, and the joined keys and values are twice as long. `max_rows` of
    a call's rows run at a time; None suits the size of the clip and the type of the device.
    """
    num_tokens, rows = sizes.num_tokens(shape), work.max_rows
    at_a_time = min(rows, rows_at_a_time(max_rows, num_tokens=num_tokens, device=device))
    states = 0 if rows == at_a_time else 2 * rows  # of the patches, and in the first layer its copy
    tensors = states + (26 if work.injected else 18) * at_a_time
    return tensors * num_tokens * sizes.width * item_size


def trajectory_bytes(num_steps: int, shape: LatentShape, *, channels: int) -> int:
    """Size of a trajectory in float32, the clean latents included, without its header."""
    frames, height, width = shape
    return 4 * (num_steps + 1) * frames * channels * height * width


def text_encoder_bytes(num_parameters: int, config: Config, dtype: DType) -> int:
    """Size of T5's weights in host or device memory, by its `config.json`.

    In fp16, whose range the results of the feed-forward layers leave, transformers keeps their last
    matrices (`wo`) in float32: the encoder of T5-XXL takes 11.5 GB and not 9.5.
    """
    size = num_parameters * ITEM_SIZE[dtype]
    if dtype != "fp16":
        return size
    checked = check_config(TextEncoderConfig, config, "text_encoder/config.json")
    # What a file leaves out has transformers' own default.
    layers, d_ff = checked.get("num_layers", 6), checked.get("d_ff", 2048)
    num_wo = layers * d_ff * checked.get("d_model", 512)
    return size + num_wo * (ITEM_SIZE["fp32"] - ITEM_SIZE["fp16"])


def part_bytes(checkpoint: Checkpoint, name: str, dtype: DType) -> int:
    """Size of a part of the model in host memory, where it is loaded whatever `--weights` says."""
    number = checkpoint.num_parameters[name]
    if name == "text_encoder":
        return text_encoder_bytes(number, checkpoint.text_encoder_config, dtype)
    return number * ITEM_SIZE[dtype]


def host_bytes(
    checkpoint: Checkpoint,
    dtype: DType,
    *,
    samples: int,
    pixels: int,
    activations: int = 0,
    vae_activations: int = 0,
) -> int:
    """Estimate the least host memory in which a run fits, beside that of Python and its libraries.

    One part of the model is there at a time; where there is room for more, more is kept.

    Args:
        checkpoint: Says how large the parts are.
        dtype: Of the run.
        samples: Bytes of the latents that an inversion or an edit keeps.
        pixels: Bytes of the clip.
        activations: Of the transformer, where the host is what computes.
        vae_activations: Likewise.
    """
    sizes = {name: part_bytes(checkpoint, name, dtype) for name in checkpoint.num_parameters}
    return max(
        sizes["text_encoder"],
        sizes["transformer"] + activations + samples,
        # The pieces of a clip and the clip that they are joined to.
        sizes["vae"] + vae_activations + 2 * pixels,
    )
